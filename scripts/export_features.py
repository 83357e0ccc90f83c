"""Writes features and labels of a run's data to .npz or Parquet.

python scripts/export_features.py --workdir=runs/x --split=test --out=test.npz
"""

from __future__ import annotations

import sys

from absl import app, flags
from absl import logging as absl_logging

from hjepa_jax import load
from hjepa_jax.errors import UserError
from hjepa_jax.interop.export_features import export_features
from hjepa_jax.runtime import compilation_cache

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_OUT = flags.DEFINE_string("out", None, "File to write, .npz or .parquet.", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "test"], "Split to encode.")
_STATE_PART = flags.DEFINE_enum("state_part", "qp", ["q", "p", "qp"], "Part of the state.")
_ROOT = flags.DEFINE_string("root", None, "Folder of the data, if it has moved.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint step; the latest by default.")
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images per batch.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Loads the run, encodes its data, and writes the features."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    absl_logging.set_verbosity(absl_logging.WARNING)
    compilation_cache.enable()
    try:
        run = load(_WORKDIR.value, step=_STEP.value, batch_size=_BATCH.value)
        found = export_features(
            run, _OUT.value, _SPLIT.value, state_part=_STATE_PART.value, root=_ROOT.value
        )
    except UserError as error:
        sys.exit(f"export_features: {error}")
    count, width = found.features.shape
    print(f"{count} images x {width} features of step {run.step} in {_OUT.value}")


if __name__ == "__main__":
    app.run(main)

"""Write features and labels of a run's data to .npz or Parquet.

hjepa features --workdir=runs/x --split=test --out=test.npz
"""

from __future__ import annotations

import logging

from absl import flags

from hjepa_jax.config.command_line.program import Program

PROGRAM = Program(
    "features",
    __doc__,
    required=("workdir", "out"),
    example="--workdir=runs/x --out=test.npz",
    level=logging.WARNING,
)
_FLAGS = PROGRAM.flags
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=_FLAGS)
_OUT = flags.DEFINE_string("out", None, "File to write, .npz or .parquet.", flag_values=_FLAGS)
_SPLIT = flags.DEFINE_enum(
    "split", "test", ["train", "test"], "Split to encode.", flag_values=_FLAGS
)
_STATE_PART = flags.DEFINE_enum(
    "state_part", "qp", ["q", "p", "qp"], "Part of the state.", flag_values=_FLAGS
)
_ROOT = flags.DEFINE_string(
    "root", None, "Folder of the data, if it has moved.", flag_values=_FLAGS
)
_STEP = flags.DEFINE_integer(
    "step", None, "Checkpoint step; the latest by default.", flag_values=_FLAGS
)
_BATCH = flags.DEFINE_integer(
    "batch_size", 256, "Images per batch.", lower_bound=1, flag_values=_FLAGS
)


def main(argv: list[str]) -> None:
    """Loads the run, encodes its data, and writes the features."""
    del argv
    from hjepa_jax.interop.export_features import export_features
    from hjepa_jax.loading import load_run
    from hjepa_jax.runtime import compilation_cache

    compilation_cache.enable()
    loaded = load_run(str(_WORKDIR.value), step=_STEP.value, batch_size=_BATCH.value)
    found = export_features(
        loaded, str(_OUT.value), _SPLIT.value, state_part=_STATE_PART.value, root=_ROOT.value
    )
    count, width = found.features.shape
    print(f"{count} images x {width} features of step {loaded.step} in {_OUT.value}")


def run() -> None:
    """Entry point of `hjepa features`."""
    PROGRAM.run(main)

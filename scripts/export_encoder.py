"""Writes a run's encoder as a file that runs without this project.

python scripts/export_encoder.py --workdir=runs/x --out=encoder.stablehlo

'.stablehlo' is for JAX (`jax.export.deserialize`) and other readers of StableHLO, '.onnx' for ONNX
runtimes. Images uint8 [N, S, S, 3] in, features float32 [N, D] out.
"""

from __future__ import annotations

import sys

from absl import app, flags
from absl import logging as absl_logging

from hjepa_jax import load
from hjepa_jax.errors import UserError
from hjepa_jax.interop.export_encoder import export_encoder

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_OUT = flags.DEFINE_string("out", None, "File to write, .stablehlo or .onnx.", required=True)
_STATE_PART = flags.DEFINE_enum("state_part", "qp", ["q", "p", "qp"], "Part of the state.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint step; the latest by default.")


def main(argv: list[str]) -> None:
    """Loads the run and writes its encoder."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    absl_logging.set_verbosity(absl_logging.WARNING)
    try:
        run = load(_WORKDIR.value, step=_STEP.value)
        path = export_encoder(run, _OUT.value, state_part=_STATE_PART.value)
    except UserError as error:
        sys.exit(f"export_encoder: {error}")
    size = run.settings.data.image_size
    print(f"encoder of step {run.step} for uint8 images [N, {size}, {size}, 3] in {path}")


if __name__ == "__main__":
    app.run(main)

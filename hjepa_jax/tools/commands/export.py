"""Write a run's encoder as a file that runs without this project.

    hjepa export --workdir=runs/x --out=encoder.stablehlo

'.stablehlo' is for JAX (`jax.export.deserialize`) and other readers of StableHLO, '.onnx' for ONNX
runtimes. Images uint8 [N, S, S, 3] in, features float32 [N, D] out.
"""

from __future__ import annotations

from absl import flags
from absl import logging as absl_logging

from hjepa_jax.config.command_line.program import Program

PROGRAM = Program(
    "export",
    __doc__,
    required=("workdir", "out"),
    example="--workdir=runs/x --out=encoder.stablehlo",
)
_FLAGS = PROGRAM.flags
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=_FLAGS)
_OUT = flags.DEFINE_string("out", None, "File to write, .stablehlo or .onnx.", flag_values=_FLAGS)
_STATE_PART = flags.DEFINE_enum(
    "state_part", "qp", ["q", "p", "qp"], "Part of the state.", flag_values=_FLAGS
)
_STEP = flags.DEFINE_integer(
    "step", None, "Checkpoint step; the latest by default.", flag_values=_FLAGS
)


def main(argv: list[str]) -> None:
    """Loads the run and writes its encoder."""
    del argv
    from hjepa_jax.interop.export_encoder import export_encoder
    from hjepa_jax.loading import load_run

    absl_logging.set_verbosity(absl_logging.WARNING)
    loaded = load_run(str(_WORKDIR.value), step=_STEP.value)
    path = export_encoder(loaded, str(_OUT.value), state_part=_STATE_PART.value)
    size = loaded.settings.data.image_size
    print(f"encoder of step {loaded.step} for uint8 images [N, {size}, {size}, 3] in {path}")


def run() -> None:
    """Entry point of `hjepa export`."""
    PROGRAM.run(main)

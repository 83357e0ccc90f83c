"""Write a run's encoder for use elsewhere: as one file, or as a folder for the Hugging Face hub.

    hjepa export --workdir=runs/x --out=encoder.stablehlo
    hjepa export --workdir=runs/x --out=encoder --license=apache-2.0

'.stablehlo' is for JAX (`jax.export.deserialize`) and other readers of StableHLO, '.onnx' for ONNX
runtimes: images uint8 [N, S, S, 3] in, features float32 [N, D] out. A name without a suffix is a
folder of safetensors, configuration, and model card, which `hjepa_jax.from_pretrained` reads.
"""

from __future__ import annotations

import logging
import pathlib

from absl import flags

from hjepa_jax.config.command_line.program import Program
from hjepa_jax.errors import UserError

PROGRAM = Program(
    "export",
    __doc__,
    required=("workdir", "out"),
    example="--workdir=runs/x --out=encoder.stablehlo",
    level=logging.WARNING,
)
_FLAGS = PROGRAM.flags
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=_FLAGS)
_OUT = flags.DEFINE_string(
    "out", None, "File to write, .stablehlo or .onnx, or folder.", flag_values=_FLAGS
)
_STATE_PART = flags.DEFINE_enum(
    "state_part", "qp", ["q", "p", "qp"], "Part of the state, of a file.", flag_values=_FLAGS
)
_LICENSE = flags.DEFINE_string(
    "license", None, "License named in the card of a folder.", flag_values=_FLAGS
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace the files of an exported folder.", flag_values=_FLAGS
)
_STEP = flags.DEFINE_integer(
    "step", None, "Checkpoint step; the latest by default.", flag_values=_FLAGS
)


def main(argv: list[str]) -> None:
    """Loads the run and writes its encoder.

    Raises:
      UserError: a flag does not apply to the kind of output, or the output cannot be written.
    """
    del argv
    is_folder = not pathlib.Path(str(_OUT.value)).suffix
    if is_folder and _STATE_PART.value != "qp":
        raise UserError(
            "--state_part applies to files, but --out is a folder: use .stablehlo or .onnx."
        )
    if not is_folder and (_LICENSE.value is not None or _OVERWRITE.value):
        raise UserError(
            "--license and --overwrite apply to a folder: remove the suffix from "
            f"--out={_OUT.value}."
        )
    from hjepa_jax.interop.export_encoder import export_encoder
    from hjepa_jax.loading import load_run

    loaded = load_run(str(_WORKDIR.value), step=_STEP.value)
    if is_folder:
        path = loaded.save_pretrained(
            str(_OUT.value), license=_LICENSE.value, overwrite=_OVERWRITE.value
        )
        print(f"encoder of step {loaded.step} in {path}: hjepa_jax.from_pretrained('{path}')")
        return
    path = export_encoder(loaded, str(_OUT.value), state_part=_STATE_PART.value)
    size = loaded.settings.data.image_size
    print(f"encoder of step {loaded.step} for uint8 images [N, {size}, {size}, 3] in {path}")


def run() -> None:
    """Entry point of `hjepa export`."""
    PROGRAM.run(main)

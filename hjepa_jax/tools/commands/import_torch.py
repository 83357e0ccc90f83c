"""Make a run of a checkpoint of the published PyTorch code, or of weights of torchvision or timm.

    hjepa import-torch --checkpoint=last.pth --workdir=runs/imported
    hjepa import-torch --checkpoint=resnet50.safetensors --config=pretrained:resnet50 \
        --workdir=runs/resnet50

A checkpoint of the published code has its configuration; --config describes all other weights.
PyTorch itself is not needed, and nothing in a file is executed. Then evaluate the run: hjepa eval
runs/imported.
"""

from __future__ import annotations

import pathlib

from absl import flags

from hjepa_jax.config.command_line.program import Program
from hjepa_jax.config.flags import define_config
from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import check_writable_folder, local_path

PROGRAM = Program(
    "import-torch",
    __doc__,
    required=("checkpoint", "workdir"),
    example="--checkpoint=last.pth --workdir=runs/imported",
)
_FLAGS = PROGRAM.flags
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "The .pth or .safetensors file.", flag_values=_FLAGS
)
_CONFIG = define_config(
    None, "The encoder and the images of weights of torchvision or timm.", values=_FLAGS
)
_WORKDIR = flags.DEFINE_string("workdir", None, "New folder to write.", flag_values=_FLAGS)


def main(argv: list[str]) -> None:
    """Imports and saves the checkpoint, and prints what was left out."""
    del argv
    workdir = local_path(str(_WORKDIR.value), "--workdir")
    check_writable_folder(workdir, "--workdir", checkpoints=True)
    checkpoint = local_path(str(_CHECKPOINT.value), "--checkpoint")
    if _CONFIG.value is not None:
        _import_weights(checkpoint, workdir)
        return
    if checkpoint.suffix == ".safetensors":
        raise UserError(
            f"--checkpoint={checkpoint} has weights alone: describe them, for example by "
            "--config=pretrained:resnet50."
        )
    from hjepa_jax.interop.torch_import import load_torch, save_imported, translate

    imported = translate(load_torch(checkpoint))
    save_imported(imported, workdir)
    print(imported.settings.to_json())
    for name in imported.ignored:
        print(f"left out: {name}")
    print(f"step {imported.step} written to {workdir}")


def _import_weights(checkpoint: pathlib.Path, workdir: pathlib.Path) -> None:
    """Makes a run of the weights of an encoder."""
    from hjepa_jax.interop.foreign_weights import check_given, load_weights, save_weights, told
    from hjepa_jax.training.automatic.resolved import resolved

    check_given(_CONFIG.value)
    settings = resolved(_CONFIG.value, training=False)
    weights = load_weights(checkpoint, settings)
    save_weights(weights, settings, workdir)
    for line in told(weights, settings):
        print(line)
    print(f"written to {workdir}")


def run() -> None:
    """Entry point of `hjepa import-torch`."""
    PROGRAM.run(main)

"""Convert a checkpoint of the published PyTorch code to a workdir.

    hjepa import-torch --checkpoint=last.pth --workdir=runs/imported

PyTorch itself is not needed. Then evaluate it: hjepa eval runs/imported.
"""

from __future__ import annotations

from absl import flags

from hjepa_jax.config.command_line.program import Program
from hjepa_jax.storage.files import check_writable_folder, local_path

PROGRAM = Program(
    "import-torch",
    __doc__,
    required=("checkpoint", "workdir"),
    example="--checkpoint=last.pth --workdir=runs/imported",
)
_FLAGS = PROGRAM.flags
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The .pth file.", flag_values=_FLAGS)
_WORKDIR = flags.DEFINE_string("workdir", None, "New folder to write.", flag_values=_FLAGS)


def main(argv: list[str]) -> None:
    """Imports and saves the checkpoint, and prints what was left out."""
    del argv
    from hjepa_jax.interop.torch_import import load_torch, save_imported, translate

    workdir = local_path(str(_WORKDIR.value), "--workdir")
    check_writable_folder(workdir, "--workdir", checkpoints=True)
    imported = translate(load_torch(local_path(str(_CHECKPOINT.value), "--checkpoint")))
    save_imported(imported, workdir)
    print(imported.settings.to_json())
    for name in imported.ignored:
        print(f"left out: {name}")
    print(f"step {imported.step} written to {workdir}")


def run() -> None:
    """Entry point of `hjepa import-torch`."""
    PROGRAM.run(main)

"""Converts a checkpoint of the published PyTorch code to a workdir.

    python scripts/import_torch_checkpoint.py --checkpoint=last.pth --workdir=runs/imported

PyTorch itself is not needed. Then evaluate the workdir with `--mode=eval` and the printed
configuration.
"""

from __future__ import annotations

import sys

from absl import app, flags

from hjepa_jax.errors import UserError
from hjepa_jax.interop.torch_import import load_torch, save_imported, translate
from hjepa_jax.storage.files import check_writable_folder, local_path

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The .pth file.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "New folder to write.", required=True)


def main(argv: list[str]) -> None:
    """Imports and saves the checkpoint, and prints what was left out."""
    del argv
    try:
        workdir = local_path(_WORKDIR.value, "--workdir")
        check_writable_folder(workdir, "--workdir", checkpoints=True)
        imported = translate(load_torch(local_path(_CHECKPOINT.value, "--checkpoint")))
        save_imported(imported, workdir)
    except UserError as error:
        sys.exit(f"import_torch_checkpoint: {error}")
    print(imported.settings.to_json())
    for name in imported.ignored:
        print(f"left out: {name}")
    print(f"step {imported.step} written to {workdir}")


if __name__ == "__main__":
    app.run(main)

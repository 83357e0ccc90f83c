"""Pack images into ArrayRecord shards: few large files, random access, checksums, resumable.

    hjepa prepare IMAGES OUT --splits=train,val
    hjepa prepare cifar-100-python.tar.gz OUT --name=cifar100
    hjepa prepare OUT --verify

IMAGES is what `hjepa train --data=IMAGES` takes: a folder of images or of Parquet files, or an
archive of one, which is unpacked into the cache; or with --name a CIFAR archive. Train on the
result with --data=OUT.
"""

from __future__ import annotations

import pathlib

from absl import flags

from hjepa_jax.config import base_config
from hjepa_jax.config.checks import typed
from hjepa_jax.config.command_line.program import Program
from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import check_writable_folder, local_path

PROGRAM = Program(
    "prepare",
    __doc__,
    arguments="IMAGES [OUT]",
    number=(1, 2),
    example="/data/images /data/shards",
)
_FLAGS = PROGRAM.flags
_NAME = flags.DEFINE_enum(
    "name", "folder", ["folder", "cifar10", "cifar100"], "What IMAGES is.", flag_values=_FLAGS
)
_SPLITS = flags.DEFINE_list("splits", ["train", "test"], "Splits to pack.", flag_values=_FLAGS)
_IMAGES_PER_SHARD = flags.DEFINE_integer(
    "images_per_shard", 4096, "Images in a file.", lower_bound=1, flag_values=_FLAGS
)
_VERIFY = flags.DEFINE_boolean(
    "verify", False, "Only check the shards in IMAGES.", flag_values=_FLAGS
)


def pack(root: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the splits of `root`, with a progress bar each."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    from hjepa_jax.data.sources.open import open_source
    from hjepa_jax.data.sources.shard_writer import write_shards

    config = base_config()
    config.data.update(name=_NAME.value, root=str(root), cache_mb=0)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, Remaining()) as progress:
        for split in _SPLITS.value:
            source = open_source(typed(config), split, _SPLITS.value)
            task = progress.add_task(split, total=len(source))

            def advance(images: int, task=task) -> None:
                progress.advance(task, images)

            write_shards(source, split, out, _IMAGES_PER_SHARD.value, advance)
            progress.console.print(f"{split}: {source.description}")


def main(argv: list[str]) -> None:
    """Packs or verifies."""
    images = local_path(argv[1], "IMAGES")
    try:
        if _VERIFY.value:
            _verify(images)
            return
        if len(argv) < 3:
            raise UserError("give the folder for the shards: hjepa prepare IMAGES OUT.")
        out = local_path(argv[2], "OUT")
        check_writable_folder(out, "OUT")
        pack(images, out)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def _verify(folder: pathlib.Path) -> None:
    """Checks the shards of a folder."""
    from hjepa_jax.data.sources import shards

    wrong = shards.verify(folder)
    if wrong:
        raise UserError(f"damaged or missing: {', '.join(wrong)}; delete and prepare them again.")
    print(f"{folder}: every shard has its checksum.")


def run() -> None:
    """Entry point of `hjepa prepare`."""
    PROGRAM.run(main)

"""Packs images into ArrayRecord shards: few large files, random access, checksums, resumable.

    python scripts/prepare_dataset.py IMAGES OUT --splits train val
    python scripts/prepare_dataset.py cifar-100-python.tar.gz OUT --name cifar100
    python scripts/prepare_dataset.py OUT --verify

IMAGES is an image folder (<split>/<class>/<image>), a tar archive of one, Parquet files, or with
--name a CIFAR archive. An archive with links is refused: pack the files themselves. Train on the
result with data.name='folder' and data.root=OUT.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
import tempfile
from collections.abc import Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hjepa_jax.config import base_config
from hjepa_jax.config.checks import typed
from hjepa_jax.data.formats import archives
from hjepa_jax.data.sources import shards, splits
from hjepa_jax.data.sources.open import open_source
from hjepa_jax.data.sources.shard_writer import write_shards
from hjepa_jax.storage.files import check_writable_folder, local_path


@contextlib.contextmanager
def unpacked(path: pathlib.Path, beside: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the folder with the splits: `path` itself, or its unpacked content for an archive."""
    if path.is_dir():
        yield path
        return
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".unpacked-") as temporary:
        root = pathlib.Path(temporary)
        archives.unpack(path, root)
        while [entry.is_dir() for entry in root.iterdir()] == [True]:
            only = next(root.iterdir())
            if any(splits.choose(split, [only.name], str(root)) for split in splits.SPLITS):
                break
            root = only
        yield root


def prepare(options: argparse.Namespace, root: pathlib.Path) -> None:
    """Writes the splits of `root`, with a progress bar each."""
    config = base_config()
    config.data.update(name=options.name, root=str(root), cache_mb=0)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        for split in options.splits:
            source = open_source(typed(config), split, options.splits)
            task = progress.add_task(split, total=len(source))

            def advance(images: int, task=task) -> None:
                progress.advance(task, images)

            write_shards(source, split, options.out, options.images_per_shard, advance)
            progress.console.print(f"{split}: {source.description}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=pathlib.Path, help="what to pack")
    parser.add_argument("out", type=pathlib.Path, nargs="?", help="folder for the shards")
    parser.add_argument("--name", default="folder", choices=("folder", "cifar10", "cifar100"))
    parser.add_argument("--splits", nargs="+", default=["train", "test"])
    parser.add_argument("--images-per-shard", type=int, default=4096)
    parser.add_argument("--verify", action="store_true", help="only check the shards in IMAGES")
    options = parser.parse_args()
    try:
        options.images = local_path(options.images, "IMAGES")
        if options.out is not None:
            options.out = local_path(options.out, "OUT")
            check_writable_folder(options.out, "OUT")
        if options.verify:
            wrong = shards.verify(options.images)
            if wrong:
                sys.exit(f"damaged or missing: {', '.join(wrong)}; delete and prepare them again.")
            print(f"{options.images}: every shard has its checksum.")
        elif options.out is None:
            parser.error("give the folder for the shards")
        elif options.name == "folder":
            with unpacked(options.images, options.out) as root:
                prepare(options, root)
        else:
            prepare(options, options.images)
    except (ValueError, OSError) as error:
        sys.exit(f"prepare_dataset: {error}")


if __name__ == "__main__":
    main()

"""A folder of images, and the shards prepared from it."""

import pathlib

import pytest
from image_files import write_folder

from hjepa_jax.data.sources.folder import open_root
from hjepa_jax.data.sources.shard_writer import write_shards


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    return write_folder(tmp_path / "images", {"train": {"a": 4, "b": 3}, "val": {"a": 1, "b": 1}})


@pytest.fixture
def prepared(folder, tmp_path) -> pathlib.Path:
    """Seven images in shards of four and three."""
    write_shards(open_root(str(folder), "train", 0), "train", tmp_path / "out", 4)
    return tmp_path / "out"

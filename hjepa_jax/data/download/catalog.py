"""The archives that are downloaded by name, and the checksums published for them."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from typing import Literal

_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Checksum:
    """A published checksum; `git` is the SHA-1 by which git names a file's content."""

    kind: Literal["md5", "sha256", "git"]
    digits: str

    def __str__(self) -> str:
        return f"{self.kind} {self.digits}"

    def of(self, path: pathlib.Path) -> Checksum:
        """Returns the checksum of the same kind of a file."""
        # Neither MD5 nor SHA-1 stops a forger of both files, but each finds a damaged one.
        name = "sha1" if self.kind == "git" else self.kind
        hasher = hashlib.new(name, usedforsecurity=False)
        if self.kind == "git":
            hasher.update(f"blob {path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                hasher.update(chunk)
        return Checksum(self.kind, hasher.hexdigest())


@dataclasses.dataclass(frozen=True)
class Archive:
    """A dataset that is published as one tar archive.

    Attributes:
      name: its `config.data.name`, and the folder in the cache that it is unpacked to.
      url: where it is published.
      size: its size in bytes as published, for messages; the checksum decides.
      checksum: published checksum.
      member_bytes: maximum size of a file in it.
    """

    name: str
    url: str
    size: int
    checksum: Checksum
    member_bytes: int

    @property
    def file(self) -> str:
        """The archive's file name."""
        return self.url.rpartition("/")[2]


# Checksums of CIFAR are on its page, the others in the metadata of torchvision.datasets.
CATALOG: dict[str, Archive] = {
    archive.name: archive
    for archive in (
        Archive(
            "cifar10",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            170_498_071,
            Checksum("md5", "c58f30108f718f92721af3b95e74349a"),
            64 << 20,
        ),
        Archive(
            "cifar100",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            169_001_437,
            Checksum("md5", "eb9058c3a382ffc7106e4002c42a8d85"),
            310 << 20,
        ),
        Archive(
            "stl10",
            "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
            2_640_397_119,
            Checksum("md5", "91f7769df0f17e558f3565bffb0c7dfb"),
            3 << 30,
        ),
        Archive(
            "imagenette",
            "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz",
            99_003_388,
            Checksum("md5", "e793b78cc4c9e9a4ccc0c1155377a412"),
            64 << 20,
        ),
    )
}

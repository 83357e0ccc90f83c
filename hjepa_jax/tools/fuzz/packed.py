"""Damage to archives of images, tar and zip, for the target `data`."""

from __future__ import annotations

import gzip
import io
import pathlib
import random
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable

from hjepa_jax.data.formats import archives
from hjepa_jax.errors import UserError
from hjepa_jax.tools.fuzz import samples
from hjepa_jax.tools.fuzz.damage import damage_bytes
from hjepa_jax.tools.fuzz.samples import Sample

_NAMES = ("../x.png", "/x.png", "train/../../x.png", "C:\\x.png", "train/bird/0.png", "a\0b.png")
_NAMES += (f"{'x' * 300}.png", "train/bird/ä.png", "train/bird", "", "train//bird/./x.png")


def tar_headers(
    rng: random.Random, sample: Sample, folder: pathlib.Path
) -> tuple[str, bool | None]:
    """An archive with a false header, before or in place of a member."""
    (name,) = sample.files
    content = sample.files[name]
    plain = bytearray(gzip.decompress(content) if name.endswith(".gz") else content)
    kind = rng.choice((b"x", b"g", b"L", b"K", b"S", b"0", b"1", b"2", b"5", b"6", b"Z"))
    member = tarfile.TarInfo(rng.choice(("x", "data_batch_1", "../../batches.meta", "/meta")))
    member.type, member.linkname = kind, "/dev/zero"
    member.size = rng.choice((0, 1, 511, 2**20, 2**30, 2**33, 2**50))
    header = member.tobuf(tarfile.GNU_FORMAT)
    if rng.random() < 0.3:
        record = rng.choice((b"20 size=99999999999\n", b"11 path=\xff\n", b"99 x=1\n", b"7 a=b"))
        member.size = len(record)
        header = member.tobuf(tarfile.GNU_FORMAT) + record.ljust(512, b"\0")
    place = 512 * rng.randrange(len(plain) // 512) if rng.random() < 0.5 else 0
    plain[place : place + rng.choice((0, 512))] = header
    about = f"a header of type {kind!r} that claims {member.size} bytes at {place}"
    if rng.random() < 0.2:
        plain = bytearray(header) + bytes(rng.choice((1 << 16, 1 << 28)))
        about = f"{about}, then zeros"
    data = gzip.compress(bytes(plain), 1) if name.endswith(".gz") else bytes(plain)
    samples.write({name: data}, folder)
    return about, None


def zip_headers(
    rng: random.Random, sample: Sample, folder: pathlib.Path
) -> tuple[str, bool | None]:
    """A zip archive with one more member that is odd, or with a false entry in its directory."""
    (name,) = sample.files
    buffer = io.BytesIO(sample.files[name])
    member = zipfile.ZipInfo(rng.choice(_NAMES))
    about = f"a member {member.filename[:40]!r}"
    content = b"x"
    kind = rng.choice(("name", "link", "bomb", "size", "method", "flags", "place"))
    if kind == "link":
        member.external_attr, content = 0o120777 << 16, b"/dev/zero"
        about += " that is a link"
    elif kind == "bomb":
        member.compress_type, content = zipfile.ZIP_DEFLATED, bytes(1 << rng.choice((20, 28)))
        about += f" of {len(content)} zeros"
    if kind in ("name", "link", "bomb"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a name twice
            with zipfile.ZipFile(buffer, "a") as archive:
                archive.writestr(member, content)
    data = bytearray(buffer.getvalue())
    # Fields of the last entry of the directory, four bytes each.
    offsets = {"flags": 8, "method": 10, "size": rng.choice((20, 24)), "place": 42}
    if kind in offsets:
        start = data.rindex(b"PK\1\2") + offsets[kind]
        value = rng.choice((0, 1, 99, 2**16, 2**31, 2**32 - 1))
        data[start : start + 4] = struct.pack("<I", value)
        about = f"{kind} is {value}"
    samples.write({name: bytes(data)}, folder)
    return f"zip: {about}", None


def unpacking(
    rng: random.Random, sample: Sample, folder: pathlib.Path
) -> tuple[str, Callable[[], None]]:
    """An archive of images that is unpacked; nothing is written outside."""
    plain = bytearray(samples.tar_file(sample.files, "w"))
    about = "intact"
    for _ in range(rng.randrange(3)):
        member = tarfile.TarInfo(rng.choice(("l", "l/x", "../x", "/tmp/hjepa_jax_fuzz", "train/l")))
        member.type = rng.choice((b"0", b"1", b"2", b"3", b"5", b"6", b"x", b"L"))
        member.linkname = rng.choice(("..", "/", "l", "../outside", "train"))
        place = 512 * rng.randrange(4)
        plain[place:place] = member.tobuf(tarfile.GNU_FORMAT)
        about = f"{member.name} of type {member.type!r} to {member.linkname}"
    data = bytes(plain)
    if rng.random() < 0.3:
        about, data = damage_bytes(rng, data)
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        with gzip.GzipFile(fileobj=buffer, mode="wb") as packed:
            packed.write(data)
        data = buffer.getvalue()
    (folder / "x.tar").write_bytes(data)
    (folder / "outside").write_bytes(b"secret")

    def attempt() -> None:
        out = folder / "out"
        out.mkdir()
        try:
            archives.unpack(folder / "x.tar", out)
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from error
        finally:
            assert {path.name for path in folder.iterdir()} == {"x.tar", "outside", "out"}
            assert (folder / "outside").read_bytes() == b"secret"
            assert not any(path.is_symlink() for path in out.rglob("*")), "a link"

    return f"archive: {about}", attempt

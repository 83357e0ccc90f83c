"""Odd things in the place of a file or folder, for tests of what reads it."""

import os
import pathlib
import shutil

# Nested deeper than Python can recurse.
DEEP = "[" * 100_000


def flip(path: pathlib.Path, position: int) -> None:
    """Flips a bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(bytes(content))


def replace(path: pathlib.Path, kind: str) -> None:
    """Puts another kind of thing in the place of a file or folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    match kind:
        case "file":
            path.write_bytes(b"\x93 no JSON \x00")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "broken link":
            path.symlink_to("nowhere")
        case "device":
            path.symlink_to("/dev/zero")
        case _:
            path.write_text(kind)

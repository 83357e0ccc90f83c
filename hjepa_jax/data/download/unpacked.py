"""Archives of the user's own, unpacked into the cache once for all processes of a machine."""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import shutil

from hjepa_jax.data.decode import MAX_ENCODED_BYTES, extensions
from hjepa_jax.data.download.cache_folder import data_folder, unwritable
from hjepa_jax.data.download.lock import locked
from hjepa_jax.data.formats import archives, zip_archives
from hjepa_jax.errors import DataError, counted
from hjepa_jax.storage.files import printable

_log = logging.getLogger(__name__)

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# What is read besides images: Parquet files, and prepared shards with their notes.
_DATA = (".parquet", ".array_record", ".json", ".csv")


def is_archive(path: pathlib.Path) -> bool:
    """Returns whether a file's name is that of an archive."""
    return path.name.lower().endswith(ENDINGS) and path.is_file()


def unpacked(path: pathlib.Path) -> pathlib.Path:
    """Returns a folder in the cache with the images of an archive, unpacked if it is not there.

    Its name depends on the archive's name, size, and time of change. It appears at once and
    complete; of several processes, one works and the others wait.

    Args:
      path: an archive, see `is_archive`.

    Raises:
      DataError: if the archive is damaged, too large, or hostile, or the cache cannot be written.
    """
    status = path.stat()
    about = f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}"
    digest = hashlib.sha256(about.encode(errors="surrogateescape")).hexdigest()[:12]
    cache = data_folder() / "unpacked"
    folder = cache / f"{_stem(path.name)}-{digest}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / f".{folder.name}.lock", f"{printable(path)} is being unpacked"):
            if not folder.is_dir():
                _unpack(path, folder)
    except ValueError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def _stem(name: str) -> str:
    ending = max((end for end in ENDINGS if name.lower().endswith(end)), key=len)
    return printable(name[: -len(ending)]).replace("\\", "_") or "images"


def _wanted(name: str) -> bool:
    base = os.path.basename(name)
    kind = os.path.splitext(base)[1].lower()
    return not base.startswith(".") and (kind in extensions() or kind in _DATA)


def _unpack(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpacks beside the folder, which then appears complete."""
    _log.info("unpacking %s to %s", printable(path), folder)
    unfinished = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        if zip_archives.is_zip(path):
            others = zip_archives.unpack(path, unfinished, _wanted, MAX_ENCODED_BYTES)
        else:
            others = archives.unpack(path, unfinished, MAX_ENCODED_BYTES, _wanted)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if others:
        _log.info("%s: %s besides images left in it", printable(path), counted(others, "file"))

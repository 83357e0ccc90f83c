"""The folder that downloads are kept in."""

from __future__ import annotations

import os
import pathlib
import shutil

from hjepa_jax.errors import DataError, first_line
from hjepa_jax.storage.files import is_disk_full, local_path, printable

VARIABLE = "HJEPA_DATA"
_DEFAULT = "~/.cache/hjepa_jax/data"


def data_folder() -> pathlib.Path:
    """Returns the folder in the variable HJEPA_DATA, or ~/.cache/hjepa_jax/data.

    Raises:
      UserError: if the variable is not a path, or the home folder is unknown.
    """
    return local_path(os.environ.get(VARIABLE) or _DEFAULT, VARIABLE).absolute()


def too_full(path: pathlib.Path, kept: str = "") -> DataError:
    """Returns the error of a disk without room for a file; `kept` completes its last sentence."""
    folder = next(folder for folder in path.parents if folder.is_dir())
    return DataError(
        f"{printable(path)} does not fit: the disk or a quota is full, or the file size limit is "
        f"reached ({shutil.disk_usage(folder).free} bytes are free). Free disk space, or set "
        f"{VARIABLE} to a folder on another disk, and start the same command again{kept}."
    )


def unwritable(path: pathlib.Path, error: OSError, kept: str = "") -> DataError:
    """Returns the error of a file in the cache that cannot be written; `kept` as in `too_full`."""
    if is_disk_full(error):
        return too_full(path, kept)
    return DataError(
        f"{printable(path)} cannot be written ({error.strerror or first_line(error)}): set "
        f"{VARIABLE} to a folder that you can write to."
    )

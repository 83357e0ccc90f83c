"""Brings an archive of the catalog into the cache, once for all processes of a machine."""

from __future__ import annotations

import logging
import pathlib
import shutil

from hjepa_jax.data.download import consent
from hjepa_jax.data.download.cache_folder import data_folder, unwritable
from hjepa_jax.data.download.catalog import Archive
from hjepa_jax.data.download.display import megabytes
from hjepa_jax.data.download.fetch import Wanted, fetch
from hjepa_jax.data.download.lock import locked
from hjepa_jax.data.formats import archives
from hjepa_jax.errors import DataError
from hjepa_jax.storage.files import printable

_log = logging.getLogger(__name__)


def stored(archive: Archive, *, download: bool) -> pathlib.Path:
    """Returns the folder with the unpacked files of an archive, downloading it if allowed.

    The folder appears at once and complete, so one that exists is used without any request. An
    archive that the user has put into the cache is checked and unpacked, and stays. Of several
    processes, one works and the others wait for its result.

    Args:
      archive: the archive.
      download: whether it may be downloaded without asking at the terminal.

    Raises:
      FileNotFoundError: if it is not there and may not be downloaded.
      DataError: if it cannot be downloaded, checked or unpacked.
    """
    cache = data_folder()
    folder = cache / archive.name
    if folder.is_dir():
        return folder
    wanted = Wanted(archive.url, archive.size, archive.checksum, cache / archive.file)
    if not (download or wanted.place.exists() or consent.may_ask()):
        raise _missing(archive, wanted)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(
            cache / f".{archive.name}.lock", f"{archive.name} is being prepared in {cache}"
        ):
            if not folder.is_dir():
                _bring(archive, wanted, folder, download=download)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def _bring(archive: Archive, wanted: Wanted, folder: pathlib.Path, *, download: bool) -> None:
    """Downloads, checks and unpacks an archive."""
    if wanted.place.exists():
        found = wanted.checksum.of(wanted.place)
        if found != wanted.checksum:
            raise DataError(
                f"{printable(wanted.place)} has the checksum {found} instead of the published "
                f"{wanted.checksum}: delete it, and {wanted.by_hand}."
            )
        _unpack(archive, wanted.place, folder)
        return
    question = f"{archive.name} is not on this machine. {_offer(archive, folder)}?"
    if not download and not consent.agreed(question):
        raise _missing(archive, wanted)
    _log.info("%s: %s", archive.name, _offer(archive, folder))
    fetch(wanted)
    _unpack(archive, wanted.part, folder)
    wanted.discard()


def _unpack(archive: Archive, packed: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpacks an archive beside the folder, which then appears complete."""
    _log.info("%s: unpacking to %s", archive.name, folder)
    unfinished = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        archives.unpack(packed, unfinished, archive.member_bytes)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _offer(archive: Archive, folder: pathlib.Path) -> str:
    return f"Download {megabytes(archive.size)} from {archive.url} to {printable(folder)}"


def _missing(archive: Archive, wanted: Wanted) -> FileNotFoundError:
    return FileNotFoundError(
        f"{archive.name} is not in the cache {printable(wanted.place.parent)}: set "
        f"config.data.download=True to download {megabytes(archive.size)}, or {wanted.by_hand}, or "
        "set config.data.root to where you have it."
    )

"""The Parquet files of a dataset repository of the Hugging Face hub, by its public API.

The listing of files is used, and not the hub's list of addresses of Parquet files, since only the
former has checksums and knows revisions.
"""

from __future__ import annotations

import dataclasses
import http.client
import pathlib
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NotRequired, TypedDict

from hjepa_jax.data.download import connection, consent
from hjepa_jax.data.download.cache_folder import unwritable
from hjepa_jax.data.download.catalog import Checksum
from hjepa_jax.data.download.connection import NoConnectionError
from hjepa_jax.data.download.fetch import Wanted, fetch
from hjepa_jax.data.download.lock import locked
from hjepa_jax.errors import DataError, first_line
from hjepa_jax.storage import schema
from hjepa_jax.storage.files import json_text, printable, write_atomically

ENDPOINT = "https://huggingface.co"
_LISTING = "listing.json"
_MAX_PAGES = 200
_NEXT = re.compile(r'<([^<>]{1,4000})>;\s*rel="next"')
# The last component of a path; nothing else of it becomes the name of a file here.
_FILE_NAME = re.compile(r"\w[\w.+=-]*", re.ASCII)


class HubFile(TypedDict):
    """A file: its path in the repository, size in bytes, and checksum."""

    path: str
    size: int
    kind: Literal["sha256", "git"]
    digits: str


class _Pointer(TypedDict):
    oid: str
    size: int


class _Entry(TypedDict):
    type: str
    path: str
    oid: NotRequired[str]
    size: NotRequired[int]
    lfs: NotRequired[_Pointer | None]


_OID = schema.Text(most=64)
_POINTER: schema.Fields[_Pointer] = schema.Fields({"oid": _OID, "size": schema.Whole(0)})
_ENTRY: schema.Fields[_Entry] = schema.Fields(
    {"type": schema.Text(most=20), "path": schema.Text(most=2000)},
    {"oid": _OID, "size": schema.Whole(0), "lfs": schema.Maybe(_POINTER)},
)
_FILE: schema.Fields[HubFile] = schema.Fields(
    {
        "path": schema.Text(most=2000),
        "size": schema.Whole(0),
        "kind": schema.Text(choices=("sha256", "git")),
        "digits": _OID,
    }
)
# Returns the files that are needed of those listed, by their places in a folder.
Choose = Callable[[list[HubFile]], Mapping[str, HubFile]]


@dataclasses.dataclass(frozen=True)
class Repository:
    """A dataset repository at a revision.

    Attributes:
      endpoint: address of the hub.
      name: 'OWNER/NAME'.
      revision: branch, tag or commit.
    """

    endpoint: str
    name: str
    revision: str

    @property
    def quoted(self) -> str:
        """The revision as one component of a path."""
        return urllib.parse.quote(self.revision, safe="")

    @property
    def listing_url(self) -> str:
        """Where the hub lists all files."""
        return f"{self.endpoint}/api/datasets/{self.name}/tree/{self.quoted}?recursive=true"

    def url(self, path: str) -> str:
        """Returns the address of a file, which redirects to the host that stores it."""
        path = urllib.parse.quote(path)
        return f"{self.endpoint}/datasets/{self.name}/resolve/{self.quoted}/{path}"


def bring(
    repository: Repository, folder: pathlib.Path, choose: Choose, *, download: bool
) -> pathlib.Path:
    """Downloads the chosen files of a repository that are not in its folder of the cache.

    Each file appears at once and complete, so that nothing is requested once all of them are there.
    Of several processes, one works and the others wait for its result.

    Args:
      repository: the repository.
      folder: its folder.
      choose: chooses the files; raises OSError or ValueError if what is needed is not among them.
      download: whether they may be downloaded without asking at the terminal.

    Returns:
      The folder.

    Raises:
      FileNotFoundError: if they are not there and may not be downloaded.
      DataError: if they cannot be downloaded or checked.
      ValueError: if the saved listing is damaged.
    """
    listing = _saved_listing(folder)
    if listing is not None and not _absent(choose(listing), folder):
        return folder
    if not (download or consent.may_ask()):
        raise _missing(repository, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock", f"{repository.name} is being downloaded to {folder}"):
            listing = _saved_listing(folder)
            if listing is None or _absent(choose(listing), folder):
                _download(repository, folder, choose, listing, download=download)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def _download(
    repository: Repository,
    folder: pathlib.Path,
    choose: Choose,
    listing: list[HubFile] | None,
    *,
    download: bool,
) -> None:
    question = (
        f"{repository.name} is not complete in {printable(folder)}. Download its Parquet files "
        f"from {repository.endpoint}?"
    )
    if not download and not consent.agreed(question):
        raise _missing(repository, folder)
    if listing is None:
        listing = _listed(repository)
        chosen = choose(listing)  # before anything is kept of a repository that does not fit
        write_atomically(folder / _LISTING, json_text(listing))
    else:
        chosen = choose(listing)
    for place, file in _absent(chosen, folder).items():
        checksum = Checksum(file["kind"], file["digits"])
        wanted = Wanted(repository.url(file["path"]), file["size"], checksum, folder / place)
        fetch(wanted)
        wanted.part.rename(wanted.place)
        wanted.discard()


def _absent(chosen: Mapping[str, HubFile], folder: pathlib.Path) -> dict[str, HubFile]:
    return {place: file for place, file in chosen.items() if not (folder / place).exists()}


def _saved_listing(folder: pathlib.Path) -> list[HubFile] | None:
    path = folder / _LISTING
    return schema.read_json(path, schema.Items(_FILE)) if path.exists() else None


def _listed(repository: Repository) -> list[HubFile]:
    """Asks the hub for the Parquet files of a repository.

    Raises:
      DataError: if there is no connection, no such repository, or no Parquet file in it.
    """
    try:
        found = [_parquet_file(entry, repository) for entry in _entries(repository)]
    except NoConnectionError as error:
        raise DataError(
            f"{repository.listing_url} cannot be read ({error}): start the same command again when "
            f"there is a connection, or download the Parquet files of {repository.name} on any "
            "machine and set config.data.root to their folder."
        ) from error
    files = [file for file in found if file is not None]
    if not files:
        raise DataError(
            f"The dataset {repository.name} has no Parquet files at its revision "
            f"{repository.revision!r}: append '@refs/convert/parquet' to config.data.name for "
            "those that the hub makes of other formats."
        )
    return files


def _entries(repository: Repository) -> Iterator[_Entry]:
    """Yields what is on the pages of the listing.

    Raises:
      NoConnectionError: if there is no connection, or it breaks.
      DataError: if the hub refuses, or sends something else.
    """
    url = repository.listing_url
    for _ in range(_MAX_PAGES):
        with connection.opened(url) as response:
            following = _NEXT.search(response.headers.get("Link", ""))
            try:
                content = response.read(schema.MAX_JSON_BYTES + 1)
            except (OSError, http.client.HTTPException) as error:
                cause = first_line(error) or type(error).__name__
                raise NoConnectionError(cause) from error
        try:
            yield from schema.parse_json(content, schema.Items(_ENTRY), f"The answer of {url}")
        except ValueError as error:
            raise DataError(f"{error} It is not the API of the Hugging Face hub.") from error
        if following is None:
            return
        url = urllib.parse.urljoin(url, following[1])
    raise DataError(
        f"{repository.listing_url} has more than {_MAX_PAGES} pages: download the Parquet files "
        "yourself, and set config.data.root to their folder."
    )


def _parquet_file(entry: _Entry, repository: Repository) -> HubFile | None:
    """Returns a listed file if it is a Parquet file; None for others.

    Raises:
      DataError: if its name is unusual, or it is listed without a checksum.
    """
    path = entry["path"]
    if entry["type"] != "file" or not path.lower().endswith(".parquet"):
        return None
    if not _FILE_NAME.fullmatch(path.rpartition("/")[2]):
        raise DataError(f"{repository.name} has a Parquet file of an unusual name, {path[:200]!a}.")
    pointer = entry.get("lfs")
    if pointer is not None:
        return HubFile(path=path, size=pointer["size"], kind="sha256", digits=pointer["oid"])
    if "oid" not in entry or "size" not in entry:
        raise DataError(f"{repository.name} lists {path[:200]!a} without a checksum.")
    return HubFile(path=path, size=entry["size"], kind="git", digits=entry["oid"])


def _missing(repository: Repository, folder: pathlib.Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"hf:{repository.name} is not in the cache {printable(folder)}: set "
        f"config.data.download=True to download it from {repository.endpoint} (checked against the "
        "checksums listed there), or download its Parquet files yourself and set config.data.root "
        "to their folder."
    )

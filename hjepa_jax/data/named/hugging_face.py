"""Datasets of the Hugging Face hub that are stored as Parquet files: 'hf:OWNER/NAME'."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

from hjepa_jax.config import Settings
from hjepa_jax.data.download import hub
from hjepa_jax.data.download.cache_folder import data_folder
from hjepa_jax.data.download.hub import HubFile, Repository
from hjepa_jax.data.formats.parquet_tables import pyarrow_module
from hjepa_jax.data.sources import folder, parquet, splits
from hjepa_jax.data.sources.base import DataSet, ImageSource
from hjepa_jax.errors import ConfigError, DataError

_MAIN = "main"
# The configuration of files that are in no folder of their own.
_DEFAULT = "default"
_WORD = r"\w[\w.-]*"
_NAME = re.compile(
    rf"({_WORD}/{_WORD})(?:/({_WORD}(?:/{_WORD})*))?(?:@({_WORD}(?:/{_WORD})*))?", re.A
)


class _Name(NamedTuple):
    """The parts of OWNER/NAME[/CONFIGURATION][@REVISION]."""

    repository: str
    configuration: str | None
    revision: str


class HuggingFace(DataSet):
    """The repository named after 'hf:' in `config.data.name`, or its files in `config.data.root`.

    Attributes:
      endpoint: address of the hub.
    """

    takes_argument = True
    example = "uoft-cs/cifar10"
    endpoint: ClassVar[str] = hub.ENDPOINT

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence if the name is not that of a repository."""
        yield from super().problems(settings)
        argument = settings.data.name.partition(":")[2]
        if argument and _parsed(argument) is None:
            yield _not_a_name(argument)

    def open(self, split: str, siblings: Sequence[str]) -> ImageSource:
        """Opens a split; its files and those of its siblings are downloaded together.

        Raises:
          ImportError: if pyarrow is not installed.
          FileNotFoundError: if the data is missing; the message says how to get it.
          ValueError: if it cannot be downloaded, is damaged, or has no such configuration.
        """
        if self.root is not None:
            return folder.open_root(self.root, split, self.data.cache_mb, siblings)
        pyarrow_module()  # before a download that could not be read
        name = _parsed(self.argument)
        if name is None:
            raise ConfigError(_not_a_name(self.argument))
        repository = Repository(self.endpoint, name.repository, name.revision)
        place = data_folder() / "hf" / name.repository / repository.quoted
        if name.configuration is not None:
            place /= name.configuration

        def choose(listing: list[HubFile]) -> dict[str, HubFile]:
            return _chosen(listing, name, split, siblings)

        hub.bring(repository, place, choose, download=self.data.download)
        return parquet.open_parquet(place, split, siblings)


def _parsed(argument: str) -> _Name | None:
    found = _NAME.fullmatch(argument)
    if found is None or ".." in argument:
        return None
    return _Name(found[1], found[2], found[3] or _MAIN)


def _not_a_name(argument: str) -> str:
    return (
        f"config.data.name is 'hf:{argument[:100]}', which does not name a repository: write "
        "hf:OWNER/NAME, hf:OWNER/NAME/CONFIGURATION, or either with @REVISION, for example "
        f"'hf:{HuggingFace.example}'."
    )


def _configurations(listing: Sequence[HubFile]) -> dict[str, dict[str, list[HubFile]]]:
    """Returns the files by configuration (their folder) and split, in order.

    Repositories hold `[CONFIGURATION/]SPLIT-00000-of-00001.parquet`, also in a folder `data`, and
    what the hub converted `CONFIGURATION/SPLIT/0000.parquet`.
    """
    found: dict[str, dict[str, list[HubFile]]] = {}
    for file in sorted(listing, key=lambda file: file["path"]):
        *parents, name = file["path"].split("/")
        split = parquet.split_of(name)
        if split.isdigit() and parents:
            split = parents.pop()
        configuration = "/".join(parents)
        if configuration in ("", "data"):
            configuration = _DEFAULT
        found.setdefault(configuration, {}).setdefault(split, []).append(file)
    return found


def _chosen(
    listing: Sequence[HubFile], name: _Name, split: str, siblings: Sequence[str]
) -> dict[str, HubFile]:
    """Returns the files of a split and its siblings, by their names in the cache.

    Raises:
      DataError: if there are several configurations and none is named, or no such one.
      FileNotFoundError: if there is no such split.
    """
    configurations, wanted = _configurations(listing), name.configuration
    if wanted is None and len(configurations) == 1:
        wanted = next(iter(configurations))
    if wanted not in configurations:
        raise DataError(
            f"hf:{name.repository} has the configurations {', '.join(configurations)}: append one "
            f"to config.data.name, as in 'hf:{name.repository}/{next(iter(configurations))}'."
        )
    present, files = configurations[wanted], dict[str, HubFile]()
    for member in splits.family(split, siblings):
        parts = splits.choose(member, present, f"hf:{name.repository}")
        if not parts and member == split:
            raise FileNotFoundError(
                f"hf:{name.repository} has no split '{split}'; it has: {', '.join(present)}."
            )
        for part in parts:
            # A dash would end the name of the split.
            stem, count = part.replace("-", "_"), len(present[part])
            for number, file in enumerate(present[part]):
                files[f"{stem}-{number:05d}-of-{count:05d}.parquet"] = file
    return files

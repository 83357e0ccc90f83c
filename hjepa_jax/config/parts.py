"""The tables of methods, regularizers, encoders and sources, and the lookup of a class by name.

A part is a class with `sections` (section name -> frozen dataclass of `field(...)`) and a class
method `problems(settings)` that yields a sentence for each contradiction. It is named by an entry
of its table, or by an import path 'module.path:Class'. Parts are imported on demand, so the
configuration depends on none of them.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar, cast

from hjepa_jax.errors import ConfigError, first_line

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from hjepa_jax.config.settings import Settings

T = TypeVar("T")

METHODS: dict[str, str] = {
    "hjepa": "hjepa_jax.methods.hjepa:HJEPA",
    "lejepa": "hjepa_jax.methods.lejepa:LeJEPA",
    "hamsigreg": "hjepa_jax.methods.hamsigreg:HamSIGReg",
    "vicreg": "hjepa_jax.methods.baselines.vicreg:VICReg",
    "barlow": "hjepa_jax.methods.baselines.barlow:BarlowTwins",
    "visreg": "hjepa_jax.methods.baselines.visreg:VISReg",
}
REGULARIZERS: dict[str, str] = {
    "floors": "hjepa_jax.methods.regularizers.floors:Floors",
    "sigreg": "hjepa_jax.methods.regularizers.sigreg:SIGReg",
    "vicreg": "hjepa_jax.methods.regularizers.vicreg:VarianceCovariance",
    "visreg": "hjepa_jax.methods.regularizers.visreg:MeanScaleShape",
}
ENCODERS: dict[str, str] = {
    "resnet": "hjepa_jax.models.resnet:ResNet",
    "vit": "hjepa_jax.models.vit.encoder:ViT",
    "convnext": "hjepa_jax.models.convnext.encoder:ConvNeXt",
}
SOURCES: dict[str, str] = {
    "digits": "hjepa_jax.data.named.digits:Digits",
    "cifar10": "hjepa_jax.data.named.cifar:Cifar10",
    "cifar100": "hjepa_jax.data.named.cifar:Cifar100",
    "stl10": "hjepa_jax.data.named.stl10:Stl10",
    "imagenette": "hjepa_jax.data.named.imagenette:Imagenette",
    "hf": "hjepa_jax.data.named.hugging_face:HuggingFace",
    "folder": "hjepa_jax.data.sources.folder:Folder",
    "tfds": "hjepa_jax.data.named.tfds:Tfds",
}

# The field that selects a part from each table.
TABLES: dict[str, dict[str, str]] = {
    "method": METHODS,
    "loss.regularizer": REGULARIZERS,
    "model.encoder": ENCODERS,
    "data.name": SOURCES,
}


class Part(Protocol):
    """What the configuration needs of a method, an encoder or an image source."""

    sections: ClassVar[Mapping[str, type]]

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction of the settings."""
        ...


class ModelPart(Part, Protocol):
    """What the configuration also needs of a method or an encoder."""

    @classmethod
    def shrink(cls, config: ConfigDict) -> None:
        """Reduces the part's sections to the size of a smoke test."""
        ...


class MethodPart(ModelPart, Protocol):
    """What the configuration also needs of a method."""

    coordinate_fields: ClassVar[tuple[str, ...]]
    losses: ClassVar[tuple[str, ...]]

    @classmethod
    def trains_predictor(cls, settings: Settings) -> bool:
        """Returns whether it trains a predictor, which can have its own learning rate."""
        ...

    @classmethod
    def unfinished(cls, settings: Settings, epochs: float) -> Iterator[tuple[str, float]]:
        """Yields (field, value) for each schedule that does not end within the epochs."""
        ...


class RegularizerPart(ModelPart, Protocol):
    """What the configuration also needs of a regularizer."""

    fields: ClassVar[tuple[str, ...]]

    @classmethod
    def unfinished(cls, settings: Settings, epochs: float) -> Iterator[tuple[str, float]]:
        """Yields (field, value) for each schedule that does not end within the epochs."""
        ...


def is_import_path(table: Mapping[str, str], name: str) -> bool:
    """Returns whether a name is 'module.path:Class' and not an entry (with or without argument)."""
    return ":" in name and name.partition(":")[0] not in table


def _field(table: Mapping[str, str]) -> str:
    """Returns the dotted name of the field that selects a part from a table."""
    return next(path for path, known in TABLES.items() if known is table)


def load_part(table: Mapping[str, str], name: str) -> type[Part]:
    """Returns the class of a part by name.

    Args:
      table: METHODS, REGULARIZERS, ENCODERS or SOURCES.
      name: an entry, optionally with an argument as in 'tfds:NAME', or 'module.path:Class'; the
        module may be in the current folder.

    Raises:
      ConfigError: if the entry, module or class does not exist, or is not a part.
    """
    field = _field(table)
    path = name if is_import_path(table, name) else table.get(name.partition(":")[0])
    if path is None:
        nearest = difflib.get_close_matches(name, table, 1, 0.0)
        meant = f": did you mean {nearest[0]!r}?" if nearest else "."
        raise ConfigError(
            f"config.{field} is {name[:100]!r}, which is not one of {', '.join(table)}, nor "
            f"'module.path:Class'{meant}"
        )
    module_name, _, class_name = path.partition(":")
    found = getattr(_module(field, name, module_name), class_name, None)
    if not isinstance(found, type):
        raise ConfigError(
            f"config.{field} is {name!r}, but the module {module_name} has no class {class_name!r}."
        )
    for attribute in ("sections", "problems"):
        if not hasattr(found, attribute):
            raise ConfigError(
                f"config.{field} is {name!r}, but {class_name} has no attribute {attribute!r}: "
                "derive it from the base class of its kind."
            )
    return found


def own_fields(part: type) -> tuple[str, ...]:
    """Returns the fields, by dotted name, that a regularizer uses in another part's section."""
    return getattr(part, "fields", ())


def load_subclass(table: Mapping[str, str], name: str, base: type[T], what: str) -> type[T]:
    """Returns the class of a part by name, which must derive from a base class.

    Args:
      table: see `load_part`.
      name: see `load_part`.
      base: the base class.
      what: kind of part, for the message.

    Raises:
      ConfigError: if it does not derive from `base`, or as `load_part`.
    """
    found = load_part(table, name)
    if not issubclass(found, base):
        raise ConfigError(
            f"config.{_field(table)} is {name!r}, which is not a valid {what}: derive it from "
            f"{base.__module__}.{base.__qualname__}."
        )
    return found


def method_part(settings: Settings) -> type[MethodPart]:
    """Returns the class of the settings' method.

    Raises:
      ConfigError: see `load_part`.
    """
    return cast(type[MethodPart], load_part(METHODS, settings.method))


def section_prefixes(table: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Returns the prefixes of a part's fields, such as 'resnet.'.

    Raises:
      ConfigError: see `load_part`.
    """
    return tuple(f"{section}." for section in load_part(table, name).sections)


def _module(field: str, name: str, module: str) -> object:
    """Imports the module of a part; the current folder is searched as by `python -m`."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"config.{field} is {name!r}, but the module {error.name!r} is neither in "
                f"{os.getcwd()} nor installed."
            ) from error
        raise ConfigError(
            f"config.{field} is {name!r}, but importing {module} failed: {first_line(error)}."
        ) from error
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(
            f"config.{field} is {name!r}, but importing {module} failed: "
            f"{type(error).__name__}: {first_line(error)}."
        ) from error

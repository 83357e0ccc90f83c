"""The folder that an encoder is shared as, in the layout of the Hugging Face hub.

    model.safetensors          parameters and batch statistics, named as 'params.head.kernel'
    config.json                architecture, and the configuration of the training
    preprocessor_config.json   resizing, crop and normalization, as other libraries read them
    README.md                  the model card

Nothing in it is executed, and no part of it is pickled.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util
from safetensors import SafetensorError

import hjepa_jax
from hjepa_jax.config import Settings, base_config, may_differ_between_processes
from hjepa_jax.config.checks import typed
from hjepa_jax.config.files import merge
from hjepa_jax.config.parts import ENCODERS, is_import_path, load_part
from hjepa_jax.config.settings import schema_of
from hjepa_jax.errors import CheckpointError, UserError, first_line
from hjepa_jax.models.base import Encoder
from hjepa_jax.runtime.checkpoint_arrays import mismatches, summary
from hjepa_jax.storage.files import (
    check_regular,
    check_writable_folder,
    json_text,
    printable,
    sha256,
    write_atomically,
)
from hjepa_jax.storage.schema import (
    Anything,
    Fields,
    Maybe,
    Table,
    Text,
    Truth,
    Whole,
    read_json,
    require,
)
from hjepa_jax.training.encoding.batch import Parts
from hjepa_jax.training.setup import build_encoder

WEIGHTS, CONFIG = "model.safetensors", "config.json"
PREPROCESSOR, CARD = "preprocessor_config.json", "README.md"
_MODEL_TYPE = "hjepa_jax"
# Bilinear, by Pillow's number.
_BILINEAR = 2


@dataclasses.dataclass(frozen=True)
class Origin:
    """How an encoder came about.

    Attributes:
      settings: configuration of the training as nested JSON values, without paths of the machine.
      step: optimizer steps.
      num_images: number of training images, if known.
      fine_tuned: whether the variables were replaced afterwards.
      imported: name of the file of other software that the weights are from, if they are.
    """

    settings: Mapping[str, Any]
    step: int
    num_images: int | None = None
    fine_tuned: bool = False
    imported: str | None = None

    @classmethod
    def of(
        cls, settings: Settings, step: int, num_images: int | None, imported: str | None = None
    ) -> Origin:
        """Returns the origin of a run's encoder."""
        private = {
            path: row.default
            for path, row in schema_of(settings).rows.items()
            if path == "train.init_from" or may_differ_between_processes(path, settings)
        }
        public = settings.replace(private)
        return cls(json.loads(public.to_json()), step, num_images, imported=imported)

    def values(self) -> dict[str, Any]:
        """Returns the settings by dotted name."""
        return traverse_util.flatten_dict(dict(self.settings), sep=".")


class _Config(TypedDict):
    """The content of `config.json`."""

    model_type: str
    architectures: list[str]
    hjepa_jax_version: str
    hidden_size: int
    image_size: int
    step: int
    num_images: int | None
    fine_tuned: bool
    imported: NotRequired[str | None]
    weights_sha256: str
    training: dict[str, object]


_CONFIG: Fields[_Config] = Fields(
    {
        "step": Whole(0),
        "num_images": Maybe(Whole(1)),
        "fine_tuned": Truth(),
        "weights_sha256": Text(64),
        "training": Table(Anything()),
    },
    {"imported": Maybe(Text())},
)


def check_target(folder: pathlib.Path, *, overwrite: bool) -> None:
    """Checks that an encoder may be written to a folder, and creates it.

    Raises:
      UserError: if it is a run's workdir, has files that would be overwritten, or is not writable.
    """
    if os.path.lexists(folder / "checkpoints"):
        raise UserError(f"{printable(folder)} is a run's workdir: choose another folder.")
    names = (WEIGHTS, CONFIG, PREPROCESSOR, CARD)
    there = [name for name in names if os.path.lexists(folder / name)]
    if there and not overwrite:
        raise UserError(
            f"{printable(folder)} has {' and '.join(there)} already: choose another folder, or "
            "pass overwrite=True to replace the files."
        )
    check_writable_folder(folder, "folder")


def write(
    folder: pathlib.Path, module: Encoder, variables: Parts, origin: Origin, card: str, dim: int
) -> None:
    """Writes an encoder to a folder that `check_target` has accepted.

    Args:
      folder: the folder.
      module: the encoder.
      variables: its {'params', 'batch_stats'}.
      origin: how it came about.
      card: the model card.
      dim: dimension of its states.

    Raises:
      UserError: if the variables are not those of the module, or a file cannot be written.
    """
    leaves = traverse_util.flatten_dict(jax.device_get(variables), sep=".")
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    _check_arrays(arrays, module, origin.settings["data"]["image_size"], "the variables")
    weights = safetensors.numpy.save(arrays, {"format": "flax"})
    data = origin.settings["data"]
    config: _Config = {
        "model_type": _MODEL_TYPE,
        "architectures": [type(module).__name__],
        "hjepa_jax_version": hjepa_jax.__version__,
        "hidden_size": dim,
        "image_size": data["image_size"],
        "step": origin.step,
        "num_images": origin.num_images,
        "fine_tuned": origin.fine_tuned,
        "imported": origin.imported,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "training": dict(origin.settings),
    }
    files = {
        WEIGHTS: weights,
        PREPROCESSOR: json_text(_preprocessor(data)),
        CARD: card,
        # Last: it has the checksum, so an interrupted write is recognized.
        CONFIG: json_text(config),
    }
    for name, content in files.items():
        try:
            write_atomically(folder / name, content)
        except OSError as error:
            raise UserError(f"{printable(folder / name)} cannot be written: {error}.") from error


def _check_arrays(
    arrays: Mapping[str, np.ndarray], module: Encoder, image_size: int, place: str
) -> None:
    """Compares the variables of an encoder, by name, with those that its module has.

    Raises:
      CheckpointError: if they differ in names, shapes or dtypes, or are not finite.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), module.dtype)
    initialize = functools.partial(module.init, train=False)
    fresh = jax.eval_shape(initialize, jax.random.key(0), images)
    wanted = traverse_util.flatten_dict(fresh, sep=".")
    clauses = mismatches(arrays, wanted, place, dtypes=True)
    if clauses:
        raise CheckpointError(f"{summary(clauses)}: they belong to another encoder.")
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise CheckpointError(
            f"{place}: {broken[0]} has numbers that are NaN or infinite; use another checkpoint."
        )


def _preprocessor(data: Mapping[str, Any]) -> dict[str, object]:
    """Returns the content of `preprocessor_config.json` for the section `data`."""
    size = data["image_size"]
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": data["eval_resize"] or size},
        "resample": _BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data["mean"]),
        "image_std": list(data["std"]),
    }


def read(folder: pathlib.Path) -> tuple[Encoder, Parts, Settings, Origin]:
    """Reads an encoder.

    Returns:
      The module, its variables as NumPy arrays, settings whose fields of the encoder and of its
      preprocessing are those of the training, and how it came about.

    Raises:
      CheckpointError: if the folder is missing, not one of ours, damaged, or incomplete.
    """
    config = _read_config(folder)
    try:
        settings = _encoder_settings(config["training"])
    except ValueError as error:
        raise CheckpointError(
            f"{printable(folder / CONFIG)} describes no encoder of hjepa_jax "
            f"{hjepa_jax.__version__}: {first_line(error, 300)}"
        ) from error
    origin = Origin(
        config["training"],
        config["step"],
        config["num_images"],
        config["fine_tuned"],
        config.get("imported"),
    )
    _check_preprocessor(folder, settings)
    module = build_encoder(settings)
    path = folder / WEIGHTS
    arrays = _read_weights(path, config["weights_sha256"])
    _check_arrays(arrays, module, settings.data.image_size, printable(path))
    variables = traverse_util.unflatten_dict(arrays, sep=".")
    return module, {"params": {}, "batch_stats": {}, **variables}, settings, origin


def _read_config(folder: pathlib.Path) -> _Config:
    """Returns the content of `config.json`, which this package must have written."""
    shown = printable(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{shown} is not a folder here: download the model first, for example with "
            "'hf download OWNER/NAME --local-dir FOLDER', and give that folder."
        )
    path = folder / CONFIG
    try:
        kind = read_json(path, Fields(), constants=True).get("model_type")
        if kind == _MODEL_TYPE:
            return read_json(path, _CONFIG)
    except FileNotFoundError:
        raise CheckpointError(
            f"{shown} has no {CONFIG}: from_pretrained reads folders that save_pretrained wrote."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{printable(path)} cannot be read: {first_line(error)}") from error
    if (folder / "checkpoints").is_dir():
        raise CheckpointError(f"{shown} is a run's workdir: use hjepa_jax.load.")
    raise CheckpointError(
        f"{shown} has a model that other software wrote (model_type {kind!r}, not "
        f"{_MODEL_TYPE!r}): from_pretrained reads folders that save_pretrained wrote."
    )


def _encoder_settings(training: Mapping[str, Any]) -> Settings:
    """Returns settings with the encoder and the preprocessing of a training.

    Its method and dataset may be classes that are not here, so nothing else is read.

    Raises:
      ValueError: if a field is missing, unknown or invalid, or contradicts another.
    """
    parts = Fields({"model": Fields({"encoder": Text(200)}), "data": Table(Anything())})
    found = dict(require(training, parts, "it", "training"))
    name = found["model"]["encoder"]
    own = is_import_path(ENCODERS, name)
    if own and name.partition(":")[0] not in sys.modules:
        raise UserError(
            f"its encoder is {name}, a class of your own: import its module first, since no code "
            "that a file names is executed."
        )
    config = base_config(**({"encoder": name} if own else {}))
    wanted = ("model", *load_part(ENCODERS, name).sections)
    data = ("image_size", "mean", "std", "eval_resize")
    values = {section: found[section] for section in wanted if section in found}
    values["data"] = {field: found["data"][field] for field in data if field in found["data"]}
    # What its products are rounded to; folders of earlier versions do not say.
    values |= {"runtime": found["runtime"]} if "runtime" in found else {}
    settings = typed(merge(config, values))
    for sentence in load_part(ENCODERS, name).problems(settings):
        raise UserError(sentence)
    return settings


def _check_preprocessor(folder: pathlib.Path, settings: Settings) -> None:
    """Refuses a `preprocessor_config.json` that contradicts the configuration of the training."""
    path = folder / PREPROCESSOR
    try:
        found = read_json(path, Fields())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{printable(path)} cannot be read: {first_line(error)}") from error
    for key, value in _preprocessor(dataclasses.asdict(settings.data)).items():
        if found.get(key) != value:
            raise CheckpointError(
                f"{printable(path)} has {key} {found.get(key)!r}, but {CONFIG} beside it says "
                f"{value!r}: get both files again from where they came."
            )


def _read_weights(path: pathlib.Path, digest: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file by name."""
    shown = printable(path)
    try:
        check_regular(path, sys.maxsize)
        if sha256(path) != digest:
            raise CheckpointError(
                f"{shown} is damaged, or not the file that {CONFIG} was written with: get it again "
                "from where it came."
            )
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{shown} is missing: get it from where the folder came.") from None
    except (OSError, SafetensorError, LookupError, TypeError) as error:
        raise CheckpointError(f"{shown} cannot be read: {first_line(error)}.") from error

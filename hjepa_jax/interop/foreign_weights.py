"""Makes a run of the weights of a model of torchvision or timm: its encoder, of no steps."""

from __future__ import annotations

import functools
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jaxtyping import PyTree
from ml_collections import ConfigDict
from safetensors import SafetensorError

from hjepa_jax.config import Settings
from hjepa_jax.config.checks import automatic
from hjepa_jax.config.parts import ENCODERS, section_prefixes
from hjepa_jax.errors import ConfigError, DataError, first_line
from hjepa_jax.interop.imported_run import fresh_run, write_run
from hjepa_jax.interop.torch_file import load_torch_file
from hjepa_jax.interop.torch_names import listed, unwrapped
from hjepa_jax.models.base import Encoder
from hjepa_jax.models.foreign import Entry, ForeignNames
from hjepa_jax.storage.files import check_regular, printable
from hjepa_jax.storage.schema import Fields, Items, Number, read_json
from hjepa_jax.training.setup import build_encoder
from hjepa_jax.training.state import TrainState

_Tensors = Mapping[str, np.ndarray]
# What weights are trained with, and so cannot be chosen from images.
_OF_WEIGHTS = ("data.image_size", "data.mean", "data.std", "model.")
# What timm says of its weights.
_CHANNELS = Items(Number(), 3, 3)
_TIMM: Fields[dict[str, dict[str, list[float]]]] = Fields(
    {}, {"pretrained_cfg": Fields({}, {"mean": _CHANNELS, "std": _CHANNELS})}
)
# Errors of safetensors and NumPy for a damaged file, one of unknown numbers, or one too large.
_FAULTS = (
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    SafetensorError,
    TypeError,
    ValueError,
)


class Weights(NamedTuple):
    """An encoder's variables from a file.

    Attributes:
      variables: {'params', 'batch_stats'} of arrays float32, without the encoder's own.
      left_out: the reason for each tensor of the file that is not used.
      own: first names of the encoder's variables that the file does not have.
      file: name of the file.
    """

    variables: dict[str, PyTree[np.ndarray]]
    left_out: dict[str, str]
    own: tuple[str, ...]
    file: str


def check_given(config: ConfigDict) -> None:
    """Checks that a configuration says what the weights are, rather than 'auto'.

    Raises:
      ConfigError: naming the field.
    """
    prefixes = (*_OF_WEIGHTS, *section_prefixes(ENCODERS, config.model.encoder))
    for path in automatic(config):
        if path.startswith(prefixes):
            raise ConfigError(
                f"config.{path} is 'auto', but weights fit one value alone: set that with which "
                "they were trained, or take --config=pretrained."
            )


def check_normalization(path: pathlib.Path, settings: Settings) -> None:
    """Compares the normalization with that in timm's `config.json` beside a file, if there is one.

    Raises:
      ConfigError: if they differ.
      DataError: if the file is damaged.
    """
    try:
        found = read_json(path.with_name("config.json"), _TIMM)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise DataError(f"{first_line(error).rstrip('.')}: get it again, or remove it.") from error
    trained = found.get("pretrained_cfg", {})
    for name in ("mean", "std"):
        here = settings.value(f"data.{name}")
        there = tuple(trained[name]) if name in trained else here
        if there != here:
            raise ConfigError(
                f"config.data.{name} is {here}, but {there} in the config.json beside "
                f"{printable(path)}: set config.data.{name} to what the weights were trained with."
            )


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a .safetensors file, or of a .pth file without executing what is in it.

    Raises:
      DataError: if the file is missing or damaged, or has something other than tensors.
    """
    shown = printable(path)
    try:
        if path.suffix == ".safetensors":
            check_regular(path, sys.maxsize)
            found: object = safetensors.numpy.load_file(path)
        else:
            found = load_torch_file(path)
    except FileNotFoundError:
        raise DataError(f"{shown} does not exist: give the file of the weights.") from None
    except _FAULTS as error:
        reason = first_line(error).rstrip(".")
        raise DataError(f"{shown} cannot be read: {reason}; get it again.") from error
    if not isinstance(found, Mapping) or not found:
        raise DataError(f"{shown} has no tensors: give a state dict of torchvision or timm.")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, np.ndarray):
            raise DataError(
                f"{shown} has the entry {printable(str(name)[:100])!r}, which is not a tensor: "
                "give a state dict of torchvision or timm."
            )
    try:
        return dict(unwrapped(found))
    except ValueError as error:
        raise DataError(f"{shown}: {error}") from error


def translate(encoder: Encoder, image_size: int, tensors: _Tensors, source: str) -> Weights:
    """Translates the tensors of a file to the variables of an encoder.

    Args:
      encoder: the encoder.
      image_size: side of its images in pixels.
      tensors: tensors by name, see `read_tensors`.
      source: name of the file, for messages.

    Raises:
      DataError: naming a tensor that is missing, unknown, of another shape, not of numbers, or not
        finite.
      UserError: if there is no such file for this encoder.
    """
    names = encoder.foreign_names({name: tensor.shape for name, tensor in tensors.items()})
    left_out = _left_out(names, tensors, f"the {type(encoder).__name__} of --config", source)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32)
    initialize = functools.partial(encoder.init, train=False)
    fresh: dict[tuple[str, ...], Any] = dict(
        traverse_util.flatten_dict(jax.eval_shape(initialize, jax.random.key(0), images))
    )
    placed = {
        (entry.collection, *entry.path): _placed(entry, tensors[entry.name], fresh, source)
        for entry in names.entries
    }
    missing = ["/".join(path) for path in fresh if path not in placed and path[1] not in names.own]
    if missing:
        kind = type(encoder).__name__
        raise DataError(f"{kind}.foreign_names names no tensor for {listed(missing)}: add them.")
    collections = traverse_util.unflatten_dict(placed)
    variables = {"params": {}, "batch_stats": {}, **collections}
    return Weights(variables, left_out, names.own, pathlib.Path(source).name)


def _left_out(names: ForeignNames, tensors: _Tensors, what: str, source: str) -> dict[str, str]:
    """Returns the reasons for unused tensors; DataError if one has none, or another is missing."""
    wanted = {entry.name: None for entry in names.entries}
    reasons: dict[str, str] = {}
    for name in sorted(set(tensors) - set(wanted)):
        for pattern, reason in names.left_out.items():
            if re.fullmatch(pattern, name):
                reasons[name] = reason
    faults = {
        "has no tensor": [name for name in wanted if name not in tensors],
        f"has tensors that {what} does not take:": [
            printable(name[:100]) for name in tensors if name not in wanted and name not in reasons
        ],
    }
    if any(faults.values()):
        told = " and ".join(f"{kind} {listed(found)}" for kind, found in faults.items() if found)
        raise DataError(f"{source} {told}: describe in --config the model that the file holds.")
    return reasons


def _placed(
    entry: Entry,
    tensor: np.ndarray,
    fresh: Mapping[tuple[str, ...], jax.ShapeDtypeStruct],
    source: str,
) -> np.ndarray:
    """Returns a variable float32 of a tensor; DataError if it does not fit, or is not finite."""
    wanted = fresh.get((entry.collection, *entry.path))
    if wanted is None:
        raise DataError(f"{source}: there is no variable {'/'.join(entry.path)} for {entry.name}.")
    try:
        value: np.ndarray | None = entry.layout(tensor)
    except (IndexError, ValueError):
        value = None
    if value is None or value.shape != wanted.shape:
        raise DataError(
            f"{source}: the tensor {entry.name} has shape {tensor.shape}, which does not become "
            f"{'/'.join(entry.path)} of shape {wanted.shape}: describe in --config the model that "
            "the file holds."
        )
    # Of kind V are the floating-point numbers that NumPy itself does not have, such as bfloat16.
    if value.dtype.kind not in "fV":
        raise DataError(f"{source}: the tensor {entry.name} has no weights, but {value.dtype}.")
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(value, np.float32)
    if not np.isfinite(numbers).all():
        raise DataError(
            f"{source}: the tensor {entry.name} has numbers that are NaN or infinite in float32: "
            "get the file again."
        )
    return numbers


def load_weights(path: pathlib.Path, settings: Settings) -> Weights:
    """Reads a file of weights for the encoder of a configuration.

    Raises:
      UserError: see `check_normalization`, `read_tensors` and `translate`.
    """
    check_normalization(path, settings)
    encoder = build_encoder(settings)
    return translate(encoder, settings.data.image_size, read_tensors(path), printable(path))


def save_weights(weights: Weights, settings: Settings, workdir: pathlib.Path) -> TrainState:
    """Writes a run of no steps whose encoder has the weights; all else has its initial values.

    Returns:
      The saved state.

    Raises:
      CheckpointError: if the workdir already has checkpoints.
    """
    fresh = fresh_run(settings, workdir)
    params, stats = dict(fresh.params), dict(fresh.batch_stats)
    for trees, name in ((params, "params"), (stats, "batch_stats")):
        if "encoder" in trees:
            trees["encoder"] = _merged(trees["encoder"], weights.variables[name])
    state = fresh.replace(params=params, batch_stats=stats)
    write_run(state, settings, workdir, imported=weights.file)
    return state


def _merged(fresh: PyTree[jax.Array], found: PyTree[np.ndarray]) -> PyTree[jax.Array]:
    """Returns the variables of an encoder, those that were found in place of its own."""
    merged: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(fresh))
    for path, value in traverse_util.flatten_dict(found).items():
        merged[path] = jax.device_put(value, merged[path].sharding)
    return traverse_util.unflatten_dict(merged)


def told(weights: Weights, settings: Settings) -> Sequence[str]:
    """Returns lines on what was left out, what is the encoder's own, and the normalization."""
    reasons: dict[str, list[str]] = {}
    for name, reason in weights.left_out.items():
        reasons.setdefault(reason, []).append(name)
    data = settings.data
    return [
        *(f"left out, {reason}: {listed(names)}" for reason, names in reasons.items()),
        *(f"not in the file, random: {name}" for name in weights.own),
        f"images of {data.image_size} pixels, normalized by mean {data.mean} and std {data.std}",
    ]

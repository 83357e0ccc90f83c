"""Target `torch`: damaged PyTorch checkpoints and safetensors, read without PyTorch.

An attempt is right if every resulting number is one that was stored.
"""

from __future__ import annotations

import functools
import io
import pathlib
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from jaxtyping import PyTree

from hjepa_jax.interop.foreign_weights import read_tensors
from hjepa_jax.interop.foreign_weights import translate as translate_weights
from hjepa_jax.interop.torch_import import load_torch, translate
from hjepa_jax.interop.torch_names import encoder_entries
from hjepa_jax.models.resnet import ResNet, ResNetSection
from hjepa_jax.tools.fuzz.damage import damage_bytes, damage_json, damage_place, odd_value

_CONFIG: dict[str, Any] = {
    "seed": 3,
    "data": {"batch_size": 8, "num_global_views": 2},
    "model": {"encoder_mode": "tokens", "token_layer": "layer2", "token_d_f": 4, "split_qp": True},
    "hjepa": {"steps": 3, "dt": 0.05, "hamiltonian": "separable", "hidden_dim": 6, "depth": 1},
    "loss": {"match": "q", "p_weight": 0.2},
    "regularizer": {"q_logdet_floor": -1.5, "p_logdet_floor": -1.5},
    "train": {"epochs": 30, "lr": 0.001, "grad_clip": 1.0, "precision": "fp32"},
}
_STORAGES = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "i8": "LongStorage"}
# Of the images of an encoder whose weights are damaged.
_SIDE = 16


class _Tensor:
    """An array as torch refers to it; any part may be false."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.storage: Any = _STORAGES[array.dtype.str[1:]]
        self.count: Any = array.size
        self.offset: Any = 0
        self.size: Any = array.shape
        self.stride: Any = tuple(step // array.itemsize for step in array.strides)


def _checkpoint() -> dict[str, Any]:
    """A published checkpoint whose tensors have the right number of dimensions and few numbers."""
    rng = np.random.default_rng(0)

    def tensor(dimensions: int) -> _Tensor:
        return _Tensor(rng.integers(1, 99, (2, 3, 1, 2)[:dimensions]).astype("f4"))

    encoder = {}
    for name, _, path, _ in encoder_entries("tokens", "layer2"):
        kernel = path[-1] == "kernel"
        encoder[name] = tensor(4 if kernel and ".fc" not in name else 1)
    predictor: dict[str, Any] = {"dt": tensor(0)}
    for layer in (0, 2):
        predictor[f"H.residual_V.{layer}.weight"] = tensor(2)
        predictor[f"H.residual_V.{layer}.bias"] = tensor(1)
    return {
        "config": {
            name: dict(fields) if isinstance(fields, dict) else fields
            for name, fields in _CONFIG.items()
        },
        "epoch": 4,
        "global_step": 12,
        "encoder": encoder,
        "projector": {},
        "regularizer": None,
        "predictor": predictor,
    }


def _emit(value: object, storages: dict[str, bytes]) -> bytes:
    """Returns the opcodes that push a value, as torch.save writes them."""
    if isinstance(value, _Tensor):
        key = str(len(storages))
        storages[key] = value.array.tobytes()
        reference = (
            _emit("storage", {})
            + b"ctorch\n"
            + str(value.storage).encode()
            + b"\n"
            + b"".join(_emit(part, {}) for part in (key, "cpu", value.count))
        )
        numbers = b"".join(_emit(part, {}) for part in (value.offset, value.size, value.stride))
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n(("
            + reference
            + b"tQ"
            + numbers
            + b"\x89ccollections\nOrderedDict\n)RtR"
        )
    if isinstance(value, dict):
        inner = [_emit(part, storages) for item in value.items() for part in item]
        return b"}(" + b"".join(inner) + b"u"
    if isinstance(value, (list, tuple)):
        inner = b"(" + b"".join(_emit(part, storages) for part in value)
        return inner + b"t" if isinstance(value, tuple) else b"]" + inner + b"e"
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        size = value.bit_length() // 8 + 1
        return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    text = str(value).encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(text)) + text


def _archive(body: bytes, storages: dict[str, bytes], compression: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("model/data.pkl", body)
        for key, content in storages.items():
            archive.writestr(f"model/data/{key}", content)
        archive.writestr("model/byteorder", "little")
    return buffer.getvalue()


def _damaged_tensor(rng: random.Random, tensor: _Tensor) -> str:
    part = rng.choice(("offset", "size", "stride", "count", "storage"))
    numbers = (0, 1, -1, -99, 7, 2**31, 2**40, -(2**62), 2**63, 0.5, None, "x", True)
    value: Any = rng.choice(numbers)
    if part in ("size", "stride") and rng.random() < 0.8:
        value = tuple(rng.choice(numbers) for _ in range(rng.choice((0, 1, len(tensor.size), 40))))
    if part == "storage":
        value = rng.choice(("DoubleStorage", "BoolStorage", "UntypedStorage", "load", "_C"))
    setattr(tensor, part, value)
    return f"{part} {value}"


def _damaged_entry(rng: random.Random, checkpoint: dict[str, Any]) -> str:
    """Replaces, removes or renames an entry somewhere."""
    outer: dict[Any, Any] = checkpoint
    if rng.random() < 0.8:
        inner = [checkpoint[name] for name in ("encoder", "predictor", "projector")]
        outer = rng.choice([part for part in inner if part])
    key = rng.choice(sorted(outer))
    kind = rng.choice(("value", "missing", "name", "wrapped", "number", "shape"))
    if kind == "value":
        outer[key] = odd_value(rng)
    elif kind == "missing":
        del outer[key]
    elif kind == "name":
        outer[rng.choice((3, None, "", "x" * 9000, "module.a", "\0"))] = outer.pop(key)
    elif kind == "wrapped":
        part = rng.choice(("encoder", "predictor"))
        checkpoint[part] = {f"module.{name}": value for name, value in checkpoint[part].items()}
    elif isinstance(outer[key], _Tensor):
        shape = rng.choice(((), (0,), (1,), (2, 2), (1,) * 6))
        fill = rng.choice((np.nan, np.inf, 7.0)) if kind == "number" else 7.0
        outer[key] = _Tensor(np.full(shape, fill, rng.choice(sorted(_STORAGES)[:3])))
    return f"{kind} of {key}"


def _damaged_config(rng: random.Random, config: dict[str, Any]) -> str:
    """Replaces or removes a section or a field of the published configuration."""
    outer = rng.choice([config, *(inner for inner in config.values() if isinstance(inner, dict))])
    key = rng.choice(sorted(outer))
    if rng.random() < 0.2:
        del outer[key]
        return f"{key} is missing"
    outer[key] = odd_value(rng)
    return f"{key} is {ascii(outer[key])[:60]}"


def _numbers(tree: PyTree) -> set[float]:
    return {float(number) for leaf in jax.tree.leaves(tree) for number in np.ravel(leaf)}


@functools.cache
def _weights() -> tuple[ResNet, dict[str, np.ndarray]]:
    """The smallest ResNet, and a state dict for it."""
    encoder = ResNet(settings=ResNetSection(width=2, stage_blocks=(1, 1, 1, 1), head="pooled"))
    image = jax.ShapeDtypeStruct((1, _SIDE, _SIDE, 3), np.float32)
    fresh = jax.eval_shape(functools.partial(encoder.init, train=False), jax.random.key(0), image)
    rng, tensors = np.random.default_rng(0), {}
    for entry in encoder.foreign_names({}).entries:
        leaf = functools.reduce(lambda tree, key: tree[key], entry.path, fresh[entry.collection])
        shape = leaf.shape
        shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
        tensors[entry.name] = rng.integers(1, 99, shape).astype("f4")
    return encoder, tensors


def _damaged_weights(rng: random.Random, folder: pathlib.Path) -> tuple[str, Callable[[], None]]:
    """Makes a damaged file of the weights of an encoder; arguments and result as in `make`."""
    encoder, intact = _weights()
    tensors = dict(intact)
    kind = rng.choice(("header", "header", "file", "entry", "place"))
    about, key = "intact", rng.choice(sorted(tensors))
    if kind == "entry":
        about = rng.choice(("missing", "another name", "another shape", "another type", "NaN"))
        value = tensors.pop(key)
        if about == "another name":
            tensors[rng.choice(("", "x" * 9000, f"module.{key}", "\0", "fc.weight"))] = value
        elif about != "missing":
            kinds = {"another shape": value.ravel(), "another type": value.astype("i8")}
            tensors[key] = kinds.get(about, np.full_like(value, np.nan))
    content = safetensors.numpy.save(tensors)
    if kind == "file":
        about, content = damage_bytes(rng, content)
    elif kind == "header":
        end = 8 + int.from_bytes(content[:8], "little")
        about, header = damage_json(rng, content[8:end])
        content = struct.pack("<Q", len(header)) + header + content[end:]
    path = folder / "x.safetensors"
    path.write_bytes(content)
    if kind == "place":
        about = damage_place(rng, path)
    stored = _numbers(intact)

    def attempt() -> None:
        found = translate_weights(encoder, _SIDE, read_tensors(path), "x")
        # There are no checksums, and a header says what the bytes mean.
        assert kind in ("file", "header") or _numbers(found.variables) <= stored

    return f"weights, {kind}: {about}", attempt


def make(rng: random.Random, folder: pathlib.Path) -> tuple[str, Callable[[], None]]:
    """Makes a damaged checkpoint below `folder`; see `worker`."""
    if rng.random() < 0.3:
        return _damaged_weights(rng, folder)
    checkpoint = _checkpoint()
    tensors = [*checkpoint["encoder"].values(), *checkpoint["predictor"].values()]
    about = "intact"
    kind = rng.choice(
        ("tensor", "tensor", "entry", "config", "pickle", "pickle", "file", "file", "zip", "place")
    )
    if kind == "tensor":
        about = _damaged_tensor(rng, rng.choice(tensors))
    elif kind == "entry":
        about = _damaged_entry(rng, checkpoint)
    elif kind == "config":
        about = _damaged_config(rng, checkpoint["config"])
    storages: dict[str, bytes] = {}
    body = b"\x80\x02" + _emit(checkpoint, storages) + b"."
    if kind == "pickle":
        about, body = damage_bytes(rng, body)
    content = _archive(body, storages)
    if kind == "file":
        about, content = damage_bytes(rng, content)
    elif kind == "zip":
        about = "a compressed member that claims to be small"
        key = rng.choice(sorted(storages))
        packed = _archive(body, {**storages, key: bytes(1 << 26)}, zipfile.ZIP_DEFLATED)
        claimed = struct.pack("<I", rng.choice((8, 1 << 10, 1 << 31)))
        content = packed.replace(struct.pack("<I", 1 << 26), claimed)
    path = folder / "x.pth"
    path.write_bytes(content)
    if kind == "place":
        about = damage_place(rng, path)
    stored = {float(number) for tensor in tensors for number in tensor.array.ravel()} | {7.0}

    def attempt() -> None:
        imported = translate(load_torch(path))
        found = _numbers((imported.params, imported.batch_stats, imported.spectral))
        # A flipped bit in the pickle may change the type of a tensor, and thereby its numbers.
        assert kind == "pickle" or found <= stored, sorted(found - stored)[:5]

    return f"{kind}: {about}", attempt

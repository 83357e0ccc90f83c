"""Exports the encoder of a run as one file that does not need this package: StableHLO or ONNX.

    encode = jax.export.deserialize(bytearray(open("encoder.stablehlo", "rb").read())).call
    features = encode(images)    # uint8 [N, S, S, 3], any N -> float32 [N, D]

ONNX files are made by jax2onnx (`pip install 'hjepa_jax[onnx]'`), checked with version 0.13 against
onnxruntime. Its max-pooling ignores explicit padding, hence `max_pool_3x3_padded`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.features import select_state_part
from hjepa_jax.interop.export_features import write_whole
from hjepa_jax.loading import LoadedRun
from hjepa_jax.storage.files import check_writable_file, local_path
from hjepa_jax.training.prepare import frozen_encoder

# Platforms that StableHLO is lowered for; no accelerator is needed for lowering.
_Count = TypeVar("_Count")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def encoder_function(
    run: LoadedRun, state_part: str = "qp", *, portable: bool = False
) -> Callable[[jax.Array], jax.Array]:
    """Returns images uint8 [N, S, S, 3] -> features float32 [N, D], with constant weights.

    Args:
      run: result of `hjepa_jax.load`.
      state_part: 'q', 'p' or 'qp'.
      portable: whether to use float32 arithmetic and only operations that all converters support;
        features differ only by the rounding of a bfloat16 encoder.

    Raises:
      ConfigError: an unknown state part, or q or p of an encoder without them.
    """
    split, about = run.encoder.split_qp, run.encoder.preprocessing
    select_state_part(np.zeros((0, 2), np.float32), state_part, split)
    module = run.encoder.module.portable() if portable else run.encoder.module
    variables = jax.device_get(run.encoder.variables)

    def encode(images: jax.Array) -> jax.Array:
        precision = run.encoder.matmul_precision
        states = frozen_encoder(module, about.mean, about.std, precision, variables, images)
        return select_state_part(states, state_part, split)

    return encode


def _image_shape(run: LoadedRun, count: _Count) -> tuple[_Count, int, int, int]:
    size = run.settings.data.image_size
    return count, size, size, 3


def to_stablehlo(run: LoadedRun, state_part: str = "qp") -> bytes:
    """Returns the serialized `jax.export.Exported` of the encoder for any number of images."""
    (count,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct(_image_shape(run, count), jnp.uint8)
    encode = jax.jit(encoder_function(run, state_part))
    return bytes(jax.export.export(encode, platforms=PLATFORMS)(images).serialize())


@dataclasses.dataclass(frozen=True)
class _ImageSpec:
    """Input description for jax2onnx; a name in the shape stands for any size."""

    shape: tuple[str | int, ...]
    dtype: DTypeLike = jnp.uint8


def to_onnx(run: LoadedRun, state_part: str = "qp") -> bytes:
    """Returns the encoder as an ONNX model: input 'images', output 'features'.

    Raises:
      UserError: if jax2onnx is not installed.
    """
    try:
        # Not an import statement: type checkers would judge it by whether it is installed.
        jax2onnx: Any = importlib.import_module("jax2onnx")
    except ImportError as error:
        raise UserError(
            "Writing ONNX files needs jax2onnx: pip install 'hjepa_jax[onnx]', or choose a file "
            "name that ends in .stablehlo."
        ) from error
    model = jax2onnx.to_onnx(
        encoder_function(run, state_part, portable=True),
        [_ImageSpec(_image_shape(run, "n"))],
        model_name="encoder",
        input_names=["images"],
        output_names=["features"],
    )
    return model.SerializeToString()


FORMATS: dict[str, Callable[[LoadedRun, str], bytes]] = {
    ".stablehlo": to_stablehlo,
    ".onnx": to_onnx,
}


def export_encoder(
    run: LoadedRun, out: str | os.PathLike[str], *, state_part: str = "qp"
) -> pathlib.Path:
    """Writes the encoder and `<out>.json`, which describes image preparation and the run.

    Returns:
      The path of the encoder.

    Raises:
      UserError: for an unknown file extension, a missing converter, a state part that the encoder
        does not have, or an unwritable folder.
    """
    path = local_path(out, "out")
    if path.suffix not in FORMATS:
        raise UserError(f"{path} must end in {' or '.join(FORMATS)}, which selects the format.")
    check_writable_file(path, "out")
    content = FORMATS[path.suffix](run, state_part)
    about = {
        "image_size": run.settings.data.image_size,
        "resize_short_side": run.settings.data.eval_resize or run.settings.data.image_size,
        "preparation": "RGB, short side resized, center crop, uint8 [N, size, size, 3]",
        "state_part": state_part,
        "step": run.step,
        "config": json.loads(run.settings.to_json()),
    }
    write_whole(path.with_name(f"{path.name}.json"), lambda file: file.write(_encoded(about)))
    write_whole(path, lambda file: file.write(content))
    return path


def _encoded(about: Mapping[str, object]) -> bytes:
    return (json.dumps(about, indent=2) + "\n").encode()

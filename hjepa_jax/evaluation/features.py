"""Frozen features of a dataset, and the part of the state (q, p or both) that is evaluated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np
import numpy.typing as npt

from hjepa_jax.data.prefetch import WaitTimer
from hjepa_jax.errors import ConfigError, DataError, UserError

# images uint8 [N, S, S, 3] -> features [N, D]; already jitted (and sharded).
Encode: TypeAlias = Callable[[np.ndarray], jax.Array | np.ndarray]
Batch: TypeAlias = Mapping[str, np.ndarray]
_Array = TypeVar("_Array", np.ndarray, jax.Array)
STATE_PARTS = ("q", "p", "qp")


class Features(NamedTuple):
    """Features float32 [N, D] and labels int32 [N] of a dataset, in order, on the host."""

    features: np.ndarray
    labels: np.ndarray


class Extracted(NamedTuple):
    """All that an evaluation takes from one encoder, but what robustness encodes.

    Attributes:
      train, test: states and labels of both sets.
      views: states [M, D] of two augmented views of the same images.
      shared: number of labeled test images that are also training images.
    """

    train: Features
    test: Features
    views: tuple[np.ndarray, np.ndarray]
    shared: int


class DivergedError(UserError):
    """Features are not finite."""


def _to_host(pending: jax.Array | np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Waits for one batch of features and returns the rows of real images, float32."""
    if isinstance(pending, jax.Array) and not (
        pending.is_fully_addressable or pending.is_fully_replicated
    ):
        raise ValueError(
            "encode returned features that are spread over several processes; give its jit "
            "replicated out_shardings, so that every process holds all rows."
        )
    rows = np.asarray(pending, dtype=np.float32)
    if rows.ndim != 2 or len(rows) != len(keep):
        raise ValueError(
            f"encode must return [{len(keep)}, D] for {len(keep)} images, but returned "
            f"shape {rows.shape}."
        )
    return rows[keep]


def _check_finite(features: npt.NDArray[np.float32]) -> None:
    bad = int(np.count_nonzero(~np.isfinite(features).all(axis=1)))
    if bad:
        raise DivergedError(
            f"The features of {bad} of {len(features)} images are not finite: the encoder has "
            "diverged, so there is nothing to evaluate; go back to an earlier checkpoint."
        )


def extract_features(encode: Encode, batches: Iterable[Batch]) -> Features:
    """Encodes a dataset once and gathers the features on the host.

    Each batch is dispatched before the previous one is copied back, so the device does not wait
    for the host.

    Args:
      encode: images uint8 [N, S, S, 3] -> features [N, D], normally jitted.
      batches: dicts of 'image' uint8 [N, S, S, 3], 'label' [N] and 'mask' [N] (False or 0 on
        padding rows, which are dropped; absent = no padding). Equal N means one compilation.

    Returns:
      The features float32 [M, D] and labels int32 [M] of all M real images, in order.

    Raises:
      DataError: no images.
      DivergedError: features that are not finite.
      ValueError: a wrong shape from `encode`.
    """
    rows: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    pending: jax.Array | np.ndarray | None = None
    keep = np.zeros(0, bool)
    for batch in batches:
        current = encode(batch["image"])
        if pending is not None:
            rows.append(_to_host(pending, keep))
        pending = current
        label = np.asarray(batch["label"], np.int32)
        keep = np.asarray(batch["mask"], bool) if "mask" in batch else np.ones(len(label), bool)
        labels.append(label[keep])
    if pending is not None:
        rows.append(_to_host(pending, keep))
    if not sum(map(len, rows)):
        raise DataError("There are no images to evaluate: the data source yielded no batches.")
    features = np.concatenate(rows)
    _check_finite(features)
    return Features(features, np.concatenate(labels))


class Extraction(NamedTuple):
    """How long the features of a set took; a first set includes the encoder's compilation.

    Attributes:
      images: number of images encoded.
      seconds: from the request for the first batch to the last features on the host.
      waited: those of them spent waiting for batches.
    """

    images: int
    seconds: float
    waited: float

    def figures(self) -> dict[str, float]:
        """Returns the entry of `metrics.json`."""
        return {
            "images": self.images,
            "seconds": self.seconds,
            "images_per_second": self.images / self.seconds,
            "data_wait_share": self.waited / self.seconds,
        }


def timed_features(
    encode: Encode,
    batches: Iterable[Batch],
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Features, Extraction]:
    """Returns `extract_features` and the time that it took, by a clock in seconds."""
    timer, start = WaitTimer(clock), clock()
    found = extract_features(encode, timer.measure(batches))
    return found, Extraction(len(found.labels), clock() - start, timer.take())


def encode_images(encode: Encode, images: npt.NDArray[np.uint8], batch_size: int) -> np.ndarray:
    """Encodes an array of images [N, S, S, 3] in equal, padded batches; float32 [N, D]."""

    def batches() -> Iterable[Batch]:
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            pad = batch_size - len(part)
            yield {
                "image": np.pad(part, ((0, pad), (0, 0), (0, 0), (0, 0))),
                "label": np.zeros(batch_size, np.int32),
                "mask": np.arange(batch_size) < len(part),
            }

    return extract_features(encode, batches()).features


def pixels(images: npt.NDArray[np.uint8]) -> np.ndarray:
    """Encodes images [N, S, S, 3] as pixels in [0, 1], averaged over blocks to at most 32 x 32."""
    count, side = images.shape[:2]
    factor = -(-side // 32)
    cut = side // factor * factor
    blocks = np.asarray(images)[:, :cut, :cut].astype(np.float32) / 255.0
    shape = (count, cut // factor, factor, cut // factor, factor, 3)
    return blocks.reshape(shape).mean(axis=(2, 4)).reshape(count, -1)


def state_parts_of(split_qp: bool) -> tuple[str, ...]:
    """Returns the parts of an encoder's state: q, p and qp, or qp alone without a split."""
    return STATE_PARTS if split_qp else ("qp",)


def select_state_part(features: _Array, state_part: str, split_qp: bool) -> _Array:
    """Returns the q half, the p half, or all of states [..., 2d] = [q | p].

    Raises:
      ConfigError: an unknown part, or q or p of a state without halves.
      ValueError: an odd width.
    """
    if state_part not in STATE_PARTS:
        raise ConfigError(
            f"config.evaluation.state_part is {state_part!r}; it must be one of 'q', 'p', 'qp'."
        )
    if state_part == "qp":
        return features
    if not split_qp:
        raise ConfigError(
            f"config.evaluation.state_part is {state_part!r}, but this encoder has no q and p "
            "(config.model.split_qp is False); use config.evaluation.state_part='qp'."
        )
    width = features.shape[-1]
    if width % 2:
        raise ValueError(f"A state [q | p] has an even width, but these features have {width}.")
    half = width // 2
    return features[..., :half] if state_part == "q" else features[..., half:]

"""Corruptions of test images that preserve their class, on the host, seeded by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.errors import ConfigError
from hjepa_jax.evaluation import knn, probe
from hjepa_jax.evaluation.classify import (
    Classification,
    Metrics,
    labeled,
    probe_metrics,
    without_trivial_top5,
)
from hjepa_jax.evaluation.features import Batch, Encode, Features, extract_features

Images = npt.NDArray[np.uint8]
# Gray of ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114])


def _to_uint8(values: np.ndarray) -> Images:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _gray(images: Images, rng: np.random.Generator) -> Images:
    return _to_uint8(np.repeat((images @ _LUMA)[..., None], 3, axis=-1))


def _noise(images: Images, rng: np.random.Generator) -> Images:
    """Gaussian noise of standard deviation 0.08 of the range (severity 1 of ImageNet-C)."""
    return _to_uint8(images + rng.normal(0.0, 0.08 * 255, images.shape))


def _blur(images: Images, rng: np.random.Generator) -> Images:
    """Mean over 3 x 3 pixels, edges repeated."""
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = images.shape[1:3]
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return _to_uint8(np.mean(shifted, axis=0))


def _shift(images: Images, rng: np.random.Generator) -> Images:
    """Shift by up to an eighth of the side in each direction, edges repeated."""
    reach = max(1, images.shape[1] // 8)
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = images.shape[1:3]
    moved = np.empty_like(images)
    for n, (i, j) in enumerate(rng.integers(2 * reach + 1, size=(len(images), 2))):
        moved[n] = padded[n, i : i + height, j : j + width]
    return moved


def _contrast(images: Images, rng: np.random.Generator) -> Images:
    """Half the contrast about the mean of each image."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    return _to_uint8(mean + 0.5 * (images - mean))


def _occlusion(images: Images, rng: np.random.Generator) -> Images:
    """A gray square over a quarter of the side, at a random place."""
    side = max(1, images.shape[1] // 4)
    height, width = images.shape[1:3]
    covered = images.copy()
    rows = rng.integers(height - side + 1, size=len(images))
    columns = rng.integers(width - side + 1, size=len(images))
    for n, (i, j) in enumerate(zip(rows, columns, strict=True)):
        covered[n, i : i + side, j : j + side] = 128
    return covered


CORRUPTIONS: dict[str, Callable[[Images, np.random.Generator], Images]] = {
    "gray": _gray,
    "noise": _noise,
    "blur": _blur,
    "shift": _shift,
    "contrast": _contrast,
    "occlusion": _occlusion,
}


def check_names(names: Iterable[str]) -> None:
    """Raises a ConfigError for an unknown corruption."""
    for name in names:
        if name not in CORRUPTIONS:
            raise ConfigError(
                f"config.evaluation.robustness contains {name!r}; use {', '.join(CORRUPTIONS)}."
            )


def corrupt(images: Images, name: str, rng: np.random.Generator) -> Images:
    """Returns corrupted images uint8 [N, S, S, 3]; ConfigError for an unknown name."""
    check_names((name,))
    return CORRUPTIONS[name](np.asarray(images), rng)


def corrupt_batches(batches: Iterable[Batch], name: str, seed: int) -> Iterator[Batch]:
    """Corrupts the images of every batch; the same seed and batches give the same images."""
    for number, batch in enumerate(batches):
        rng = np.random.default_rng((seed, number))
        yield {**batch, "image": corrupt(batch["image"], name, rng)}


def robustness_metrics(
    encode: Encode,
    select: Callable[[np.ndarray], np.ndarray],
    test_batches: Callable[[], Iterable[Batch]],
    train: Features,
    clean: Classification,
    settings: Evaluation,
    mesh: Mesh | None = None,
) -> Metrics:
    """Tests classifiers that were fit on clean images on corrupted test images.

    Args:
      encode: the encoder.
      select: selects the evaluated part of its features.
      test_batches: the test set.
      train: features (of that part) and labels of clean training images.
      clean: the result of `classify` for them, with accuracies.
      settings: `config.evaluation`; `robustness` names the corruptions.
      mesh: see `nearest_neighbors`.

    Returns:
      For each corruption, `knn` at headline_k (or the largest possible k) and `linear_probe`.
    """
    assert clean.params is not None
    num_classes = clean.params.bias.shape[0]
    train_set, _ = labeled(train, "training", num_classes)
    result: Metrics = {}
    for name in settings.robustness:
        corrupted = corrupt_batches(test_batches(), name, settings.seed)
        found = extract_features(encode, corrupted)
        test_set, _ = labeled(found._replace(features=select(found.features)), "test", num_classes)
        accuracy = knn.knn_accuracy(
            *train_set,
            *test_set,
            ks=(min(settings.headline_k, len(train_set.labels)),),
            num_classes=num_classes,
            block=settings.knn_block,
            reference=settings.reference_evaluation,
            mesh=mesh,
        )
        top1, top5 = probe.probe_accuracy(clean.params, *test_set)
        count = len(test_set.labels)
        result[name] = {
            "knn": without_trivial_top5(accuracy, num_classes),
            "linear_probe": probe_metrics(float(top1), float(top5), num_classes, count),
        }
    return result

"""The provenance of a report: checkpoint, images, settings and versions."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
import numpy.typing as npt

import hjepa_jax
from hjepa_jax.config import Settings, may_differ_between_processes
from hjepa_jax.config.data import Data
from hjepa_jax.data.pipeline import augmented_pairs, eval_batches
from hjepa_jax.data.sources.base import ImageSource, has_label
from hjepa_jax.data.sources.open import open_data_set
from hjepa_jax.evaluation.features import Batch
from hjepa_jax.evaluation.protocol import Sources
from hjepa_jax.evaluation.ready import Sets
from hjepa_jax.storage.checkpoint_meta import DataPosition
from hjepa_jax.storage.files import printable

# Fields of `data` and `evaluation` that do not affect results, or are reported elsewhere.
_OMITTED = ("evaluation.batch_size", "evaluation.knn_block", "evaluation.online_")
_OMITTED += ("data.batch_size", "data.name")
_NAMES_SHOWN, _NAME_LENGTH = 20, 200


class Watched:
    """The batches of a set; every call reads it again and records what was skipped.

    Attributes:
      source: the images.
      images: number of images evaluated; None until the set has been read completely.
      left_out: names of images that could not be decoded, with reasons.
    """

    def __init__(self, data: Data, source: ImageSource, batch_size: int):
        """Takes the section `data`, one of its sets, and the images per batch."""
        self.source = source
        self.images: int | None = None
        self.left_out: tuple[str, ...] = ()
        self._data, self._batch_size = data, batch_size

    def __call__(self) -> Iterator[Batch]:
        """Yields the batches, see `eval_batches`."""
        count = 0
        with eval_batches(self._data, self.source, self._batch_size) as stream:
            for batch in stream:
                count += int(np.count_nonzero(batch["mask"]))
                yield batch
            self.images, self.left_out = count, stream.corrupt_images

    def facts(self, split: str) -> dict[str, object]:
        """Returns the entry of the set in the report."""
        unlabeled = int(np.count_nonzero(~has_label(self.source.labels())))
        names = [printable(name)[:_NAME_LENGTH] for name in self.left_out[:_NAMES_SHOWN]]
        rest = len(self.left_out) - len(names)
        return {
            "split": split,
            "description": self.source.description,
            "listed": len(self.source),
            "evaluated": self.images,
            "left_out": len(self.left_out),
            "corrupt": [*names, *([f"and {rest} more"] if rest else [])],
            "unlabeled": unlabeled,
            "fingerprint": self.source.fingerprint(),
        }


def settings_of(settings: Settings) -> dict[str, object]:
    """Returns the settings that affect an evaluation's results, by dotted name."""
    found: dict[str, object] = {
        name: value
        for name, value in settings.values().items()
        if name.startswith(("data.", "evaluation.", "seed"))
        and not name.startswith(_OMITTED)
        and not may_differ_between_processes(name, settings)
    }
    # Its default is not named, which reports of earlier versions have not either.
    if settings.runtime.matmul_precision != "default":
        found["runtime.matmul_precision"] = settings.runtime.matmul_precision
    return found


def about(
    settings: Settings,
    saved: Settings,
    run: str,
    step: int,
    chosen: str,
    trained: DataPosition,
) -> dict[str, object]:
    """Returns the part of `info` that is known before the images are read.

    Args:
      settings: configuration of the evaluation.
      saved: configuration of the run.
      run: name of the run.
      step: step of the checkpoint.
      chosen: how the checkpoint was chosen: 'latest', 'best' or a step.
      trained: what the checkpoint records about its training data: `num_images`, `fingerprint`.
    """
    how = {
        "latest": "the newest",
        "best": f"the best by {saved.checkpoint.best_metric}, of those kept",
    }
    return {
        "run": run,
        "step": step,
        "checkpoint": how.get(chosen, "as requested"),
        **({"best_by": saved.checkpoint.best_metric} if chosen == "best" else {}),
        "method": saved.method,
        "data": settings.data.name,
        "data_root": settings.data.root,
        **({"trained_on": saved.data.name} if settings.data.name != saved.data.name else {}),
        **{
            name: value
            for name in ("coordinates", "posthoc")
            if (value := getattr(settings.evaluation, name)) not in ("raw", None)
        },
        **(
            {"features": settings.evaluation.features}
            if settings.model.projector != "identity"
            else {}
        ),
        "training_data": {
            name: trained.get(name) for name in ("num_images", "fingerprint") if name in trained
        },
        "version": hjepa_jax.__version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def holdout_notes(
    settings: Settings, saved: Settings, trained: DataPosition, same_listing: bool
) -> list[str]:
    """Returns a sentence if the hold-out may no longer be that of the training.

    Args:
      settings: configuration of the evaluation.
      saved: configuration of the run.
      trained: what the checkpoint records about its training data.
      same_listing: whether the training images here, without the hold-out, are those.
    """
    held, here, there = settings.data.test_holdout, settings.data, saved.data
    elsewhere = (here.name, here.root) != (there.name, there.root)
    if held is None or elsewhere or same_listing or "fingerprint" not in trained:
        return []
    return [
        f"The images or their labels have changed since the training, and with them which {held} "
        "images config.data.test_holdout draws: some test images may have been trained on."
    ]


def about_images(settings: Settings, train: Watched, test: Watched) -> dict[str, object]:
    """Returns the entries of both sets, which must have been read, and the settings."""
    return {
        "train_images": train.facts(settings.data.train_split),
        "test_images": test.facts(settings.data.test_split),
        "settings": settings_of(settings),
    }


def watch(data: Data, sets: Sets, batch_size: int) -> tuple[Watched, Watched]:
    """Returns the training and the test images as `Watched` sets."""
    return Watched(data, sets.train, batch_size), Watched(data, sets.test, batch_size)


def evaluation_sources(settings: Settings, train: Watched, test: Watched) -> Sources:
    """Returns the data of an evaluation, from a configuration and its opened sets."""
    samples, names = settings.evaluation.alignment_samples, train.source.class_names

    def pairs() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        return augmented_pairs(settings.data, test.source, samples, settings.seed)

    return Sources(
        train_batches=train,
        test_batches=test,
        augmented_pairs=pairs,
        num_classes=len(names),
        class_names=names,
        label_maps=open_data_set(settings).label_maps(names),
    )

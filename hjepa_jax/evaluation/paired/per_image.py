"""`answers.npz` in a report: what each classifier answered for every labeled test image.

Comparisons of encoders on the same images are paired by it.
"""

from __future__ import annotations

import io
import pathlib
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hjepa_jax.errors import UserError, first_line
from hjepa_jax.storage.files import read_regular

ANSWERS = "answers.npz"
_MOST_BYTES = 2**30
# Accuracies, as named in `headline`, of kNN, the linear probe, and logistic regression.
CLASSIFIERS: tuple[str, ...] = ("knn", "probe_top1", "logistic_top1")


class Answers(NamedTuple):
    """Answers for M labeled test images.

    Attributes:
      images: index int [M] of each image in the test set.
      labels: their classes, int [M].
      classes: what each classifier answers, int [M], by the name of its accuracy in CLASSIFIERS;
        kNN is that at the headline k.
    """

    images: npt.NDArray[np.integer]
    labels: npt.NDArray[np.integer]
    classes: Mapping[str, npt.NDArray[np.integer]]

    def hits(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Returns whether each answer is right, bool [M], by the name of its accuracy."""
        return {name: answer == self.labels for name, answer in self.classes.items()}


def packed(answers: Mapping[str, Answers]) -> bytes:
    """Returns the content of the file, given the answers by encoder."""
    arrays = {
        f"{encoder}/{name}": np.asarray(values, np.int32)
        for encoder, one in answers.items()
        for name, values in (
            {"images": one.images, "labels": one.labels} | dict(one.classes)
        ).items()
    }
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    return content.getvalue()


def read_answers(report: pathlib.Path, encoder: str = "trained") -> Answers:
    """Reads the answers of one encoder from the folder of a report.

    Raises:
      UserError: if the report has none, as an earlier version wrote it or there is no accuracy, or
        they cannot be read.
    """
    path = report / ANSWERS
    again = "evaluate the run again with 'hjepa eval'"
    if not path.is_file():
        raise UserError(f"{report} has no {ANSWERS}: {again}.")
    try:
        with np.load(io.BytesIO(read_regular(path, _MOST_BYTES)), allow_pickle=False) as arrays:
            images, labels = (arrays[f"{encoder}/{name}"] for name in ("images", "labels"))
            known = [name for name in CLASSIFIERS if f"{encoder}/{name}" in arrays]
            found = Answers(images, labels, {name: arrays[f"{encoder}/{name}"] for name in known})
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): {again}.") from error
    if {a.shape for a in (images, *found.classes.values())} != {(labels.size,)}:
        raise UserError(f"{path} is damaged, as its arrays differ in length: {again}.")
    return found

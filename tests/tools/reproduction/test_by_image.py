"""Differences between methods by image: which rows are compared, and their values."""

import numpy as np

from hjepa_jax.evaluation.paired.per_image import Answers
from hjepa_jax.tools.reproduction.by_image import image_differences


def answers(right: int, *, logistic: bool = False) -> Answers:
    """Answers of which the first are right, among 1000 images."""
    images = np.arange(1000)
    classes = {"knn": np.where(images < right, 1, 0), "probe_top1": np.where(images < 500, 1, 0)}
    classes |= {"logistic_top1": classes["knn"]} if logistic else {}
    return Answers(images, np.ones(1000, int), classes)


def test_hjepa_is_compared_with_every_row_of_its_kind() -> None:
    found = image_differences(
        {
            "hjepa": {0: answers(600), 1: answers(620)},
            "sigreg": {0: answers(500), 1: answers(560), 2: answers(0)},
            "hjepa-tuned": {0: answers(700)},
            "sigreg-tuned": {0: answers(650)},
            "random": {0: answers(200)},
        }
    )
    lines = found.splitlines()
    titles = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    assert titles == [
        "HJEPA − SIGReg (LeJEPA)",
        "HJEPA − random initialization",
        "HJEPA, tuned − SIGReg (LeJEPA), tuned",
        "HJEPA, tuned − HJEPA",
    ]
    # Seeds 0 and 1: (600 - 500 + 620 - 560) / 2000.
    assert lines[2].startswith("| HJEPA − SIGReg (LeJEPA) | 2 | +8.00 [+6.")
    assert "| +0.00 [+0.00, +0.00] |" in lines[2]
    assert "logistic" not in lines[0]


def test_logistic_regression_is_shown_where_all_have_it() -> None:
    rows = {"hjepa": {0: answers(9, logistic=True)}, "sigreg": {0: answers(9, logistic=True)}}
    assert "logistic top-1" in image_differences(rows)
    assert image_differences({"hjepa": {0: answers(9)}}) == ""
    assert image_differences({"hjepa": {0: answers(9)}, "mlp": {1: answers(9)}}) == ""

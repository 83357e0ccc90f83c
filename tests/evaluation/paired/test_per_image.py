"""`answers.npz`: what each classifier answered, as the report's own accuracies say."""

import json
import pathlib

import numpy as np
import pytest

from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.paired.per_image import ANSWERS, Answers, packed, read_answers
from hjepa_jax.evaluation.report import tables
from tests.evaluation.test_protocol import full_evaluation


def test_answers_of_a_report_have_its_accuracies(tmp_path: pathlib.Path) -> None:
    found = full_evaluation()
    folder = tables.write_numbers(tmp_path / "run", found.metrics, found.answers)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(found.answers) == set(metrics["encoders"])
    for encoder, one in metrics["encoders"].items():
        answers = read_answers(folder, encoder)
        ks = one["knn"]["k_values"]
        k = max(k for k in ks if k <= metrics["headline_k"])
        hits = answers.hits()
        assert len(answers.labels) == metrics["num_test_images"]
        assert hits["knn"].mean() == pytest.approx(one["knn"]["top1"][ks.index(k)])
        assert hits["probe_top1"].mean() == pytest.approx(one["linear_probe"]["top1"])
        assert np.all(np.diff(answers.images) > 0)
    # The same evaluation again goes to the same folder.
    assert tables.write_numbers(tmp_path / "run", found.metrics, found.answers) == folder


def test_an_interrupted_report_is_written_again_in_its_place(tmp_path: pathlib.Path) -> None:
    found = full_evaluation()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ANSWERS).write_bytes(packed(found.answers))
    folder = tables.write_numbers(tmp_path / "run", found.metrics, found.answers)
    assert folder == tmp_path / "run"


def test_damaged_answers_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"has no answers\.npz: evaluate the run again"):
        read_answers(tmp_path)
    (tmp_path / ANSWERS).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"answers\.npz cannot be read"):
        read_answers(tmp_path)
    array = np.arange(3)
    (tmp_path / ANSWERS).write_bytes(packed({"trained": Answers(array, array, {"knn": array[:2]})}))
    with pytest.raises(UserError, match="its arrays differ in length"):
        read_answers(tmp_path)
    with pytest.raises(UserError, match=r"answers\.npz cannot be read"):
        read_answers(tmp_path, "random")

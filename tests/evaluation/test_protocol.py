"""The protocol end to end on small real images, and its parts compared with direct calls."""

import functools
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hjepa_jax import console
from hjepa_jax.config.checks import typed
from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.errors import ConfigError
from hjepa_jax.evaluation import (
    classify,
    diagnostics,
    features,
    knn,
    probe,
    protocol,
    robustness,
    validity,
)
from hjepa_jax.evaluation.diagnostics import AlarmKind
from hjepa_jax.evaluation.features import Features
from hjepa_jax.evaluation.probes import logistic
from hjepa_jax.evaluation.report import gallery
from hjepa_jax.evaluation.report.summary import ACCURACIES, differences, headline
from hjepa_jax.recipes import quickstart
from hjepa_jax.training.setup import build_method

_ORDER = np.random.default_rng(1).permutation(192)
_WEIGHTS = np.random.default_rng(0).normal(size=(64, 192)).astype(np.float32)


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    images = (data.images * (255 / 16)).astype(np.uint8)[..., None].repeat(3, axis=-1)
    return images, data.target.astype(np.int32)


def _batches(start: int, stop: int, size: int = 64):
    images, labels = digits()
    for first in range(start, stop, size):
        rows = np.arange(first, first + size)
        yield {
            "image": images[np.minimum(rows, stop - 1)],
            "label": labels[np.minimum(rows, stop - 1)],
            "mask": rows < stop,
        }


def _pairs() -> tuple[np.ndarray, np.ndarray]:
    images = digits()[0][:40]
    return images, np.roll(images, 1, axis=2)


def sources(**changes) -> protocol.Sources:
    given = {
        "train_batches": lambda: _batches(0, 300),
        "test_batches": lambda: _batches(300, 400),
        "augmented_pairs": _pairs,
        "num_classes": 10,
    }
    return protocol.Sources(**(given | changes))


def trained(images) -> np.ndarray:
    """Pixels in another order; as wide as the pixel baseline, so that compilations are shared."""
    return np.asarray(images).reshape(len(images), -1).astype(np.float32)[:, _ORDER]


def random(images) -> np.ndarray:
    return np.tanh(np.asarray(images)[..., 0].reshape(len(images), -1) / 2550 @ _WEIGHTS)


def settings(**changes):
    return Evaluation(**{"probe_epochs": 3, "knn_k": (1, 5, 400), "batch_size": 64} | changes)


@functools.cache
def full_evaluation() -> protocol.Results:
    """An evaluation with all options on, shared by the tests here and of the report."""
    config = settings(
        state_part="qp",
        pixel_baseline=True,
        few_shot=(2,),
        few_shot_trials=2,
        attentive_epochs=2,
        logistic_probe=True,
        logistic_l2=(1e-3, 1e-1),
        robustness=("gray", "shift"),
        spectrum_top=12,
    )
    parity = {"parity": np.arange(10) % 2}
    return protocol.run_protocol(
        {"trained": trained, "random": random},
        sources(label_maps=parity),
        config,
        split_qp=True,
        info={"step": 7},
        tokens={"trained": rows_of_pixels, "random": rows_of_pixels},
    )


def rows_of_pixels(images) -> np.ndarray:
    """The rows of an image as tokens [N, 8, 24]."""
    return np.asarray(images).reshape(len(images), 8, -1).astype(np.float32)


def test_metrics_have_the_documented_fields_and_are_json() -> None:
    metrics = full_evaluation().metrics
    assert metrics["schema_version"] == protocol.SCHEMA_VERSION
    assert metrics["info"] == {"step": 7}
    assert list(metrics["encoders"]) == ["trained", "random", "pixels"]
    one = metrics["encoders"]["trained"]
    assert one["state_part"] == "qp"
    assert one["feature_dim"] == 192
    assert one["knn"]["k_values"] == [1, 5, 20]
    accuracies = {"top1", "top1_interval", "top5", "top5_interval"}
    assert set(one["knn"]) == {"k_values", *accuracies}
    assert set(one["linear_probe"]) == {*accuracies, "lr", "train_loss"}
    assert set(one["knn_weighted"]) == {"temperature", "k_values", *accuracies}
    fitted = {"l2", "train_loss", "gradient_norm", "iterations", "l2_values", "holdout_top1"}
    assert set(one["logistic"]) == accuracies | fitted
    assert set(one["attentive"]) == accuracies | {"train_loss", "tokens", "channels"}
    assert (one["attentive"]["tokens"], one["attentive"]["channels"]) == (8, 24)
    assert "attentive" not in metrics["encoders"]["pixels"]
    assert metrics["num_test_images"] == 100
    for found in (
        one["linear_probe"],
        one["few_shot"]["2"],
        one["state_parts"]["q"]["linear_probe"],
    ):
        assert found["top1_interval"] == validity.wilson(found["top1"], 100)
    measured = one["diagnostics"]
    assert set(measured) == {
        "covariance_spectrum_topq",
        "cosine_similarity",
        "feature_norms",
        "alignment_uniformity",
        "cka_q_p",
    }
    assert len(measured["covariance_spectrum_topq"]["eigenvalues"]) == 12
    assert set(one["state_parts"]) == {"q", "p", "qp"}
    assert set(one["coarse"]) == {"parity"}
    assert set(one["robustness"]) == {"gray", "shift"}
    assert one["few_shot"]["2"]["trials"] == 2
    pixels = metrics["encoders"]["pixels"]
    assert list(metrics["feature_extraction"]) == ["trained", "random", "pixels"]
    for took in metrics["feature_extraction"].values():
        assert {split: found["images"] for split, found in took.items()} == {
            "train": 300,
            "test": 100,
        }
        for found in took.values():
            assert found["images_per_second"] == found["images"] / found["seconds"]
            assert 0 < found["data_wait_share"] < 1
    assert pixels["state_part"] == "qp"
    assert "state_parts" not in pixels
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def _neighbors(z, labels):
    indices, similarities = knn.nearest_neighbors(z[:300], z[300:400], 20)
    return labels[:300][indices], similarities


def test_metrics_equal_those_of_direct_calls() -> None:
    one = full_evaluation().metrics["encoders"]["trained"]
    images, labels = digits()
    z = trained(images)
    direct = knn.knn_accuracy(
        z[:300], labels[:300], z[300:400], labels[300:400], ks=(1, 5, 20), num_classes=10
    )
    assert one["knn"] == direct
    for name, part in (("q", z[:, :96]), ("p", z[:, 96:])):
        train, test = (part[:300], labels[:300]), (part[300:400], labels[300:400])
        expected = probe.linear_probe(train, test, 10, Evaluation(probe_epochs=3))
        assert one["state_parts"][name]["linear_probe"]["top1"] == expected.top1
    again, _ = knn.weighted_vote(
        *_neighbors(z, labels), labels[300:400], ks=(1, 5, 20), num_classes=10, temperature=0.07
    )
    assert one["knn_weighted"] == {"temperature": 0.07, **again}
    penalties = Evaluation(logistic_l2=(1e-3, 1e-1))
    sets = (z[:300], labels[:300]), (z[300:400], labels[300:400])
    fitted = logistic.logistic_probe(*sets, 10, penalties)
    assert one["logistic"]["top1"] == fitted.top1 > 0.8
    assert one["logistic"]["l2"] == fitted.l2
    assert one["logistic"]["holdout_top1"] == list(fitted.validation)
    names = ("knn", "knn_weighted", "linear_probe", "logistic")
    assert one["state_parts"]["qp"] == {name: one[name] for name in names}
    norms = np.linalg.norm(z[300:400], axis=1)
    assert one["diagnostics"]["feature_norms"]["p50"] == pytest.approx(np.median(norms))
    # Digits are gray already, so this corruption changes nothing.
    assert one["robustness"]["gray"]["knn"]["top1"][0] == one["knn"]["top1"][2]
    assert one["robustness"]["gray"]["linear_probe"]["top1"] == one["linear_probe"]["top1"]
    assert one["robustness"]["shift"]["knn"]["top1"][0] < one["knn"]["top1"][2]
    # With two classes, top-5 accuracy is always 1.
    assert one["coarse"]["parity"]["knn"]["top5"] == [None] * 3
    assert one["coarse"]["parity"]["linear_probe"]["top5"] is None
    assert one["coarse"]["parity"]["linear_probe"]["top1"] > 0.5


def test_the_parts_of_an_evaluation_are_named_with_their_times(monkeypatch, capsys) -> None:
    monkeypatch.setattr(console, "_WORTH_SECONDS", 0.0)
    monkeypatch.setattr(console, "_TICK_SECONDS", 1000.0)
    protocol.run_protocol({"trained": trained}, sources(), settings(), split_qp=False)
    told = [re.sub(r": \d+ s$", "", line) for line in capsys.readouterr().err.splitlines()]
    assert told == [
        "training features of the trained encoder",
        "test features of the trained encoder",
        "nearest neighbors",
        "linear probe",
        "spectra and diagnostics",
    ]


def test_the_chosen_state_part_is_evaluated() -> None:
    config = settings(state_part="q", all_state_parts=False)
    metrics = protocol.run_protocol({"only": trained}, sources(), config, split_qp=True).metrics
    one, every = metrics["encoders"]["only"], full_evaluation().metrics["encoders"]["trained"]
    assert one["state_part"] == "q"
    assert one["feature_dim"] == 96
    assert one["knn"] == every["state_parts"]["q"]["knn"]
    assert one["linear_probe"] == every["state_parts"]["q"]["linear_probe"]
    assert one["diagnostics"]["cka_q_p"] == every["diagnostics"]["cka_q_p"]
    assert one["diagnostics"]["feature_norms"] != every["diagnostics"]["feature_norms"]
    assert "state_parts" not in one


def test_differences_are_trained_minus_random() -> None:
    metrics = full_evaluation().metrics
    first, second = (headline(metrics["encoders"][n], 20) for n in ("trained", "random"))
    for name, value in metrics["trained_minus_random"].items():
        assert value == first[name] - second[name]
    assert first["knn"] == metrics["encoders"]["trained"]["knn"]["top1"][2]
    assert first["knn_first"] == metrics["encoders"]["trained"]["knn"]["top1"][0]
    assert first["knn_weighted"] == metrics["encoders"]["trained"]["knn_weighted"]["top1"][2]
    assert first["logistic_top1"] == metrics["encoders"]["trained"]["logistic"]["top1"]
    assert {"knn_weighted", "logistic_top1"} <= metrics["trained_minus_random"].keys()


def test_differences_of_accuracies_on_few_images_are_left_out() -> None:
    encoders = full_evaluation().metrics["encoders"]
    enough, few = (differences(encoders, 20, count) for count in (50, 49))
    assert {name for name in few if few[name] != enough[name]} == {
        name for name in ACCURACIES if enough.get(name) is not None
    }
    assert few["knn"] is None
    assert isinstance(enough["knn"], float)


def test_pictures_get_the_images_their_indices_name() -> None:
    inputs = full_evaluation().pictures
    images, labels = digits()
    for query in inputs.queries.tolist():
        image, label = inputs.test_images[query]
        np.testing.assert_array_equal(image, images[300 + query])
        assert label == labels[300 + query]
    for one in inputs.encoders.values():
        for index in one.neighbors.ravel().tolist():
            np.testing.assert_array_equal(inputs.train_images[index][0], images[index])
    assert len({inputs.test_images[q][1] for q in inputs.queries.tolist()}) == gallery.NUM_QUERIES


def test_without_split_the_whole_state_is_evaluated() -> None:
    metrics = protocol.run_protocol({"only": random}, sources(), settings(), split_qp=False).metrics
    one = metrics["encoders"]["only"]
    assert one["state_part"] == "qp"
    assert one["feature_dim"] == 192
    assert "state_parts" not in one
    assert "cka_q_p" not in one["diagnostics"]
    assert metrics["trained_minus_random"] == {}


def test_invalid_input_is_an_error() -> None:
    with pytest.raises(ValueError, match="no encoder to evaluate"):
        protocol.run_protocol({}, sources(), settings(), split_qp=False)
    with pytest.raises(ValueError, match="labels go from 0 to 9, but with 5 classes"):
        protocol.run_protocol({"x": random}, sources(num_classes=5), settings(), split_qp=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"few_shot": (5, 10_000)}, "few_shot asks for 10000 training images per class"),
        ({"robustness": ("fog",)}, "'fog'; use gray"),
    ],
)
def test_bad_settings_are_rejected_before_any_computation(
    changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "classify", lambda *_: pytest.fail("worked"))
    with pytest.raises(ConfigError, match=words):
        protocol.run_protocol({"x": random}, sources(), settings(**changes), split_qp=False)


def test_few_shot_draws_are_balanced_and_seeded() -> None:
    labels = digits()[1][:300]
    rows = classify.few_shot_rows(labels, 3, 10, (0, 1))
    assert np.bincount(labels[rows]).tolist() == [3] * 10
    assert len(set(rows.tolist())) == 30
    np.testing.assert_array_equal(rows, classify.few_shot_rows(labels, 3, 10, (0, 1)))
    assert set(rows.tolist()) != set(classify.few_shot_rows(labels, 3, 10, (0, 2)).tolist())
    with pytest.raises(ValueError, match="class 0 has only 0"):
        classify.few_shot_rows(np.array([1, 1]), 1, 2, (0, 0))


def test_few_shot_probe_improves_with_more_images() -> None:
    images, labels = digits()
    z = trained(images)
    train, test = Features(z[:300], labels[:300]), Features(z[300:400], labels[300:400])
    config = settings(few_shot_trials=3)
    two, ten = (classify.few_shot_probe(train, test, 10, n, config) for n in (2, 10))
    assert 0.2 < two["top1"] < ten["top1"]
    assert two["top1_std"] > 0


def test_pixels_are_block_means() -> None:
    images = np.random.default_rng(1).integers(256, size=(2, 64, 64, 3)).astype(np.uint8)
    found = features.pixels(images).reshape(2, 32, 32, 3)
    np.testing.assert_allclose(found[1, 3, 5], images[1, 6:8, 10:12].mean((0, 1)) / 255, rtol=1e-5)
    assert protocol.pixels(images[:, :8, :8]).shape == (2, 192)
    assert protocol.pixels(np.zeros((1, 224, 224, 3), np.uint8)).shape == (1, 3072)


@pytest.mark.parametrize("name", list(robustness.CORRUPTIONS))
def test_corruptions_are_seeded_and_keep_shape_and_labels(name: str) -> None:
    images = np.random.default_rng(2).integers(256, size=(5, 16, 16, 3)).astype(np.uint8)
    batch = {"image": images, "label": np.arange(5), "mask": np.ones(5, bool)}
    (first,), (again,) = (list(robustness.corrupt_batches([batch], name, 3)) for _ in range(2))
    np.testing.assert_array_equal(first["image"], again["image"])
    np.testing.assert_array_equal(first["label"], batch["label"])
    assert first["image"].shape == images.shape
    assert first["image"].dtype == np.uint8
    assert np.any(first["image"] != images)
    assert np.abs(first["image"].astype(int) - images.astype(int)).max() <= 255


def test_an_unknown_corruption_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'fog'; use gray, noise"):
        list(robustness.corrupt_batches([{"image": np.zeros((1, 8, 8, 3))}], "fog", 0))


def test_collecting_images_closes_the_stream_and_skips_padding() -> None:
    closed = []

    def stream():
        try:
            for start in (0, 3, 6):
                ids = np.arange(start, start + 3)
                image = ids[:, None, None, None] * np.ones((1, 2, 2, 3))
                yield {"image": image, "label": ids, "mask": np.array([True, False, True])}
        finally:
            closed.append(True)

    # Positions 0, 1, 2 are images 0, 2 and 3.
    found = gallery.collect_images(stream(), [2, 1])
    assert {k: label for k, (_, label) in found.items()} == {1: 2, 2: 3}
    assert closed == [True]


def test_there_are_no_alarms_for_a_healthy_state() -> None:
    well = {"q_pr": 0.3, "p_pr": 0.3, "q_std_min": 0.2, "p_std_min": 0.2, "q2": 1.1, "p2": 0.9}
    assert diagnostics.collapse_alarms(well) == []
    assert diagnostics.collapse_alarms({"total": 3.0, "lr": 0.1}) == []


@pytest.mark.parametrize(
    ("field", "value", "kind", "words"),
    [
        ("q_pr", 0.01, AlarmKind.FEW_DIRECTIONS, "position q varies in few directions"),
        ("p_pr", 0.01, AlarmKind.FEW_DIRECTIONS, "momentum p varies in few directions"),
        ("p_std_min", 1e-4, AlarmKind.FLAT_DIMENSION, "of the momentum p hardly varies"),
        ("z_std_min", 1e-4, AlarmKind.FLAT_DIMENSION, "of the state z hardly varies"),
        ("q2", 0.1, AlarmKind.BELOW_BUDGET, "0.1, less than 1/4 of its budget 1"),
        ("p2", 9.0, AlarmKind.ABOVE_BUDGET, "9, more than 4 times its budget 1"),
        ("total", math.nan, AlarmKind.NOT_FINITE, "Not finite: total. Training has diverged"),
        ("q2", math.inf, AlarmKind.NOT_FINITE, "Not finite: q2"),
        (
            "p_mean_share",
            0.995,
            AlarmKind.ONE_POINT,
            "momentum p has nearly collapsed to a point: 99.50 %",
        ),
        ("pred", 1e6, AlarmKind.PREDICTION_ERROR, "1e+06, but the mean square of the state is 1"),
    ],
)
def test_each_alarm_says_what_is_wrong(field, value, kind, words) -> None:
    (alarm,) = diagnostics.collapse_alarms({"q_pr": 0.5, "p2": 1.0, field: value})
    assert alarm.kind is kind
    assert words in alarm.sentence()


def test_every_kind_of_alarm_is_raised_and_has_its_own_sentence() -> None:
    bad = {"total": math.nan, "pred": 1e9, "q2": 9.0, "p2": 0.1}
    bad |= {"q_pr": 0.0, "q_std_min": 0.0, "q_mean_share": 1.0}
    found = diagnostics.collapse_alarms(bad)
    assert {alarm.kind for alarm in found} == set(AlarmKind)
    assert not any(re.search(r"nan|[{}]", alarm.sentence()) for alarm in found)


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"pred": 6e8, "q2": 1.0, "p2": 1.0}, True),
        ({"pred": 5.0, "q2": 1e-4, "p2": 0.3e-3}, True),  # the state is small, not the error
        ({"pred": 900.0, "q2": 0.5, "p2": 1.0}, False),
        ({"pred": 6e8, "q2": 1.0, "p2": 3e6}, False),  # the state itself has diverged
        ({"pred": 6e8}, False),
        ({"pred": math.inf, "q2": 1.0, "p2": 1.0}, False),  # not finite, which has its own alarm
    ],
)
def test_a_huge_prediction_error_raises_an_alarm(metrics, told) -> None:
    remedy = build_method(typed(quickstart.get_config("smoke")), 4).remedy
    found = [
        a.sentence()
        for a in diagnostics.collapse_alarms(metrics, remedy=remedy)
        if a.kind is AlarmKind.PREDICTION_ERROR
    ]
    assert len(found) == told
    assert all("dynamics.dt" in sentence and "base_coeff" in sentence for sentence in found)


def test_alarms_follow_the_given_budget() -> None:
    assert diagnostics.collapse_alarms({"q2": 9.0}, targets={"q": 9.0, "p": 1.0}) == []
    assert len(diagnostics.collapse_alarms({"q2": 1.0}, targets={"q": 9.0, "p": 1.0})) == 1
    assert diagnostics.collapse_alarms({"z2": 9.0, "q2": 1.0}, targets={"q": 1.0}) == []

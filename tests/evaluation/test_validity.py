"""Notes on meaningless accuracies: sets, labels, collapse, constant predictions."""

import copy
import dataclasses
import io
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from pages import parse
from reports import write_report
from rich.console import Console

from hjepa_jax.config.checks import typed
from hjepa_jax.errors import DataError
from hjepa_jax.evaluation import (
    diagnostics,
    geometry,
    knn,
    probe,
    protocol,
    validity,
)
from hjepa_jax.evaluation.classify import (
    classify,
    coarse_metrics,
    few_shot_probe,
    few_shot_rows,
    labeled,
)
from hjepa_jax.evaluation.diagnostics import AlarmKind
from hjepa_jax.evaluation.features import Features
from hjepa_jax.evaluation.report import figures, summary, tables
from hjepa_jax.evaluation.run_page.page import evaluation_page
from hjepa_jax.recipes import quickstart
from hjepa_jax.training.setup import build_method
from tests.evaluation.test_protocol import _pairs, digits, settings, sources, trained


def batches(rows, labels, size: int = 32):
    """Images of the digits `rows` with these labels, in padded batches."""
    images, labels = digits()[0][rows], np.asarray(labels, np.int32)
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        pad = size - len(images[part])
        yield {
            "image": np.pad(images[part], [(0, pad), (0, 0), (0, 0), (0, 0)]),
            "label": np.pad(labels[part], (0, pad)),
            "mask": np.arange(size) < len(images[part]),
        }


def evaluated(train, test, encoders=None, **changes):
    """The metrics of sets given as (rows, labels)."""
    found = sources(
        train_batches=lambda: batches(*train),
        test_batches=lambda: batches(*test),
        class_names=tuple(f"class {i}" for i in range(10)),
    )
    config = settings(state_part="qp", knn_k=(1, 20), probe_epochs=2, **changes)
    return protocol.run_protocol(encoders or {"trained": trained}, found, config, split_qp=False)


def printed(metrics) -> str:
    console = Console(file=io.StringIO(), width=200)
    tables.print_table(metrics, console)
    return console.file.getvalue()


ROWS, OTHERS = np.arange(80), np.arange(300, 360)


def test_one_class_has_no_accuracy_and_says_why() -> None:
    labels = digits()[1]
    one = np.full(80, 3)
    for train, test, words in (
        ((ROWS, one), (OTHERS, np.full(60, 3)), "training images are of one class (class 3)"),
        ((ROWS, labels[ROWS]), (OTHERS, np.full(60, 7)), "test images are of one class (class 7)"),
        ((ROWS, np.full(80, -1)), (OTHERS, labels[OTHERS]), "no training image has a label"),
    ):
        metrics = evaluated(train, test).metrics
        found = metrics["encoders"]["trained"]
        assert words in found["no_accuracy"]
        assert found["knn"]["top1"] == found["knn"]["top5_interval"] == [None, None]
        assert found["linear_probe"]["top1"] is None
        assert any(words in note for note in metrics["notes"])
        for text in (printed(metrics), tables.markdown(metrics)):
            assert words in text
            (row,) = [line for line in text.splitlines() if line.strip(" |").startswith("trained ")]
            assert "100.0" not in row
            assert tables.NOTHING not in row
            assert "kNN@" not in text
        assert np.isnan(summary.headline(found, 20)["knn"])
        json.dumps(metrics, allow_nan=False)


def test_an_evaluation_without_accuracy_is_still_written_and_drawn(tmp_path) -> None:
    found = evaluated((ROWS, np.full(80, 3)), (OTHERS, np.full(60, 3)), robustness=("gray",))
    folder = write_report(tmp_path / "run", found.metrics, found.pictures)
    assert (folder / "neighbors.png").is_file()
    assert "robustness" not in found.metrics["encoders"]["trained"]
    assert found.metrics["encoders"]["trained"]["diagnostics"]["alignment_uniformity"]


def test_data_without_any_class_is_described_and_drawn(tmp_path) -> None:
    none = np.full(80, -1)
    found = sources(
        train_batches=lambda: batches(ROWS, none),
        test_batches=lambda: batches(OTHERS, none[:60]),
        num_classes=0,
    )
    config = settings(state_part="qp", robustness=("gray",))
    evaluation = protocol.run_protocol({"trained": trained}, found, config, split_qp=True)
    assert evaluation.metrics["num_test_images"] == 0
    assert "no training image has a label" in evaluation.metrics["notes"][0]
    folder = write_report(tmp_path / "run", evaluation.metrics, evaluation.pictures)
    drawn = {path.name for path in folder.iterdir()}
    assert {"spectrum.png", "cosine.png", "map.png", "neighbors.png", "report.md"} <= drawn
    assert "knn.png" not in drawn
    text = (folder / "report.md").read_text()
    assert "could not be drawn" not in text
    # One line says why; nothing speaks of accuracies, or has an empty column or table.
    assert text.count("no training image has a label") == text.count("label") == 1
    for word in ("kNN", "probe", "classes", "interval", "Position q", tables.NOTHING):
        assert word not in text, word
    assert "state_parts" not in evaluation.metrics["encoders"]["trained"]
    console = Console(file=io.StringIO(), width=80)
    tables.print_table(evaluation.metrics, console)
    shown = console.file.getvalue()
    assert "RankMe" in shown
    assert "No accuracy: no training image has a label" in shown
    assert not {"kNN", "probe", tables.NOTHING} & set(shown.split())
    captions = [text.get_text() for text in figures.neighbors(evaluation.pictures).axes[0].texts]
    assert set(captions) == {"no label"}
    page = parse(evaluation_page(evaluation.metrics, lambda: evaluation.pictures))
    assert "Nearest neighbors" in page.texts
    assert page.shown.count("no training image has a label") == page.shown.count("label") == 1
    for word in ("kNN", "probe", "classes", "interval", "Position q", "drawn", tables.NOTHING):
        assert word not in page.shown, word


def test_test_images_in_the_training_set_are_counted() -> None:
    labels = digits()[1]
    equal = evaluated((ROWS, labels[ROWS]), (ROWS[::-1], labels[ROWS[::-1]])).metrics
    reason = equal["encoders"]["trained"]["no_accuracy"]
    assert "all 80 test images are also training images" in reason
    assert equal["encoders"]["trained"]["knn"]["top1"] == [None, None]
    # A partial overlap: the accuracies stay, and a note gives the count.
    part = np.concatenate([ROWS[:7], OTHERS])
    metrics = evaluated((ROWS, labels[ROWS]), (part, labels[part])).metrics
    assert "no_accuracy" not in metrics["encoders"]["trained"]
    assert metrics["encoders"]["trained"]["knn"]["top1"][0] > 0.5
    assert any("7 of the 67 test images are also training images" in n for n in metrics["notes"])
    apart = evaluated((ROWS, labels[ROWS]), (OTHERS, labels[OTHERS])).metrics
    assert not any("as well" in note for note in apart["notes"])


def test_an_unlabeled_duplicate_is_not_a_leak() -> None:
    labels = digits()[1][ROWS].copy()
    labels[40:] = -1
    overlap = validity.Overlap()
    for name, given in (("train", labels), ("test", digits()[1][ROWS])):
        for _ in overlap.watch(name, batches(ROWS, given)):
            pass
    assert overlap.shared() == 40
    # A second pass (another encoder) changes nothing.
    list(overlap.watch("test", batches(ROWS, np.full(80, -1))))
    assert overlap.shared() == 40


def test_constant_predictions_are_reported() -> None:
    labels = digits()[1]
    encoders = {"trained": lambda images: np.ones((len(images), 8), np.float32)}
    metrics = evaluated((ROWS, labels[ROWS]), (OTHERS, labels[OTHERS]), encoders).metrics
    notes = " ".join(metrics["notes"])
    assert "trained: kNN@20 predicts one class" in notes
    assert "trained: the linear probe predicts one class" in notes
    assert "nearly collapsed" in notes
    varied = evaluated((ROWS, labels[ROWS]), (OTHERS, labels[OTHERS])).metrics
    assert "predicts one class" not in " ".join(varied["notes"])


def test_the_share_of_the_largest_class_is_reported() -> None:
    assert validity.largest_share([0, 2, 2, 2, -1, -1, -1, -1]) == 0.75
    assert validity.largest_share([-1, -1]) is None
    labels = digits()[1]
    metrics = evaluated((ROWS, labels[ROWS]), (OTHERS, labels[OTHERS])).metrics
    share = np.bincount(labels[OTHERS]).max() / 60
    assert metrics["largest_class_share"] == share
    assert f"(chance 10.0%, largest class {share:.1%})" in tables.markdown(metrics)


def test_few_test_images_are_reported_with_the_interval_width() -> None:
    rng = np.random.default_rng(0)
    few = validity.notes_on_sets(rng.integers(3, size=50), np.arange(36) % 3)
    assert any("With 36 test images" in note and "16 points" in note for note in few)
    assert validity.notes_on_sets(np.arange(3), np.arange(1000) % 3) == []


@pytest.mark.parametrize(
    ("train", "test", "shared"),
    [
        (np.zeros(50, int), np.arange(36) % 3, 0),
        (np.arange(50) % 3, np.full(36, 7), 0),
        (np.arange(50) % 3, np.arange(36) % 3, 36),
        (np.arange(50) % 3, np.full(36, -1), 0),
    ],
)
def test_without_accuracy_there_are_no_caveats_about_it(train, test, shared) -> None:
    assert validity.notes_on_sets(train, test, shared) == []


@pytest.mark.parametrize(
    ("classes", "words"),
    [(3, "400 of the 1200 test images are of 1 class"), (6, "800 of the 1200 .* 4 classes")],
)
def test_test_images_of_classes_unseen_in_training_are_reported(classes, words) -> None:
    (told,) = validity.notes_on_sets(np.arange(50) % 2, np.arange(1200) % classes)
    assert re.match(f"{words} without training images and cannot be", told)


def test_unlabeled_rows_are_neither_fit_nor_tested() -> None:
    rng = np.random.default_rng(3)
    centers = 3 * rng.normal(size=(4, 8))
    truth, test_truth = rng.integers(4, size=60), rng.integers(4, size=40)
    train = Features((centers[truth] + rng.normal(size=(60, 8))).astype(np.float32), truth)
    test = Features((centers[test_truth] + rng.normal(size=(40, 8))).astype(np.float32), test_truth)
    config = settings(knn_k=(1, 5), headline_k=5)
    expected = classify(train, test, 4, config)
    # Every second row is a copy without a label, which would be the nearest neighbor.
    mixed = [
        Features(np.repeat(s.features, 2, axis=0), np.stack([-np.ones_like(s.labels), s.labels], 1))
        for s in (train, test)
    ]
    mixed = [s._replace(labels=s.labels.ravel()) for s in mixed]
    found = classify(*mixed, 4, config)
    assert found.metrics == expected.metrics
    np.testing.assert_array_equal(found.neighbors, 2 * expected.neighbors + 1)
    np.testing.assert_array_equal(found.tested, np.arange(1, 80, 2))
    config = dataclasses.replace(config, few_shot_trials=2)
    few = [few_shot_probe(*sets, 4, 3, config) for sets in (mixed, (train, test))]
    assert few[0]["top1"] == pytest.approx(few[1]["top1"], abs=0.2)
    rows = few_shot_rows(mixed[0].labels, 3, 4, (0, 0))
    assert mixed[0].labels[rows].min() >= 0
    coarse = {"half": np.array([0, 0, 1, 1])}
    two, one = (coarse_metrics(*sets, coarse, config) for sets in (mixed, (train, test)))
    assert two == one
    # A fully labeled set is not copied: it may take half of the machine's memory.
    assert labeled(train, "training", 4)[0].features is train.features
    with pytest.raises(DataError, match="go from -2"):
        classify(train._replace(labels=train.labels - 2), test, 4, config)


def test_missing_labels_in_the_full_protocol() -> None:
    labels = digits()[1]
    partly = labels.copy()
    partly[ROWS[::2]] = partly[OTHERS[::3]] = -1
    options = {"robustness": ("gray",), "few_shot": (1,), "few_shot_trials": 2}
    found = evaluated((ROWS, partly[ROWS]), (OTHERS, partly[OTHERS]), **options)
    kept, tested = ROWS[partly[ROWS] >= 0], OTHERS[partly[OTHERS] >= 0]
    alone = evaluated((kept, labels[kept]), (tested, labels[tested]), **options)
    one, other = (x.metrics["encoders"]["trained"] for x in (found, alone))
    for part in ("knn", "linear_probe", "few_shot", "robustness"):
        assert one[part] == other[part]
    assert found.metrics["num_test_images"] == len(tested) == 40
    assert "40 of the 80 training images have no label" in " ".join(found.metrics["notes"])
    assert "20 of the 60 test images have no label" in " ".join(found.metrics["notes"])
    # Spectra need no labels.
    assert one["diagnostics"]["covariance_spectrum_topq"]["num_samples"] == 80
    inputs = found.pictures
    for query in inputs.queries.tolist():
        assert inputs.test_images[query][1] == labels[OTHERS[query]]
    for index in inputs.encoders["trained"].neighbors.ravel().tolist():
        assert inputs.train_images[index][1] == labels[ROWS[index]]


def _point(rng, count: int = 200, dim: int = 32, spread: float = 0.03) -> np.ndarray:
    """One point plus noise: mean cosine 0.999."""
    return (np.ones(dim) + spread * rng.normal(size=(count, dim))).astype(np.float32)


def test_one_point_plus_noise_is_reported_as_collapsed() -> None:
    x = _point(np.random.default_rng(0))
    found = geometry.covariance_spectrum(x)
    assert found.effective_rank > 25
    assert found.rankme < 4
    assert found.mean_share == pytest.approx(1 / (1 + 0.03**2), abs=1e-4)
    first, second = np.triu_indices(200, 1)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = np.sum(unit[first] * unit[second], axis=1)
    assert found.mean_share == pytest.approx(cosines.mean(), abs=1e-3)
    remedy = build_method(typed(quickstart.get_config("sigreg-smoke")), 4).remedy
    alarm = diagnostics.state_alarms(x, False, settings(), remedy=remedy)[0]
    assert alarm.kind is AlarmKind.ONE_POINT
    sentence = alarm.sentence(advice=False)
    assert "state z has nearly collapsed to a point: 99.91 %" in sentence
    assert sentence.endswith("(alarm above 99 %).")
    assert alarm.sentence() == f"{sentence[:-1]}: raise sigreg.weight."
    healthy = np.random.default_rng(1).normal(size=(200, 32))
    assert diagnostics.state_alarms(healthy, False, settings()) == []
    # For [q | p], the collapsed half is named.
    half = np.concatenate([healthy, x], axis=1)
    found = diagnostics.state_alarms(half, True, settings())
    points = [alarm.subject for alarm in found if alarm.kind is AlarmKind.ONE_POINT]
    assert points == ["momentum p"]


def test_the_budget_is_checked_if_training_had_one() -> None:
    x = 10 * np.random.default_rng(1).normal(size=(200, 32))
    assert diagnostics.state_alarms(x, False, settings()) == []
    (alarm,) = diagnostics.state_alarms(x, False, settings(), {"z": 1.0})
    assert "more than 4 times its budget 1" in alarm.sentence()
    assert diagnostics.state_alarms(x, True, settings(), {"q": 90.0, "p": 110.0}) == []
    (alarm,) = diagnostics.state_alarms(x, True, settings(), {"q": 90.0, "p": 1.0})
    assert "mean square of the momentum p" in alarm.sentence()


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(
    ("variant", "fields"), [("hjepa-smoke", "loss"), ("sigreg-smoke", "sigreg")]
)
def test_alarms_advise_fields_of_the_method(variant, fields, halves) -> None:
    point = 9 + 1e-3 * np.random.default_rng(1).normal(size=(200, 32))
    targets = dict.fromkeys("zqp", 1.0)
    remedy = build_method(typed(quickstart.get_config(variant)), 4).remedy
    every = diagnostics.state_alarms(point, halves, settings(), targets, remedy)
    logged = {"z_mean2": 8.99, "q2": 9.0, "p2": 9.0, "q_pr": 0.01, "p_std_min": 0.0}
    every += diagnostics.collapse_alarms(logged, remedy=remedy)
    assert len(every) >= 6
    assert all(re.search(rf": raise {fields}\.", alarm.sentence()) for alarm in every)


@pytest.mark.parametrize("values", [np.zeros((5, 3)), np.ones((5, 3)), [[1.0, 0.0], [-1.0, 0.0]]])
def test_share_of_the_mean_by_its_definition(values) -> None:
    x = np.asarray(values, float)
    share = geometry.mean_share(x)
    energy = np.mean([row @ row for row in x])
    assert share == (x.mean(0) @ x.mean(0) / energy if energy else 1.0)


def test_projected_participation_is_that_of_training() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 20)) * np.arange(1, 21)
    values = np.linalg.eigvalsh(np.cov(x.T))
    expected = values.sum() ** 2 / np.sum(values**2) / 20
    # All directions: a rotation, which changes no eigenvalue.
    assert geometry.projected_participation(x, 128, 0) == pytest.approx(expected)
    assert geometry.projected_participation(np.ones((9, 4)), 128, 0) == 0.0
    line = np.outer(rng.normal(size=50), np.ones(20))
    assert geometry.projected_participation(line, 8, 0) == pytest.approx(1 / 8)


def test_training_raises_an_alarm_for_one_point_too() -> None:
    # Means over dimensions of the squared mean and of the square, as both objectives log them.
    for logged in ({"z_mean2": 0.999, "z2": 1.0}, {"z_mean2": 0.999, "q2": 0.8, "p2": 1.2}):
        (alarm,) = diagnostics.collapse_alarms(logged)
        assert "state z has nearly collapsed to a point: 99.90 %" in alarm.sentence()
    assert diagnostics.collapse_alarms({"z_mean2": 0.9, "q2": 0.8, "p2": 1.2}) == []
    assert diagnostics.collapse_alarms({"z_mean2": 0.999}) == []


def test_a_collapse_is_not_a_gain_in_rank() -> None:
    labels = digits()[1]
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(64, 32)).astype(np.float32)

    def random(images):
        return np.asarray(images)[..., 0].reshape(len(images), -1) / 255 @ weights

    def collapsed(images):
        return (
            1
            + 1e-3 * random(images)
            + 0.02 * np.random.default_rng(5).normal(size=(len(images), 32))
        )

    given = ((ROWS, labels[ROWS]), (OTHERS, labels[OTHERS]))
    metrics = evaluated(*given, {"trained": collapsed, "random": random}).metrics
    first, second = (summary.headline(metrics["encoders"][n], 20) for n in ("trained", "random"))
    assert first["effective_rank"] > second["effective_rank"]
    difference = metrics["trained_minus_random"]
    assert difference["effective_rank"] is difference["participation_ratio"] is None
    assert difference["rankme"] == first["rankme"] - second["rankme"] < 0
    assert difference["mean_share"] > 0
    for text in (printed(metrics), tables.markdown(metrics)):
        assert "trained: The state z has nearly collapsed to a point" in text
        assert "use RankMe instead" in text
        assert "RankMe" in text
        row = next(line for line in text.splitlines() if "trained - random" in line)
        assert tables.NOTHING in row
        gain = first["effective_rank"] - second["effective_rank"]
        assert f"+{gain:.1f}" not in row


def test_published_counting_is_an_option_of_the_evaluation() -> None:
    labels = digits()[1]
    images = digits()[0]
    fields = {"state_part": "qp", "knn_k": (1, 20), "probe_epochs": 1}
    found = sources(
        train_batches=lambda: batches(ROWS, labels[ROWS]),
        test_batches=lambda: batches(OTHERS, labels[OTHERS]),
    )
    ours, published = (
        protocol.run_protocol(
            {"trained": trained},
            found,
            settings(**fields, reference_evaluation=published),
            split_qp=False,
        ).metrics
        for published in (False, True)
    )
    one, other = (m["encoders"]["trained"] for m in (ours, published))
    assert one["knn"]["top5"][0] == one["knn"]["top1"][0] < other["knn"]["top5"][0]
    z, views = trained(images), [trained(v) for v in _pairs()]
    direct = knn.knn_accuracy(
        z[ROWS],
        labels[ROWS],
        z[OTHERS],
        labels[OTHERS],
        ks=(1, 20),
        num_classes=10,
        reference=True,
    )
    assert other["knn"] == direct
    described = diagnostics.diagnose(z[ROWS], z[OTHERS], (views[0], views[1]), settings(**fields))
    name = "alignment_uniformity"
    assert one["diagnostics"][name] == described.metrics[name]
    assert other["diagnostics"][name]["uniformity"] > one["diagnostics"][name]["uniformity"]


def test_too_few_images_are_rejected_before_any_computation() -> None:
    labels = digits()[1]
    with pytest.raises(DataError, match="two training and two test images, but there are 80 and 1"):
        evaluated((ROWS, labels[ROWS]), (OTHERS[:1], labels[OTHERS[:1]]))


def test_old_metrics_without_intervals_can_still_be_read() -> None:
    labels = digits()[1]
    metrics = evaluated((ROWS, labels[ROWS]), (OTHERS, labels[OTHERS])).metrics
    old = copy.deepcopy(metrics["encoders"]["trained"])
    for part in ("knn", "linear_probe"):
        old[part] = {k: v for k, v in old[part].items() if not k.endswith("_interval")}
    del old["knn_weighted"], old["diagnostics"]["covariance_spectrum_topq"]["mean_share"]
    assert set(summary.headline_intervals(old, 20).values()) == {None}
    assert np.isnan(summary.headline(old, 20)["mean_share"])
    low, high = summary.headline_intervals(metrics["encoders"]["trained"], 20)["probe_top1"]
    share = metrics["encoders"]["trained"]["linear_probe"]["top1"]
    assert [low, high] == validity.wilson(share, 60)


def test_probe_predictions_are_its_largest_logits() -> None:
    params = probe.init_probe(0, 6, 3)
    x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    expected = np.asarray(probe.probe_logits(params, jnp.asarray(x))).argmax(1)
    np.testing.assert_array_equal(probe.probe_answers(params, x), expected)

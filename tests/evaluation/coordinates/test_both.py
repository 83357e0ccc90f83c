"""An evaluation in both coordinates: each set is encoded once, and H^{1/2} z has its own rows."""

import collections

import numpy as np
import pytest

from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.evaluation import knn
from hjepa_jax.evaluation.coordinates.transformed import Coordinates, in_chunks
from hjepa_jax.evaluation.protocol import run_protocol
from hjepa_jax.evaluation.report.summary import headline
from tests.evaluation.test_protocol import digits, settings, sources

ROOT = np.linspace(0.0, 2.0, 192, dtype=np.float32) ** 2


def _encoders(calls: collections.Counter) -> dict:
    def encoder(name: str, scale: float):
        def encode(images) -> np.ndarray:
            calls[name] += len(images)
            z = np.asarray(images).reshape(len(images), -1).astype(np.float32)
            return np.tanh(z / scale)

        return encode

    return {"trained": encoder("trained", 255.0), "random": encoder("random", 80.0)}


def _fit(seen: list):
    def fit(states: np.ndarray) -> Coordinates:
        seen.append(states)
        return Coordinates(in_chunks(lambda z: z * ROOT), {"kind": "planted", "fit": len(seen)})

    return fit


@pytest.fixture(scope="module")
def evaluated():
    calls, seen = collections.Counter(), []
    config = settings(state_part="q", coordinates="both", pixel_baseline=True, robustness=("gray",))
    results = run_protocol(_encoders(calls), sources(), config, split_qp=True, sqrt_h=_fit(seen))
    return results, calls, seen


def test_each_encoder_has_a_row_in_both_coordinates(evaluated) -> None:
    encoders = evaluated[0].metrics["encoders"]
    assert list(encoders) == ["trained", "trained sqrt_h", "random", "random sqrt_h", "pixels"]
    assert [one.get("coordinates") for one in encoders.values()] == [
        *(None, "sqrt_h", None, "sqrt_h", None)
    ]
    assert [one.get("posthoc", {}).get("fit") for one in encoders.values()] == [
        *(None, 1, None, 2, None)
    ]
    assert list(evaluated[0].pictures.encoders) == list(encoders)


def test_h_is_fitted_to_the_training_features(evaluated) -> None:
    images, _ = digits()
    trained = np.tanh(images[:300].reshape(300, -1).astype(np.float32) / 255)
    assert len(evaluated[2]) == 2
    np.testing.assert_array_equal(evaluated[2][0], trained)


def test_each_set_is_encoded_once(evaluated) -> None:
    # 5 batches of training and 2 of test images, 1 of each of two views; the corrupted test images
    # are encoded for both coordinates.
    assert evaluated[1] == {name: 64 * (5 + 2 + 2 + 2 * 2) for name in ("trained", "random")}


def test_figures_are_those_of_transformed_features(evaluated) -> None:
    encoders = evaluated[0].metrics["encoders"]
    images, labels = digits()
    train, test = labels[:300], labels[300:400]
    z = np.tanh(images[:400].reshape(400, -1).astype(np.float32) / 255)
    for name, features in (("trained", z[:, :96]), ("trained sqrt_h", (z * ROOT)[:, :96])):
        wanted = knn.knn_accuracy(
            features[:300], train, features[300:], test, ks=(1, 5, 20), num_classes=10
        )
        assert encoders[name]["knn"] == wanted
        norms = np.linalg.norm(features[300:], axis=1)
        measured = encoders[name]["diagnostics"]["feature_norms"]
        assert measured["p50"] == pytest.approx(np.median(norms))
        # Digits are gray already, so this corruption changes nothing.
        assert encoders[name]["robustness"]["gray"]["knn"]["top1"] == wanted["top1"][2:]
    assert encoders["trained"]["knn"] != encoders["trained sqrt_h"]["knn"]


def test_the_difference_is_sqrt_h_minus_raw(evaluated) -> None:
    metrics = evaluated[0].metrics
    raw, moved = (headline(metrics["encoders"][n], 20) for n in ("trained", "trained sqrt_h"))
    assert metrics["sqrt_h_minus_raw"]["knn"] == moved["knn"] - raw["knn"]
    random = headline(metrics["encoders"]["random"], 20)
    assert metrics["trained_minus_random"]["knn"] == raw["knn"] - random["knn"]


def test_the_flow_gets_raw_states(evaluated) -> None:
    pictures = evaluated[0].pictures.encoders
    np.testing.assert_array_equal(pictures["trained sqrt_h"].states, pictures["trained"].states)
    assert np.any(pictures["trained sqrt_h"].features != pictures["trained"].features)


def test_sqrt_h_alone_is_the_same_row_by_the_encoders_name(evaluated) -> None:
    config = settings(state_part="q", coordinates="sqrt_h", all_state_parts=False)
    given = _encoders(collections.Counter())
    alone = run_protocol(
        {"trained": given["trained"]}, sources(), config, split_qp=True, sqrt_h=_fit([])
    ).metrics
    both = evaluated[0].metrics["encoders"]["trained sqrt_h"]
    assert alone["encoders"]["trained"]["knn"] == both["knn"]
    assert alone["encoders"]["trained"]["coordinates"] == "sqrt_h"
    assert alone["sqrt_h_minus_raw"] == {}


def test_without_an_h_it_is_refused_before_anything_is_encoded() -> None:
    calls = collections.Counter()
    with pytest.raises(ValueError, match="coordinates are 'both', but no H is given"):
        run_protocol(_encoders(calls), sources(), Evaluation(coordinates="both"), split_qp=True)
    assert not calls


def test_chunks_are_padded_and_put_together(monkeypatch) -> None:
    monkeypatch.setattr("hjepa_jax.evaluation.coordinates.transformed._CHUNK", 4)
    shapes = []

    def double(rows: np.ndarray) -> np.ndarray:
        shapes.append(rows.shape)
        return 2 * rows

    given = np.arange(22, dtype=np.float64).reshape(11, 2)
    found = in_chunks(double)(given)
    np.testing.assert_array_equal(found, 2 * given)
    assert found.dtype == np.float32
    assert shapes == [(4, 2)] * 3
    assert in_chunks(double)(given[:3]).shape == (3, 2)

"""Metrics and picture inputs as an evaluation of three encoders has them, without encoding."""

import functools
from typing import Any

import numpy as np

from hjepa_jax.evaluation.features import Extraction
from hjepa_jax.evaluation.report.gallery import EncoderPictures, PictureInputs
from hjepa_jax.evaluation.report.summary import differences

CLASSES = 10
NEIGHBORS = 8
QUERIES = 6
ENCODERS = ("trained", "random", "pixels")


def _classified(accuracy: float) -> dict[str, Any]:
    top1 = [accuracy - 0.1, accuracy - 0.05, accuracy]
    bounds = [[value - 0.031, value + 0.033] for value in top1]
    probe = {"top1": accuracy - 0.02, "top5": 0.9375, "top5_interval": [0.9, 0.96]}
    probe["top1_interval"] = [accuracy - 0.06, accuracy + 0.03]
    knn = {"k_values": [1, 5, 20], "top1": top1, "top1_interval": bounds, "top5": [0.99] * 3}
    return {"knn": knn, "linear_probe": probe}


def _encoder(accuracy: float, rank: float) -> dict[str, Any]:
    covariance = {
        "eigenvalues": (2.0 * np.exp(-np.arange(64) / rank)).tolist(),
        "effective_rank": rank,
        "participation_ratio": rank / 2,
        "rankme": rank + 1,
        "mean_share": 0.25,
    }
    return {
        "state_part": "q",
        "feature_dim": 64,
        **_classified(accuracy),
        "diagnostics": {
            "covariance_spectrum_topq": covariance,
            "alignment_uniformity": {"alignment": 0.5, "uniformity": -2.0},
        },
        "notes": [],
        "collapse": [],
        "alarms": [],
    }


def metrics() -> dict[str, Any]:
    """Returns fresh metrics with all optional parts for the trained encoder."""
    encoders = {
        name: _encoder(accuracy, rank)
        for name, accuracy, rank in zip(ENCODERS, (0.83, 0.61, 0.47), (30.0, 12.0, 7.0))
    }
    encoders["trained"] |= {
        "state_parts": {part: _classified(0.7 + i / 100) for i, part in enumerate("qp")},
        "few_shot": {"2": {"top1": 0.625, "top1_std": 0.03}},
        "coarse": {"parity": _classified(0.9)},
        "robustness": {"gray": _classified(0.55)},
    }
    return {
        "schema_version": 3,
        "info": {"run": "digits-run", "step": 7, "data": "digits", "method": "hjepa"},
        "num_classes": CLASSES,
        "num_test_images": 100,
        "largest_class_share": 0.1,
        "headline_k": 20,
        "notes": ["A note."],
        "encoders": encoders,
        "trained_minus_random": differences(encoders, 20, 200),
        "feature_extraction": {"trained": {"test": Extraction(100, 0.8, 0.2).figures()}},
    }


@functools.cache
def pictures() -> PictureInputs:
    """Returns the inputs of the pictures, shared since t-SNE takes time."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % CLASSES
    encoders = {}
    for name in ENCODERS:
        features = rng.normal(size=(80, 8)) + 3 * rng.normal(size=(CLASSES, 8))[labels]
        neighbors = rng.integers(0, 30, (QUERIES, NEIGHBORS))
        cosine = rng.uniform(-0.2, 1, 500)
        encoders[name] = EncoderPictures(
            cosine, features, labels, features, features[:QUERIES], neighbors
        )
    images = rng.integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    found = {i: (image, i % CLASSES) for i, image in enumerate(images)}
    names = tuple(f"class {i}" for i in range(CLASSES))
    return PictureInputs(encoders, np.arange(QUERIES), found, found, names)

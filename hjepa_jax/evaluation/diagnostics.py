"""Label-free diagnostics of one encoder's features, with settings from the config."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hjepa_jax.evaluation import similarity, spectrum
from hjepa_jax.evaluation.features import select_variant

Metrics = dict[str, Any]


class Diagnostics(NamedTuple):
    """Metrics, and the cosine similarities [P] of random pairs behind their summary."""

    metrics: Metrics
    cosine: np.ndarray


def diagnose(
    train: np.ndarray, test: np.ndarray, views: tuple[np.ndarray, np.ndarray], config: Any
) -> Diagnostics:
    """Describes the distribution of features.

    Args:
      train: features [N, D] whose covariance spectrum is taken (training images are more).
      test: features [M, D] for cosine similarities and norms.
      views: features [B, D] of two augmented views, for alignment and uniformity.
      config: `config.evaluation`.

    Returns:
      Metrics `covariance_spectrum_topq`, `cosine_similarity`, `feature_norms` and
      `alignment_uniformity`, and the cosines.
    """
    covariance = spectrum.covariance_spectrum(
        train, max_samples=config.spectrum_samples, top=config.spectrum_top, seed=config.seed
    )
    pairs = similarity.random_pairs(len(test), min(config.max_pairs, 2 * len(test)), config.seed)
    cosine = similarity.cosine_similarities(test, *pairs)
    count = len(views[0])
    pairs = similarity.random_pairs(count, min(config.max_pairs, 2 * count), config.seed)
    metrics = {
        "covariance_spectrum_topq": {
            **covariance._asdict(),
            "eigenvalues": covariance.eigenvalues.tolist(),
        },
        "cosine_similarity": similarity.summarise(cosine),
        "feature_norms": similarity.summarise(np.linalg.norm(test, axis=1)),
        "alignment_uniformity": similarity.alignment_uniformity(*views, *pairs),
    }
    return Diagnostics(metrics, cosine)


def cka_q_p(states: np.ndarray, config: Any) -> float:
    """Linear CKA between q and p of states [N, 2d] (of `spectrum_samples` of them)."""
    rows = spectrum.subsample_rows(len(states), config.spectrum_samples, config.seed)
    q, p = (select_variant(states[rows], name, split_qp=True) for name in ("q", "p"))
    return similarity.linear_cka(q, p)

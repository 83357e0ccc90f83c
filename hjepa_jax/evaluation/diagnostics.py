"""Label-free diagnostics of one encoder's features, with settings from the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hjepa_jax.evaluation import alarms, similarity, spectrum
from hjepa_jax.evaluation.features import select_variant

Metrics = dict[str, Any]
# Directions on which the participation ratio is taken, as loss.logdet_dim by default.
_ALARM_DIM = 128


class Diagnostics(NamedTuple):
    """Metrics, and the cosine similarities [P] of random pairs behind their summary."""

    metrics: Metrics
    cosine: np.ndarray


def state_alarms(
    states: np.ndarray,
    split_qp: bool,
    config: Any,
    targets: Mapping[str, float] | None = None,
    objective: str | None = None,
) -> tuple[list[str], list[str]]:
    """Judges states [N, D] as training's alarms do, each half of [q | p] or the whole z.

    Args:
      states: of the training images.
      split_qp: whether they are [q | p].
      config: `config.evaluation`.
      targets: mean squares that training aimed at, by part; None = these are not judged.
      objective: of the training, see `collapse_alarms`.

    Returns:
      The sentences of a state that is nearly one point, without advice, and those of all alarms.
    """
    rows = spectrum.subsample_rows(len(states), config.spectrum_samples, config.seed)
    figures: dict[str, float] = {}
    for part in ("q", "p") if split_qp else ("z",):
        x = select_variant(states[rows], "qp" if part == "z" else part, split_qp)
        figures |= {
            f"{part}_pr": spectrum.projected_participation(x, _ALARM_DIM, config.seed),
            f"{part}_std_min": float(x.std(axis=0, dtype=np.float64).min()),
            f"{part}_mean_share": spectrum.mean_share(x),
        }
        if targets is not None and part in targets:
            figures[f"{part}2"] = float(np.mean(np.square(x, dtype=np.float64)))
    every = alarms.collapse_alarms(figures, targets=targets, objective=objective)
    shares = {part: figures.get(f"{part}_mean_share", 0.0) for part in ("q", "p", "z")}
    points = [s for part, share in shares.items() if (s := alarms.mean_alarm(part, share))]
    return points, every


def diagnose(
    train: np.ndarray,
    test: np.ndarray,
    views: tuple[np.ndarray, np.ndarray],
    config: Any,
    *,
    reference: bool = False,
) -> Diagnostics:
    """Describes the distribution of features.

    Args:
      train: features [N, D] whose covariance spectrum is taken (training images are more).
      test: features [M, D] for cosine similarities and norms.
      views: features [B, D] of two augmented views, for alignment and uniformity.
      config: `config.evaluation`.
      reference: draw pairs as the published protocol does, see `similarity.reference_pairs`.

    Returns:
      Metrics `covariance_spectrum_topq`, `cosine_similarity`, `feature_norms` and
      `alignment_uniformity`, and the cosines.
    """
    covariance = spectrum.covariance_spectrum(
        train, max_samples=config.spectrum_samples, top=config.spectrum_top, seed=config.seed
    )
    cosine = similarity.cosine_similarities(test, *_pairs(len(test), config, reference))
    pairs = _pairs(len(views[0]), config, reference)
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


def _pairs(count: int, config: Any, reference: bool) -> tuple[np.ndarray, np.ndarray]:
    if reference:
        wanted = min(config.max_pairs, 2 * count)
        return similarity.reference_pairs(count, wanted, config.seed)
    return similarity.random_pairs(count, config.max_pairs, config.seed)


def cka_q_p(states: np.ndarray, config: Any) -> float:
    """Linear CKA between q and p of states [N, 2d] (of `spectrum_samples` of them)."""
    rows = spectrum.subsample_rows(len(states), config.spectrum_samples, config.seed)
    q, p = (select_variant(states[rows], name, split_qp=True) for name in ("q", "p"))
    return similarity.linear_cka(q, p)

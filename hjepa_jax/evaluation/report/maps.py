"""Features in two dimensions: on their principal axes, and by t-SNE."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# What t-SNE sees of the features: their first principal components.
_TSNE_COMPONENTS = 50
_TSNE_PERPLEXITY = 30.0
# Perplexity asks for three times as many neighbors; fewer points have no map.
_TSNE_MIN_POINTS = 4


class PrincipalAxes(NamedTuple):
    """The mean [D] of features, their first axes as columns [D, K], and shares of variance [K].

    Axes that features of a smaller rank do not have are 0.
    """

    mean: np.ndarray
    axes: np.ndarray
    shares: np.ndarray

    def project(self, features: np.ndarray) -> np.ndarray:
        """Returns the coordinates [..., K] of features [..., D]."""
        return (features - self.mean) @ self.axes


def principal_axes(features: np.ndarray, count: int) -> PrincipalAxes:
    """Returns the first `count` principal axes of features [M, D]."""
    mean = features.mean(axis=0)
    _, singular, rows = np.linalg.svd(features - mean, full_matrices=False)
    found = min(count, len(singular))
    axes, shares = np.zeros((features.shape[1], count)), np.zeros(count)
    axes[:, :found] = rows[:found].T
    total = float(np.sum(np.square(singular)))
    if total > 0:
        shares[:found] = np.square(singular[:found]) / total
    return PrincipalAxes(mean, axes, shares)


def tsne(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns t-SNE coordinates [M, 2] of features [M, D], from their principal plane.

    Zeros where there are too few points, or all are one. Source: van der Maaten and Hinton,
    "Visualizing Data using t-SNE" (JMLR 9, 2008), as scikit-learn has it.
    """
    components = principal_axes(features, _TSNE_COMPONENTS).project(features)
    spread = components[:, 0].std()
    if len(features) < _TSNE_MIN_POINTS or not spread > 0:
        return np.zeros((len(features), 2))
    # Imported here: it takes a second, and only pictures need it.
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    method = TSNE(
        perplexity=min(_TSNE_PERPLEXITY, (len(features) - 1) / 3),
        init=(components[:, :2] * (1e-4 / spread)).astype(np.float32),
        random_state=seed,
    )
    # Its threads wait for each other in every iteration: on busy cores that takes most of the time.
    with threadpool_limits(1, "openmp"):
        return method.fit_transform((components / spread).astype(np.float32))

"""Two-dimensional maps of features: principal axes and t-SNE."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# t-SNE gets this many principal components of the features.
_TSNE_COMPONENTS = 50
_TSNE_PERPLEXITY = 30.0
# t-SNE uses three times as many neighbors as its perplexity; fewer points than this have no map.
_TSNE_MIN_POINTS = 4


class PrincipalAxes(NamedTuple):
    """Mean [D], first principal axes as columns [D, K], and their shares of variance [K].

    Axes beyond the rank of the features are 0.
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
    """Returns t-SNE coordinates [M, 2] of features [M, D], initialized by their principal plane.

    Zeros if there are too few points, or all are equal. Source: van der Maaten and Hinton,
    "Visualizing Data using t-SNE" (JMLR 9, 2008), as implemented in scikit-learn.
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
    # Its threads synchronize in every iteration, which takes most of the time on busy cores.
    with threadpool_limits(1, "openmp"):
        return method.fit_transform((components / spread).astype(np.float32))

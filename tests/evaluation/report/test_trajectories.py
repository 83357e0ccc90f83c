"""Maps of features, and trajectories under a flow, compared with known ones."""

import io

import numpy as np
import pytest
from PIL import Image

from hjepa_jax.evaluation.report import flow as flows
from hjepa_jax.evaluation.report import gallery, maps
from hjepa_jax.evaluation.report.trajectories import flow_figure


def _clusters(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % 4
    return 8 * rng.normal(size=(4, 30))[labels] + rng.normal(size=(count, 30)), labels


def test_principal_axes_are_the_eigenvectors_of_the_covariance() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 6)) * [5, 3, 1, 1, 1, 0.5] + 7
    found = maps.principal_axes(features, 2)
    values, vectors = np.linalg.eigh(np.cov(features.T))
    np.testing.assert_allclose(found.shares, values[:3:-1] / values.sum())
    overlap = np.abs(vectors[:, :3:-1].T @ found.axes)
    np.testing.assert_allclose(overlap, np.eye(2), atol=1e-9)
    np.testing.assert_allclose(found.project(features).mean(axis=0), 0, atol=1e-9)
    # One point in many dimensions has no axes, but a position.
    single = maps.principal_axes(features[:1], 2)
    np.testing.assert_array_equal(single.project(features[:1]), np.zeros((1, 2)))
    assert single.shares.tolist() == [0, 0]


def test_tsne_keeps_neighbors_and_is_deterministic() -> None:
    features, labels = _clusters(80, np.random.default_rng(1))
    plane = maps.tsne(features)
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert np.mean(labels[distances.argmin(axis=1)] == labels) > 0.95
    np.testing.assert_allclose(maps.tsne(features), plane, rtol=1e-3, atol=1e-2)
    np.testing.assert_array_equal(maps.tsne(np.ones((20, 5))), np.zeros((20, 2)))
    np.testing.assert_array_equal(maps.tsne(features[:3]), np.zeros((3, 2)))
    assert np.isfinite(maps.tsne(features[:5, :1])).all()


def _rotation(omega: float, duration: float) -> flows.Flow:
    """The harmonic oscillator H = omega (q^2 + p^2) / 2, exactly."""

    def step(states, direction):
        q, p = np.split(np.asarray(states), 2, axis=-1)
        angle = direction * omega * duration
        turned = (np.cos(angle) * q + np.sin(angle) * p, np.cos(angle) * p - np.sin(angle) * q)
        return np.concatenate(turned, axis=-1)

    def energy(states):
        return omega * np.square(states).sum(axis=-1) / 2

    return flows.Flow(np.asarray, step, energy, duration)


def test_trajectories_run_forward_in_time_in_the_planes_of_the_cloud() -> None:
    rng = np.random.default_rng(2)
    cloud, samples = rng.normal(size=(50, 12)), rng.normal(size=(3, 12))
    omega, duration, applications = 0.7, 0.25, 6
    found = flows.flow_picture(_rotation(omega, duration), samples, cloud, applications)
    np.testing.assert_allclose(found.times, np.linspace(-1.5, 1.5, 13))
    q, p = samples[:, :6], samples[:, 6:]
    angles = omega * found.times[:, None, None]
    plane = maps.principal_axes(cloud[:, :6], 2)
    expected = plane.project(np.cos(angles) * q + np.sin(angles) * p)
    np.testing.assert_allclose(found.q.trajectories, expected, atol=1e-12)
    np.testing.assert_allclose(found.q.cloud, plane.project(cloud[:, :6]), atol=1e-12)
    plane = maps.principal_axes(cloud[:, 6:], 2)
    expected = plane.project(np.cos(angles) * p - np.sin(angles) * q)
    np.testing.assert_allclose(found.p.trajectories, expected, atol=1e-12)
    energy = omega * np.square(samples).sum(axis=1) / 2
    np.testing.assert_allclose(found.energies, np.tile(energy, (13, 1)))


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_picture_shows_every_sample_in_its_color(scale) -> None:
    """Also for a collapsed encoder, whose states are all 0."""
    rng = np.random.default_rng(3)
    cloud, samples = scale * rng.normal(size=(60, 8)), scale * rng.normal(size=(6, 8))
    images = {i: (rng.integers(0, 255, (16, 16, 3), dtype=np.uint8), i) for i in range(6)}
    inputs = gallery.PictureInputs(
        {}, np.arange(6), images, {}, tuple(f"class{i}" for i in range(6))
    )
    picture = flow_figure(flows.flow_picture(_rotation(1.0, 0.1), samples, cloud, 8), inputs)
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png")
    if not scale:
        return
    pixels = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    # To the right of the images, whose frames have the same colors.
    drawn = pixels[:, pixels.shape[1] // 5 :]
    for color in ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"):
        ink = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(drawn - ink).sum(axis=-1) < 12).sum() > 300, color

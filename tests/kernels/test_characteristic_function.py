"""The native means of cosines and sines, against NumPy in float64, and SIGReg with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_arrays import draw

from hjepa_jax.kernels import characteristic_function
from hjepa_jax.kernels.characteristic_function import characteristic_means, means_native
from hjepa_jax.objectives.sigreg import random_slices, sigreg

pytestmark = pytest.mark.usefixtures("native_kernels")


def assert_means_of_float64(y, start, step, count, tolerance) -> None:
    """Compares the native means with NumPy's in float64."""
    means = jax.jit(lambda y: means_native(y, start, step, count))(y)
    angle = (start + step * np.arange(count)).reshape(-1, *[1] * y.ndim) * y.astype(np.float64)
    for got, function in zip(means, (np.cos, np.sin), strict=True):
        np.testing.assert_allclose(got, function(angle).mean(-2), rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(1, 1), (7, 16), (130, 19), (2, 64, 5), (2, 3, 33, 40)])
@pytest.mark.parametrize("start", [0.2, -1.5, 0.0])
def test_characteristic_function_is_that_of_float64(shape, start) -> None:
    """Partial runs of rows, partial vectors of columns, views, and a start other than the step."""
    assert_means_of_float64(3 * draw(1, *shape), start, 0.2, 9, 2e-6)


def test_angles_in_every_quadrant_and_beyond_the_reduction() -> None:
    """Multiples of pi/2 and adjacent floats, up to angles that are computed one by one."""
    y = np.linspace(-2000, 2000, 64001, dtype=np.float32).reshape(1, -1)
    assert_means_of_float64(y, 1.0, 1.0, 1, 2e-7)
    quarters = np.arange(-600, 600, dtype=np.float32).reshape(1, -1) * np.float32(np.pi / 2)
    assert_means_of_float64(quarters, 1.0, 1.0, 1, 2e-7)
    large = np.float32(10.0) ** np.arange(3, 30, dtype=np.float32)
    assert_means_of_float64(np.stack([large, -large / 3], 1), 1.0, 1.0, 1, 2e-7)


def test_nan_spoils_only_its_own_column() -> None:
    y = draw(1, 50, 40)
    y[3, 5], y[49, 20] = np.nan, np.inf
    for means in means_native(jnp.asarray(y), 0.3, 0.3, 4):
        spoiled = np.flatnonzero(np.isnan(means).any(0))
        assert spoiled.tolist() == [5, 20]


def test_rounding_of_means_does_not_grow_with_the_rows() -> None:
    assert_means_of_float64(draw(1, 200_000, 16), 0.3, 0.3, 10, 2e-7)


@pytest.mark.parametrize("statistics", ["per_view", "flattened"])
def test_sigreg_and_its_gradient_are_the_plain_ones(statistics, monkeypatch) -> None:
    plainly = functools.partial(
        sigreg, t_max=3.0, n_points=9, weight_type="gaussian", statistics=statistics
    )
    z, slices = jnp.asarray(draw(1, 2, 60, 12)), random_slices(jax.random.key(0), 12, 24)

    def both(**options):
        function = jax.value_and_grad(lambda z: plainly(z, slices, **options))
        lowered = jax.jit(function).lower(z)
        return "hjepa_characteristic" in lowered.as_text(), lowered.compile()(z)

    monkeypatch.setattr(characteristic_function, "_MIN_VALUES", 1)
    (plain_is_native, plain), (is_native, fast) = both(), both(means=characteristic_means)
    assert is_native
    assert not plain_is_native
    np.testing.assert_allclose(fast[0], plain[0], rtol=1e-5)
    np.testing.assert_allclose(fast[1], plain[1], rtol=1e-4, atol=1e-6)
    assert np.abs(plain[1]).max() > 1e-4

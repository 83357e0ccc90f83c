"""Batch normalization by the native kernels, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_arrays import EPSILON, assert_close, draw, numpy_batch_norm

from hjepa_jax.kernels.batch_norm import batch_norm_native, normalize_batch

pytestmark = pytest.mark.usefixtures("native_kernels")


def choose_as_elsewhere(*operands, default, **_):
    """`jax.lax.platform_dependent` on a platform that has no form of its own."""
    return default(*operands)


@pytest.mark.parametrize("platform", ["cpu", "another"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("shape", [(4, 5, 5, 3), (7, 3, 3, 70), (513, 33), (9, 32, 32, 16)])
def test_batch_norm_and_its_gradients_are_those_of_float64(
    shape, added, relu, platform, monkeypatch
) -> None:
    """A mean of ten standard deviations, partial vectors of channels, several chunks."""
    if platform == "another":
        monkeypatch.setattr(jax.lax, "platform_dependent", choose_as_elsewhere)
    x = draw(1, *shape) + 10
    scale, bias, bar = draw(2, shape[-1]), draw(3, shape[-1]), draw(4, *shape)
    residual = draw(5, *shape) if added else None
    arguments = [jnp.asarray(a) for a in (x, scale, bias, residual) if a is not None]

    def native(x, scale, bias, residual=None):
        y, *moments = batch_norm_native(x, scale, bias, residual, relu, EPSILON)
        return y, moments

    y, pullback, moments = jax.vjp(native, *arguments, has_aux=True)
    values, gradients = numpy_batch_norm(x, scale, bias, residual, bar, relu)
    for got, expected in zip((y, *moments), values):
        assert_close(got, expected, 1e-5)
    # Where the ReLU's input is zero up to rounding, either side is correct.
    doubtful = (values[0] == 0) != (np.asarray(y) == 0)
    assert doubtful.sum() <= 2
    got = pullback(jnp.asarray(bar * ~doubtful))
    _, gradients = numpy_batch_norm(x, scale, bias, residual, bar * ~doubtful, relu)
    for a, b in zip(got, gradients, strict=True):
        assert_close(a, b, 2e-5)


def test_moments_are_outside_the_gradient() -> None:
    x, ones = jnp.asarray(draw(1, 6, 4)), jnp.ones(4)

    def moments(x):
        return sum(jnp.sum(m) for m in batch_norm_native(x, ones, ones, None, False, EPSILON)[1:])

    def plain(x):
        return sum(jnp.sum(m) for m in normalize_batch(x, ones, ones)[1:])

    assert not jnp.any(jax.grad(moments)(x))
    assert not jnp.any(jax.grad(plain)(x))

"""The written-out gradient of batch normalization, and its statistics of a single pass."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_arrays import draw

from hjepa_jax.kernels import batch_norm
from hjepa_jax.kernels.batch_norm import normalize_batch

EPSILON = 1e-5


def textbook(x, scale, bias, *residual, relu=False, groups=1):
    """By two passes over the values, for JAX to differentiate."""
    parts = []
    for part in jnp.split(x, groups):
        axes = tuple(range(x.ndim - 1))
        mean = jnp.mean(part, axes)
        var = jnp.mean(jnp.square(part - mean), axes)
        parts.append((part - mean) / jnp.sqrt(var + EPSILON) * scale + bias)
    y = jnp.concatenate(parts) + (residual[0] if residual else 0)
    return jax.nn.relu(y) if relu else y


def ours(x, scale, bias, *residual, **options):
    given = residual[0] if residual else None
    return normalize_batch(x, scale, bias, given, epsilon=EPSILON, **options)[0]


def arrays(added: bool, shape=(6, 3, 5, 4)):
    x = draw(1, *shape) * 3 + 2
    channels = 1 + 0.3 * draw(2, shape[-1]), draw(3, shape[-1])
    return [jnp.asarray(a, np.float64) for a in (x, *channels, *([draw(4, *shape)] * added))]


@pytest.mark.parametrize(
    ("relu", "added", "groups"),
    list(itertools.product([False, True], [False, True], [1, 3])),
)
def test_value_and_gradients_are_those_of_the_textbook(relu, added, groups) -> None:
    """In float64, and the gradient of a gradient too."""
    with jax.enable_x64(True):
        given = arrays(added)
        bar = jnp.asarray(draw(5, *given[0].shape), np.float64)

        def found(form):
            y, pull_back = jax.vjp(lambda *a: form(*a, relu=relu, groups=groups), *given)

            def steepness(x):
                slope = jax.grad(lambda a: jnp.sum(jnp.sin(form(a, *given[1:], relu=relu))))(x)
                return jnp.sum(slope**3)

            return y, *pull_back(bar), jax.grad(steepness)(given[0])

        for got, expected in zip(found(ours), found(textbook), strict=True):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("added", [False, True])
def test_bfloat16_is_rounded_once_and_keeps_nothing_wider(added) -> None:
    """Its statistics are of float32, and the backward pass reads arrays of x's own dtype."""
    with jax.enable_x64(True):
        wide = arrays(added)
        narrow = [a.astype(jnp.bfloat16) for a in wide]
        exact = [a.astype(np.float64) for a in narrow]
        bar = jnp.asarray(draw(5, *wide[0].shape)).astype(jnp.bfloat16)
        # The parameters stay wide.
        narrow[1:3] = [a.astype(np.float32) for a in wide[1:3]]
        exact[1:3] = [a.astype(np.float64) for a in narrow[1:3]]
        y, pull_back = jax.vjp(lambda *a: ours(*a, relu=True), *narrow)
        expected, exact_pull_back = jax.vjp(lambda *a: textbook(*a, relu=True), *exact)
        # What the gradient is on either side of zero is a matter of rounding.
        bar = jnp.where((y > 0) == (expected > 0), bar, 0)
        results = zip(
            (y, *pull_back(bar)),
            (expected, *exact_pull_back(bar.astype(np.float64))),
            (y, *narrow),
            strict=True,
        )
        for got, value, like in results:
            assert got.dtype == like.dtype
            relative, absolute = (2**-8, 2e-6) if got.dtype == jnp.bfloat16 else (0, 2e-6)
            scale = np.abs(value).max()
            np.testing.assert_allclose(
                got.astype(np.float64), value, rtol=relative, atol=absolute * scale
            )
        kept = [leaf for leaf in jax.tree.leaves(pull_back) if leaf.size >= wide[0].size]
        assert kept
        assert {leaf.dtype for leaf in kept} == {jnp.dtype(jnp.bfloat16)}


def relative_error(x: np.ndarray) -> float:
    """Of the variances of float32 x [N, C], the largest; too few values for the native kernels."""
    assert x.size < batch_norm._MIN_VALUES
    ones = jnp.ones(x.shape[-1])
    found = normalize_batch(jnp.asarray(x), ones, ones)[2][0]
    exact = x.astype(np.float64).var(0)
    return float(np.max(np.abs(np.asarray(found, np.float64) - exact) / exact))


@pytest.mark.parametrize("ratio", [0, 1, 1e3, 1e5])
def test_the_variance_does_not_cancel_for_a_large_mean(ratio) -> None:
    """Where E[x^2] - E[x]^2 loses ratio^2 * 6e-8, all of it at 1e5."""
    x = draw(1, 2**14, 8) + np.float32(ratio)
    assert relative_error(x) < 3e-6


def test_the_variance_has_a_bound_for_any_values() -> None:
    """The worst case is a first value that causes all of the variance: n times the rounding."""
    rows = 2**14
    x = np.full((rows, 1), 1000, np.float32)
    x[0] = 1001
    rounding = float(np.finfo(np.float32).eps) / 2
    assert relative_error(x) < 4 * rows * rounding
    # The same value anywhere else is harmless.
    assert relative_error(np.roll(x, 1)) < 3e-6


def test_a_constant_channel_has_no_variance() -> None:
    y, means, variances = normalize_batch(jnp.full((8, 3), 1e4), jnp.ones(3), jnp.zeros(3))
    np.testing.assert_array_equal(variances, 0)
    np.testing.assert_array_equal(means, 1e4)
    np.testing.assert_array_equal(y, 0)

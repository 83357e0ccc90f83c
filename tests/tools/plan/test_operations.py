"""Operations of traced programs, against counts by hand and XLA's."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from hjepa_jax.tools.plan.operations import operations


def counted(function, *shapes) -> int:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return operations(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_products_count_two_for_each_pair() -> None:
    assert counted(jnp.matmul, (5, 7), (7, 3)) == 2 * 5 * 7 * 3
    assert counted(functools.partial(jnp.einsum, "bij,bkj->bik"), (2, 5, 7), (2, 3, 7)) == 420


def test_loops_count_each_turn_and_conditionals_the_cheaper_branch() -> None:
    def loop(x):
        return lax.scan(lambda carry, _: (jnp.tanh(carry @ x), None), x, length=6)[0]

    def choice(x):
        return lax.cond(x[0, 0] > 0, lambda y: y @ y, lambda y: y @ y @ y, x)

    assert counted(loop, (4, 4)) == 6 * 128
    assert counted(jax.checkpoint(jax.jit(loop)), (4, 4)) == 6 * 128
    assert counted(choice, (4, 4)) == 128


CONVOLUTIONS = {
    "same": {"padding": "SAME", "window_strides": (1, 1)},
    "strided": {"padding": "SAME", "window_strides": (2, 2)},
    "dilated": {"padding": "VALID", "window_strides": (1, 2), "rhs_dilation": (2, 1)},
    "spread": {"padding": ((2, 1), (1, 2)), "window_strides": (1, 1), "lhs_dilation": (2, 2)},
    "grouped": {"padding": "SAME", "window_strides": (1, 1), "feature_group_count": 2},
    "in batch groups": {"padding": "SAME", "window_strides": (1, 1), "batch_group_count": 2},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_count_as_in_xla(name: str) -> None:
    options = CONVOLUTIONS[name]
    inputs = 4 // options.get("feature_group_count", 1)
    shapes = ((6, 9, 8, 4), (3, 3, inputs, 8))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    convolve = functools.partial(
        lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )
    expected = jax.jit(convolve).lower(*arguments).cost_analysis()["flops"]
    assert counted(convolve, *shapes) == expected


def test_gradients_of_a_convolution_take_as_much_each() -> None:
    """The gradient by a strided convolution's input has holes, which are not counted."""
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=(2, 2),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

    def loss(x, w):
        return convolve(x, w).sum()

    forward = counted(convolve, (2, 9, 9, 4), (3, 3, 4, 8))
    assert forward == 2 * 2 * 4 * 4 * 8 * 9 * 4
    both = counted(jax.grad(loss, (0, 1)), (2, 9, 9, 4), (3, 3, 4, 8))
    assert both == 3 * forward

"""Operations of traced programs, against counts by hand and XLA's."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType

from hjepa_jax.config.checks import typed
from hjepa_jax.recipes import cifar100
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.devices import without_cpu_forms
from hjepa_jax.tools.plan.operations import operations
from hjepa_jax.tools.plan.step_cost import abstract_batch
from hjepa_jax.training.prepare import prepare


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


def test_a_step_takes_what_its_encoder_does() -> None:
    """24.75 MFLOP by hand on each of eight devices, and little for the loss."""
    config = cifar100.get_config("sigreg-smoke")
    config.resnet.stage_blocks = (2, 2, 2, 2)
    settings = typed(config)
    mesh = AbstractMesh((8,), (sharding.DATA_AXIS,), axis_types=(AxisType.Auto,))
    with without_cpu_forms():
        run = prepare(settings, 64, mesh)
        traced = run.step.trace(run.abstract_state, abstract_batch(settings.data, mesh))
    assert 24.75e6 < operations(traced.jaxpr.jaxpr) < 1.03 * 24.75e6

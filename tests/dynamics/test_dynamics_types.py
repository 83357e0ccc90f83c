"""The annotations of `hjepa_jax.dynamics` are complete, and the tests check them at run time."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import jaxtyping
import pytest
from annotations import bare_annotations, unchecked_functions

from hjepa_jax.dynamics import geometry, systems
from hjepa_jax.dynamics import hamiltonian as hm
from hjepa_jax.dynamics.integrators import integrate
from hjepa_jax.dynamics.reversible import integrate_reversible

ZEROS = jnp.zeros((3, 4))
SYSTEM = hm.quadratic()


def test_every_public_function_is_annotated_and_checked() -> None:
    assert unchecked_functions("hjepa_jax.dynamics") == []
    assert bare_annotations("hjepa_jax.dynamics") == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: hm.join_state(ZEROS, ZEROS[:, :2]),
        lambda: hm.energy_of_state(SYSTEM, jnp.zeros((3, 4), jnp.int32)),
        lambda: hm.mlp(hm.init_mlp(jnp.zeros(2, jnp.uint32), (4, 1)), ZEROS, "tanh"),  # type: ignore
        lambda: integrate(SYSTEM, ZEROS, steps=1, dt=jnp.zeros(3)),  # a step length per state
        lambda: integrate(SYSTEM, [0.0, 1.0], steps=1, dt=0.1),  # type: ignore
        lambda: integrate_reversible(lambda _: SYSTEM, (1,), ZEROS, steps=1, dt=0.1),
        lambda: geometry.symplectic_defect(lambda z: z, ZEROS),  # a batch without vmap
        lambda: geometry.defect_of_jacobian(ZEROS),  # not square
        lambda: geometry.energy_drift(lambda z: z, ZEROS),  # the energy of a state is a scalar
        lambda: systems.pendulum_period(ZEROS),
    ],
)
def test_wrong_arguments_raise(call: Callable[[], Any]) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


def test_a_wrong_result_raises() -> None:
    """The energy of a user's Hamiltonian keeps an axis that it should sum over."""
    wrong = SYSTEM._replace(energy=lambda q, p: jnp.sum(q * p, -1, keepdims=True))
    with pytest.raises(jaxtyping.TypeCheckError, match=r"return value of .*energy_of_state"):
        hm.energy_of_state(wrong, ZEROS)


def test_unchecked_calls_are_not_checked(unchecked: None) -> None:
    wrong = SYSTEM._replace(energy=functools.partial(lambda q, p: q))
    assert hm.energy_of_state(wrong, ZEROS).shape == (3, 2)

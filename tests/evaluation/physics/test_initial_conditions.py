"""Heat maps over initial conditions, on the oscillator's known factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.dynamics import hamiltonian as hm
from hjepa_jax.dynamics import systems
from hjepa_jax.evaluation.physics import heat_maps
from hjepa_jax.evaluation.physics.initial_conditions import (
    ConditionMap,
    ConditionMaps,
    Window,
    condition_maps,
    steps_of,
)

DT, STEPS = 0.1, 8


@pytest.fixture(scope="module")
def found():
    with jax.enable_x64(True):
        center = jnp.array([0.5, 0.0])
        window = Window(center, jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), 1.5, 0.5)
        return condition_maps(systems.harmonic_oscillator(), window, dt=DT, steps=STEPS, size=5)


def test_the_grid_is_around_the_center_with_p_varying_slowest(found):
    q, p = np.meshgrid(0.5 + np.linspace(-1.5, 1.5, 5), np.linspace(-0.5, 0.5, 5))
    np.testing.assert_allclose(found.energy, (q**2 + p**2) / 2, atol=1e-12)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(found.window.states(5)[1], [-0.25, -0.5])


@pytest.mark.parametrize(("name", "sign"), [("explicit_euler", 1), ("implicit_euler", -1)])
def test_euler_gains_and_loses_energy_and_reversal_by_the_known_factors(found, name, sign):
    """Energies change by (1 + h^2)^+-1 a step, forward and backward; angles turn back exactly."""
    factor = (1 + DT**2) ** sign
    late = np.mean(factor ** np.arange(STEPS // 2 + 1, STEPS + 1))
    one = found.maps[name]
    np.testing.assert_allclose(one.drift, found.energy * (late - 1), rtol=1e-9, atol=1e-12)
    size = np.sqrt(2 * found.energy)
    expected = np.abs(factor**STEPS - 1) * size / (1 + size)
    np.testing.assert_allclose(one.reversal, expected, rtol=1e-9, atol=1e-12)


def test_symmetric_methods_return_and_others_do_not(found):
    assert set(found.maps) == set(heat_maps._TITLES)
    errors = {name: one.reversal.max() for name, one in found.maps.items()}
    for name in ("leapfrog", "yoshida4", "implicit_midpoint"):
        assert errors[name] < 1e-12
    for name in ("symplectic_euler", "explicit_euler", "implicit_euler"):
        assert errors[name] > 1e-3
    assert 1e-12 < errors["runge_kutta4"] < 1e-5
    # The midpoint rule conserves quadratic energies.
    assert np.abs(found.maps["implicit_midpoint"].drift).max() < 1e-12


def test_methods_for_separable_energies_are_left_out_for_others():
    joint = hm.from_energy(lambda q, p: jnp.sum(q * p + p**2, axis=-1))
    assert list(steps_of(joint)) == [
        *("implicit_midpoint", "runge_kutta4", "explicit_euler", "implicit_euler")
    ]


def test_scales_are_shared_and_divergence_is_told(found):
    maps = {
        "leapfrog": ConditionMap(np.full((2, 2), 1e-9), np.array([[0.5, -0.25], [0, 0]])),
        "explicit_euler": ConditionMap(np.full((2, 2), np.nan), np.array([[np.inf, 1], [9, 2]])),
    }
    some = ConditionMaps(found.window, np.array([[0.0, 1.0], [2.0, 3.0]]), maps, DT, STEPS)
    assert heat_maps.reversal_limits(some) == (1e-9, 1.0)
    assert heat_maps.drift_limit(some) == 3.0  # not 9: no more than the energies of the window
    figure = heat_maps.heat_map_figure(some, "two maps")
    above, below = [axes.images[0] for axes in figure.axes[:2]], figure.axes[2].images[0]
    assert above[0].norm is above[1].norm
    assert (below.norm.vmin, below.norm.vmax) == (-3.0, 3.0)
    written = [[text.get_text() for text in axes.texts] for axes in figure.axes[:4]]
    assert written == [[], ["all diverge"], [], ["gray: 25% diverge"]]
    assert figure.axes[0].get_title().startswith("leapfrog")

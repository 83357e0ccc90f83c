"""The learnable spectrum's own update: when it moves, which way, and by how much."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.config.checks import typed
from hjepa_jax.methods.base import Method
from hjepa_jax.methods.hamsigreg import HamSIGReg
from hjepa_jax.objectives.hamsigreg_spectrum import bin_indices
from hjepa_jax.objectives.sigreg import random_slices
from hjepa_jax.recipes import cifar100
from hjepa_jax.training.setup import build_method


def _method(config, per_epoch=4) -> HamSIGReg:
    method = build_method(typed(config), per_epoch)
    assert isinstance(method, HamSIGReg)
    return method


def _config(**fields):
    config = cifar100.get_config("ham_learnable-smoke")
    config.hamsigreg.update(
        {"span_max": 2.0, "init_loglambda_span": 1.0, "update_interval": 1, "lr": 0.05, **fields}
    )
    return config


def _material(config):
    """Returns states with a spatial structure, and what an update needs beside them."""
    side, channels = 8, config.resnet.token_dim
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(2, 16, 1, 1, channels)) + 0.2 * rng.normal(
        size=(2, 16, side, side, channels)
    )
    z = jnp.asarray(smooth.reshape(2, 16, -1), jnp.float32)
    slices = random_slices(jax.random.key(1), z.shape[-1], 32)
    drawn = {"spectral_slices": slices, "alpha": jnp.float32(1), "beta": jnp.float32(1)}
    return z, drawn


def _updater(config):
    """Returns the compiled update (method state, step) -> method state."""
    z, drawn = _material(config)
    config.sigreg.weight = 1.0
    method = _method(config)

    @jax.jit
    def update(state, step):
        return method.update_state(state, z, drawn, step)

    return update


def _valuer(config):
    """Returns the compiled SIGReg of the transformed states, as a function of the spectrum."""
    z, drawn = _material(config)
    method = _method(config)

    @jax.jit
    def value(params):
        coordinates = {"params": params, "alpha": drawn["alpha"], "beta": drawn["beta"]}
        moved = method.transform(coordinates, z)
        return method.regularizer.statistic(moved, drawn["spectral_slices"], drawn)

    return value


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_max_raises_sigreg_and_min_lowers_it(mode, sign) -> None:
    config = _config(update_mode=mode, regularizer_weight=0.0)
    spectral = _method(config).init_state()
    value = _valuer(config)
    before = value(spectral["params"])
    update = _updater(config)
    for step in range(5):
        spectral = update(spectral, step)
    assert sign * (value(spectral["params"]) - before) > 0


def test_it_moves_every_interval_and_never_once_frozen() -> None:
    config = _config(update_interval=3, freeze_after_epochs=2.0)
    spectral, moved = _method(config).init_state(), []
    update = _updater(config)
    for step in range(12):
        new = update(spectral, step)
        moved.append(not np.array_equal(new["params"]["raw_span"], spectral["params"]["raw_span"]))
        spectral = new
    # Steps 3 and 6, counted from 1; step 9 lies in the third epoch.
    assert [step + 1 for step, value in enumerate(moved) if value] == [3, 6]


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        # Four steps an epoch, counted from 1.
        ({"frozen_epochs": 1.0}, [6, 9, 12]),
        ({"learnable_start_epoch": 3}, [9, 12]),
        ({"learnable_start_epoch": 2, "frozen_epochs": 1.5, "freeze_after_epochs": 2.5}, [9]),
    ],
)
def test_it_does_not_move_before_its_start(fields, steps) -> None:
    config = _config(update_interval=3, **fields)
    spectral, moved = _method(config).init_state(), []
    update = _updater(config)
    for step in range(12):
        new = update(spectral, step)
        same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (new, spectral)))]
        # Neither the parameters nor the optimizer's state.
        assert all(same) or not any(same)
        moved += [] if all(same) else [step + 1]
        spectral = new
    assert moved == steps


def _regularizer_gradient(curvature, l2, bins):
    """The gradient in the free envelope's initial increments, by differences in float64."""

    def value(raw):
        values = -0.8 + np.concatenate([[0.0], np.cumsum(np.log1p(np.exp(raw)))])
        delta = values[bin_indices(8, 8, bins, "linear_radius")]
        delta = np.clip(delta - delta.mean(), -0.5, 0.5)
        return curvature * (np.diff(values, n=2) ** 2).sum() + l2 * (delta**2).mean()

    start = np.full(bins - 1, np.log(np.expm1(1.6 / (bins - 1))))
    steps = 1e-6 * np.eye(bins - 1)
    return np.array([(value(start + e) - value(start - e)) / 2e-6 for e in steps])


def test_the_free_envelope_is_trained_with_its_weights() -> None:
    """The first moment of an update has the regularizer's gradient with the section's weights."""
    fields = {"envelope": "free", "log_lambda_clip": 0.5, "grad_clip": None}
    fields |= {"identity_epochs": 0.0, "base_ramp_epochs": 0.0, "regularizer_weight": 2.0}
    fields |= {"span_max": 0.5, "init_loglambda_span": 0.03}

    def first_moment(**weights):
        config = _config(**fields, **weights)
        initial = _method(config).init_state()
        after = _updater(config)(initial, 0)
        assert set(after["params"]) == {"offset", "raw_increments"}
        moved = np.asarray(after["params"]["raw_increments"] - initial["params"]["raw_increments"])
        (adam,) = [node for node in after["opt_state"][-1] if hasattr(node, "mu")]
        moment = np.asarray(adam.mu["raw_increments"])
        np.testing.assert_allclose(moved, -0.05 * np.sign(moment), rtol=0.05)
        return moment / 0.1  # mu = (1 - b1) g after one step

    none = first_moment(curvature_weight=0.0, loglambda_l2_weight=0.0)
    assert np.abs(none).max() > 1e-3
    both = first_moment(curvature_weight=0.7, loglambda_l2_weight=0.9)
    expected = 2.0 * _regularizer_gradient(0.7, 0.9, len(none) + 1)
    np.testing.assert_allclose(both - none, expected, rtol=1e-3, atol=1e-5)
    assert np.abs(expected).max() > 1e-2


def test_clipping_bounds_and_scaling_scales_the_gradient() -> None:
    def first_moment(**fields):
        config = _config(**fields)
        adam = jax.tree.leaves(
            _updater(config)(_method(config).init_state(), 0)["opt_state"],
            is_leaf=lambda node: hasattr(node, "mu"),
        )
        (state,) = [node for node in adam if hasattr(node, "mu")]
        leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(state.mu)]
        return float(np.linalg.norm(np.concatenate(leaves))) / 0.1  # mu = (1 - b1) g after one step

    plain = first_moment(grad_clip=None)
    assert plain > 1e-3
    np.testing.assert_allclose(first_moment(grad_clip=None, grad_scale=0.5), plain / 2, rtol=1e-4)
    np.testing.assert_allclose(first_moment(grad_clip=plain / 10), plain / 10, rtol=1e-3)


def test_schedule_is_identity_first_then_fades_in() -> None:
    config = _config(identity_epochs=1.0, base_ramp_epochs=2.0, learnable_ramp_epochs=4.0)
    method = _method(config, 10)
    values = [method.schedule(jnp.asarray(step)) for step in (0, 9, 10, 20, 30, 50)]
    np.testing.assert_allclose([float(alpha) for alpha, _ in values], [0.25, 0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_allclose([float(beta) for _, beta in values], [0, 0, 0.5, 1, 1, 1])


def test_no_spectrum_no_state() -> None:
    for variant in ("sigreg-smoke", "ham_chain-smoke", "hjepa-smoke"):
        method: Method = build_method(typed(cifar100.get_config(variant)), 4)
        assert method.init_state() == {}

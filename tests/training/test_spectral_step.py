"""The learnable spectrum's own update: when it moves, which way, and by how much."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.config.checks import typed
from hjepa_jax.methods.base import Method
from hjepa_jax.methods.hamsigreg import HamSIGReg
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
        return method.sigreg_of(moved, drawn["spectral_slices"], drawn)

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

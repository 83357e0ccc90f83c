"""HamSIGReg's transform: the kinds of H that the configuration names, and how they are laid out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import quick_jit

from hjepa_jax.config import resolve
from hjepa_jax.config.checks import typed
from hjepa_jax.errors import ConfigError
from hjepa_jax.methods.hamsigreg import HamSIGReg
from hjepa_jax.models.base import StateShape
from hjepa_jax.recipes import cifar100

SIDE = 4


def method(kind: str, *, channels: int = 2, split_qp: bool = False, **fields: Any) -> HamSIGReg:
    """Returns the method with fields of config.hamsigreg, for SIDE x SIDE tokens."""
    config = cifar100.get_config("ham_diag-smoke")
    config.model.split_qp = split_qp
    config.hamsigreg.update({"kind": kind, **fields})
    return HamSIGReg(typed(config), StateShape(SIDE**2 * channels, SIDE, channels), 4)


def square(of: HamSIGReg, alpha: float = 1.0, beta: float = 1.0) -> np.ndarray:
    """Returns the matrix H in float64, by the action of its root on the unit vectors."""
    with jax.enable_x64(True):
        state = of.init_state()
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), state.get("params"))
        coordinates = {"params": params, "alpha": alpha, "beta": beta}
        root = np.asarray(quick_jit(of.transform)(coordinates, jnp.eye(of.shape.dim)))
        return root @ root


def ring(n: int) -> np.ndarray:
    """The periodic Laplacian of n points."""
    return 2 * np.eye(n) - np.roll(np.eye(n), 1, 0) - np.roll(np.eye(n), -1, 0)


def on_tokens(grid: np.ndarray, channels: int) -> np.ndarray:
    """The operator that acts alike on every channel, tokens flattened in (h, w, channel) order."""
    return np.kron(grid, np.eye(channels))


def grid_chain() -> np.ndarray:
    """kappa 0.5 of the token grid's Laplacian and eps 0.1, of mean eigenvalue 1."""
    h = 0.1 * np.eye(SIDE**2) + 0.5 * (
        np.kron(ring(SIDE), np.eye(SIDE)) + np.kron(np.eye(SIDE), ring(SIDE))
    )
    return h * SIDE**2 / np.trace(h)


def test_diag_is_a_ramp_of_geometric_mean_one() -> None:
    values = np.linspace(1, 2, SIDE**2 * 2)
    wanted = np.diag(values / np.exp(np.log(values).mean()))
    np.testing.assert_allclose(square(method("diag")), wanted, atol=1e-12)


def test_chain_is_the_laplacian_along_the_flat_state() -> None:
    dim = SIDE**2 * 2
    found = square(method("chain", kappa=0.5, eps=0.1))
    wanted = 0.1 * np.eye(dim) + 0.5 * ring(dim)
    np.testing.assert_allclose(found * (wanted[0, 0] / found[0, 0]), wanted, atol=1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
def test_chain_grid_is_the_laplacian_of_the_tokens_blended_with_the_identity(beta: float) -> None:
    found = square(method("chain_grid", kappa=0.5, eps=0.1), beta=beta)
    wanted = (1 - beta) * np.eye(SIDE**2) + beta * grid_chain()
    np.testing.assert_allclose(found, on_tokens(wanted, 2), atol=1e-10)


@pytest.mark.parametrize("kind", ["chain", "chain_grid"])
def test_beta_is_the_share_of_the_chain_at_the_end_of_its_schedule(kind: str) -> None:
    fields = {"kappa": 0.5, "eps": 0.1, "identity_epochs": 1.0, "base_ramp_epochs": 2.0}
    of = method(kind, beta=0.4, **fields)
    # Four steps an epoch: identity in the first, half and all of the share in the next two.
    shares = [float(of.schedule(jnp.int32(step))[1]) for step in (0, 4, 8, 20)]
    np.testing.assert_allclose(shares, [0.0, 0.2, 0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(float(method(kind, **fields).schedule(jnp.int32(8))[1]), 1.0)
    full = square(method(kind, kappa=0.5, eps=0.1))
    blended = 0.6 * np.eye(len(full)) + 0.4 * full
    np.testing.assert_allclose(square(of, beta=shares[-1]), blended, atol=1e-6)


def test_the_envelope_starts_with_its_epoch() -> None:
    def alphas(**fields: Any) -> list[float]:
        of = method("learnable", **fields)
        return [float(of.schedule(jnp.int32(step))[0]) for step in (0, 3, 4, 8, 12)]

    # As published: start epoch 2 and a ramp over two epochs.
    start = {"learnable_start_epoch": 2, "learnable_ramp_epochs": 2.0}
    np.testing.assert_allclose(alphas(**start), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(alphas(**start, alpha_start_epoch=3), [0, 0, 0, 0.5, 1])
    np.testing.assert_allclose(alphas(learnable_start_epoch=2), [0, 0, 1, 1, 1])
    np.testing.assert_allclose(alphas(), 1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"learnable_start_epoch": 3, "alpha_start_epoch": 2}, "alpha_start_epoch is 2, but .*=3"),
        ({"frozen_epochs": 2.0, "freeze_after_epochs": 2.0}, "freeze_after.* is 2, .*by .*frozen_"),
        (
            {"learnable_start_epoch": 4, "freeze_after_epochs": 3.0},
            "after 3 .*learnable_start_epoch",
        ),
        ({"learnable_start_epoch": 31}, "learnable_start_epoch=31"),
        ({"alpha_start_epoch": 31}, "alpha_start_epoch=31"),
        ({"learnable_start_epoch": 27}, "learnable_ramp_epochs=5"),
        ({"frozen_epochs": 30.0}, "frozen_epochs=30"),
        (
            {"envelope": "free", "base_ramp_epochs": 0.0},
            "identity_epochs is set to 1.0 but has no effect.*'bounded'",
        ),
        ({"beta": 0.5}, "beta is set to 0.5 but has no effect.*'chain_grid'"),
    ],
)
def test_schedules_that_make_no_sense_are_one_sentence(fields: dict[str, Any], words: str) -> None:
    config = cifar100.get_config("ham_learnable")
    config.hamsigreg.update(fields)
    with pytest.raises(ConfigError, match=words) as caught:
        resolve(config)
    assert "\n" not in str(caught.value)


def test_schedules_that_end_in_time_are_allowed() -> None:
    config = cifar100.get_config("ham_learnable")
    config.hamsigreg.update(learnable_start_epoch=26, frozen_epochs=29.0)
    resolve(config)


def learned(**fields: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns the learned H of the token grid by a dense Fourier matrix, and its fields."""
    options = {"span_max": 2.0, "init_loglambda_span": 1.0, **fields}
    of = method("learnable", **options)
    spectrum = np.asarray(of.spectrum(of.init_state()["params"], 0.7, 0.6).spectrum, np.float64)
    assert np.ptp(spectrum) > 0.3
    fourier = np.fft.fft(np.eye(SIDE)) / np.sqrt(SIDE)
    both = np.kron(fourier, fourier)
    return (both.conj().T @ np.diag(spectrum.ravel()) @ both).real, options


def test_learnable_is_the_learned_spectrum_over_the_tokens_frequencies() -> None:
    grid, fields = learned()
    found = square(method("learnable", **fields), 0.7, 0.6)
    np.testing.assert_allclose(found, on_tokens(grid, 2), atol=1e-5)


def test_every_field_of_the_learned_spectrum_reaches_it() -> None:
    plain, _ = learned()
    for change in (
        {"gauge": "logdet"},
        {"base": "r2"},
        {"base_ridge": 2.0},
        {"base_strength": 2.0},
        {"bins": 3},
        {"binning": "quantile_radius"},
        {"init_loglambda_span": 0.5},
        {"delta_clip": 0.3},
        {"log_lambda_clip": 0.3},
        {"eps_ridge": 0.5},
    ):
        assert np.abs(learned(**change)[0] - plain).max() > 1e-3, change
    free, _ = learned(envelope="free")
    assert np.abs(free - plain).max() > 1e-3
    for change in (
        {"gauge": "logdet"},
        {"bins": 3},
        {"binning": "quantile_radius"},
        {"log_lambda_clip": 0.3},
        {"eps_ridge": 0.5},
    ):
        assert np.abs(learned(envelope="free", **change)[0] - free).max() > 1e-3, change
    # The gauge takes away the mean that is subtracted; the regularizer sees it.
    deviations = []
    for center in (False, True):
        of = method("learnable", center_delta=center)
        deviations.append(of.spectrum(of.init_state()["params"], 1.0, 1.0).delta.mean())
    assert deviations[0] > 1e-3 > abs(deviations[1]) * 100


@pytest.mark.parametrize("kind", ["chain_grid", "learnable"])
def test_a_split_state_is_two_grids_but_for_the_published_layout(kind: str) -> None:
    fields: dict[str, Any] = {"kappa": 0.5, "eps": 0.1}
    grid = grid_chain()
    if kind == "learnable":
        grid, fields = learned()
    in_two = np.kron(np.eye(2), on_tokens(grid, 1))
    as_one = on_tokens(grid, 2)
    strength = (1.0, 1.0) if kind == "chain_grid" else (0.7, 0.6)
    split = square(method(kind, split_qp=True, **fields), *strength)
    np.testing.assert_allclose(split, in_two, atol=1e-5)
    published = square(method(kind, split_qp=True, reference_layout=True, **fields), *strength)
    np.testing.assert_allclose(published, as_one, atol=1e-5)
    assert np.abs(in_two - as_one).max() > 0.05


@pytest.mark.parametrize(
    ("kind", "reference", "first"),
    [
        ("learnable", False, False),
        ("learnable", True, True),
        ("chain_grid", True, False),
    ],
)
def test_as_many_rows_as_channels_are_read_channels_first_by_the_published_code_alone(
    kind: str, reference: bool, first: bool
) -> None:
    fields: dict[str, Any] = {"kappa": 0.5, "eps": 0.1}
    grid, strength = grid_chain(), (1.0, 1.0)
    if kind == "learnable":
        (grid, fields), strength = learned(), (0.7, 0.6)
    found = square(method(kind, channels=SIDE, reference_layout=reference, **fields), *strength)
    wanted = np.kron(np.eye(SIDE), grid) if first else on_tokens(grid, SIDE)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["diag", "chain", "chain_grid", "learnable"])
def test_bfloat16_is_computed_in_float32(kind: str) -> None:
    of = method(kind)
    coordinates = {"params": of.init_state().get("params"), "alpha": 1.0, "beta": 1.0}
    z = jnp.ones((3, of.shape.dim), jnp.bfloat16)
    assert jax.eval_shape(lambda z: of.transform(coordinates, z), z).dtype == jnp.float32

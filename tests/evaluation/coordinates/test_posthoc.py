"""An H fitted to features: planted spectra are found, on the training features alone."""

import json
from typing import Any

import numpy as np
import pytest

from hjepa_jax.config.checks import typed
from hjepa_jax.errors import ConfigError
from hjepa_jax.evaluation.coordinates.posthoc import check_posthoc, fit_posthoc
from hjepa_jax.objectives.hamsigreg_spectrum import bin_indices
from hjepa_jax.recipes import cifar100

SIDE, CHANNELS, ROWS = 4, 4, 4096
DIM = SIDE**2 * CHANNELS
# The log-spectrum of each radial bin, non-decreasing.
ENVELOPE = np.array([0.0, 0.1, 0.8, 1.0, 1.1, 1.9, 2.2, 2.4])


def settings(kind: str, *, head: str = "tokens", **changes: Any):
    """Returns settings of an encoder with SIDE x SIDE tokens of CHANNELS, for states [q | p]."""
    config = cifar100.get_config("smoke")
    config.resnet.update(token_layer="layer2", token_grid=SIDE, token_dim=CHANNELS, head=head)
    config.evaluation.update(coordinates="both", posthoc=kind, **changes)
    return typed(config)


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns features H^{-1/2} x with x normal, scaled and shifted, and the log of H [h, w]."""
    rng = np.random.default_rng(seed)
    log_spectrum = ENVELOPE[bin_indices(SIDE, SIDE, 8, "linear_radius")]
    x = rng.normal(size=(ROWS, 2, SIDE, SIDE, CHANNELS // 2))
    modes = np.fft.fft2(x, axes=(2, 3)) * np.exp(-log_spectrum / 2)[None, None, :, :, None]
    z = np.fft.ifft2(modes, axes=(2, 3)).real.reshape(ROWS, DIM)
    return (0.03 * z + rng.normal(size=DIM)).astype(np.float32), log_spectrum


def centered(values: Any) -> np.ndarray:
    return np.asarray(values) - np.mean(values)


@pytest.fixture(scope="module")
def learned():
    """The coordinates fitted to planted features, these, and the log of their H."""
    states, log_spectrum = planted()
    given = settings("learnable", posthoc_steps=120)
    return fit_posthoc(given)(states), states, log_spectrum


def test_a_planted_spectrum_is_found(learned) -> None:
    record, log_spectrum = learned[0].record, learned[2]
    # The log-variance of a frequency has a standard error of sqrt(2 / (4 * 4096)) = 0.01.
    found = centered(record["log_spectrum"])
    np.testing.assert_allclose(found, centered(log_spectrum), atol=0.05)
    assert record["condition_number"] == pytest.approx(np.exp(np.ptp(log_spectrum)), rel=0.1)


def test_sigreg_falls_to_that_of_a_gaussian(learned) -> None:
    record = learned[0].record
    assert record["sigreg_raw"] > 5 * record["sigreg_gaussian"]
    # A mean of 256 statistics whose standard deviation is about their mean.
    assert record["sigreg_sqrt_h"] == pytest.approx(record["sigreg_gaussian"], rel=0.2)
    assert len(record["losses"]) == 120
    assert record["losses"][0] > 2 * np.mean(record["losses"][-30:])


def test_every_block_of_rows_is_centered(monkeypatch) -> None:
    monkeypatch.setattr("hjepa_jax.evaluation.coordinates.posthoc._BLOCK_ROWS", 256)
    states, _ = planted()
    record = fit_posthoc(settings("learnable", posthoc_steps=60))(states[:1024]).record
    # If they were centered together, it would be higher by 0.36.
    assert np.mean(record["losses"][-24:]) == pytest.approx(record["sigreg_gaussian"], abs=0.12)
    assert record["sigreg_rows"] == 256


def test_only_h_is_applied_and_the_scale_is_recorded(learned) -> None:
    coordinates, states, _ = learned
    moved = coordinates.apply(states)
    # Neither centered nor scaled: the gauge leaves a mean eigenvalue of 1.
    h = np.exp(coordinates.record["log_spectrum"])
    assert h.mean() == pytest.approx(1, rel=1e-5)
    grid = states[:5].reshape(5, 2, SIDE, SIDE, CHANNELS // 2).astype(np.float64)
    modes = np.fft.fft2(grid, axes=(2, 3)) * np.sqrt(h)[None, None, :, :, None]
    wanted = np.fft.ifft2(modes, axes=(2, 3)).real.reshape(5, DIM)
    np.testing.assert_allclose(moved[:5], wanted, rtol=1e-4, atol=1e-5)
    # x had variance 1 in every direction.
    variances = (coordinates.record["scale"] * moved).var(axis=0)
    np.testing.assert_allclose(variances, 1, atol=0.15)


def test_it_is_seeded_and_json(learned) -> None:
    states = learned[1]
    fits = [fit_posthoc(settings("learnable", posthoc_steps=3, seed=seed)) for seed in (0, 1)]
    first, again, other = (fit(states[:64]).record for fit in (fits[0], *fits))
    assert first == again
    assert first["params"] != other["params"]
    assert json.loads(json.dumps(learned[0].record, allow_nan=False)) == learned[0].record


def test_a_flat_state_takes_the_kinds_without_a_grid() -> None:
    rng = np.random.default_rng(0)
    config = settings("diag", head="global")
    dim = config.value("resnet.embed_dim")
    states = rng.normal(size=(50, dim)).astype(np.float32)
    found = fit_posthoc(config)(states)
    values = np.linspace(1, 2, dim)
    root = np.sqrt(values / np.exp(np.log(values).mean()))
    np.testing.assert_allclose(found.apply(states), states * root, rtol=1e-5)
    assert found.record["kind"] == "diag"
    assert "losses" not in found.record
    chain = fit_posthoc(settings("chain", head="global"))(states)
    modes = np.fft.rfft(states, axis=1, norm="ortho")
    spectrum = 1e-3 + 2 - 2 * np.cos(2 * np.pi * np.arange(dim // 2 + 1) / dim)
    modes *= np.sqrt(spectrum / spectrum.mean())
    wanted = np.fft.irfft(modes, n=dim, axis=1, norm="ortho")
    np.testing.assert_allclose(chain.apply(states), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["chain_grid", "learnable"])
def test_a_missing_grid_is_one_sentence(kind) -> None:
    check_posthoc(settings(kind))
    for call in (check_posthoc, fit_posthoc):
        with pytest.raises(ConfigError, match=rf"posthoc is '{kind}'.*have none.*'chain' or"):
            call(settings(kind, head="global"))


def test_constant_features_are_no_error() -> None:
    found = fit_posthoc(settings("learnable", posthoc_steps=2))(np.ones((40, DIM), np.float32))
    assert np.isfinite(found.apply(np.ones((3, DIM), np.float32))).all()
    json.dumps(found.record, allow_nan=False)

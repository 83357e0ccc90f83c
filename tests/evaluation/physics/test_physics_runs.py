"""The physics diagnostics on trained predictors: a Hamiltonian flow and its matched MLP."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from hjepa_jax.dynamics.hamiltonian import energy_of_state, split_state
from hjepa_jax.dynamics.integrators import integrate
from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.distribution.volume import volume
from hjepa_jax.evaluation.physics.measure import compare_maps, summarize
from hjepa_jax.recipes import quickstart
from hjepa_jax.tools import physics_pictures
from hjepa_jax.tools.commands import physics
from hjepa_jax.tools.physics_runs import (
    encoded_states,
    maps_of_runs,
    shown_runs,
    volume_curves,
)
from hjepa_jax.train import train


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("physics")
    for method in ("hjepa", "mlp", "sigreg"):
        config = quickstart.get_config(f"{method}-smoke")
        # Its backward pass has no forward mode, which Jacobians take.
        config.dynamics.reversible = method == "hjepa"
        train(config, folder / method)
    return folder


def test_the_hamiltonian_run_is_symplectic_and_the_mlp_run_is_not(workdirs) -> None:
    runs = shown_runs([workdirs / "hjepa", workdirs / "mlp"])
    maps, setup = maps_of_runs(runs, num_states=16, applications=4)
    figures = summarize(compare_maps(maps, setup))
    assert list(figures) == ["hjepa", "mlp"]
    defects = {name: values["symplectic_defect_median"] for name, values in figures.items()}
    assert defects["hjepa"] < 1e-5
    assert defects["mlp"] > 10 * defects["hjepa"]
    drifts = {name: values["energy_drift_max_median"] for name, values in figures.items()}
    assert np.isfinite(list(drifts.values())).all()
    assert drifts["hjepa"] < drifts["mlp"]


def test_a_run_without_predictor_is_refused(workdirs, capsys) -> None:
    runs = shown_runs([workdirs / "hjepa", workdirs / "sigreg"])
    with pytest.raises(UserError, match="sigreg has no predictor"):
        maps_of_runs(runs, num_states=4)
    with pytest.raises(UserError, match="sigreg has no predictor, which the picture blob shows"):
        physics_pictures.possible(runs, ["slices", "blob"], strict=True)
    with pytest.raises(UserError, match="no run has a Hamiltonian, which the picture surface"):
        physics_pictures.possible(runs[1:], ["surface"], strict=True)
    assert physics_pictures.possible(runs[1:], ["norms", "surface"], strict=False) == ["norms"]
    assert capsys.readouterr().out == "no surface: no run has a Hamiltonian\n"
    assert physics_pictures.possible(runs, ["heatmap"], strict=True) == ["heatmap"]
    with pytest.raises(UserError, match="distinct names"):
        shown_runs([workdirs / "hjepa", workdirs / "hjepa"])


def test_a_trained_energy_is_that_of_the_run(workdirs) -> None:
    hjepa, mlp = shown_runs([workdirs / "hjepa", workdirs / "mlp"])
    assert mlp.hamiltonian is None
    system, z = hjepa.hamiltonian, jnp.asarray(hjepa.states[:3])
    assert system is not None
    np.testing.assert_allclose(energy_of_state(system, z), hjepa.run.energy(z), rtol=1e-5)
    np.testing.assert_array_equal(system.grad_p(*split_state(z)), split_state(z)[1])
    dynamics = hjepa.run.run.method.dynamics
    flowed = integrate(system, z, steps=dynamics.steps, dt=dynamics.dt)
    np.testing.assert_allclose(flowed, hjepa.run.flow(z), atol=1e-4)


def test_the_window_lies_along_the_first_principal_direction() -> None:
    rng = np.random.default_rng(0)
    direction = np.array([0.6, 0.8, 0.0])
    q = 5 + rng.standard_normal((400, 1)) * 3 * direction + 0.01 * rng.standard_normal((400, 3))
    p = rng.standard_normal((400, 3))
    window = physics_pictures.window_of(np.concatenate([q, p], axis=1))
    sign = np.sign(window.q_axis[0])
    np.testing.assert_allclose(sign * window.q_axis, [*direction, 0, 0, 0], atol=1e-3)
    np.testing.assert_allclose(sign * window.p_axis, [0, 0, 0, *direction], atol=1e-3)
    np.testing.assert_allclose(window.q_extent, 2 * (q @ direction).std(), rtol=1e-3)
    np.testing.assert_allclose(window.p_extent, 2 * (p @ direction).std(), rtol=1e-2)
    np.testing.assert_allclose(window.center, [*q.mean(axis=0), *p.mean(axis=0)], rtol=1e-5)


def test_volumes_are_those_of_the_checkpoints(workdirs) -> None:
    (shown,) = shown_runs([workdirs / "hjepa"])
    curves = volume_curves(shown)
    assert [one.part for one in curves] == ["q", "p"]
    loss = shown.run.run.method.options
    half = shown.states.shape[1] // 2
    own = encoded_states(shown.run, 512)
    for one, part in zip(curves, (own[:, :half], own[:, half:]), strict=True):
        assert one.steps[-1] == shown.run.step
        expected = volume(part, loss.logdet_dim, loss.logdet_eps)
        np.testing.assert_allclose(one.volumes[-1], expected, rtol=1e-4)
        assert one.logged is not None
        assert one.floor == loss.q_logdet_floor


def test_the_command_draws_states_of_any_run(workdirs, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    arguments = [f"--out={out}", f"--system={workdirs / 'sigreg'}", "--which=slices,norms,logdet"]
    physics.main(physics.PROGRAM.parse(["physics", *arguments]))
    assert {path.name for path in out.iterdir()} == {"logdet.png", "slices.png", "norms.png"}
    assert f"3 files in {out}" in capsys.readouterr().out
    for path in out.iterdir():
        with Image.open(path) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--which=surface,bolb"], "--which=bolb is no picture: choose among energy, .*norms, or"),
        (["--system=duffin"], r"--system=duffin is no classical system \(harmonic, .*and not the"),
        (
            ["--which=slices"],
            "--which=slices shows the states of trained runs: name them with --ru",
        ),
        (
            ["--system=duffing", "--runs=a"],
            "--system=duffing and --runs are both given: choose one",
        ),
    ],
)
def test_errors_come_before_the_work(arguments, message, tmp_path) -> None:
    rest = physics.PROGRAM.parse(["physics", f"--out={tmp_path}", *arguments])
    with pytest.raises(UserError, match=message):
        physics.main(rest)

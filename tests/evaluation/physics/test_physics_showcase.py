"""Physics comparison: measurements of known maps, and the files of the script."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from predictors import predictor

from hjepa_jax.dynamics import non_symplectic
from hjepa_jax.evaluation.physics import cases, figures, measure
from hjepa_jax.tools import physics_pictures
from hjepa_jax.tools.commands import physics

ROOT = pathlib.Path(__file__).resolve().parents[3]


def radius(z):
    return jnp.sum(z**2, -1)


def rotation(angle, growth=1.0):
    """Rotates every conjugate plane by `angle` and scales all by `growth`."""

    def turn(z, sign):
        q, p = jnp.split(z, 2, -1)
        c, s = jnp.cos(sign * angle), jnp.sin(sign * angle)
        return growth**sign * jnp.concatenate([c * q + s * p, c * p - s * q], -1)

    return measure.PhaseMap(lambda z: turn(z, 1), lambda z: turn(z, -1), radius)


@pytest.fixture(scope="module")
def linear():
    """Rotations in two planes: one symplectic, one growing by 10 % per application."""
    with jax.enable_x64(True):
        states = jax.random.normal(jax.random.key(0), (32, 4), jnp.float64)
        setup = measure.MeasurementSetup(
            states, jnp.zeros(4), plane=1, grid_size=4, applications=10, jacobian_states=3
        )
        maps = {"rotation": rotation(0.3), "growth": rotation(0.3, 1.1)}
        maps["wrong inverse"] = maps["rotation"]._replace(backward=lambda z: z, energy=None)
        return measure.compare_maps(maps, setup), setup


def test_known_maps_have_the_expected_measurements(linear):
    results, setup = linear
    rotation_, growth = results["rotation"], results["growth"]
    for m in (rotation_, growth):
        assert m.path.shape == (11, 32, 2)
        assert m.blob.shape == (11, setup.blob_points, 2)
        assert m.reversal_times.tolist() == [1, 2, 4, 8, 10]
        assert m.reversal_error.max() < 1e-13
        assert m.defect.shape == m.log_volume.shape == (3,)
    assert rotation_.defect.max() < 1e-14
    assert np.abs(rotation_.energy - rotation_.energy[0]).max() < 1e-12
    powers = 1.1 ** (2 * np.arange(11))
    np.testing.assert_allclose(growth.defect, 1.1**2 - 1, rtol=1e-12)
    np.testing.assert_allclose(growth.log_volume, 4 * np.log(1.1), rtol=1e-12)
    np.testing.assert_allclose(growth.energy, growth.energy[0] * powers[:, None], rtol=1e-12)
    np.testing.assert_allclose(growth.action / growth.action[0], powers, rtol=1e-12)
    np.testing.assert_allclose(growth.variance / growth.variance[0], powers, rtol=1e-12)
    np.testing.assert_allclose(growth.participation, growth.participation[0], rtol=1e-12)
    # The corner of the grid lies at (2, 2) from the center.
    np.testing.assert_allclose(growth.grid_drift[0, 0], 8 * (powers[-1] - 1), rtol=1e-12)
    covariance = np.cov(np.asarray(setup.states).T)
    np.testing.assert_allclose(growth.variance[0], np.trace(covariance), rtol=1e-12)
    ratio = np.trace(covariance) ** 2 / np.sum(covariance**2)
    np.testing.assert_allclose(growth.participation[0], ratio, rtol=1e-12)


def test_area_of_the_loop_is_that_of_a_circle(linear):
    results, setup = linear
    np.testing.assert_allclose(results["rotation"].action, np.pi * 0.3**2, rtol=1e-4)
    start = results["rotation"].blob[0]
    np.testing.assert_allclose(np.linalg.norm(start, axis=-1), setup.blob_radius, rtol=1e-12)


def test_a_wrong_inverse_and_a_missing_energy_are_reported(linear):
    found = measure.summarize(linear[0])
    assert found["wrong inverse"]["reversal_error_once_median"] > 0.1
    assert "energy_drift_max_median" not in found["wrong inverse"]
    assert found["growth"]["energy_drift_grid_max"] > 1
    assert found["rotation"]["applications"] == 10
    json.dumps(found, allow_nan=False)


def test_divergence_becomes_null_and_is_still_drawn(tmp_path):
    """A map that overflows must not stop the comparison."""
    states = jax.random.normal(jax.random.key(0), (8, 2))
    setup = measure.MeasurementSetup(
        states, jnp.zeros(2), grid_size=3, applications=4, jacobian_states=2
    )
    explosive = measure.PhaseMap(lambda z: 1e10 * z**3, lambda z: z, radius)
    results = measure.compare_maps({"rotation": rotation(0.3), "cube": explosive}, setup)
    found = measure.summarize(results)
    assert found["cube"]["energy_drift_final_median"] is None
    written = figures.save_all(results, setup, tmp_path)
    assert all(path.stat().st_size > 0 for path in written)
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_predictors_are_compared_under_one_energy():
    z = jax.random.normal(jax.random.key(0), (16, 32))
    predictors = {}
    for kind in ("hamiltonian", "mlp"):
        module = predictor(kind, hidden_dim=32, depth=1, activation="silu")
        predictors[kind] = (module, jax.jit(module.init)(jax.random.key(1), z, 1.0, 1.0))
    maps = measure.predictor_maps(predictors, 0.5)
    setup = measure.setup_of_states(z, applications=2, jacobian_states=2, grid_size=3)
    results = measure.compare_maps(maps, setup)
    spread = np.var(np.asarray(z), 0).reshape(2, 16).sum(0)
    assert setup.plane == np.argmax(spread)
    np.testing.assert_array_equal(results["mlp"].energy[0], results["hamiltonian"].energy[0])
    assert results["hamiltonian"].defect.max() < 1e-5
    assert results["mlp"].defect.min() > 1e-3
    assert results["hamiltonian"].reversal_error.max() < 1e-5
    assert results["mlp"].reversal_error.min() > 1e-4


def test_errors_say_what_is_wrong():
    setup = measure.MeasurementSetup(jnp.zeros((4, 3)), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"one even width.*3"):
        measure.compare_maps({"a": rotation(0.1)}, setup)
    setup = measure.MeasurementSetup(jnp.zeros((4, 4)), jnp.zeros(4), plane=2)
    with pytest.raises(ValueError, match="plane below 2"):
        measure.compare_maps({"a": rotation(0.1)}, setup)


def test_script_writes_pictures_and_figures(tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / "scripts" / "physics_showcase.py")]
    sizes = ["--applications=12", "--grid=6", "--ensemble=16"]
    done = subprocess.run(
        [*command, f"--out={tmp_path}", *sizes],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "leapfrog" in done.stdout
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["leapfrog"]["symplectic_defect_max"] < 1e-14
    assert found["leapfrog"]["reversal_error_final_median"] < 1e-13
    for other in ("Runge-Kutta 4", "explicit Euler", "implicit Euler"):
        assert found[other]["symplectic_defect_median"] > 1e-4
        assert (
            found[other]["energy_drift_max_median"] > found["leapfrog"]["energy_drift_max_median"]
        )
    names = {"energy", "time_reversal", "blob", "structure", "covariance"}
    assert {path.stem for path in tmp_path.glob("*.png")} == names
    with Image.open(tmp_path / "orbit.gif") as animation:
        assert animation.n_frames == 13


def test_a_failing_picture_affects_no_other(tmp_path, monkeypatch, caplog) -> None:
    """figures.json is written first; run names are drawn literally."""
    maps, setup = cases.showcase(applications=4, grid_size=2, ensemble=4)
    first = next(iter(maps.values()))
    results = measure.compare_maps({"$_$": first, "_run": first}, setup)
    drawn = []

    def fail(*_):
        raise RuntimeError("no ink")

    def note(found, *_):
        drawn.append(list(found))
        raise RuntimeError("no paper")

    monkeypatch.setattr(figures, "structure_picture", fail)
    for name in ("energy_picture", "covariance_picture", "blob_picture", "orbit_frames"):
        monkeypatch.setattr(figures, name, note)
    written = figures.save_all(results, setup, tmp_path)
    assert [path.name for path in written] == ["time_reversal.png", "figures.json"]
    assert set(json.loads((tmp_path / "figures.json").read_text())) == {"$_$", "_run"}
    assert drawn[0] == [r"\$_\$", " _run"]
    assert "structure.png could not be drawn (RuntimeError: no ink)" in caplog.text


def test_a_system_is_drawn_as_surface_and_heat_map(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(physics_pictures, "surface_frames", lambda _: [Image.new("RGB", (4, 2))])
    sizes = ["--applications=4", "--grid=3", "--dt=0.5"]
    which = ["--system=double_well", "--which=surface,heatmap"]
    physics.main(physics.PROGRAM.parse(["physics", f"--out={tmp_path}", *which, *sizes]))
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"surface.png", "surface.gif", "heatmap.png"}
    assert "no surface.mp4: ffmpeg is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("name", cases.CASES)
def test_ensembles_of_every_system_stay_bounded(name) -> None:
    """Under leapfrog, inside the largest energy of the disk."""
    maps, setup = cases.showcase(name, ensemble=32, grid_size=2)
    leapfrog, case = maps["leapfrog"], cases.CASES[name]
    energy = jax.jit(leapfrog.energy)
    before = energy(setup.states)
    after = energy(jax.jit(lambda z: non_symplectic.repeat(leapfrog.forward, z, 50))(setup.states))
    np.testing.assert_allclose(after, before, atol=0.1 * np.max(before))
    assert np.linalg.norm(setup.states, axis=1).max() < case.radius

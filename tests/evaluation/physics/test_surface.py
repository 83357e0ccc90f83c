"""Energy surfaces, their orbits, and the frames of them."""

import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from hjepa_jax.dynamics import hamiltonian as hm
from hjepa_jax.evaluation.physics import animation, names
from hjepa_jax.evaluation.physics.cases import CASES, in_first_plane
from hjepa_jax.evaluation.physics.surface import phase_surface, potential_surface
from hjepa_jax.evaluation.physics.surface_pictures import _below, surface_frames
from hjepa_jax.evaluation.report.plots import PALETTE


def test_every_system_can_be_named():
    assert tuple(CASES) == names.SYSTEMS


def test_the_oscillator_is_a_bowl_on_which_only_leapfrog_stays_level():
    with jax.enable_x64(True):
        found = phase_surface("harmonic", CASES["harmonic"], dt=0.1)
    q, p = np.meshgrid(found.x, found.y)
    np.testing.assert_allclose(found.height, (q**2 + p**2) / 2)
    assert found.ceiling == 2.0  # the largest circle in the window
    leapfrog, explicit, implicit = found.orbits.values()
    for orbit in found.orbits.values():
        np.testing.assert_allclose(orbit[:, 2], (orbit[:, 0] ** 2 + orbit[:, 1] ** 2) / 2)
    steps = np.arange(len(found.times))
    np.testing.assert_allclose(explicit[:, 2], 0.5 * 1.01**steps, rtol=1e-9)
    np.testing.assert_allclose(implicit[:, 2], 0.5 * 1.01**-steps, rtol=1e-9)
    assert np.abs(leapfrog[:, 2] - 0.5).max() < 0.002
    assert [name.partition(":")[0] for name in found.orbits] == [
        *("leapfrog", "explicit Euler", "implicit Euler")
    ]
    assert "explicit Euler: H from 0.5 to 6" in found.orbits


def test_a_quadratic_potential_over_the_principal_plane_of_q():
    """Three coordinates of deviations 3, 2, 0.1 about means 1, 2, 3; the flow turns by the time."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((500, 3))
    q = [1, 2, 3] + (q - q.mean(axis=0)) / q.std(axis=0) * [3, 2, 0.1]
    states = np.concatenate([q, rng.standard_normal((500, 3))], axis=1).astype(np.float32)
    found = potential_surface("run", hm.quadratic(), states, dt=0.05, orbits=2)
    first = found.orbits["image 1"]
    # The plane is that of the first two coordinates up to the signs and a small rotation.
    distance = np.linalg.norm(first[:, :2], axis=1)
    time = found.times[:, None]
    exact = np.cos(time) * states[0, :3] + np.sin(time) * states[0, 3:] - [1, 2, 3]
    np.testing.assert_allclose(distance, np.linalg.norm(exact[:, :2], axis=1), atol=0.1)
    middle = len(found.x) // 2
    np.testing.assert_allclose(found.height[middle, middle], (1 + 4 + 9) / 2, rtol=1e-3)
    np.testing.assert_allclose(found.ceiling, found.height.max())
    assert found.labels[0] == "q, 1st principal direction (69%)"  # 9 / (9 + 4 + 0.01)
    assert found.labels[2] == "V(q)"


def test_the_surface_is_cut_off_at_the_ceiling():
    height = np.array([[9.0, 9, 9, 9], [9, 9, 9, 9], [9, 9, 9, 1]])
    np.testing.assert_array_equal(
        _below(height, 2.0), [[np.nan] * 4, [np.nan, np.nan, 2, 2], [np.nan, np.nan, 2, 1]]
    )


@pytest.fixture(scope="module")
def frames():
    with jax.enable_x64(True):
        found = phase_surface("double well", CASES["double_well"], dt=0.25)
    assert any(not np.isfinite(orbit).all() for orbit in found.orbits.values())
    return surface_frames(found, frames=3, dpi=40)


def test_frames_differ_and_become_a_gif(frames):
    pixels = [np.asarray(frame).astype(int) for frame in frames]
    assert all(np.abs(a - b).max() > 50 for a, b in itertools.pairwise(pixels))
    with Image.open(io.BytesIO(animation.gif(frames))) as read:
        assert (read.n_frames, read.size) == (3, frames[0].size)
        assert read.info["duration"] == 80


def test_lines_keep_their_colors_in_a_gif():
    """A few pixels of each color of the palette, on a picture of thousands of other colors."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    colors = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in PALETTE]
    pixels[0, : len(colors)] = colors
    made = animation.gif([Image.fromarray(pixels)] * 2)
    with Image.open(io.BytesIO(made)) as read:
        np.testing.assert_array_equal(np.asarray(read.convert("RGB"))[0, : len(colors)], colors)


def test_ffmpeg_gets_the_pixels_and_its_failure_is_told(frames, tmp_path, monkeypatch):
    """A stand-in keeps what it is given, where there is no ffmpeg."""
    tool = tmp_path / "ffmpeg"
    tool.write_text('#!/bin/sh\nfor out; do :; done\ncat > "$out"\n')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert not animation.has_ffmpeg()
    tool.chmod(0o755)
    assert animation.has_ffmpeg()
    raw = animation.mp4(frames)
    assert raw == b"".join(frame.tobytes() for frame in frames)
    tool.write_text('#!/bin/sh\ncat > /dev/null\necho "first\nUnknown encoder" >&2\nexit 1\n')
    with pytest.raises(RuntimeError, match="ffmpeg fails: Unknown encoder"):
        animation.mp4(frames)


def test_states_in_the_first_plane():
    found = in_first_plane(jnp.array([[1.0, 2.0]]), 2)
    np.testing.assert_array_equal(found, [[1, 0, 2, 0]])

"""The examples of own parts run as their command lines say: they train, go on and are evaluated."""

import itertools
import json
import pathlib
import shutil
import subprocess

import forked
import jax
import numpy as np
import pytest

import hjepa_jax
from hjepa_jax.config import base_config
from hjepa_jax.config.checks import typed
from hjepa_jax.config.flags import resolve_arguments
from hjepa_jax.data.sources.open import open_source
from hjepa_jax.errors import ConfigError, UserError
from hjepa_jax.storage.metrics_file import read_metrics
from hjepa_jax.tools.kill_test import differing_arrays, final_state
from hjepa_jax.training.setup import build_encoder, build_method

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHAPES = "--config.data.name=examples.own_source:Shapes"
MIXER = "--config.model.encoder=examples.own_encoder:PatchMixer"
VICREG = "--config.method=examples.own_method:VICReg"
PROJECTOR = (
    "--config.model.projector=mlp",
    "--config.model.projector_hidden=16",
    "--config.model.projector_dim=8",
)
SMALL = ("--config.data.image_size=16", "--config.shapes.side=16", "--config.shapes.images=64")


def hjepa(
    workdir: pathlib.Path, *overrides: str, mode: str = "train"
) -> subprocess.CompletedProcess[str]:
    """Runs the command line in the repository's root and returns what it did."""
    command = ["-m", "hjepa_jax.main", "--config=configs/quickstart.py:smoke", f"--mode={mode}"]
    return forked.run(*command, f"--workdir={workdir}", f"--eval_dir={workdir}-eval", *overrides)


def trained(workdir: pathlib.Path, *overrides: str, mode: str = "train") -> pathlib.Path:
    done = hjepa(workdir, *overrides, mode=mode)
    assert done.returncode == 0, done.stderr
    return workdir


def resumable(workdir: pathlib.Path, *overrides: str) -> pathlib.Path:
    """Trains a run and takes its last checkpoint away, so that training resumes from step 1."""
    trained(workdir, *overrides, "--config.checkpoint.every_steps=1")
    shutil.rmtree(workdir / "checkpoints" / "2")
    return workdir


def metrics_of(workdir: pathlib.Path) -> dict:
    (file,) = pathlib.Path(f"{workdir}-eval").rglob("metrics.json")
    return json.loads(file.read_text())


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("own_*.py")), ids=lambda p: p.stem)
def test_an_example_is_short(file: pathlib.Path) -> None:
    assert len(file.read_text().splitlines()) < 80


def test_shapes_train_alike_with_workers_resume_and_are_evaluated(tmp_path) -> None:
    alone = trained(tmp_path / "alone", SHAPES, *SMALL, mode="train_and_eval")
    assert "shapes (train): 64 images" in json.dumps(metrics_of(alone))
    expected = final_state(alone)
    cut = resumable(tmp_path / "workers", SHAPES, *SMALL, "--config.data.num_workers=2")
    assert differing_arrays(final_state(cut), expected)
    resumed = trained(cut, SHAPES, *SMALL, "--config.data.num_workers=2")
    assert not differing_arrays(final_state(resumed), expected)


def test_a_field_of_the_shapes_cannot_change_on_resume(tmp_path) -> None:
    workdir = trained(tmp_path / "run", SHAPES, *SMALL)
    done = hjepa(workdir, SHAPES, *SMALL, "--config.shapes.noise=0.5")
    assert done.returncode == 1
    assert "config.shapes.noise (0.1 there, 0.5 here)" in done.stderr


def test_a_run_is_evaluated_on_shapes_with_other_settings(tmp_path) -> None:
    workdir = trained(tmp_path / "run", "--config.data.max_train_images=64")
    trained(workdir, SHAPES, *SMALL, "--config.shapes.noise=0.5", mode="eval")
    assert "shapes (test): 64 images" in json.dumps(metrics_of(workdir))


def test_shapes_are_drawn_in_their_classes() -> None:
    overrides = [SHAPES, *SMALL, "--config.shapes.noise=0"]
    settings = resolve_arguments(["--config=configs/quickstart.py", *overrides])
    train, test = open_source(settings, "train"), open_source(settings, "test")
    assert train.class_names == ("disk", "square", "diamond", "ring")
    assert train.labels().tolist() == list(range(4)) * 16
    images = [train.record(i).image for i in range(64)]
    assert all(image.shape == (16, 16, 3) and image.dtype == np.uint8 for image in images)
    assert not {image.tobytes() for image in images} & {
        test.record(i).image.tobytes() for i in range(64)
    }
    # Without noise an image has two colors, the shape's and the background's.
    assert {len(np.unique(image.reshape(-1, 3), axis=0)) for image in images} == {2}


def test_the_mixer_trains_resumes_bit_exact_is_evaluated_and_loaded(tmp_path) -> None:
    narrow = (MIXER, "--config.mixer.width=8", "--config.mixer.token_dim=8")
    run = resumable(tmp_path / "run", *narrow)
    first = final_state(run)
    kernel = first.params["encoder"]["Dense_0"]["kernel"]
    assert kernel.shape == (4 * 4 * 3, 8)
    expected = final_state(trained(tmp_path / "whole", *narrow, mode="train_and_eval"))
    assert differing_arrays(first, expected)
    assert not differing_arrays(final_state(trained(run, *narrow)), expected)
    assert "trained" in metrics_of(tmp_path / "whole")["encoders"]
    states = hjepa_jax.load(run).encode(np.zeros((3, 16, 16, 3), np.uint8))
    assert states.shape == (3, 4 * 4 * 8)
    done = hjepa(run, *narrow, "--config.mixer.blocks=3", mode="eval")
    assert "config.mixer.blocks (2 there, 3 here)" in done.stderr


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--config.mixer.patch=3"], r"config\.mixer\.patch is 3.*divisor"),
        (["--config.mixer.token_dim=7", "--config.mixer.patch=16"], "states have 7 dimensions"),
        (
            [
                "--config.data.num_local_views=2",
                "--config.data.local_size=12",
                "--config.loss.pairing=local_to_global",
            ],
            "local_size is 12, for which the states have 144 dimensions, but 256",
        ),
        (["--config.resnet.width=8"], r"config\.resnet\.width is set to 8 but has no effect"),
    ],
)
def test_what_the_mixer_cannot_take_is_one_sentence(overrides, words) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        resolve_arguments(["--config=configs/quickstart.py", MIXER, *overrides])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["examples.own_source:Shapes", "resnett"])
def test_what_is_no_encoder_is_one_sentence(name) -> None:
    with pytest.raises(ConfigError, match=r"config\.model\.encoder is"):
        build_encoder(
            resolve_arguments(["--config=configs/quickstart.py", f"--config.model.encoder={name}"])
        )


def test_vicreg_trains_resumes_bit_exact_is_evaluated_and_loaded(tmp_path) -> None:
    run = resumable(tmp_path / "run", VICREG, *PROJECTOR)
    first = final_state(run)
    assert first.params["projector"]["output"]["kernel"].shape == (16, 8)
    whole = trained(tmp_path / "whole", VICREG, *PROJECTOR, mode="train_and_eval")
    expected = final_state(whole)
    assert differing_arrays(first, expected)
    assert not differing_arrays(final_state(trained(run, VICREG, *PROJECTOR)), expected)
    found = metrics_of(whole)
    assert (found["info"]["method"], "trained" in found["encoders"]) == (VICREG[16:], True)
    curves = read_metrics(whole)
    weighted = [factor * np.array(curves[f"loss/{name}"][1]) for name, factor in WEIGHTS.items()]
    assert np.shape(weighted) == (3, 2)
    assert np.all(np.array(weighted) > 0)
    np.testing.assert_allclose(np.sum(weighted, axis=0), curves["loss/total"][1], rtol=1e-5)
    loaded = hjepa_jax.load(run)
    assert loaded.encode(np.zeros((3, 16, 16, 3), np.uint8)).shape == (3, 512)
    with pytest.raises(UserError, match=r"method='examples\.own_method:VICReg', which has no pred"):
        loaded.flow(np.zeros((1, 512)))
    done = hjepa(run, VICREG, *PROJECTOR, "--config.own_vicreg.gamma=2")
    assert "config.own_vicreg.gamma (1.0 there, 2.0 here)" in done.stderr


WEIGHTS = {"invariance": 25, "variance": 25, "covariance": 1}


def vicreg_of_a_pair(one: np.ndarray, two: np.ndarray, gamma: float) -> dict[str, float]:
    """Returns the terms of states [B, D] as the paper has them, in float64."""

    def hinge(z: np.ndarray) -> float:
        hinges = [max(0.0, gamma - np.sqrt(x.var(ddof=1) + 1e-4)) for x in z.T]
        return float(np.mean(hinges))

    def off_diagonal(z: np.ndarray) -> float:
        matrix, dim = np.cov(z, rowvar=False), z.shape[1]
        return sum(matrix[i, j] ** 2 for i, j in itertools.permutations(range(dim), 2)) / dim

    return {
        "invariance": float(np.mean([np.mean((a - b) ** 2) for a, b in zip(one, two)])),
        "variance": hinge(one) + hinge(two),
        "covariance": off_diagonal(one) + off_diagonal(two),
    }


@pytest.mark.parametrize("views", [2, 3])
def test_vicreg_is_the_mean_of_the_published_loss_over_pairs(views) -> None:
    config = base_config(method=VICREG[16:])
    config.data.num_global_views = views
    config.own_vicreg.gamma = 1.1
    method = build_method(typed(config), 4)
    # Deviations on both sides of gamma, and a mean that no term but the statistics sees.
    scale = np.array([0.3, 0.8, 1.5, 2.0])
    z = 5 + scale * np.random.default_rng(0).normal(size=(views, 6, 4))
    pairs = [vicreg_of_a_pair(*pair, 1.1) for pair in itertools.combinations(z, 2)]
    expected = {name: np.mean([pair[name] for pair in pairs]) for name in WEIGHTS}
    with jax.enable_x64(True):
        total, metrics = method.loss({}, {}, jax.numpy.asarray(z), {}, jax.numpy.int32(0))
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-12)
    np.testing.assert_allclose(
        total, sum(factor * expected[name] for name, factor in WEIGHTS.items()), rtol=1e-12
    )


def test_loss_and_gradient_of_vicreg_do_not_depend_on_the_number_of_devices() -> None:
    command = ["scripts/layout_check.py", "--devices=1,2", VICREG, *PROJECTOR]
    done = forked.run(*command, "--config=configs/quickstart.py:smoke", "--tolerance=1e-9")
    assert done.returncode == 0, done.stderr
    assert "2 layouts agree" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--config.own_vicreg.gamma=0"], r"config\.own_vicreg\.gamma is 0\.0"),
        (["--config.own_vicreg.gama=2"], r"did you mean config\.own_vicreg\.gamma"),
        (["--config.data.num_global_views=1"], "VICReg compares views"),
        (
            ["--config.data.num_local_views=2", "--config.data.local_size=16"],
            "num_local_views is above 0, but VICReg takes none",
        ),
        (["--config.data.batch_size=1"], "one image has no variance"),
        (["--config.loss.logdet_dim=8"], r"config\.loss\.logdet_dim is set to 8 but has no effect"),
        (["--config.train.predictor_lr=1e-3"], r"predictor_lr is set to 0\.001 but has no effect"),
    ],
)
def test_what_vicreg_cannot_take_is_one_sentence(overrides, words) -> None:
    with pytest.raises(UserError, match=words) as caught:
        resolve_arguments(["--config=configs/quickstart.py", VICREG, *overrides])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["examples.own_source:Shapes", "vicregs"])
def test_what_is_no_method_is_one_sentence(name) -> None:
    config = base_config()
    config.method = name
    with pytest.raises(ConfigError, match=r"config\.method is") as caught:
        build_method(typed(config), 4)
    assert "\n" not in str(caught.value)

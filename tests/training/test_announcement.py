"""What is said of a run when it starts."""

import pathlib

import pytest

from hjepa_jax.config.checks import typed
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.main import PROGRAM
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.training.announcement import cautions, summary
from hjepa_jax.training.prepare import prepare


@pytest.fixture(scope="module")
def run():
    """A prepared smoke run and its source."""
    config = quickstart.get_config("smoke")
    config.train.accumulation = 2
    settings = typed(config)
    source = open_split(settings, "train")
    return settings, prepare(settings, len(source), sharding.data_mesh()), source


def test_a_run_is_told_in_about_ten_lines(run) -> None:
    settings, prepared, source = run
    rows = summary(settings, prepared, source, pathlib.Path("runs/x"), first=1, changes=("seed=3",))
    assert list(rows) == [
        *("method", "data", "encoder", "devices", "batch", "training", "precision", "changed"),
        "folder",
    ]
    assert rows["method"].startswith("hjepa (weights: prediction 1, budget 0.2, variance 0.5")
    assert rows["data"] == source.description
    assert rows["encoder"] == "resnet, 5.24 k parameters; predictor 4.4 k"
    assert rows["batch"].startswith("16 images in 2 micro-batches, 2 views of 16x16 each")
    assert rows["training"].startswith("2 steps, 0.5 epochs of 4; learning rate 0.002")
    assert rows["training"].endswith("resumed at step 1")
    assert rows["changed"] == "seed=3"
    assert rows["folder"].startswith("runs/x: ")


def test_what_is_set_of_the_runtime_has_a_line_and_what_has_no_effect_a_warning(run) -> None:
    settings, prepared, source = run
    chosen = settings.replace({"runtime.matmul_precision": "tf32"})
    rows = summary(chosen, prepared, source, pathlib.Path("x"), first=0, changes=())
    assert rows["runtime"] == "float32 products of the encoder in tf32"
    assert not [one for one in cautions(chosen, prepared.method, 64) if "precision" in one]
    coarse = chosen.replace({"model.compute_dtype": "bfloat16"})
    (told,) = (one for one in cautions(coarse, prepared.method, 64) if "matmul_precision" in one)
    assert told.startswith("config.runtime.matmul_precision is 'tf32', but the encoder computes in")


def test_without_a_recipe_the_differences_from_the_defaults_are_named(run) -> None:
    settings, prepared, source = run
    rows = summary(settings, prepared, source, pathlib.Path("x"), first=0, changes=None)
    assert "data.batch_size=16" in rows["changed"]
    assert rows["changed"].endswith("more")
    assert rows["changed"].count("=") == 8
    rows = summary(settings, prepared, source, pathlib.Path("x"), first=0, changes=())
    assert "changed" not in rows
    assert "resumed" not in rows["training"]


def test_changes_are_read_from_the_command_line() -> None:
    fields = ["--config.seed=7", "--config.train.lr", "0.1", "--mode=train"]
    PROGRAM.parse(["hjepa", "--config=quickstart", *fields])
    assert PROGRAM.changes() == ("seed=7", "train.lr=0.1")
    switches = ["--config.evaluation.online_probe", "--noconfig.train.shard_optimizer"]
    PROGRAM.parse(["hjepa", "--config=quickstart", *switches, "--mode=train"])
    assert PROGRAM.changes() == ("evaluation.online_probe=True", "train.shard_optimizer=False")

"""Configurations with 'auto' fields: chosen from real images, kept by a run, and run end to end."""

import json
import logging
import pathlib

import forked
import numpy as np
import pytest
from image_files import encode, photo, write_folder

from hjepa_jax.config import files, resolve
from hjepa_jax.config.checks import typed, with_defaults
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import ConfigError, DataError
from hjepa_jax.evaluate import of_run
from hjepa_jax.recipes import folder as recipe
from hjepa_jax.training.automatic import census
from hjepa_jax.training.automatic.resolved import resolved


def own(root: pathlib.Path, **data):
    """The recipe on a folder."""
    config = recipe.get_config()
    config.data.update(root=str(root), **data)
    return config


def test_a_census_measures_what_is_there(tmp_path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    sizes = [(40, 60), (90, 50), (70, 70), (300, 80), (200, 100)]
    for number, (height, width) in enumerate(sizes):
        pixels = np.full((height, width, 3), (255, 51, 0), np.uint8)
        (flat / f"{number}.png").write_bytes(encode(pixels, "PNG"))
    (flat / "broken.png").write_bytes(b"none")
    found = census.take(typed(with_defaults(own(flat))[0]))
    assert (found.count, found.sampled, found.has_test, found.labeled) == (6, 5, False, 0)
    assert found.short_side == (40, 70, 80)
    assert found.mean == (1.0, 0.2, 0.0)
    assert found.std == (0.01, 0.01, 0.01)
    assert found.files
    write_folder(tmp_path / "sorted", {"train": {"a": 2, "b": 3}, "val": {"a": 1, "b": 1}})
    found = census.take(typed(with_defaults(own(tmp_path / "sorted"))[0]))
    assert (found.count, found.has_test, found.labeled, found.classes) == (5, True, 5, 2)
    for path in flat.glob("*.png"):
        path.write_bytes(b"none")
    with pytest.raises(DataError, match=r"None of 6 images could be read; the first.*\.png"):
        census.take(typed(with_defaults(own(flat))[0]))


def test_choices_are_told_kept_and_valid(tmp_path, caplog, monkeypatch) -> None:
    caplog.set_level(logging.INFO)
    write_folder(tmp_path / "images", {"": {"a": 20, "b": 10}})
    config = own(tmp_path / "images", image_size=24)
    settings = resolved(config)
    (told,) = [r.getMessage() for r in caplog.records if "chosen for" in r.getMessage()]
    assert told.startswith("chosen for 30 images and 1 CPU device:\n")
    assert "data.test_holdout " in told
    assert "= 6 " in told
    assert "(no test split: a seeded fifth, by class, not trained on)" in told
    assert "data.image_size" not in told
    assert (settings.data.image_size, settings.data.batch_size) == (24, 8)
    assert resolved(config) == settings
    # Every value is plain, and read back as it was.
    again = files.from_json(settings.to_json())
    assert resolve(again) == settings
    assert "auto" not in json.loads(settings.to_json())["train"].values()
    train, test = (open_split(settings, which) for which in ("train", "test"))
    assert (len(train), len(test)) == (24, 6)
    assert np.bincount(test.labels()).tolist() == [4, 2]
    # A run that has checkpoints keeps its values, whatever machine it is on.
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    files.save(settings.replace({"data.batch_size": 12}), run)
    monkeypatch.setattr(census, "take", lambda _: pytest.fail("chosen anew"))
    assert resolved(config, run).data.batch_size == 12
    config.data.batch_size = 10
    assert resolved(config, run).data.batch_size == 10


def test_another_folder_has_its_own_hold_out(tmp_path) -> None:
    """What `hjepa eval RUN --data=OTHER` asks for; all else stays as the run has it."""
    write_folder(tmp_path / "images", {"": {"a": 20, "b": 10}})
    write_folder(tmp_path / "whole", {"": {"a": 30, "b": 30}})
    write_folder(tmp_path / "split", {"train": {"a": 3, "b": 3}, "val": {"a": 1, "b": 1}})
    run = tmp_path / "run"
    settings = resolved(own(tmp_path / "images", image_size=24))
    (run / "checkpoints").mkdir(parents=True)
    files.save(settings, run)
    for name, held in (("images", 6), ("whole", 12), ("split", None)):
        config = files.from_json(settings.to_json())
        config.data.update(root=str(tmp_path / name))
        with config.ignore_type():
            config.data.test_holdout = "auto"
        found = of_run(resolved(config, run, training=False), settings)
        assert found.data.test_holdout == held
        assert found == settings.replace(
            {"data.root": str(tmp_path / name), "data.test_holdout": held}
        )


def test_what_cannot_be_chosen_is_one_sentence(tmp_path) -> None:
    config = own(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.data\.test_holdout is 'auto', which only a"):
        resolve(config)
    with pytest.raises(DataError, match=r"has no split 'train' \(folders there: none\)"):
        resolved(config)
    config.data.batch_size = "auto"
    with pytest.raises(TypeError, match="batch_size"):
        config.data.batch_size = "many"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> pathlib.Path:
    """Unlabeled images of mixed kinds and sizes, one of them damaged."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(30):
        kind = ("JPEG", "PNG")[number % 2]
        image = photo(number, 20 + number, 60 - number)
        (folder / f"{number:02d}.{kind.lower()}").write_bytes(encode(image, kind))
    (folder / "15.png").write_bytes(b"damaged")
    (folder / "clip.mp4").write_bytes(b"")
    return folder


def test_a_folder_trains_and_evaluates_without_any_other_setting(photographs, tmp_path) -> None:
    command = ["-m", "hjepa_jax.main", "--config=folder:smoke", f"--data={photographs}"]
    done = forked.run(*command, f"--workdir={tmp_path}/run", f"--eval_dir={tmp_path}/eval")
    assert done.returncode == 0, done.stderr
    assert "1 file is left out (.mp4: 1;" in done.stderr
    assert "a folder without splits, no labels" in done.stderr
    assert done.stderr.count("Skipped a corrupt image") == 1
    assert "kNN" not in done.stdout + done.stderr
    assert done.stdout.count("No accuracy: no training image has a label") == 1
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert saved["data"]["test_holdout"] == 6
    metrics = json.loads((tmp_path / "eval/run/metrics.json").read_text())
    evaluated = [metrics["info"][f"{which}_images"]["evaluated"] for which in ("train", "test")]
    assert sum(evaluated) == 29
    pictures = {path.name for path in (tmp_path / "eval/run").glob("*.png")}
    assert pictures >= {"map.png", "neighbors.png", "spectrum.png", "flow.png"}
    assert "knn.png" not in pictures

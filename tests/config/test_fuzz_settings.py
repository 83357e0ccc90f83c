"""Odd settings: validation ends in a sentence or accepts them, and what it accepts trains."""

import random

import pytest

from hjepa_jax.config import resolve
from hjepa_jax.errors import ConfigError, TrainingError
from hjepa_jax.tools.fuzz import harness, settings


def test_validation_of_odd_settings_ends_in_sentences() -> None:
    refused, lines = 0, []
    for number in range(200):
        _, config, _ = settings.draw(random.Random(f"7/{number}"))
        try:
            resolve(config)
        except ConfigError as error:
            refused += 1
            lines += str(error).splitlines()
    assert all(line.endswith((".", "?")) for line in lines)
    assert 100 < refused < 190


def test_an_accepted_odd_setting_trains(tmp_path) -> None:
    config = settings._tiny("sigreg")
    config.train.b1 = 0.0
    settings.run(config, {"train.b1": 0.0}, tmp_path)
    assert list((tmp_path / "run/checkpoints").iterdir())


def test_a_divergence_must_be_explained_by_a_field_that_was_drawn(tmp_path, monkeypatch) -> None:
    def diverge(config, folder):
        raise TrainingError("NaN or infinite at step 0: lower config.train.lr.")

    monkeypatch.setattr(settings, "train", diverge)
    config = settings._tiny("sigreg")
    with pytest.raises(AssertionError, match="another field is blamed"):
        settings.run(config, {"seed": 3}, tmp_path)
    with pytest.raises(TrainingError):
        settings.run(config, {"train.lr": 5.0}, tmp_path)


def test_the_target_is_registered() -> None:
    assert harness.TARGETS["settings"] == "hjepa_jax.tools.fuzz.settings"

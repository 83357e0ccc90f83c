"""Ranges: valid in every recipe, independent draws within their bounds, files, and errors."""

import itertools
import math
import pathlib

import numpy as np
import pytest

from hjepa_jax.config.flags import parse_override
from hjepa_jax.errors import UserError
from hjepa_jax.tools.tuning.ranges import (
    SPACES,
    Range,
    Space,
    chosen_spaces,
    draw,
    fields_of,
    overrides_of,
    read_spaces,
)


def test_every_end_of_every_range_is_a_value_of_its_field() -> None:
    for space in SPACES.values():
        for key, one in space.ranges.items():
            texts = one.choices or (f"{one.low:.3g}", f"{one.high:.3g}")
            for name, text in itertools.product(fields_of(key), texts):
                parse_override(name, text)


def test_draws_fill_their_ranges_evenly() -> None:
    space = Space(
        "",
        (),
        {
            "train.lr": Range("log", 1e-4, 1e-2),
            "loss.q_std_floor,loss.p_std_floor": Range("uniform", -1.0, 3.0),
            "loss.match": Range("choice", choices=("q", "qp")),
        },
    )
    drawn = [draw(space, "hjepa", 0, trial, 0) for trial in range(1, 2001)]
    lr = np.array([float(one["train.lr"]) for one in drawn])
    floor = np.array([float(one["loss.q_std_floor,loss.p_std_floor"]) for one in drawn])
    assert 1e-4 <= lr.min() < 1.1e-4
    assert 0.9e-2 < lr.max() <= 1e-2
    # Means of uniform variables, within five standard errors.
    assert np.log(lr).mean() == pytest.approx(math.log(1e-3), abs=5 * 4.6 / math.sqrt(12 * 2000))
    assert floor.mean() == pytest.approx(1.0, abs=5 * 4 / math.sqrt(12 * 2000))
    assert abs(np.corrcoef(np.log(lr), floor)[0, 1]) < 0.1
    share = np.mean([one["loss.match"] == "q" for one in drawn])
    assert share == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(2000))
    assert list(overrides_of({"loss.q_std_floor,loss.p_std_floor": "0.3"})) == [
        "loss.q_std_floor=0.3",
        "loss.p_std_floor=0.3",
    ]


def test_a_draw_depends_only_on_its_own_counters() -> None:
    space = SPACES["hjepa"]
    one = draw(space, "hjepa", 0, 5, 0)
    assert draw(space, "hjepa", 0, 5, 0) == one
    fewer = space._replace(ranges={"dynamics.dt": space.ranges["dynamics.dt"]})
    assert draw(fewer, "hjepa", 0, 5, 0) == {"dynamics.dt": one["dynamics.dt"]}
    others = [("hjepa", 1, 5, 0), ("hjepa", 0, 6, 0), ("hjepa", 0, 5, 1), ("mlp", 0, 5, 0)]
    assert all(draw(space, *other) != one for other in others)


def test_a_file_adds_methods_and_replaces_those_of_its_names(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "ranges.yaml"
    path.write_text(
        "sigreg:\n"
        "  variant: sigreg\n"
        "  set: [sigreg.num_slices=32]\n"
        "  ranges:\n"
        "    train.lr: {log: [1e-4, 1e-2]}\n"
        "    sigreg.t_max: {choice: [3, 4.5]}\n"
        "    loss.q_std_floor, loss.p_std_floor: {uniform: [0.1, 1]}\n"
        "mine:\n"
        "  ranges: {train.b1: {uniform: [0.8, 0.95]}}\n"
    )
    found = read_spaces(path)
    assert set(found) == {*SPACES, "mine"}
    assert found["hjepa"] == SPACES["hjepa"]
    assert found["sigreg"].fixed == ("sigreg.num_slices=32",)
    assert found["sigreg"].ranges["train.lr"] == Range("log", 1e-4, 1e-2)
    assert found["sigreg"].ranges["sigreg.t_max"].choices == ("3", "4.5")
    assert fields_of("loss.q_std_floor, loss.p_std_floor") == [
        "loss.q_std_floor",
        "loss.p_std_floor",
    ]
    assert found["mine"].variant == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hjepa: {}", "ranges"),
        ("hjepa: {ranges: {}, varaint: x}", "has 'varaint': a method has variant, set, and ranges"),
        ("hjepa: {ranges: {train.lr: {log: [1]}}}", "log"),
        ("hjepa: {ranges: {train.lr: {log: [0, 1]}}}", "two ascending numbers above 0"),
        ("hjepa: {ranges: {train.lr: {uniform: [2, 1]}}}", "two ascending numbers"),
        ("hjepa: {ranges: {train.lr: {}}}", "one of log, uniform, and choice"),
        ("hjepa: {ranges: {train.lr: {normal: [0, 1]}}}", "one of log, uniform, and choice"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: pathlib.Path, text: str, words: str) -> None:
    path = tmp_path / "ranges.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"--ranges=.*{words}"):
        read_spaces(path)


def test_fields_that_are_set_are_not_drawn_and_steps_stay_equal() -> None:
    spaces = chosen_spaces(["sigreg", "hjepa"], SPACES, ["train.lr", "loss.p_std_floor"])
    assert list(spaces) == ["sigreg", "hjepa"]
    left = {name for key in spaces["hjepa"].ranges for name in fields_of(key)}
    assert "dynamics.dt" in left
    assert not {"train.lr", "loss.q_std_floor"} & left
    with pytest.raises(UserError, match=r"'hjeppa' is none of .*did you mean 'hjepa'"):
        chosen_spaces(["hjeppa"], SPACES, [])
    own = {"one": Space("", (), {"train.lr": Range("log", 1e-3, 1e-2)})}
    with pytest.raises(UserError, match="nothing of 'one' is left to tune"):
        chosen_spaces(["one"], own, ["train.lr"])
    longer = {"one": Space("", (), {"train.epochs": Range("choice", choices=("1", "9"))})}
    with pytest.raises(UserError, match=r"train\.epochs of 'one' cannot be tuned"):
        chosen_spaces(["one"], longer, [])

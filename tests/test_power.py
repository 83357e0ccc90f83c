"""The measurement of what each normality test sees, and the page and picture that show it."""

import json
import pathlib
import runpy

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
STORED = ROOT / "docs/method/power.json"
SCRIPT = runpy.run_path(str(ROOT / "docs/power.py"))
COMPOSITE = {"shapiro_wilk", "jarque_bera", "henze_zirkler"}


def test_departures_have_the_moments_that_they_should() -> None:
    for name, drawn in SCRIPT["DEPARTURES"].items():
        x = drawn(np.random.default_rng(0), (4, 20_000, 8)).reshape(-1, 8)
        assert x.shape == (80_000, 8)
        assert np.all(np.abs(x.mean(0) - (0.15 if name == "shift" else 0)) < 0.03), name
        if name == "heavy tail":
            continue  # no fourth moment: the sample variance is far from the true one
        expected = np.eye(8) * (0.81 if name == "scale" else 1)
        if name == "low rank":
            expected += np.eye(8, k=4) + np.eye(8, k=-4)
        if name == "collapsed dimensions":
            expected[:2] = 0
        np.testing.assert_allclose(np.cov(x.T), expected, atol=0.03, err_msg=name)


def test_a_small_measurement_agrees_with_the_stored_one() -> None:
    stored = json.loads(STORED.read_text())["power"]["32"]
    found = SCRIPT["measure"]((32,), trials=100, null_trials=400)["power"]["32"]
    assert found.keys() == stored.keys()
    for name, row in stored.items():
        for test, power in row.items():
            error = 4 * np.sqrt((power * (1 - power) + 0.05) / 100)
            assert abs(found[name][test] - power) < error, (name, test)


def test_the_hypothesis_is_rejected_as_often_as_it_should_be_and_scale_is_not_seen_by_all() -> None:
    stored = json.loads(STORED.read_text())
    error = 4 * np.sqrt(0.05 * 0.95 * (1 / stored["trials"] + 1 / stored["null_trials"]))
    for rows in stored["power"].values():
        assert all(abs(value - 0.05) < error for value in rows["none"].values())
        for name in ("shift", "scale"):
            assert all(rows[name][test] < 0.05 + error for test in COMPOSITE)
    assert all(stored["power"]["512"]["scale"][test] > 0.9 for test in ("epps_pulley", "bhep"))


def test_page_and_picture_show_what_is_stored(tmp_path: pathlib.Path) -> None:
    stored = json.loads(STORED.read_text())
    page = (ROOT / "docs/method/regularizers.md").read_text()
    assert "\n".join(SCRIPT["table"](stored, "128")) in page
    SCRIPT["draw"](stored, tmp_path / "power.png")
    new, saved = (
        np.asarray(Image.open(file).convert("L"), np.float32)
        for file in (tmp_path / "power.png", ROOT / "docs/images/power.png")
    )
    # Versions of matplotlib place text a pixel apart.
    assert np.abs(new - saved).mean() < 2, "run: python docs/power.py draw (see docs/power.py)"

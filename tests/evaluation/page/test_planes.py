"""Planes: every point is drawn where it lies, whatever the data."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from hjepa_jax.evaluation.page.planes import Cloud, Path, plane


def _dots(element: ElementTree.Element) -> np.ndarray:
    return np.array(re.findall(r"M(-?\d+) (-?\d+)h0", element.get("d")), int)


def test_points_keep_their_order_and_y_points_up() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 2)) * [3, 0.01]
    svg = plane("a <map>", [Cloud("a<b", points, 2), Cloud("rest", points[:9], None)])
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == "a <map>"
    first, rest = root.findall("path")
    assert first.find("title").text == "a<b"
    assert (first.get("class"), rest.get("class")) == ("points i2", "others")
    drawn = _dots(first)
    assert drawn.shape == (200, 2)
    assert drawn.min() == 40
    assert drawn.max() == 960
    expected = np.interp(points[:, 0], [points[:, 0].min(), points[:, 0].max()], [40, 960])
    np.testing.assert_allclose(drawn[:, 0], expected, atol=1)
    expected = np.interp(points[:, 1], [points[:, 1].min(), points[:, 1].max()], [960, 40])
    np.testing.assert_allclose(drawn[:, 1], expected, atol=1)


def test_a_path_is_dashed_until_now_and_ends_in_an_arrow() -> None:
    positions = np.stack([np.arange(5.0), np.arange(5.0) ** 2], axis=1)
    root = ElementTree.fromstring(
        plane("x", [Cloud("c", positions, None)], [Path("p", positions, 1)])
    )
    (group,) = root.findall("g")
    past, future, arrow = group.findall("path")
    assert past.get("stroke-dasharray")
    assert future.get("stroke-dasharray") is None
    assert past.get("d").count("L") == future.get("d").count("L") == 2
    now = group.find("circle")
    assert past.get("d").endswith(f"L{now.get('cx')} {now.get('cy')}")
    end = future.get("d").rpartition("L")[2]
    # From (3, 9) to (4, 16): up and to the right.
    assert arrow.get("transform") == f"translate({end}) rotate(-60)"


@pytest.mark.parametrize("points", [np.zeros((4, 2)), np.full((3, 2), np.nan), np.zeros((0, 2))])
def test_collapsed_and_lost_points_raise_no_error(points) -> None:
    svg = plane("x", [Cloud("c", points, 0)], [Path("p", points[:3], 1)] if len(points) else [])
    ElementTree.fromstring(svg)
    assert "nan" not in svg

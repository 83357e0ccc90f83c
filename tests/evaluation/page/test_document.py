"""Documents: escaping, tables, and what the page's script does in a browser."""

import re

import pytest
from pages import after_script, ink_pixels, parse, screenshot

from hjepa_jax.evaluation.page import charts, ink
from hjepa_jax.evaluation.page.document import Section, document, warning
from hjepa_jax.evaluation.page.tables import Row, facts, table
from hjepa_jax.evaluation.page.text import shown
from hjepa_jax.evaluation.report.plots import Axes, Series

_SERIES = [
    Series("<b>first", [1, 5, 20], [0.5, 0.625, 0.75], 0, [0.4, 0.5, 0.7], [0.6, 0.7, 0.8]),
    Series("second", [1, 20], [0.25, 0.3], 1),
]
_AXES = Axes("neighbors k", "accuracy", "Accuracy", log_x=True, percent=True)


@pytest.fixture
def written(tmp_path):
    """A page with a chart and a wide table, on disk."""
    wide = table("w", ["", *map(str, range(40))], [Row("row", ["1234567"] * 40)])
    sections = [Section("Charts & more", charts.figure(_SERIES, _AXES)), Section("Table", wide)]
    path = tmp_path / "page.html"
    path.write_text(document("A <title>", warning("<careful>"), sections))
    return path


def test_a_document_has_its_sections_and_escapes_texts(written) -> None:
    parser = parse(written.read_text())
    for text in ("A <title>", "<careful>", "Charts & more", "Table"):
        assert text in parser.texts
    assert parser.ids == ["theme", "charts-more", "table"]
    empty = parse(document("x", "", [Section("Nothing", ""), Section("Some", "text")]))
    assert "Nothing" not in empty.shown


def test_a_table_names_its_rows_and_is_empty_without_any() -> None:
    text = table("l<", ["", "a"], [Row("r", ["1"], "total"), Row("s", ["2"])], narrow=True)
    assert '<tr class="total"><th scope="row">r</th><td>1</td></tr>' in text
    assert 'aria-label="l&lt;"' in text
    assert table("l", ["", "a"], []) == ""


def test_facts_are_nested_and_escaped() -> None:
    text = facts({"a": {"<b>": [1, "<2>"]}, "none": None, "empty": [], "name": "x"})
    assert "<dt>a</dt><dd><dl><dt>&lt;b&gt;</dt><dd>1, &lt;2&gt;</dd></dl></dd>" in text
    assert "<dt>none</dt><dd>none</dd><dt>empty</dt><dd>none</dd>" in text


def test_missing_numbers_are_dashes() -> None:
    assert [shown(v, 1) for v in (float("nan"), -0.25, 7)] == ["–", "−0.2", "7.0"]
    assert shown(0.5, 2, signed=True) == "+0.50"


def test_names_break_after_punctuation_and_styles_repeat_with_dashes() -> None:
    assert ink.breakable("a-b_<c") == "a-<wbr>b_<wbr>&lt;c"
    assert (ink.paint(2), ink.paint(12), ink.paint(-1)) == ("i2", "i2", "ir")
    assert ink.dash(2) == ""
    assert len({ink.dash(style) for style in (2, 12, 22, 32)}) == 4


def test_hover_and_keys_show_the_values_of_a_point(written) -> None:
    """In a browser: the middle by the pointer, then the end by a key, then the theme's button."""
    script = """
      const chart = document.querySelector("svg.chart"), box = chart.getBoundingClientRect();
      const at = { clientX: box.left + 0.6 * box.width, clientY: box.top + 50 };
      chart.dispatchEvent(new PointerEvent("pointermove", at));
      const told = [document.querySelector(".tip").innerText];
      chart.dispatchEvent(new KeyboardEvent("keydown", { key: "End" }));
      told.push(document.querySelector(".tip").innerText);
      chart.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
      told.push(String(document.querySelector(".tip").hidden));
      document.getElementById("theme").click();
      told.push(document.documentElement.dataset.theme);
      document.body.dataset.told = told.join("|").replaceAll("\\n", " ");
    """
    dom = after_script(written, script)
    told = re.search('data-told="(.*?)"', dom)[1].split("|")
    assert told[0] == "neighbors k 5 &lt;b&gt;first 62.5 % (50.0 % to 70.0 %)"
    assert told[1] == "neighbors k 20 &lt;b&gt;first 75.0 % (70.0 % to 80.0 %) second 30.0 %"
    assert told[2] == "true"
    assert told[3] in ("light", "dark")


@pytest.mark.parametrize("width", [1280, 400])
def test_both_themes_fit_the_window(written, width) -> None:
    light = screenshot(written, width, 700)
    dark = screenshot(written, width, 700, dark=True)
    assert light[0, 0].min() > 230
    assert dark[0, 0].max() < 40
    for pixels, colors in ((light, ink.COLORS), (dark, ink.DARK_COLORS)):
        assert ink_pixels(pixels, colors[0]) > 200
        # The wide table scrolls on its own.
        assert (pixels[:, -8:] == pixels[0, 0]).all()

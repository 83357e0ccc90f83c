"""The documentation site builds without a warning, is whole, and loads nothing from elsewhere."""

import importlib.util
import pathlib
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
HAS_MKDOCS = all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings"))
LOADED = r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?([^"' >]+)"""
needs_mkdocs = pytest.mark.skipif(not HAS_MKDOCS, reason="MkDocs is of the docs extra")


def build(source: pathlib.Path, out: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Builds a folder's site, as the documented command does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    return subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The built site."""
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


@needs_mkdocs
def test_pages_load_nothing_from_other_hosts(site: pathlib.Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loaded = re.findall(LOADED, page.read_text())
        assert loaded, page
        assert not [url for url in loaded if url.startswith(("http", "//"))], page


@needs_mkdocs
def test_every_formula_is_mathml(site: pathlib.Path) -> None:
    for name, least in (
        ("method/hjepa", 25),
        ("method/sigreg", 20),
        ("method/regularizers", 15),
        ("evaluation", 5),
    ):
        page = re.sub(r"<code.*?</code>", "", (site / f"{name}.html").read_text(), flags=re.S)
        # A dollar that is left begins or ends no formula.
        assert "$" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
        assert page.count("<math") >= least
        assert "arithmatex" not in page
        # What MathML has no form for stays behind as the name of a command.
        assert not re.search(r"<m[iotx]\w*>[^<]*\\", page)


@needs_mkdocs
def test_shared_pages_have_their_text_and_links(site: pathlib.Path) -> None:
    assert "The loop, <code>_steps</code>" in (site / "design.html").read_text()
    overview = (site / "index.html").read_text()
    for link in ("recipes.html", "extending.html", "design.html", "method/hjepa.html"):
        assert f'href="{link}"' in overview
    assert re.search(r'href="https://[^"]*/blob/main/CITATION.cff"', overview)


@needs_mkdocs
def test_the_reference_has_what_a_user_calls(site: pathlib.Path) -> None:
    runs = (site / "api/runs.html").read_text()
    for name in ("load", "LoadedRun.flow", "Method.loss", "Encoder.build", "field", "UserError"):
        assert re.search(rf'id="[\w.]*\.{re.escape(name)}"', runs), name
    assert re.search('id="[^"]*integrators.integrate"', (site / "api/numerics.html").read_text())


@needs_mkdocs
def test_a_broken_link_stops_the_build(tmp_path: pathlib.Path) -> None:
    (tmp_path / "docs").mkdir()
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    for name in ("nav", "hooks", "watch", "plugins", "theme"):
        del settings[name]
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    page = tmp_path / "docs/index.md"
    page.write_text("# Page\n\n[here](#page)\n")
    assert build(tmp_path, tmp_path / "out").returncode == 0
    page.write_text("# Page\n\n[here](#nowhere)\n")
    assert "no such anchor" in build(tmp_path, tmp_path / "out").stderr


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    hooks = (ROOT / "docs/hooks.py").read_text()
    shared = dict(re.findall(r'^    "([\w/]+\.md)": "(\w+\.md)",$', hooks, re.M))
    assert len(shared) >= 5
    assert not [source for source in shared if not (ROOT / source).is_file()]
    own = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    excluded = {"results_notes.md"}
    assert excluded < own
    named = re.findall(r"'([\w/]+\.md)'", str(settings["nav"]))
    assert sorted(named) == sorted({*own, *shared.values()} - excluded)


def test_pictures_are_drawn_by_the_package(tmp_path: pathlib.Path) -> None:
    pictures = runpy.run_path(str(ROOT / "docs/pictures.py"))
    pictures["draw_flow"](tmp_path)
    pictures["draw_sample"](tmp_path)
    pictures["draw_double_well"](tmp_path)
    drawn = sorted(tmp_path.iterdir())
    assert [path.name for path in drawn] == [
        *("flow.png", "heatmap.png", "sample.png", "surface.png")
    ]
    for path in drawn:
        new, saved = (
            np.asarray(Image.open(file).convert("L"), np.float32)
            for file in (path, ROOT / "docs/images" / path.name)
        )
        # Versions of matplotlib place text a pixel apart.
        assert np.abs(new - saved).mean() < 1, "run: python docs/pictures.py docs/images"

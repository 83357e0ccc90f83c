"""HTML pages, parsed and looked at in a browser."""

import html.parser
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Balanced(html.parser.HTMLParser):
    """Fails on tags that are not closed in order, and gathers texts, links and tags."""

    VOID = ("meta", "img", "br", "wbr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self._broken = False  # a line may break here, within a text

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self._broken = tag == "wbr"
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self.ids += [value for name, value in attrs if name == "id"]
        assert not any(name.startswith("on") for name, _ in attrs), attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            return
        if self._broken:
            data = self.texts.pop() + data
        self.texts.append(data)
        self._broken = False

    @property
    def shown(self) -> str:
        """All text on the page."""
        return " ".join(self.texts)


def parse(text: str) -> Balanced:
    """Returns a page whose tags are balanced, that loads nothing, and has one script: its own."""
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert parser.tags.count("script") == 1
    assert not {"link", "iframe", "object", "base", "form", "foreignobject"} & set(parser.tags)
    for link in parser.links:
        assert link.startswith("data:image/") or link.removeprefix("#") in parser.ids, link
    assert not any(word in text for word in ("http:", "https:", "url(", "@import"))
    assert len(parser.ids) == len(set(parser.ids))
    return parser


def _browse(folder: pathlib.Path, address: str, *flags: str) -> str:
    browser = next((name for name in _BROWSERS if shutil.which(name)), None)
    if browser is None:
        pytest.skip("no headless browser here: the page was written, but not looked at")
    usual = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync")
    usual += ("--disable-background-networking", "--disable-component-update", "--hide-scrollbars")
    command = [browser, *usual, f"--user-data-dir={folder}/browser", *flags, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    return done.stdout


def screenshot(page: pathlib.Path, width: int, height: int, *, dark: bool = False) -> np.ndarray:
    """Returns the top of a page as pixels [height, width, 3]; skips the test without a browser."""
    target, picture = page, page.with_suffix(".png")
    if width < 500:
        # Windows are at least 500 pixels wide.
        target = page.with_suffix(".frame.html")
        size = f"border:0;width:{width}px;height:{height}px"
        frame = f'<iframe src="{page.as_uri()}" style="{size}"></iframe>'
        target.write_text(f'<body style="margin:0">{frame}')
    flags = (f"--screenshot={picture}", f"--window-size={width},{height}")
    flags += (f"--blink-settings=preferredColorScheme={0 if dark else 1}",)
    _browse(page.parent, target.as_uri(), *flags)
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    return pixels[:height, :width]


def after_script(page: pathlib.Path, script: str) -> str:
    """Returns the document after a script has run at its end; skips the test without a browser."""
    text, changed = page.read_text(), page.with_suffix(".script.html")
    policy = text[text.index("<meta http-equiv") :].partition(">")[0] + ">"
    text = text.replace(policy, "").replace("</body>", f"<script>{script}</script></body>")
    changed.write_text(text)
    return _browse(page.parent, changed.as_uri(), "--dump-dom", "--window-size=1280,2000")


def ink_pixels(pixels: np.ndarray, color: str) -> int:
    """Returns the number of pixels of a color, '#rrggbb', except for rounding."""
    ink = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels - ink).sum(axis=-1) < 12).sum())

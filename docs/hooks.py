"""What the documentation site adds to MkDocs: pages from other folders, links, and formulas.

A page whose text has its place elsewhere in the repository is read from there, so each fact stays
in one file. Every page links to files relative to its own place in the repository, as on a code
host; here those links lead to the file's page, or to the code host. Formulas become MathML, which
browsers show without a script.
"""

import html
import pathlib
import posixpath
import re

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Files of the repository -> their pages.
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "design.md",
    "CONTRIBUTING.md": "extending.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "third_party/README.md": "sources.md",
}
_SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of files outside `docs`."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the repository into links to pages or to the code host."""
    del files
    here = page.file.src_uri
    folder = posixpath.dirname(_SOURCES.get(here, f"docs/{here}"))

    def target(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        if not (ROOT / path).exists():
            return match[1]  # as it stands, for MkDocs to report
        if path in PAGES or path.startswith("docs/"):
            name = PAGES.get(path, path.removeprefix("docs/"))
            return posixpath.relpath(name, posixpath.dirname(here) or ".")
        return f"{config.extra['files']}/{path}"

    return _LINK.sub(target, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    r"""Turns \(formulas\) and \[displayed formulas\] into MathML."""
    del page, config, files

    def mathml(match: re.Match[str]) -> str:
        formula = html.unescape(match[2].strip()[2:-2])
        if match[1] == "span":
            return convert(formula)
        # A wide formula scrolls where the screen is narrow.
        return f'<div style="overflow-x: auto">{convert(formula, display="block")}</div>'

    return _FORMULA.sub(mathml, content)

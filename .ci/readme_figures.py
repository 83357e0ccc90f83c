"""Checks that the accuracies of a quickstart's evaluation are those that README.md states.

python .ci/readme_figures.py FOLDER_OF_THE_EVALUATION
"""

import json
import pathlib
import re
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Points beyond the stated range that another processor's rounding may add: 4 of 360 images.
MARGIN = 1.2
MEASURES = ("kNN@20", "kNN@1", "linear probe")
ROWS = {"trained": "so far", "random": "random initialization"}


def stated() -> dict[str, list[tuple[float, float]]]:
    """Returns the lowest and highest accuracy in % for each measure, by encoder."""
    table = (ROOT / "README.md").read_text().partition("<!-- figures -->\n")[2].partition("\n\n")[0]
    heads, _, *rows = ([cell.strip() for cell in row.split("|")[1:-1]] for row in table.split("\n"))
    assert tuple(heads[1:]) == MEASURES, heads
    found = {}
    for encoder, beginning in ROWS.items():
        (cells,) = (row[1:] for row in rows if row[0].startswith(beginning))
        numbers = [[float(number) for number in re.findall(r"[\d.]+", cell)] for cell in cells]
        found[encoder] = [(low[0], low[-1]) for low in numbers]
    return found


def measured(folder: pathlib.Path) -> dict[str, list[float]]:
    """Returns the same accuracies of an evaluation, in %."""
    encoders = json.loads((folder / "metrics.json").read_text())["encoders"]
    found = {}
    for encoder in ROWS:
        knn = encoders[encoder]["knn"]
        accuracies = dict(zip(knn["k_values"], knn["top1"], strict=True))
        shares = (accuracies[20], accuracies[1], encoders[encoder]["linear_probe"]["top1"])
        found[encoder] = [100 * share for share in shares]
    return found


def differences(folder: pathlib.Path) -> Iterator[str]:
    """Yields a sentence for each accuracy outside the stated range."""
    ranges, accuracies = stated(), measured(folder)
    for encoder in ROWS:
        for measure, (low, high), value in zip(
            MEASURES, ranges[encoder], accuracies[encoder], strict=True
        ):
            if not low - MARGIN <= value <= high + MARGIN:
                yield f"{encoder}, {measure}: {value:.1f} %, but README.md says {low} to {high} %."


if __name__ == "__main__":
    sys.exit("\n".join(differences(pathlib.Path(sys.argv[1]))) or 0)

"""Sections of pictures: maps of features, neighbors, and the learned flow."""

from __future__ import annotations

import numpy as np

from hjepa_jax.data.sources.base import NO_LABEL, has_label
from hjepa_jax.evaluation.page import charts, ink
from hjepa_jax.evaluation.page.planes import Cloud, Path, plane
from hjepa_jax.evaluation.page.text import escape, label
from hjepa_jax.evaluation.report.figures import class_name
from hjepa_jax.evaluation.report.flow import FlowPicture, HalfPicture
from hjepa_jax.evaluation.report.gallery import PictureInputs
from hjepa_jax.evaluation.report.plots import Axes, Series
from hjepa_jax.evaluation.run_page.thumbnails import thumbnail

_CAPTION_LETTERS = 28


def _named(inputs: PictureInputs, number: int) -> str:
    """Returns the name of a class; '' if there are no classes at all."""
    if not inputs.class_names:
        return ""
    return label(class_name(inputs.class_names, number), _CAPTION_LETTERS)


def _clouds(
    plane_points: np.ndarray, labels: np.ndarray, shown: list[int], inputs: PictureInputs
) -> list[Cloud]:
    """Returns the points of the classes that are not shown, then those of each that is."""
    if not shown:
        return [Cloud("images", plane_points, 0)]
    others = plane_points[~np.isin(labels, shown)]
    return [
        Cloud("other images", others, None),
        *(
            Cloud(_named(inputs, number), plane_points[labels == number], style)
            for style, number in enumerate(shown)
        ),
    ]


def _map(title: str, note: str, clouds: list[Cloud]) -> str:
    caption = f"<figcaption>{escape(title)}<small>{escape(note)}</small></figcaption>"
    return f"<figure>{caption}{plane(f'{title}. {note}', clouds)}</figure>"


def maps(inputs: PictureInputs) -> str:
    """Returns test features on their first two principal axes, and by t-SNE, for each encoder."""
    labels = next(iter(inputs.encoders.values())).labels
    shown = np.unique(labels[has_label(labels)])[: len(ink.COLORS)].tolist()
    axes, planes = [], []
    for name, one in inputs.encoders.items():
        found = one.principal
        first, second = (f"{share:.0%}" for share in found.shares)
        note = f"horizontal {first}, vertical {second} of the variance"
        plane_points = found.project(one.features)
        axes.append(
            _map(f"{name}: principal axes", note, _clouds(plane_points, one.labels, shown, inputs))
        )
        clouds = _clouds(one.tsne, one.labels, shown, inputs)
        planes.append(_map(f"{name}: t-SNE", "only neighborhoods are meaningful", clouds))
    names = ink.legend((_named(inputs, number), style) for style, number in enumerate(shown))
    rest = "" if np.isin(labels, shown).all() else '<p class="note">Gray: all other images.</p>'
    above = f"{names}{rest}" if shown else ""
    grids = "".join(f'<div class="grid">{"".join(row)}</div>' for row in (axes, planes))
    return above + grids


def neighbors(inputs: PictureInputs) -> str:
    """Returns test images, each followed by its nearest training images under each encoder."""
    parts, labeled = [], False
    for name, one in inputs.encoders.items():
        parts.append(f"<h3>{escape(name)}</h3>")
        for query, indices in zip(inputs.queries, one.neighbors, strict=True):
            image, truth = inputs.test_images[int(query)]
            tiles = [thumbnail(image, _named(inputs, truth), "query")]
            for index in indices:
                image, number = inputs.train_images[int(index)]
                kind, mark = "", ""
                if NO_LABEL not in (number, truth):
                    kind, mark = ("same", "✓") if number == truth else ("other", "✗")
                    labeled = True
                tiles.append(thumbnail(image, _named(inputs, number), kind, mark))
            parts.append(f'<div class="row">{"".join(tiles)}</div>')
    note = "On the left a test image, then its nearest training images"
    note += ": ✓ of the same class, ✗ of another." if labeled else "."
    return f'<p class="note">{note}</p>{"".join(parts)}'


def _half(title: str, half: HalfPicture, names: list[str]) -> str:
    first, second = (f"{share:.0%}" for share in half.shares)
    note = f"horizontal {first}, vertical {second} of the variance"
    paths = [
        Path(name, positions, style)
        for style, (name, positions) in enumerate(
            zip(names, np.swapaxes(half.trajectories, 0, 1), strict=True)
        )
    ]
    drawn = plane(f"{title}. {note}", [Cloud("other test images", half.cloud, None)], paths)
    caption = f"<figcaption>{escape(title)}<small>{escape(note)}</small></figcaption>"
    return f"<figure>{caption}{drawn}</figure>"


def flow(found: FlowPicture, inputs: PictureInputs) -> str:
    """Returns the trajectories of test images through q and p, and their energy over time."""
    images = [inputs.test_images[int(query)] for query in inputs.queries]
    names = [f"{i + 1} {_named(inputs, number)}".strip() for i, (_, number) in enumerate(images)]
    tiles = "".join(
        thumbnail(image, name, f"painted {ink.paint(style)}")
        for style, ((image, _), name) in enumerate(zip(images, names, strict=True))
    )
    start = found.energies[len(found.times) // 2]
    change = (found.energies - start) / np.maximum(np.abs(start), 1e-12)
    series = [
        Series(name, found.times.tolist(), change[:, style].tolist(), style)
        for style, name in enumerate(names)
    ]
    axes = Axes("time t (0: the encoded image)", "relative change of H", "Energy along the flow")
    span = f"{found.times[-1]:.3g}"
    note = (
        f"States of test images (dots) under the learned flow: forward to time {span} (arrows), "
        f"and backward to time −{span} (dashed). Gray points are the states of other test images, "
        "which define the axes."
    )
    return (
        f'<p class="note">{note}</p><div class="row">{tiles}</div><div class="grid">'
        f"{_half('q: position', found.q, names)}{_half('p: momentum', found.p, names)}"
        f"{charts.figure(series, axes)}</div>"
    )

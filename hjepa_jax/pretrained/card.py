"""The model card of a shared encoder: what it is, how to load it, its data, scores and license."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hjepa_jax.errors import UserError, first_line
from hjepa_jax.evaluation.report.summary import (
    FIGURES,
    headline,
    headline_intervals,
    shown_coordinates,
    titles,
)
from hjepa_jax.storage.files import printable

# Identifiers of the hub, such as 'apache-2.0'.
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_SHOWN = ("knn_first", "knn", "probe_top1", "effective_rank")
_NEIGHBORS = 20


class Facts(NamedTuple):
    """What a card says about an encoder.

    Attributes:
      name: title of the card.
      architecture: class of the module.
      parameters: number of parameters.
      dim: dimension D of a state.
      split_qp: whether states are [q | p].
      image_size: side of its images in pixels.
      settings: values of the run's configuration by dotted name.
      step: optimizer steps of the training.
      num_images: number of its images, if known.
      fine_tuned: whether the variables were replaced after the training.
      imported: name of the file of other software that the weights are from, if they are.
      version: of hjepa_jax.
    """

    name: str
    architecture: str
    parameters: int
    dim: int
    split_qp: bool
    image_size: int
    settings: Mapping[str, Any]
    step: int
    num_images: int | None
    fine_tuned: bool
    imported: str | None
    version: str


def check_license(identifier: str | None) -> None:
    """Raises UserError unless a license has the form of the hub's identifiers."""
    if identifier is not None and not _LICENSE.fullmatch(identifier):
        raise UserError(
            f"license is {identifier!r}: give an identifier such as 'apache-2.0' or "
            "'cc-by-nc-4.0', or 'other'."
        )


def card(facts: Facts, license: str | None, evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Returns the model card in Markdown.

    Args:
      facts: what is known about the encoder.
      license: its identifier; None = not stated.
      evaluations: contents of `metrics.json` of its evaluations.

    Raises:
      UserError: if one of them is not.
    """
    try:
        tables = [_scores(metrics) for metrics in evaluations]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            "An evaluation for the model card is not what metrics.json has "
            f"({type(error).__name__}: {first_line(error)}): evaluate the checkpoint again."
        ) from error
    parts = [
        _front_matter(facts, license),
        f"# {_plain(facts.name)}",
        _description(facts),
        "## Use",
        _use(facts),
        "## Training",
        _training(facts),
        "## Evaluation",
        *(tables or [_NO_SCORES]),
        "## License",
        "The author of this model has not stated a license."
        if license is None
        else f"`{license}`, chosen by the author of this model.",
        "The training images may be under a license of their own.",
    ]
    return "\n\n".join(parts) + "\n"


_NO_SCORES = "No evaluation was found when this card was written."


def _plain(text: object) -> str:
    """Returns text of others as one line that Markdown does not interpret."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", printable(str(text)))


def _code(text: object) -> str:
    return "`" + printable(str(text)).replace("`", "'") + "`"


def _front_matter(facts: Facts, license: str | None) -> str:
    name = str(facts.settings["data.name"])
    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+).*", name)
    lines = [
        "---",
        "library_name: hjepa_jax",
        "pipeline_tag: image-feature-extraction",
        *([f"license: {license}"] if license else []),
        *([f'datasets: ["{found[1]}"]'] if found else []),
        "tags: [self-supervised-learning, jax, flax]",
        "---",
    ]
    return "\n".join(lines)


def _description(facts: Facts) -> str:
    size, halves = facts.image_size, ", `[q | p]`" if facts.split_qp else ""
    made = "trained without labels"
    if facts.imported is not None:
        made = f"whose weights were read from {_code(facts.imported)}"
    tuned = " Its weights were changed after that, by fine-tuning for example."
    return (
        f"An encoder of images, {_plain(facts.architecture)} with {facts.parameters:,} "
        f"parameters, {made} by "
        f"[hjepa_jax](https://github.com/hjepa-jax/hjepa_jax) {_plain(facts.version)}. It maps "
        f"images of {size}x{size} pixels to states of {facts.dim} dimensions{halves}."
        + (tuned if facts.fine_tuned else "")
    )


def _use(facts: Facts) -> str:
    return f"""```python
import hjepa_jax

encoder = hjepa_jax.from_pretrained("path/of/this/folder")
states = encoder.encode(["one.jpg", "folder/of/images"])  # float32 [N, {facts.dim}]
```

Images of any size are resized, cropped and normalized as `preprocessor_config.json` says. The
weights are in `model.safetensors`; nothing in this folder is executed."""


def _training(facts: Facts) -> str:
    if facts.imported is not None:
        return f"The weights are those of {_code(facts.imported)}, which other software trained."
    settings = facts.settings
    count = "" if facts.num_images is None else f", {facts.num_images:,} images"
    rows = {
        "data": f"{_code(settings['data.name'])}, split {_code(settings['data.train_split'])}"
        + count,
        "method": _code(settings["method"]),
        "steps": f"{facts.step:,} of {settings['data.batch_size']:,} images",
        "seed": str(settings["seed"]),
    }
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join([*table, "", "`config.json` has the complete configuration."])


def _scores(metrics: Mapping[str, Any]) -> str:
    """Returns the table of one evaluation, without accuracies if it has none."""
    info, encoders = metrics["info"], metrics["encoders"]
    first = next(iter(encoders.values()))
    values = {name: headline(one, _NEIGHBORS) for name, one in encoders.items()}
    heads = {
        key: title
        for key, title in titles(first, _NEIGHBORS).items()
        if key in _SHOWN and not all(math.isnan(one[key]) for one in values.values())
    }
    rows = []
    for name, one in encoders.items():
        intervals = headline_intervals(one, _NEIGHBORS)
        cells = [_cell(key, values[name][key], intervals.get(key)) for key in heads]
        rows.append(f"| {' | '.join([_plain(name), *cells])} |")
    tested = info.get("test_images", {}).get("evaluated")
    images = f", {tested:,} test images" if isinstance(tested, int) else ""
    reason, coordinates = first.get("no_accuracy"), shown_coordinates(info)
    states = "Frozen states" if coordinates is None else f"Frozen states, as {coordinates},"
    lines = [
        f"{states} on {_code(info.get('data', 'unknown data'))}{images}, with 95 % intervals:",
        "",
        f"| {' | '.join(['encoder', *heads.values()])} |",
        "|---" * (1 + len(heads)) + "|",
        *rows,
        *(["", f"No accuracy: {_plain(reason)}"] if reason else []),
    ]
    return "\n".join(lines)


def _cell(key: str, value: float, interval: tuple[float, float] | None) -> str:
    figure = FIGURES[key]
    if math.isnan(value):
        return "-"
    around = [f"{figure.factor * bound:.{figure.digits}f}" for bound in interval or ()]
    text = f"{figure.factor * value:.{figure.digits}f}"
    return f"{text} ({' to '.join(around)})" if around else text

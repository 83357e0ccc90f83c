"""Rules between fields; each yields one sentence per violation."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Literal

from hjepa_jax.config.parts import method_part
from hjepa_jax.config.sections.projection import evaluated_split, layer_widths
from hjepa_jax.config.settings import Settings

_MOST_LAYERS = 4
KNN_METRICS = ("online/knn_top1", "online/knn_top5")
# Metrics of every method, and whether lower or higher is better.
_DIRECTIONS: dict[str, Literal["min", "max"]] = {
    "total": "min",
    "online/probe_loss": "min",
    "online/probe_top1": "max",
    **dict.fromkeys(KNN_METRICS, "max"),
}


def _batch(settings: Settings) -> Iterator[str]:
    """Image and batch sizes are consistent."""
    data = settings.data
    if data.batch_size % settings.train.accumulation:
        yield (
            f"config.train.accumulation is {settings.train.accumulation}, which does not divide "
            f"config.data.batch_size={data.batch_size}: choose a divisor of it."
        )
    if data.max_train_images is not None and data.batch_size > data.max_train_images:
        yield (
            f"config.data.batch_size is {data.batch_size} but config.data.max_train_images leaves "
            f"only {data.max_train_images} images: set it to {data.max_train_images} or less."
        )
    if data.eval_resize is not None and data.eval_resize < data.image_size:
        yield (
            f"config.data.eval_resize is {data.eval_resize}, smaller than config.data.image_size="
            f"{data.image_size}, which is cropped from it: set it to {data.image_size} or more."
        )


def unfinished_schedules(settings: Settings, epochs: float) -> list[str]:
    """Returns 'config.field=value' for each warm-up or ramp that does not end within `epochs`."""
    return [f"config.{name}={value:g}" for name, value in _unfinished(settings, epochs)]


def _unfinished(settings: Settings, epochs: float) -> Iterator[tuple[str, float]]:
    if settings.train.warmup_epochs >= epochs:
        yield "train.warmup_epochs", settings.train.warmup_epochs
    yield from method_part(settings).unfinished(settings, epochs)


def _schedules(settings: Settings) -> Iterator[str]:
    """Schedules finish, and weight decay does not shrink parameters past zero."""
    train = settings.train
    unfinished = unfinished_schedules(settings, train.epochs)
    if unfinished:
        yield (
            f"config.train.epochs is {train.epochs}, so {' and '.join(unfinished)} would not "
            f"finish: shorten {'them' if len(unfinished) > 1 else 'it'}, or train longer."
        )
    # Above a rate of 1 the rate itself is the problem, which training reports.
    if train.lr <= 1 < train.lr * train.weight_decay:
        yield (
            f"config.train.weight_decay is {train.weight_decay}: times config.train.lr={train.lr} "
            "it shrinks the parameters past zero at every step: set it to "
            f"{1 / train.lr:.4g} or less."
        )


def _projector(settings: Settings) -> Iterator[str]:
    """The projector has layers of a width that its kind allows."""
    model, layers = settings.model, layer_widths(settings.model)
    if len(layers) > _MOST_LAYERS:
        yield (f"config.model.projector_widths has {len(layers)} layers: give 1 to {_MOST_LAYERS}.")
    if model.projector != "halves":
        return
    if not model.split_qp:
        yield (
            "config.model.projector is 'halves', but config.model.split_qp is False, so the states "
            "have no q and p: set it to True, or config.model.projector='mlp'."
        )
    odd = [width for width in layers if width % 2]
    if odd:
        yield (
            f"config.model.projector is 'halves', which gives half of each layer to q and half to "
            f"p, but a layer has {odd[0]} outputs: make the widths even."
        )


def _evaluation(settings: Settings) -> Iterator[str]:
    """The evaluation fits the model and the images."""
    model, evaluation, limit = settings.model, settings.evaluation, settings.data.max_train_images
    if evaluation.state_part != "qp" and not model.split_qp:
        yield (
            f"config.evaluation.state_part is {evaluation.state_part!r} but "
            "config.model.split_qp is False: set config.evaluation.state_part='qp'."
        )
    elif evaluation.state_part != "qp" and not evaluated_split(settings):
        yield (
            f"config.evaluation.state_part is {evaluation.state_part!r}, but config.evaluation."
            "features is 'projector' and config.model.projector 'mlp', which mixes q and p: set "
            "config.evaluation.state_part='qp'."
        )
    k = evaluation.headline_k
    if k not in evaluation.knn_k:
        yield (
            f"config.evaluation.headline_k is {k}, which is not among "
            f"config.evaluation.knn_k={evaluation.knn_k}: add it there."
        )
    if evaluation.online_every_epochs is not None and evaluation.online_images < k:
        yield (
            f"config.evaluation.online_images is {evaluation.online_images}, fewer than the "
            f"config.evaluation.headline_k={k} neighbors that vote: set it to {k} or more."
        )
    if limit is not None and limit < k:
        yield (
            f"config.data.max_train_images is {limit}, fewer than the "
            f"config.evaluation.headline_k={k} neighbors that vote: set it to {k} or more, "
            "or a smaller config.evaluation.headline_k."
        )
    if limit is not None and evaluation.few_shot and max(evaluation.few_shot) > limit:
        yield (
            f"config.evaluation.few_shot is {evaluation.few_shot}, but "
            f"config.data.max_train_images leaves only {limit} images in total: set "
            "fewer."
        )
    apart = model.projector != "identity" and evaluation.features == "encoder"
    if evaluation.coordinates != "raw" and evaluation.posthoc is None and apart:
        yield (
            f"config.evaluation.coordinates is {evaluation.coordinates!r}, but H acts on the "
            f"output of the projector {model.projector!r} and not on the state that is evaluated: "
            "set it to 'raw', config.evaluation.features='projector', or config.evaluation.posthoc."
        )


def best_direction(settings: Settings) -> Literal["min", "max"] | None:
    """Returns whether a low or high config.checkpoint.best_metric is better; None = unknown."""
    directions = _directions(settings)
    return directions.get(settings.checkpoint.best_metric) or settings.checkpoint.best_mode


def _directions(settings: Settings) -> dict[str, Literal["min", "max"]]:
    """Returns the known directions of metrics, including the method's losses."""
    return {**_DIRECTIONS, **dict.fromkeys(method_part(settings).losses, "min")}


def _direction_problem(settings: Settings) -> str | None:
    """Returns a sentence if best_metric and best_mode do not match, else None."""
    metric, mode = settings.checkpoint.best_metric, settings.checkpoint.best_mode
    directions = _directions(settings)
    own = directions.get(metric)
    if own is None and mode is None:
        near = difflib.get_close_matches(metric, directions, 1)
        meant = f", or did you mean {near[0]!r}?" if near else "."
        return (
            f"config.checkpoint.best_metric is {metric!r}, which has no known direction: set "
            f"config.checkpoint.best_mode to 'min' or 'max'{meant}"
        )
    if own is None or mode in (None, own):
        return None
    better = "lower" if own == "min" else "higher"
    return (
        f"config.checkpoint.best_mode is {mode!r}, but for {metric!r} {better} is better, so the "
        "worst checkpoints would be kept: leave best_mode at None."
    )


def _checkpoint(settings: Settings) -> Iterator[str]:
    """The metric that ranks checkpoints exists and has a known direction."""
    metric = settings.checkpoint.best_metric
    if metric.startswith("online/knn") and metric not in KNN_METRICS:
        yield f"config.checkpoint.best_metric is {metric!r}: it can be {' or '.join(KNN_METRICS)}."
    if metric in KNN_METRICS and settings.evaluation.online_every_epochs is None:
        yield (
            f"config.checkpoint.best_metric is {metric!r}, but online evaluation is off: set "
            "config.evaluation.online_every_epochs, or rank by a loss, for example 'total'."
        )
    if metric.startswith("online/probe_") and not settings.evaluation.online_probe:
        yield (
            f"config.checkpoint.best_metric is {metric!r}, but the online probe is off: set "
            "config.evaluation.online_probe=True, or rank by a loss, for example 'total'."
        )
    sentence = _direction_problem(settings)
    exists = metric in KNN_METRICS or not metric.startswith("online/knn")
    if sentence and exists and settings.checkpoint.keep_best:
        yield sentence


RULES: tuple[Callable[[Settings], Iterator[str]], ...] = (
    _batch,
    _projector,
    _evaluation,
    _checkpoint,
)


def _trackers(settings: Settings) -> Iterator[str]:
    """The packages of the chosen trackers are installed."""
    for name in settings.log.writers:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            yield (
                f"config.log.writers has {name!r}, whose package is not installed: run pip install "
                f"'hjepa_jax[{name}]', or leave it out."
            )


# Rules for training only; an evaluated run may be older than the rule, or cut short.
TRAINING_RULES = (_schedules, _trackers)

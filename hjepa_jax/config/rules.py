"""Rules between fields: each yields one sentence for people where a configuration breaks it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from hjepa_jax.config.conditions import GRID_KINDS, has_potential, has_spectrum
from hjepa_jax.config.directions import direction_problem
from hjepa_jax.config.settings import Settings

# Fourth order takes a middle step of this length, in parts of dt, backwards.
_YOSHIDA = 2 ** (1 / 3) / (2 - 2 ** (1 / 3))
# Momentum damped by more than this power of e is gone, and backward grows by as much.
_DAMPING = 10.0
KNN_METRICS = ("online/knn_top1", "online/knn_top5")


def _parts(settings: Settings) -> Iterator[str]:
    """State, projector and predictor fit the objective."""
    model, hjepa = settings.model, settings.objective == "hjepa"
    if hjepa and not model.split_qp:
        yield (
            "config.model.split_qp is False but config.objective='hjepa' needs the state as "
            "[q | p]: set config.model.split_qp=True."
        )
    if hjepa and model.projector != "identity":
        yield (
            f"config.model.projector is {model.projector!r}, which would mix q and p: "
            "set config.model.projector='identity' for config.objective='hjepa'."
        )
    if hjepa and settings.dynamics.learn_dt:
        yield (
            "config.dynamics.learn_dt is True, but a learned dt collapses to zero in training "
            "(the prediction loss is smallest when nothing moves): set it to False."
        )
    if hjepa and settings.loss.energy_weight > 0 and settings.dynamics.predictor != "hamiltonian":
        yield (
            f"config.loss.energy_weight is {settings.loss.energy_weight}, but predictor "
            f"{settings.dynamics.predictor!r} has no energy: set it to 0."
        )
    if hjepa and (settings.dynamics.predictor, settings.dynamics.hamiltonian) == (
        "mlp",
        "quadratic",
    ):
        yield (
            "config.dynamics.hamiltonian is 'quadratic', which leaves config.dynamics.predictor="
            "'mlp' no parameters to match: set it to 'separable' or 'learnable'."
        )
    kind = settings.spectral.kind
    grid = kind in GRID_KINDS
    if not hjepa and grid and settings.resnet.head != "tokens":
        yield (
            f"config.spectral.kind is {kind!r}, which acts on the token grid: set "
            "config.resnet.head='tokens', or config.spectral.kind='chain'."
        )
    if not hjepa and grid and model.projector != "identity":
        yield (
            f"config.spectral.kind is {kind!r}, which acts on the token grid, but "
            "the projector mixes the tokens: set config.model.projector='identity'."
        )
    if not hjepa and settings.sigreg.loss_form == "convex" and settings.sigreg.weight > 1:
        yield (
            f"config.sigreg.weight is {settings.sigreg.weight}, which would give the prediction a "
            "negative weight in config.sigreg.loss_form='convex': set it to 1 or less."
        )


def _flow(settings: Settings) -> Iterator[str]:
    """The integrator is stable on the quadratic well, and damping leaves something to predict."""
    dynamics = settings.dynamics
    if settings.objective != "hjepa" or dynamics.predictor != "hamiltonian":
        return
    generic = dynamics.integrator == "leapfrog" and dynamics.hamiltonian != "separable"
    if settings.parity.reference_leapfrog and generic and dynamics.damping > 0:
        yield (
            f"config.dynamics.damping is {dynamics.damping}, which the published leapfrog of "
            "config.parity.reference_leapfrog does not have: set one of them to its default."
        )
    stiffness = 1.0 if dynamics.hamiltonian == "quadratic" else dynamics.base_coeff
    longest = _YOSHIDA if dynamics.integrator == "yoshida4" else 1.0
    if dynamics.dt * math.sqrt(stiffness) * longest >= 2:
        well = (
            ""
            if dynamics.hamiltonian == "quadratic"
            else f" with config.dynamics.base_coeff={dynamics.base_coeff}"
        )
        bound = "inf" if stiffness == 0 else f"{2 / math.sqrt(stiffness) / longest:.4g}"
        yield (
            f"config.dynamics.dt is {dynamics.dt}: {dynamics.integrator}{well} is unstable at it "
            f"and the prediction would grow without bound: set it below {bound}."
        )
    decay = dynamics.damping * dynamics.dt * dynamics.steps
    if decay > _DAMPING:
        yield (
            f"config.dynamics.damping is {dynamics.damping}: over the flow it shrinks the momentum "
            f"by exp(-{decay:.4g}), and the backward prediction grows by as much: set it to "
            f"{_DAMPING / dynamics.dt / dynamics.steps:.4g} or less."
        )


def _views(settings: Settings) -> Iterator[str]:
    """Every view takes part in the prediction."""
    data, pairing = settings.data, settings.loss.pairing
    if settings.objective == "sigreg":
        if data.num_global_views + data.num_local_views < 2:
            yield (
                "config.data.num_global_views is 1 and there are no local views, so that the "
                "prediction of the views' center is exactly 0: ask for 2 or more."
            )
        return
    if pairing != "local_to_global" and data.num_global_views < 2:
        yield (
            f"config.data.num_global_views is {data.num_global_views}, but config.loss.pairing="
            f"{pairing!r} predicts one global view from another and needs 2 or more."
        )
    if pairing == "local_to_global" and data.num_local_views == 0:
        yield (
            "config.loss.pairing is 'local_to_global' but config.data.num_local_views is 0: "
            "ask for local views, for example config.data.num_local_views=6."
        )
    if pairing != "local_to_global" and data.num_local_views > 0:
        yield (
            f"config.data.num_local_views is {data.num_local_views}, but config.loss.pairing="
            f"{pairing!r} predicts no local view: set it to 0, or config.loss.pairing="
            "'local_to_global'."
        )
    if pairing == "first_two" and data.num_global_views > 2:
        yield (
            f"config.data.num_global_views is {data.num_global_views}, but config.loss.pairing="
            "'first_two' predicts only two of them: set it to 2, or config.loss.pairing="
            "'all_global'."
        )


def _batch(settings: Settings) -> Iterator[str]:
    """Sizes of images and batches fit together."""
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
    sigreg, views = settings.sigreg, data.num_global_views + data.num_local_views
    rows = data.batch_size * (views if sigreg.statistics == "flattened" else 1)
    if settings.objective == "sigreg" and sigreg.subsample is not None and sigreg.subsample > rows:
        yield (
            f"config.sigreg.subsample is {sigreg.subsample}, but a statistic has only {rows} "
            f"images: set it to {rows} or less, or None for all."
        )


def unfinished_schedules(settings: Settings, epochs: float) -> list[str]:
    """Returns 'config.field=value' of what is warmed up or faded in but not within `epochs`."""
    return [f"config.{name}={value:g}" for name, value in _unfinished(settings, epochs)]


def _unfinished(settings: Settings, epochs: float) -> Iterator[tuple[str, float]]:
    spectral = settings.spectral
    warmups = {"train.warmup_epochs": settings.train.warmup_epochs}
    if has_potential(settings):
        name = "dynamics.residual_scale_warmup_epochs"
        warmups[name] = settings.dynamics.residual_scale_warmup_epochs
    if settings.objective == "sigreg":
        warmups["sigreg.weight_warmup_epochs"] = settings.sigreg.weight_warmup_epochs
    if has_spectrum(settings):
        warmups["spectral.identity_epochs"] = spectral.identity_epochs
    yield from ((name, value) for name, value in warmups.items() if value >= epochs)
    if has_spectrum(settings):
        # Ramps move at the start of an epoch, so that they may end with the last one.
        if spectral.identity_epochs < epochs < spectral.identity_epochs + spectral.base_ramp_epochs:
            yield "spectral.base_ramp_epochs", spectral.base_ramp_epochs
        if spectral.kind == "learnable" and spectral.learnable_ramp_epochs > epochs:
            yield "spectral.learnable_ramp_epochs", spectral.learnable_ramp_epochs


def _schedules(settings: Settings) -> Iterator[str]:
    """Schedules come to their end, and weight decay leaves something of the parameters."""
    train = settings.train
    unfinished = unfinished_schedules(settings, train.epochs)
    if unfinished:
        yield (
            f"config.train.epochs is {train.epochs}, so that {' and '.join(unfinished)} would not "
            f"come to an end: shorten {'them' if len(unfinished) > 1 else 'it'}, or train longer."
        )
    # Of a rate above 1 the rate itself is the trouble, which training explains.
    if train.lr <= 1 < train.lr * train.weight_decay:
        yield (
            f"config.train.weight_decay is {train.weight_decay}: times config.train.lr={train.lr} "
            "it shrinks the parameters past zero at every step: set it to "
            f"{1 / train.lr:.4g} or less."
        )


def _evaluation(settings: Settings) -> Iterator[str]:
    """The evaluation can be made of the model and the images."""
    model, evaluation, limit = settings.model, settings.evaluation, settings.data.max_train_images
    if evaluation.state_part != "qp" and not model.split_qp:
        yield (
            f"config.evaluation.state_part is {evaluation.state_part!r} but "
            "config.model.split_qp is False: set config.evaluation.state_part='qp'."
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
            f"config.evaluation.headline_k={k} neighbors that are to vote: set it to {k} or more."
        )
    if limit is not None and limit < k:
        yield (
            f"config.data.max_train_images is {limit}, fewer than the "
            f"config.evaluation.headline_k={k} neighbors that are to vote: set it to {k} or more, "
            "or a smaller config.evaluation.headline_k."
        )
    if limit is not None and evaluation.few_shot and max(evaluation.few_shot) > limit:
        yield (
            f"config.evaluation.few_shot is {evaluation.few_shot}, but "
            f"config.data.max_train_images leaves only {limit} images for all classes: ask for "
            "fewer."
        )
    mixes = model.projector != "identity"
    if evaluation.coordinates == "sqrt_h" and mixes:
        yield (
            "config.evaluation.coordinates is 'sqrt_h', but H acts on the output of the projector "
            f"{model.projector!r} and not on the state that is evaluated: set it to 'raw', or "
            "config.model.projector='identity'."
        )
    if evaluation.online_probe and mixes:
        yield (
            "config.evaluation.online_probe is True, but it sees the output of the projector "
            f"{model.projector!r} and not the state that is evaluated: set it to False, or "
            "config.model.projector='identity'."
        )


def _checkpoint(settings: Settings) -> Iterator[str]:
    """The metric that ranks checkpoints exists, and it is known which way it is better."""
    metric = settings.checkpoint.best_metric
    if metric.startswith("online/knn") and metric not in KNN_METRICS:
        yield f"config.checkpoint.best_metric is {metric!r}: it can be {' or '.join(KNN_METRICS)}."
    if metric in KNN_METRICS and settings.evaluation.online_every_epochs is None:
        yield (
            f"config.checkpoint.best_metric is {metric!r}, but there is no online evaluation: set "
            "config.evaluation.online_every_epochs, or rank by a loss, for example 'total'."
        )
    if metric.startswith("online/probe_") and not settings.evaluation.online_probe:
        yield (
            f"config.checkpoint.best_metric is {metric!r}, but there is no online probe: set "
            "config.evaluation.online_probe=True, or rank by a loss, for example 'total'."
        )
    sentence = direction_problem(metric, settings.checkpoint.best_mode)
    exists = metric in KNN_METRICS or not metric.startswith("online/knn")
    if sentence and exists and settings.checkpoint.keep_best:
        yield sentence


RULES: tuple[Callable[[Settings], Iterator[str]], ...] = (
    _views,
    _parts,
    _flow,
    _batch,
    _evaluation,
    _checkpoint,
)
# What a run that is only evaluated may break: it may be older than the rule, or cut short.
TRAINING_RULES = (_schedules,)

"""Evaluation of a run: a checkpoint beside the same encoder at random initialisation."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hjepa_jax import config_check, distributed, sharding
from hjepa_jax.config import Config, steps_per_epoch
from hjepa_jax.data.pipeline import augmented_pairs, eval_batches
from hjepa_jax.errors import CheckpointError, ConfigError, DataError
from hjepa_jax.evaluation.coarse import label_maps
from hjepa_jax.evaluation.coordinates import coordinates_of
from hjepa_jax.evaluation.features import Encode
from hjepa_jax.evaluation.flow import Flow, FlowPicture, flow_picture
from hjepa_jax.evaluation.gallery import PictureInputs
from hjepa_jax.evaluation.protocol import Evaluation, Sources
from hjepa_jax.evaluation.protocol import evaluate as evaluate_encoders
from hjepa_jax.evaluation.report import painters, print_table, write_numbers, write_pictures
from hjepa_jax.evaluation.report_folder import report_name
from hjepa_jax.run import Run, make_encode, open_split, prepare
from hjepa_jax.saved_run import (
    PARTS,
    check_encoder,
    check_has_checkpoints,
    chosen_step,
    open_saved,
    restore_parts,
    saved_config,
)
from hjepa_jax.train_step import Method

_log = logging.getLogger(__name__)

# What H is; it must agree as well where the evaluation is in its coordinates.
_SPECTRUM_FIELDS = ("objective", "spectral.", "parity.reference_layout")
# What an evaluation needs of a TrainState.
_PARTS = (*PARTS, "spectral")


def evaluation_sources(config: Config) -> Sources:
    """Returns the data of the evaluation that a configuration asks for."""
    train, test = open_split(config, "train"), open_split(config, "test")
    if train.class_names != test.class_names:
        raise DataError(
            f"the classes of the two splits differ: {len(train.class_names)} in "
            f"{train.description}, {len(test.class_names)} in {test.description}."
        )
    size, samples = config.evaluation.batch_size, config.evaluation.alignment_samples

    def pairs() -> Any:
        return tuple(augmented_pairs(config, test, samples, config.seed))

    return Sources(
        train_batches=functools.partial(eval_batches, config, train, size),
        test_batches=functools.partial(eval_batches, config, test, size),
        augmented_pairs=pairs,
        num_classes=train.num_classes,
        class_names=train.class_names,
        label_maps=label_maps(config.data.name, train.class_names),
    )


class Evaluated(NamedTuple):
    """What is evaluated of a run: its encoders by name, its step, its flow where it has one."""

    encoders: dict[str, Encode]
    step: int
    flow: Flow | None


def restore(config: Config, run: Run, workdir: pathlib.Path, which: str = "latest") -> Evaluated:
    """Returns the encoders 'trained' (of the checkpoint `which`) and 'random' (at initialisation).

    In the coordinates H^{1/2} z both have the H of the checkpoint: the encoder alone differs.
    """
    # What is best is the run's own choice, whatever configuration it is evaluated with.
    chooses = saved_config(workdir) if which == "best" else config
    checkpointer = open_saved(chooses, workdir)
    state, meta = restore_parts(checkpointer, run, chosen_step(checkpointer, which), _PARTS)
    checkpointer.close()
    step, spectral = int(state["step"]), state["spectral"]
    epoch = _epoch_of(meta, config, workdir)
    compose = coordinates_of(config, epoch, run.mesh)
    raw = make_encode(run, state["params"], state["batch_stats"])
    encoders = {"trained": compose(raw, spectral, step)}
    if config.evaluation.random_baseline:
        fresh = run.init()
        raw = make_encode(run, fresh.params, fresh.batch_stats)
        encoders["random"] = compose(raw, spectral, step)
    method = dataclasses.replace(run.method, steps_per_epoch=epoch)
    return Evaluated(encoders, step, _flow_of(method, state["params"], step))


def _flow_of(method: Method, params: Any, step: int) -> Flow | None:
    """Returns the Hamiltonian flow after `step` steps, None of a method without one."""
    dynamics, predictor = method.config.dynamics, method.modules.predictor
    if predictor is None or dynamics.predictor != "hamiltonian":
        return None
    # On the host: of several processes one alone draws.
    variables = {"params": jax.device_get(params.get("predictor", {}))}
    scale = method.residual_scale(jnp.asarray(max(step - 1, 0)))

    @jax.jit
    def flow(states: Any, direction: Any) -> Any:
        return predictor.apply(variables, states, direction, scale)

    @jax.jit
    def energy(states: Any) -> Any:
        return predictor.apply(variables, states, scale, method="energy")

    return Flow(flow, energy, dynamics.steps * dynamics.dt)


def _notes(config: Config, saved: Config, which: str) -> list[str]:
    """Returns a sentence where a checkpoint was chosen on the images on which it is reported."""
    metric, online = saved.checkpoint.best_metric, saved.evaluation
    on_test = metric.startswith("online/knn_") and online.online_holdout is None
    same = all(config.data[name] == saved.data[name] for name in ("name", "root", "test_split"))
    if which != "best" or not on_test or not same:
        return []
    return [
        f"This checkpoint was chosen by {metric} on images of the test split that is reported "
        "here, which flatters its accuracies: train with config.evaluation.online_holdout to "
        "choose on training images that are held out."
    ]


def _epoch_of(meta: dict[str, Any], config: Config, workdir: pathlib.Path) -> int:
    """Returns the steps of an epoch of the training that wrote a checkpoint's `meta`."""
    data = meta["data"]
    if "num_images" in data:
        return steps_per_epoch(data["num_images"], data["batch_size"])
    if config.evaluation.coordinates == "raw":
        return 1  # nothing counts in it
    raise CheckpointError(
        f"{workdir} was imported and does not say how long its epochs were, in which the ramps of "
        "its spectrum count: set config.evaluation.coordinates='raw'."
    )


def evaluate(
    config: Config, workdir: pathlib.Path, eval_dir: pathlib.Path, which: str = "latest"
) -> dict[str, Any]:
    """Evaluates a checkpoint of `workdir`, prints the table and writes the report.

    The report goes to `eval_dir/<name of workdir>`. The data is the configuration's, which may be
    another than the run was trained on. `which` is 'latest', 'best' or a step.

    Returns:
      The metrics, as in `metrics.json`.

    Raises:
      UserError: one of its kinds, each with a sentence that says what to do.
    """
    config_check.validate(config, training=False)
    check_has_checkpoints(workdir)
    saved = saved_config(workdir)
    raw = config.evaluation.coordinates == "raw"
    check_encoder(config, saved, workdir, () if raw else _SPECTRUM_FIELDS)
    mesh = sharding.data_mesh()
    size = config.evaluation.batch_size
    sentence = sharding.divisibility_error(size, mesh, "config.evaluation.batch_size")
    if sentence:
        raise ConfigError(sentence)
    # Nothing is trained, so that the data may be smaller than a batch of the training.
    run = prepare(config, config.data.batch_size, mesh)
    found = restore(config, run, workdir, which)
    info = {
        "run": workdir.name,
        "step": found.step,
        "objective": config.objective,
        "data": config.data.name,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    if config.data.name != saved.data.name:
        info["trained_on"] = saved.data.name
    if which == "best":
        info["best_by"] = saved.checkpoint.best_metric
    if config.evaluation.coordinates != "raw":
        info["coordinates"] = config.evaluation.coordinates
    evaluation = evaluate_encoders(
        found.encoders,
        evaluation_sources(config),
        config.evaluation,
        split_qp=config.model.split_qp,
        mesh=sharding.local_mesh(),
        info=info,
        notes=_notes(config, saved, which),
        reference=config.parity.reference_evaluation,
    )
    if not distributed.is_primary():
        return evaluation.metrics
    # A flow of other steps or strength than it was trained with would be another flow.
    flow = found.flow if config.dynamics.to_dict() == saved.dynamics.to_dict() else None
    _report(evaluation, flow, eval_dir / report_name(workdir))
    return evaluation.metrics


def _report(evaluation: Evaluation, flow: Flow | None, out: pathlib.Path) -> None:
    """Writes the numbers, shows them, and then draws, which may fail without losing any."""
    folder = write_numbers(out, evaluation.metrics)
    print_table(evaluation.metrics)

    def follow(inputs: PictureInputs) -> FlowPicture:
        assert flow is not None
        states = inputs.encoders["trained"]
        return flow_picture(flow, states.query_states, states.states)

    drawn = painters(
        evaluation.metrics, lambda: evaluation.pictures, None if flow is None else follow
    )
    for name, reason in write_pictures(folder, evaluation.metrics, drawn).items():
        print(f"{name} could not be drawn ({reason}); the numbers are written.")
    print(f"report and pictures: {folder}")

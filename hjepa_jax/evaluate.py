"""Evaluation of a run: its newest checkpoint beside the same encoder at random initialisation."""

from __future__ import annotations

import functools
import json
import logging
import pathlib
from typing import Any

import jax

from hjepa_jax import config_check, sharding
from hjepa_jax.checkpoint import Checkpointer
from hjepa_jax.config import Config
from hjepa_jax.data.pipeline import augmented_pairs, eval_batches
from hjepa_jax.errors import CheckpointError, ConfigError, DataError
from hjepa_jax.evaluation.coarse import label_maps
from hjepa_jax.evaluation.protocol import Sources
from hjepa_jax.evaluation.protocol import evaluate as evaluate_encoders
from hjepa_jax.evaluation.report import print_table, write_report
from hjepa_jax.run import Run, make_encode, open_split, prepare

_log = logging.getLogger(__name__)

# What the encoder is; it must agree with the checkpoint, all else may differ in an evaluation.
_ENCODER_FIELDS = ("model.", "data.image_size", "data.mean", "data.std")


def saved_config(workdir: pathlib.Path) -> Config:
    """Reads the configuration that a run saved.

    Raises:
      CheckpointError: if the workdir has none or it cannot be read.
    """
    path = workdir / "config.json"
    try:
        return config_check.from_json(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: is {workdir} a run's workdir?") from None
    except (json.JSONDecodeError, ConfigError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def check_encoder(config: Config, saved: Config, workdir: pathlib.Path) -> None:
    """Refuses a configuration whose encoder is not the checkpoint's, naming the fields.

    Raises:
      CheckpointError: if a field of the encoder differs.
    """
    old = dict(config_check.flatten(saved))
    differing = [
        f"config.{name} ({old[name]!r} there, {value!r} here)"
        for name, value in config_check.flatten(config)
        if name.startswith(_ENCODER_FIELDS) and old[name] != value
    ]
    if differing:
        raise CheckpointError(
            f"the run in {workdir} has another encoder: {', '.join(differing)}. Evaluate it with "
            "the configuration that it was trained with."
        )


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


def encoders_of(config: Config, run: Run, workdir: pathlib.Path) -> tuple[dict[str, Any], int]:
    """Returns ({'trained': encode, 'random': encode}, step of the checkpoint)."""
    checkpointer = Checkpointer(workdir / "checkpoints", read_only=True)
    state, _ = checkpointer.restore(run.abstract_state)
    encoders = {"trained": make_encode(run, state.params, state.batch_stats)}
    if config.evaluation.random_baseline:
        fresh = run.init()
        encoders["random"] = make_encode(run, fresh.params, fresh.batch_stats)
    return encoders, int(state.step)


def evaluate(config: Config, workdir: pathlib.Path, eval_dir: pathlib.Path) -> dict[str, Any]:
    """Evaluates the newest checkpoint of `workdir`, prints the table and writes the report.

    The report goes to `eval_dir/<name of workdir>`.

    Returns:
      The metrics, as in `metrics.json`.

    Raises:
      UserError: one of its kinds, each with a sentence that says what to do.
    """
    config_check.validate(config)
    if not (workdir / "checkpoints").is_dir():
        raise CheckpointError(f"{workdir} holds no checkpoints: train first, with --mode=train.")
    check_encoder(config, saved_config(workdir), workdir)
    mesh = sharding.data_mesh()
    size = config.evaluation.batch_size
    sentence = sharding.divisibility_error(size, mesh, "config.evaluation.batch_size")
    if sentence:
        raise ConfigError(sentence)
    run = prepare(config, len(open_split(config, "train")), mesh)
    encoders, step = encoders_of(config, run, workdir)
    info = {
        "run": workdir.name,
        "step": step,
        "objective": config.objective,
        "data": config.data.name,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    evaluation = evaluate_encoders(
        encoders,
        evaluation_sources(config),
        config.evaluation,
        split_qp=config.model.split_qp,
        mesh=mesh,
        info=info,
    )
    print_table(evaluation.metrics)
    folder = write_report(eval_dir / workdir.name, evaluation.metrics, evaluation.pictures)
    print(f"report and pictures: {folder}")
    return evaluation.metrics

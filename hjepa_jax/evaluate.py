"""Evaluation of a run: a checkpoint against the same encoder at random initialization."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from hjepa_jax.config import Settings, steps_per_epoch, total_steps
from hjepa_jax.config.files import differences
from hjepa_jax.config.parts import SOURCES, method_part, section_prefixes
from hjepa_jax.config.sections.projection import evaluated_split, evaluates_states_of_loss
from hjepa_jax.console import BOARD
from hjepa_jax.data.sources.base import ImageSource
from hjepa_jax.errors import CheckpointError, ConfigError
from hjepa_jax.evaluation.coordinates.of_method import fit_of_method
from hjepa_jax.evaluation.coordinates.posthoc import fit_posthoc
from hjepa_jax.evaluation.coordinates.transformed import Fit
from hjepa_jax.evaluation.features import Encode
from hjepa_jax.evaluation.probes.tokens import trained_and_random
from hjepa_jax.evaluation.protocol import Keep, Results, Sources, run_protocol
from hjepa_jax.evaluation.ready import check_evaluation_ready
from hjepa_jax.evaluation.report.about import (
    Watched,
    about,
    about_images,
    evaluation_sources,
    holdout_notes,
    watch,
)
from hjepa_jax.evaluation.report.figures import save_each
from hjepa_jax.evaluation.report.flow import Flow, FlowPicture, flow_of, flow_picture
from hjepa_jax.evaluation.report.folder import first_report, report_name
from hjepa_jax.evaluation.report.logged import log_evaluation
from hjepa_jax.evaluation.report.tables import painters, print_table, write_numbers, write_pictures
from hjepa_jax.evaluation.run_page.page import PAGE, evaluation_page
from hjepa_jax.evaluation.run_page.record import record_of
from hjepa_jax.runtime import distributed, sharding
from hjepa_jax.runtime.arithmetic import described
from hjepa_jax.storage.checkpoint_meta import DataPosition, Meta
from hjepa_jax.storage.files import json_ready, local_path
from hjepa_jax.training.automatic.resolved import resolved
from hjepa_jax.training.prepare import PreparedRun, prepare
from hjepa_jax.training.saved_run import (
    PARTS,
    check_choice,
    check_encoder,
    check_has_checkpoints,
    chosen_step,
    epoch_steps,
    open_saved,
    restore_parts,
    saved_config,
)
from hjepa_jax.training.setup import build_method

_log = logging.getLogger(__name__)

# Fields that an evaluation may set; all others are those of the run.
_OWN = ("data.", "evaluation.", "train.", "log.", "runtime.")
# The parts of a TrainState that an evaluation needs.
_PARTS = (*PARTS, "method_state")


def of_run(settings: Settings, saved: Settings) -> Settings:
    """Returns the settings of an evaluation of a run.

    `settings` gives the images and the settings of the evaluation and the machine; `saved` gives
    the seed (of the random encoder, and of subsets), the method and the choice of checkpoints.
    """
    of_source = section_prefixes(SOURCES, settings.data.name)
    merged = saved.replace(
        {
            name: value
            for name, value in settings.values().items()
            if _chosen_here(name) or name.startswith(of_source)
        }
    )
    others = ("data.name", "data.train_split", *of_source)
    moved = differences(saved, settings, lambda name: name in ("data.root", "data.test_holdout"))
    # The same images at another place have the same hold-out.
    if differences(saved, settings, lambda name: name.startswith(others)) or len(moved) == 2:
        # They belong to the images of the training, which these are not.
        own = {"data.test_holdout": settings.data.test_holdout}
        merged = merged.replace({**own, "evaluation.online_holdout": None})
    ignored = differences(
        saved, settings, lambda name: not _chosen_here(name) and not name.startswith(of_source)
    )
    if ignored:
        _log.info("evaluated as the run was trained: %s", ", ".join(ignored))
    return merged


def _chosen_here(name: str) -> bool:
    """Returns whether an evaluation may set a field; it may not set what training measures."""
    measured = name.startswith("evaluation.online_") or name == "data.test_holdout"
    return name.startswith(_OWN) and not measured


class Evaluated(NamedTuple):
    """The parts of a run that are evaluated.

    Attributes:
      encoders: encoders by name, of images to raw states.
      sqrt_h: gives an encoder its coordinates H^{1/2} z; None if they are not evaluated.
      step: step of the checkpoint.
      flow: the learned flow, if the method has one.
      data: what the checkpoint records about its training data.
      tokens: encoders of images to tokens by name; {} without an attentive probe.
    """

    encoders: dict[str, Encode]
    sqrt_h: Fit | None
    step: int
    flow: Flow | None
    data: DataPosition
    tokens: dict[str, Encode]


def restore(
    settings: Settings, run: PreparedRun, workdir: pathlib.Path, which: str = "latest"
) -> Evaluated:
    """Returns the encoders 'trained' (of the checkpoint `which`) and 'random' (at initialization).

    In the coordinates H^{1/2} z both use the H of the checkpoint: only the encoder differs. An H of
    config.evaluation.posthoc is fitted to each.
    """
    # The metric of the best checkpoint is the run's, whatever configuration evaluates it.
    chooses = saved_config(workdir) if which == "best" else settings
    checkpointer = open_saved(chooses, workdir)
    state, meta = restore_parts(checkpointer, run, chosen_step(checkpointer, which), _PARTS)
    checkpointer.close()
    step, method_state = int(state["step"]), state["method_state"]
    epoch = _epoch_of(meta, settings, workdir)
    method = build_method(settings, epoch)
    sqrt_h = None
    if settings.evaluation.posthoc is not None:
        sqrt_h = fit_posthoc(settings)
    elif _in_own_coordinates(settings):
        sqrt_h = fit_of_method(method, method_state, step)
    encoders, tokens = trained_and_random(run, state["params"], state["batch_stats"])
    flow = flow_of(method, run.setup, state)
    return Evaluated(encoders, sqrt_h, step, flow, meta["data"], tokens)


def _in_own_coordinates(settings: Settings) -> bool:
    """Returns whether the evaluation takes the H of the run's method."""
    evaluation = settings.evaluation
    return evaluation.coordinates != "raw" and evaluation.posthoc is None


def _notes(
    settings: Settings, saved: Settings, which: str, same_listing: bool = False
) -> list[str]:
    """Returns a sentence if a checkpoint was chosen on the images on which it is reported.

    Data are the same if the root is the same, or if the training images have the same listing, as
    those of a dataset that was moved or whose path is spelled differently.
    """
    metric, online = saved.checkpoint.best_metric, saved.evaluation
    on_test = metric.startswith("online/knn_") and online.online_holdout is None
    same = all(
        getattr(settings.data, name) == getattr(saved.data, name) for name in ("name", "test_split")
    )
    same = same and (same_listing or settings.data.root == saved.data.root)
    if which != "best" or not on_test or not same:
        return []
    return [
        f"This checkpoint was chosen by {metric} on images of the test split that is reported "
        "here, which inflates its accuracies: train with config.evaluation.online_holdout to "
        "choose on training images that are held out."
    ]


def _doubts(
    settings: Settings, saved: Settings, which: str, train: ImageSource, trained: DataPosition
) -> list[str]:
    """Returns sentences on why the test images may not be new to the checkpoint."""
    # The fingerprint of many files takes seconds.
    asked = which == "best" or settings.data.test_holdout is not None
    same_listing = asked and train.fingerprint() == trained.get("fingerprint")
    return [
        *_notes(settings, saved, which, same_listing),
        *holdout_notes(settings, saved, trained, same_listing),
    ]


def _coordinate_fields(saved: Settings) -> tuple[str, ...]:
    """Returns the fields that must agree to evaluate in the coordinates of a run's loss."""
    return ("method", *method_part(saved).coordinate_fields)


def _epoch_of(meta: Meta, settings: Settings, workdir: pathlib.Path) -> int:
    """Returns the steps per epoch of the training that wrote a checkpoint's `meta`."""
    if (known := epoch_steps(meta["data"])) is not None:
        return known
    if not _in_own_coordinates(settings):
        return 1  # not used
    raise CheckpointError(
        f"{workdir} was imported and does not record the length of its epochs, which the ramps of "
        "its spectrum depend on: set config.evaluation.coordinates='raw'."
    )


def check_before_training(
    settings: Settings, eval_dir: pathlib.Path | None, which: str = "latest"
) -> None:
    """Checks what the evaluation after training will need, as far as it is known.

    Args:
      settings: the configuration.
      eval_dir: folder of reports; None = that of the run, which the training checks.
      which: the checkpoint: 'latest', 'best' or a step.

    Raises:
      UserError: something is missing or does not match; the message says what to do.
    """
    check_choice(which)
    if which == "best" and not settings.checkpoint.keep_best:
        raise ConfigError(
            "--checkpoint=best, but config.checkpoint.keep_best is 0, so the best checkpoint is "
            "not kept: set it to 1 or more."
        )
    sets = check_evaluation_ready(settings, eval_dir, sharding.data_mesh())
    data = settings.data
    epoch = steps_per_epoch(len(sets.train), data.batch_size, data.drop_last)
    steps = total_steps(settings.train, epoch)
    if which.isdigit() and int(which) > steps:
        raise CheckpointError(
            f"--checkpoint={which}, but training has only {steps} steps: choose one of them."
        )


def evaluate(
    settings: ConfigDict | Settings,
    workdir: pathlib.Path,
    eval_dir: pathlib.Path | None = None,
    which: str = "latest",
) -> dict[str, Any]:
    """Evaluates a checkpoint of `workdir`, prints the table and writes the report.

    The report goes to `workdir/evaluation`, or to `eval_dir/<name of workdir>`. The data are those
    of the configuration, not always those of training. `which` is 'latest', 'best' or a step.

    Returns:
      The metrics, as in `metrics.json`.

    Raises:
      UserError: something is missing or does not match; the message says what to do.
    """
    settings = resolved(settings, workdir, training=False)
    eval_dir = None if eval_dir is None else local_path(eval_dir, "--eval_dir")
    out = first_report(workdir, eval_dir)
    check_choice(which)
    opened = open_evaluation(settings, workdir, out.parent)
    with BOARD.busy("reading the checkpoint"):
        found = restore(opened.settings, opened.run, workdir, which)
    with BOARD.busy("evaluating"):
        results = measure(opened, workdir, found, which)
    results.metrics["info"].update(about_images(opened.settings, opened.train, opened.test))
    results = dataclasses.replace(results, metrics=json_ready(results.metrics))
    if distributed.is_primary():
        draw = functools.partial(_page, workdir, opened.saved, opened.settings, which)
        folder, epoch = _report(results, found.flow, out, draw), epoch_steps(found.data)
        states = results.encoders["trained"].features
        log_evaluation(workdir, opened.saved, results.metrics, states, folder, epoch)
    return results.metrics


class Opened(NamedTuple):
    """An evaluation of a run before a checkpoint is chosen.

    Attributes:
      settings: those of the evaluation, see `of_run`.
      saved: the run's settings.
      run: the prepared run.
      train, test: the images.
      sources: both, as the protocol takes them.
    """

    settings: Settings
    saved: Settings
    run: PreparedRun
    train: Watched
    test: Watched
    sources: Sources


def open_evaluation(settings: Settings, workdir: pathlib.Path, out: pathlib.Path | None) -> Opened:
    """Opens a run and its images, and checks all that an evaluation needs but a checkpoint.

    Args:
      settings: the images, and the settings of the evaluation.
      workdir: the run.
      out: the folder to write to, which is created; None = not checked.

    Raises:
      UserError: something is missing or does not match; the message says what to do.
    """
    check_has_checkpoints(workdir)
    saved, mesh = saved_config(workdir), sharding.data_mesh()
    needed = _coordinate_fields(saved) if _in_own_coordinates(settings) else ()
    check_encoder(settings, saved, workdir, needed)
    settings = of_run(settings, saved)
    if computed := described(settings.runtime):
        _log.info("evaluated with %s", computed)
    sets = check_evaluation_ready(settings, out, mesh)
    train, test = watch(settings.data, sets, settings.evaluation.batch_size)
    # Nothing is trained, so the data may be smaller than a training batch.
    with BOARD.busy("preparing"):
        run = prepare(settings, settings.data.batch_size, mesh)
    sources = evaluation_sources(settings, train, test)
    return Opened(settings, saved, run, train, test, sources)


def measure(
    opened: Opened,
    workdir: pathlib.Path,
    found: Evaluated,
    which: str,
    keep: Keep = lambda name, extract: extract(),
) -> Results:
    """Returns the results of a checkpoint; `keep` as in `run_protocol`."""
    settings, saved, run, train, _, sources = opened
    return run_protocol(
        found.encoders,
        sources,
        settings.evaluation,
        split_qp=evaluated_split(settings),
        mesh=sharding.local_mesh(),
        info=about(settings, saved, report_name(workdir), found.step, which, found.data),
        notes=_doubts(settings, saved, which, train.source, found.data),
        targets=run.method.targets() if evaluates_states_of_loss(settings) else {},
        remedy=run.method.remedy,
        sqrt_h=found.sqrt_h,
        keep=keep,
        tokens=found.tokens,
    )


def _page(
    workdir: pathlib.Path,
    saved: Settings,
    settings: Settings,
    which: str,
    results: Results,
    flow: Callable[[], FlowPicture] | None,
) -> bytes:
    """Returns the page of a report; see `evaluation_page` and `record_of`."""
    record = record_of(workdir, saved, settings, which)
    return evaluation_page(results.metrics, lambda: results.pictures, flow, record).encode()


def _report(
    results: Results,
    flow: Flow | None,
    out: pathlib.Path,
    page: Callable[[Results, Callable[[], FlowPicture] | None], bytes],
) -> pathlib.Path:
    """Writes and prints the numbers, then draws the pictures, so that no error there loses them.

    Args:
      results: of the evaluation.
      flow: the learned flow, if there is one.
      out: folder of the report, see `report_folder`.
      page: returns the page, given the results and what follows the flow.

    Returns:
      The folder written to.
    """
    folder = write_numbers(out, results.metrics, results.answers)
    try:
        print_table(results.metrics)
    except (OSError, UnicodeError) as error:  # the terminal is gone, or cannot show it
        _log.warning("the table cannot be printed (%s); it is in %s/report.md", error, folder)

    @functools.cache
    def follow() -> FlowPicture:
        assert flow is not None
        states = results.pictures.encoders["trained"]
        return flow_picture(flow, states.query_states, states.states)

    followed = None if flow is None else follow
    drawn = painters(results.metrics, lambda: results.pictures, followed)
    with BOARD.busy("drawing"):
        failed = write_pictures(folder, results.metrics, drawn)
        failed |= save_each(folder, {PAGE: lambda: page(results, followed)})
    with contextlib.suppress(OSError, UnicodeError):
        for name, reason in failed.items():
            print(f"{name} could not be drawn ({reason}); the numbers are written.")
        if PAGE not in failed:
            print(f"page: {folder / PAGE}")
        print(f"report and pictures: {folder}")
    return folder

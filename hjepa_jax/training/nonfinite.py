"""Non-finite losses and gradients: diagnosing the cause and skipping the batch."""

from __future__ import annotations

import functools
import json
import logging
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import SupportsFloat, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from hjepa_jax.config import Settings
from hjepa_jax.errors import TrainingError
from hjepa_jax.methods.base import Method
from hjepa_jax.runtime import distributed, sharding
from hjepa_jax.runtime.checkpoint_arrays import not_finite
from hjepa_jax.storage.files import write_atomically
from hjepa_jax.training.encoding.batch import Batch
from hjepa_jax.training.prepare import PreparedRun, compiler_options
from hjepa_jax.training.state import TrainState
from hjepa_jax.training.step import loss_and_gradient

_log = logging.getLogger(__name__)
REPORT = "failure.json"
_LARGEST = 20


class Symptoms(TypedDict):
    """What is not finite in a failure: names of arrays of the state, or terms and norms as text."""

    not_finite: list[str]
    loss_terms: dict[str, float | str]
    gradient_norms: dict[str, float | str]


class Findings(TypedDict):
    """What a failure is made of; numbers that JSON does not have are text.

    Attributes:
      images: source indices of the batch.
      loss_terms: the metrics of the step.
      gradient_norms: of the parameters, those not finite first, then the largest.
      reproduced: whether loss or gradient is not finite this time too.
    """

    images: list[int]
    loss_terms: dict[str, float | str]
    gradient_norms: dict[str, float | str]
    reproduced: bool


def roll_back(state: TrainState) -> TrainState:
    """Returns the state from before the failed step.

    The failed step and those after it changed only `step`, `failed_step`, and `held`, which is
    drawn again if it is of a later step.
    """
    none = jax.device_put(np.asarray(-1, np.int32), state.failed_step.sharding)
    return state.replace(step=state.failed_step, failed_step=none)


def _number(value: SupportsFloat) -> float | str:
    """Returns a float, or as text if JSON cannot represent it."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _named_norms(gradient: PyTree[jax.Array]) -> dict[str, jax.Array]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): jnp.linalg.norm(leaf.ravel())
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    }


def _worst_first(norms: dict[str, float]) -> list[str]:
    """Sorts names by norm: non-finite ones first, then in descending order."""
    return sorted(norms, key=lambda n: (math.isfinite(norms[n]), -np.nan_to_num(norms[n])))


def failure_report(run: PreparedRun, state: TrainState, batch: Batch) -> Findings:
    """Recomputes the failed loss and gradient, and reports their components.

    Args:
      run: the prepared run.
      state: the state before the failed step.
      batch: the placed batch.
    """

    @functools.partial(
        jax.jit,
        out_shardings=sharding.replicated(run.mesh),
        compiler_options=compiler_options(run.settings.train),
    )
    def measure(
        state: TrainState, batch: Batch
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]:
        loss = loss_and_gradient(run.setup, state, batch, mesh=run.mesh)
        return {**loss.metrics, "total": loss.total}, _named_norms(loss.gradient), batch["index"]

    terms, norms, index = jax.device_get(measure(state, batch))
    norms = {name: float(value) for name, value in norms.items()}
    return {
        "images": [int(number) for number in index],
        "loss_terms": {name: _number(value) for name, value in terms.items()},
        "gradient_norms": {n: _number(norms[n]) for n in _worst_first(norms)[:_LARGEST]},
        "reproduced": not all(map(math.isfinite, [float(terms["total"]), *norms.values()])),
    }


_OPTIMIZER = ("lr", "predictor_lr", "weight_decay", "b1", "b2", "adam_eps")
_PIXELS = ("data.mean", "data.std")
_STATISTICS = ("q2", "p2", "z2", "z_mean2")


def _named(settings: Settings, names: Iterable[str]) -> str:
    """Returns the fields with their values, for a message."""
    return ", ".join(f"config.{name} ({settings.value(name)!r})" for name in names)


def diagnosis(
    settings: Settings, method: Method, report: Symptoms, *, updated: bool
) -> tuple[str, str]:
    """Returns (what is not finite, which settings to check) of a failure.

    Args:
      settings: the run's configuration.
      method: the run's method, which knows the fields behind its terms and parameters.
      report: what is not finite.
      updated: whether the parameters have been updated; if not, the optimizer is not the cause.
    """
    if report["not_finite"]:
        where = f"{report['not_finite'][0]} is not finite, although the loss and gradient were"
        return where, _named(settings, (f"train.{name}" for name in _OPTIMIZER))
    bad = [name for name, value in report["loss_terms"].items() if isinstance(value, str)]
    rates = ("train.lr", "train.predictor_lr") if settings.train.predictor_lr else ("train.lr",)
    learning = (*rates, "train.grad_clip") if updated else ()
    suspects = method.suspects()
    terms = [suspect for name, suspect in suspects.items() if name in bad]
    others = [name for name in bad if name != "total"]
    if any(name in bad for name in _STATISTICS):
        what, fields = "the encoder's output is not finite", _PIXELS
    elif terms:
        what, fields = f"{terms[0].what} is not finite", terms[0].fields
    elif others:
        what, fields = f"the metric {others[0]} is not finite", ()
    elif bad:
        what, fields = "the loss is not finite, but its terms are", ()
    else:
        norms = report["gradient_norms"]
        name = next((n for n, value in norms.items() if isinstance(value, str)), "all of it")
        what = f"the gradient is not finite ({name})"
        part = name.partition("/")[0]
        fields = suspects[part].fields if part in suspects else _PIXELS
    return what, _named(settings, (*learning, *fields) or ("train.lr",))


class NonFiniteGuard:
    """Handles a non-finite loss: stops the run or skips the batch.

    Attributes:
      skipped: numbers of all batches skipped so far in the run. The batch of step i (from 0) has
        the number i + len(skipped).
    """

    def __init__(
        self,
        run: PreparedRun,
        workdir: pathlib.Path,
        load_batch: Callable[[int], Batch],
        skipped: list[int],
    ):
        """Stores what a report needs; `load_batch` maps a batch number to its placed batch."""
        self._run, self._workdir = run, workdir
        self._load_batch = load_batch
        self.skipped = skipped
        self._failed_step, self._in_a_row = -1, 0

    def after_failure(self, state: TrainState, saved: list[int]) -> TrainState:
        """Writes `failure.json` and returns the state from which to continue with the next batch.

        Args:
          state: the state of a run whose `failed_step` is set; donated.
          saved: the steps of the run's checkpoints, for the message.

        Raises:
          TrainingError: if config.train.on_nonfinite is 'stop', or too many batches in a row fail.
        """
        good = roll_back(state)
        step = int(good.step)
        number = step + len(self.skipped)
        settings = self._run.settings.train
        skip = settings.on_nonfinite == "skip"
        self.check_state(good, saved)
        advice = self._write_report(good, step, number, saved)
        what = f"the loss or its gradient was NaN or infinite at step {step}"
        if not skip:
            other = ", or go on with config.train.on_nonfinite='skip'" if step else ""
            raise TrainingError(f"{what} ({self._whereabouts(saved)}): {advice}{other}.")
        self._in_a_row = self._in_a_row + 1 if step == self._failed_step else 1
        self._failed_step = step
        if self._in_a_row > settings.max_skips_in_a_row:
            raise TrainingError(
                f"{what} for the {self._in_a_row} batches up to number {number} "
                f"({self._whereabouts(saved)}), more than config.train.max_skips_in_a_row: it is "
                f"not the "
                f"data. {advice[0].upper()}{advice[1:]}."
            )
        _log.warning("%s: batch %d is skipped (%s).", what, number, self._workdir / REPORT)
        self.skipped.append(number)
        return good

    def check_state(self, state: TrainState, saved: list[int]) -> None:
        """Checks that a state is finite before it is saved; all processes must call it.

        Raises:
          TrainingError: if a parameter, moment or statistic is NaN or infinite.
        """
        names = not_finite(state)
        if not distributed.sum_over_processes(len(names)):
            return
        step = int(state.step)
        named = names[:_LARGEST] or ["an array of another process"]
        report: Symptoms = {"not_finite": named, "loss_terms": {}, "gradient_norms": {}}
        what, fields = diagnosis(self._run.settings, self._run.method, report, updated=True)
        self._write({"step": step, "action": "stop", "checkpoints": saved, "not_finite": named})
        raise TrainingError(
            f"after step {step} {what}, so it is not saved ({self._whereabouts(saved)}): change "
            f"one "
            f"of {fields}."
        )

    def _whereabouts(self, saved: list[int]) -> str:
        intact = f"the checkpoint of step {saved[-1]} is intact" if saved else "none was saved yet"
        return f"{self._workdir / 'checkpoints'}; {intact}; details in {self._workdir / REPORT}"

    def _write_report(self, state: TrainState, step: int, number: int, saved: list[int]) -> str:
        """Writes the report and returns advice."""
        found = failure_report(self._run, state, self._load_batch(number))
        updated = step > 0
        report: Symptoms = {
            "not_finite": [],
            "loss_terms": found["loss_terms"],
            "gradient_norms": found["gradient_norms"],
        }
        what, fields = diagnosis(self._run.settings, self._run.method, report, updated=updated)
        why = "" if updated else "nothing was updated yet, so it is not the learning rate; "
        advice = f"{why}{what}: check {fields}"
        self._write(
            {
                "step": step,
                "batch": number,
                "epoch": number // self._run.method.steps_per_epoch,
                "action": self._run.settings.train.on_nonfinite,
                "skipped_before": list(self.skipped),
                "checkpoints": saved,
                "advice": advice,
                **found,
            }
        )
        return advice

    def _write(self, report: Mapping[str, object]) -> None:
        if distributed.is_primary():
            write_atomically(self._workdir / REPORT, json.dumps(report, indent=2) + "\n")

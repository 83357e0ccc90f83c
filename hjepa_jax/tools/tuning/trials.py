"""The trials of a search: their plan, and training them from rung to rung.

A search's folder holds `runs/<method>-trial<N>` (workdirs), `logs`, and `commands.json`. What is
done is read from the runs, so that a search which is killed and started again ends the same.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from hjepa_jax.config import Settings, steps_per_epoch, total_steps
from hjepa_jax.config.checks import automatic
from hjepa_jax.config.flags import config_of_arguments, resolve_arguments
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import UserError
from hjepa_jax.storage.lock import take_lock
from hjepa_jax.storage.metrics_file import read_metrics
from hjepa_jax.tools.sweep import (
    MAIN,
    SweepRun,
    check_commands,
    execute,
    override_flag,
    with_effect,
)
from hjepa_jax.tools.tuning.halving import rung_steps, survivors
from hjepa_jax.tools.tuning.ranges import Space, draw, overrides_of

_SCORE = "online/knn_top1"
# Draws that contradict themselves are repeated.
_ATTEMPTS = 100
_LOCK_SECONDS = 1.0


class Rules(NamedTuple):
    """What holds for the trials of all methods.

    Attributes:
      seed: of the draws.
      trials: of each method; trial 0 is the configuration itself.
      factor: one trial in `factor` goes on to `factor` times the steps.
      rungs: comparisons before the end.
      holdout: training images to test on; None = those of the configuration, or a tenth of all.
    """

    seed: int
    trials: int
    factor: int
    rungs: int
    holdout: int | None


class Trial(NamedTuple):
    """A trial.

    Attributes:
      number: 0 = the configuration itself.
      drawn: values by key of the ranges.
      run: its run.
    """

    number: int
    drawn: dict[str, str]
    run: SweepRun


class Plan(NamedTuple):
    """The search of one method.

    Attributes:
      method: its name.
      source: its configuration, with variant.
      space: what is tuned.
      steps: the steps after which trials are compared; the last is the end.
      holdout: number of images that they are tested on.
      trials: by number.
    """

    method: str
    source: str
    space: Space
    steps: list[int]
    holdout: int
    trials: list[Trial]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What is known of one method's trials.

    Attributes:
      scores: trial -> step -> accuracy on the hold-out.
      failed: trial -> why it ended without a score.
    """

    scores: dict[int, dict[int, float]]
    failed: dict[int, str]

    def best(self, last: int) -> int | None:
        """Returns the best of the trials that reached step `last`; None if none did."""
        ended = {
            n: by[last] for n, by in self.scores.items() if math.isfinite(by.get(last, math.nan))
        }
        return min(ended, key=lambda number: (-ended[number], number), default=None)


def source_of(config: str, variant: str) -> str:
    """Returns a configuration with a variant beside the one that it names, such as 'smoke'."""
    name, _, given = config.partition(":")
    both = "-".join(filter(None, (variant, given)))
    return f"{name}:{both}" if both else name


def plan_method(
    config: str, out: pathlib.Path, method: str, space: Space, common: Sequence[str], rules: Rules
) -> Plan:
    """Returns the trials of a method, after looking at its training images.

    Args:
      config: the configuration.
      out: the search's folder.
      method: name of the method.
      space: what is tuned.
      common: overrides 'section.field=value' of all trials.
      rules: of the search.

    Raises:
      UserError: for a configuration that is invalid or has no fixed number of steps, or ranges
        whose draws contradict each other.
    """
    source = source_of(config, space.variant)
    fixed = with_effect(source, (*common, *space.fixed))
    settings = _settings(source, fixed)
    held = rules.holdout or settings.evaluation.online_holdout
    if held is None:
        plain = settings.replace({"evaluation.online_holdout": None})
        held = max(1, len(open_split(plain, "train")) // 10)
    tested = settings.replace({"evaluation.online_holdout": held})
    data = settings.data
    epoch = steps_per_epoch(len(open_split(tested, "train")), data.batch_size, data.drop_last)
    steps = rung_steps(total_steps(settings.train, epoch), rules.factor, rules.rungs)
    scored = (
        f"evaluation.online_holdout={held}",
        f"evaluation.online_every_epochs={steps[0] / epoch!r}",
        "checkpoint.keep_last=1",
    )
    plan = Plan(method, source, space, steps, held, [])
    for number in range(rules.trials):
        plan.trials.append(_plan_trial(plan, out, number, (*common, *space.fixed), scored, rules))
    return plan


def _settings(source: str, overrides: Sequence[str]) -> Settings:
    """Returns the settings from which the number of steps follows."""
    config = config_of_arguments([f"--config={source}", *map(override_flag, overrides)])
    unknown = {"train.epochs", "data.batch_size"} & set(automatic(config))
    if unknown:
        name = min(unknown)
        raise UserError(
            f"config.{name} is chosen when a training starts, and trials need a fixed number of "
            f"steps: set --config.{name}."
        )
    return resolve_arguments([f"--config={source}", *map(override_flag, overrides)])


def _plan_trial(
    plan: Plan,
    out: pathlib.Path,
    number: int,
    common: Sequence[str],
    scored: Sequence[str],
    rules: Rules,
) -> Trial:
    """Returns a trial whose configuration is valid."""
    name = f"{plan.method}-trial{number:03d}"
    for attempt in range(_ATTEMPTS):
        drawn = draw(plan.space, plan.method, rules.seed, number, attempt) if number else {}
        try:
            overrides = with_effect(plan.source, (*common, *overrides_of(drawn), *scored))
            arguments = (
                f"--config={plan.source}",
                f"--workdir={out / 'runs' / name}",
                "--mode=train",
                *map(override_flag, overrides),
            )
            resolve_arguments(list(arguments))
        except UserError as error:
            if not number or attempt == _ATTEMPTS - 1:
                where = "" if not number else f"no draw from the ranges of {plan.method} is valid: "
                raise UserError(f"{where}{error}") from error
            continue
        return Trial(number, drawn, SweepRun(name, plan.method, arguments))
    raise AssertionError("unreachable")


def score_at(workdir: pathlib.Path, step: int) -> float | None:
    """Returns the accuracy on the hold-out after a step; None if it is not known yet."""
    steps, values = read_metrics(workdir).get(_SCORE, ((), ()))
    found = dict(zip(map(int, steps), map(float, values), strict=True))
    return found.get(step)


def _await_others(workdir: pathlib.Path) -> None:
    """Waits while another process trains in a workdir, as one of a search that was killed may."""
    path = workdir / "lock"
    while path.is_file():
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            answer = take_lock(file, shared=True)
        finally:
            os.close(file)
        if answer != "held":
            return
        time.sleep(_LOCK_SECONDS)


def _advance(
    trial: Trial, out: pathlib.Path, step: int, last: int, command: Sequence[str]
) -> tuple[float, str]:
    """Trains a trial until a step; returns its score, or nan and why there is none.

    Raises:
      UserError: if it was stopped before.
    """
    workdir = out / "runs" / trial.run.name
    _await_others(workdir)
    if (score := score_at(workdir, step)) is not None:
        return score, ""
    until = () if step == last else (f"--stop_after={step}",)
    run = dataclasses.replace(trial.run, arguments=(*trial.run.arguments, *until))
    error = execute(run, out, command)
    score = score_at(workdir, step)
    if error is not None:
        return math.nan, error
    if score is None:
        raise UserError(
            f"{trial.run.name} was stopped before step {step}: run the same command again to "
            "continue."
        )
    return score, ""


def run_search(
    plans: Sequence[Plan],
    out: pathlib.Path,
    factor: int,
    log: Callable[[str], None] = print,
    command: Sequence[str] = MAIN,
    report: Callable[[Mapping[str, Outcome]], object] = lambda outcomes: None,
) -> dict[str, Outcome]:
    """Trains all trials of all methods, rung by rung.

    Args:
      plans: the methods.
      out: the search's folder.
      factor: see `Rules`.
      log: called with a line about each trial.
      command: program and arguments that precede those of a run.
      report: called after each rung of a method.

    Returns:
      The outcome of each method.

    Raises:
      UserError: if a trial was stopped, or the folder has a trial with another command.
    """
    check_commands([trial.run for plan in plans for trial in plan.trials], out)
    outcomes = {plan.method: Outcome({}, {}) for plan in plans}
    for rung in range(max(len(plan.steps) for plan in plans)):
        for plan in plans:
            if rung < len(plan.steps):
                _climb(plan, rung, outcomes[plan.method], out, factor, log, command)
                report(outcomes)
    return outcomes


def _climb(
    plan: Plan,
    rung: int,
    outcome: Outcome,
    out: pathlib.Path,
    factor: int,
    log: Callable[[str], None],
    command: Sequence[str],
) -> None:
    """Trains the trials that are left until a rung."""
    numbers = range(len(plan.trials))
    if rung:
        before = plan.steps[rung - 1]
        earlier = {n: by[before] for n, by in outcome.scores.items() if before in by}
        numbers = survivors(earlier, factor)
    step, last = plan.steps[rung], plan.steps[-1]
    for place, number in enumerate(numbers, 1):
        label = f"{plan.method}, step {step} of {last}, trial {number} [{place}/{len(numbers)}]"
        score, error = _advance(plan.trials[number], out, step, last, command)
        outcome.scores.setdefault(number, {})[step] = score
        if error:
            outcome.failed[number] = error
        log(f"{label}: failed: {error}" if error else f"{label}: {100 * score:.2f} %")

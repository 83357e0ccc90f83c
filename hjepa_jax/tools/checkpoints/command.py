"""Evaluate all checkpoints of runs, and draw the curves of their figures.

    hjepa checkpoints runs/x
    hjepa checkpoints runs/seed0 runs/seed1 --config.evaluation.probe_epochs=10 --out=curves

Each run is evaluated by its own configuration; overrides change it for all of them. An interrupted
evaluation goes on when the same command is run again. Runs that differ only in their seed are one
curve with a band.
"""

from __future__ import annotations

import contextlib
import pathlib

from absl import flags

from hjepa_jax.config.command_line.program import Program
from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import check_writable_folder, local_path

PROGRAM = Program(
    "checkpoints",
    __doc__,
    arguments="RUN [RUN ...]",
    number=(1, 10_000),
    example="runs/x",
    alone=True,
)
_FLAGS = PROGRAM.flags
_OUT = flags.DEFINE_string(
    "out",
    None,
    "Folder of the curves; by default that of the run's evaluations, for several runs "
    "checkpoint_curves.",
    flag_values=_FLAGS,
)
_FEATURES = flags.DEFINE_float(
    "features_gb",
    4.0,
    "Most GB of features to keep in each run, for other protocols; 0 = none.",
    lower_bound=0.0,
    flag_values=_FLAGS,
)


def main(argv: list[str]) -> None:
    """Evaluates, then draws."""
    from hjepa_jax.runtime import compilation_cache
    from hjepa_jax.runtime.stop_request import StoppedAtOnce, StopRequest
    from hjepa_jax.tools.show.command import find_runs

    compilation_cache.enable()
    out = None if _OUT.value is None else local_path(str(_OUT.value), "--out")
    runs = [run for text in argv[1:] for run in find_runs(local_path(text, "RUN"))]
    runs = list({run.resolve(): run for run in runs}.values())
    if len(runs) > 1 and out is None:
        out = pathlib.Path("checkpoint_curves")
    if out is not None:
        check_writable_folder(out, "--out")
    try:
        with StopRequest() as stop, stop.at_once("the evaluation"):
            failed = _evaluate_and_draw(runs, out)
    except StoppedAtOnce as stopped:
        # Status 0 tells a job scheduler that nothing is lost.
        print(f"{stopped}: what is evaluated is kept, and the same command goes on.")
        return
    if failed:
        listed = "; ".join(failed)
        raise UserError(f"{len(failed)} could not be evaluated and are left out: {listed}")


def _evaluate_and_draw(runs: list[pathlib.Path], out: pathlib.Path | None) -> list[str]:
    """Writes the curves, and returns what could not be evaluated, with reasons.

    Raises:
      UserError: if there is only one run, and it cannot be evaluated; or if nothing can be drawn.
    """
    from hjepa_jax.config.flags import apply_overrides
    from hjepa_jax.config.load import load_config
    from hjepa_jax.evaluation.checkpoint_curves.page import PAGE, CurveRun, write_curves
    from hjepa_jax.evaluation.checkpoint_curves.stored import read_evaluations
    from hjepa_jax.evaluation.compare.runs import flat_config
    from hjepa_jax.tools.checkpoints.evaluations import evaluate_checkpoints

    found: list[CurveRun] = []
    failed: list[str] = []
    for run in runs:
        try:
            config = load_config(f"{run}/config.json")
            apply_overrides(config, PROGRAM.given, str(run))
            outcome = evaluate_checkpoints(config, run, int(_FEATURES.value * 1e9))
        except UserError as error:
            if len(runs) == 1:
                raise
            failed.append(f"{run}: {error}")
            continue
        failed += [f"{run} {what}: {reason}" for what, reason in outcome.failed.items()]
        evaluations = read_evaluations(outcome.folder)
        if evaluations is not None:
            name = run.resolve().name
            found.append(CurveRun(name, flat_config(run), evaluations))
    if not found:
        raise UserError(f"nothing could be evaluated: {'; '.join(failed)}")
    folder = found[0].evaluations.folder if out is None else out
    for name, reason in write_curves(found, folder).items():
        failed.append(f"{name}: {reason}")
    with contextlib.suppress(OSError):
        print(f"page: {folder / PAGE}")
    return failed


def run() -> None:
    """Entry point of `hjepa checkpoints`."""
    PROGRAM.run(main)

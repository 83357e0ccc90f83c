"""Train and evaluate a configuration, or resume a run.

    hjepa train --config=cifar100:sigreg --workdir=runs/x
    hjepa train --resume=runs/x
    python -m hjepa_jax.main --config=configs/cifar100.py --workdir=runs/x [--mode=train_and_eval]

Without --workdir, the run is in runs/NAME[-VARIANT] of its configuration. A run that was stopped
goes on when the same command is run again, and on a CPU ends as if it had not been stopped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from hjepa_jax.config import Settings, resolve
from hjepa_jax.config.checks import automatic, runtime_of
from hjepa_jax.config.command_line.program import Program
from hjepa_jax.config.flags import define_config
from hjepa_jax.data.workers import watched
from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import local_path

if TYPE_CHECKING:
    from hjepa_jax.runtime.stop_request import StopRequest

PROGRAM = Program(
    "train",
    __doc__,
    required=("config",),
    speaker="hjepa_jax",
)
_FLAGS = PROGRAM.flags
_CONFIG = define_config(
    None,
    "Recipe or Python file, optionally with ':variant'; YAML file; or folder of a run.",
    values=_FLAGS,
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of checkpoints, events and config.json; runs/NAME[-VARIANT] by default.",
    flag_values=_FLAGS,
)
flags.DEFINE_string(
    "resume",
    None,
    "Run to go on with: its folder stands for --config and --workdir.",
    flag_values=_FLAGS,
)
_EVAL_DIR = flags.DEFINE_string(
    "eval_dir", None, "Folder for evaluations; by default that of the run.", flag_values=_FLAGS
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "latest",
    "What to evaluate: 'latest', 'best' (config.checkpoint), or a step.",
    flag_values=_FLAGS,
)
_MODE = flags.DEFINE_enum(
    "mode", "train_and_eval", ["train", "eval", "train_and_eval"], "What to do.", flag_values=_FLAGS
)
_STOP_AFTER = flags.DEFINE_integer(
    "stop_after",
    None,
    "Save and stop after this step, of the unchanged schedule; None = train to the end.",
    lower_bound=1,
    flag_values=_FLAGS,
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "Several processes: host:port of process 0.", flag_values=_FLAGS
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Several processes: their number.", flag_values=_FLAGS
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Several processes: index of this one, from 0.", flag_values=_FLAGS
)


def main(argv: list[str]) -> None:
    """Runs the requested mode."""
    del argv
    from hjepa_jax.runtime import arithmetic, compilation_cache, distributed
    from hjepa_jax.training.automatic.resolved import resolved

    compilation_cache.enable()
    given = {flag.name: flag.value for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)}
    # Other fields may be chosen from the images, which all processes do together.
    config, training = _CONFIG.value, _MODE.value != "eval"
    config = config if automatic(config) else resolve(config, training=training)
    workdir = local_path(_WORKDIR.value or own_workdir(str(PROGRAM.source)), "--workdir")
    arithmetic.set_up(runtime_of(config))
    given_dir = _EVAL_DIR.value
    eval_dir = None if given_dir is None else local_path(str(given_dir), "--eval_dir")
    with distributed.session(distributed.find_cluster(given, os.environ)):
        _work(resolved(config, workdir, training=training), workdir, eval_dir)


def own_workdir(source: str) -> str:
    """Returns the workdir of a run that names none.

    Args:
      source: the text of `--config`.

    Raises:
      UserError: if it is the configuration of another run.
    """
    name, _, variant = source.partition(":")
    path = pathlib.Path(name)
    if path.suffix == ".json" or (path / "config.json").is_file():
        raise UserError(
            f"--workdir is needed for a new run with the configuration of {source}; to go on with "
            "that run itself, give --resume instead of --config."
        )
    return f"runs/{path.stem}-{variant}" if variant else f"runs/{path.stem}"


def resumed(argv: list[str]) -> list[str]:
    """Returns a command line with `--resume=RUN` replaced by the configuration and workdir of RUN.

    Raises:
      UserError: if RUN holds no run, or if another configuration or workdir is given.
    """
    names = [argument.lstrip("-").partition("=") for argument in argv]
    found = [i for i, (name, *_) in enumerate(names) if name == "resume" and argv[i][0] == "-"]
    if not found:
        return argv
    (first, *others), rest = found, list(argv)
    _, equals, folder = names[first]
    if others or (not equals and first + 1 == len(argv)):
        raise UserError("--resume takes the folder of one run: write --resume=runs/x.")
    folder = folder if equals else argv[first + 1]
    for name, *_ in names[1:]:
        if name in ("config", "workdir"):
            raise UserError(f"--resume={folder} brings its own --{name}: leave that out.")
    if not (local_path(folder, "--resume") / "config.json").is_file():
        raise UserError(
            f"--resume={folder} holds no run, as there is no config.json: give the --workdir of a "
            "run, or start one with --config."
        )
    end = first + 1 if equals else first + 2
    rest[first:end] = [f"--config={folder}", f"--workdir={folder}"]
    return rest


def _work(settings: Settings, workdir: pathlib.Path, eval_dir: pathlib.Path | None) -> None:
    """Trains and evaluates according to the mode; only process 0 prints."""
    import jax

    from hjepa_jax import console
    from hjepa_jax.runtime import distributed
    from hjepa_jax.runtime.stop_request import RunStopped, StoppedAtOnce, StopRequest

    same = {"--mode": _MODE.value, "--checkpoint": _CHECKPOINT.value}
    same |= {"--stop_after": str(_STOP_AFTER.value)}
    same |= {
        "--workdir": str(workdir.absolute()),
        "--eval_dir": str(eval_dir and eval_dir.absolute()),
    }
    distributed.check_same_config(settings, same)
    if _WORKDIR.value is None:
        _say(f"the run is in {workdir}, as there is no --workdir.")
    if not distributed.is_primary():
        console.BOARD.quiet = True
        logging.getLogger("hjepa_jax").setLevel(logging.ERROR)
    try:
        with StopRequest(_STOP_AFTER.value) as stop:
            metrics = _stages(settings, workdir, eval_dir, stop)
        if distributed.is_primary():
            console.BOARD.table(_closing(workdir, eval_dir, metrics))
    except RunStopped as stopped:
        # Status 0 tells a job scheduler that nothing is lost.
        _say(str(stopped))
    except StoppedAtOnce as stopped:
        if jax.process_count() > 1:
            raise  # the others wait for this process, so it must not end silently
        _say(f"{stopped}: the training is saved, and --mode=eval starts the evaluation again.")


def _stages(
    settings: Settings, workdir: pathlib.Path, eval_dir: pathlib.Path | None, stop: StopRequest
) -> dict[str, Any] | None:
    """Trains, then evaluates; a stop in the last step of the training stops both.

    Returns:
      The metrics of the evaluation; None if there was none.
    """
    if _MODE.value == "train_and_eval":
        from hjepa_jax.evaluate import check_before_training

        check_before_training(settings, eval_dir, _CHECKPOINT.value)
    if _MODE.value != "eval":
        from hjepa_jax.runtime.stop_request import RunStopped
        from hjepa_jax.train import train

        state = train(settings, workdir, stop, changes=PROGRAM.changes())
        if _MODE.value != "train" and stop.agreed(together=True):
            raise RunStopped(int(state.step), int(state.step))
    if _MODE.value == "train":
        return None
    from hjepa_jax.evaluate import evaluate

    with stop.at_once("the evaluation"):
        return evaluate(settings, workdir, eval_dir, _CHECKPOINT.value)


def _closing(
    workdir: pathlib.Path, eval_dir: pathlib.Path | None, metrics: Mapping[str, Any] | None
) -> dict[str, str]:
    """Returns where everything is, and what to do next, by title.

    Args:
      workdir: the run.
      eval_dir: another folder of reports.
      metrics: of its evaluation; None = it was only trained.
    """
    curves = next_command(workdir, "running", evaluated=False)
    found = {"run": f"{workdir}", "curves": curves}
    if metrics is not None:
        from hjepa_jax.evaluation.report.folder import first_report, report_folder

        # The folder with a report of this evaluation is where it was just written.
        found["report"] = f"{report_folder(first_report(workdir, eval_dir), metrics)}"
        found["encode"] = f"hjepa_jax.load({str(workdir)!r}).encode(images)"
    evaluated = metrics is not None
    command = next_command(workdir, "finished", evaluated=evaluated, eval_dir=eval_dir)
    return {**found, "next": command}


def next_command(
    run: pathlib.Path,
    status: str,
    *,
    evaluated: bool,
    eval_dir: pathlib.Path | None = None,
    shown: bool = False,
) -> str:
    """Returns the command worth running next for a run, quoted for a shell.

    Args:
      run: its folder.
      status: 'running', 'finished', 'imported', or anything else of a run that can go on.
      evaluated: whether a finished run was evaluated; it is then compared with another one.
      eval_dir: another folder of reports.
      shown: whether all that `hjepa show` says was just said.
    """
    flag = () if eval_dir is None else (f"--eval_dir={eval_dir}",)
    if status == "running":
        return shlex.join(["tensorboard", f"--logdir={run}"])
    if status not in ("finished", "imported"):
        return shlex.join(["hjepa", "train", f"--resume={run}"])
    if not evaluated:
        return shlex.join(["hjepa", "eval", str(run), *flag])
    from hjepa_jax.evaluation.report.folder import newest_beside

    other = newest_beside(run, eval_dir)
    if other is not None:
        return shlex.join(["hjepa", "compare", str(other), str(run), *flag])
    if shown:
        return shlex.join(["hjepa", "export", f"--workdir={run}", "--out=encoder.stablehlo"])
    return shlex.join(["hjepa", "show", str(run), *flag])


def _say(sentence: str) -> None:
    """Prints a sentence to stderr, which may be closed along with its terminal."""
    from hjepa_jax.runtime import distributed

    if distributed.is_primary():
        with contextlib.suppress(OSError):
            print(f"hjepa_jax: {sentence}", file=sys.stderr, flush=True)


def run(rewrite: Callable[[list[str]], list[str]] = resumed) -> None:
    """Entry point of `python -m hjepa_jax.main`; `rewrite` is applied to its command line."""
    try:
        PROGRAM.run(main, rewrite)
    except BaseException as end:
        if watched.any_stuck():
            _end_now(end)
        raise


def _end_now(end: BaseException) -> None:
    """Ends the program if the interpreter would wait for a read that may never return."""
    code: int | str | None = 130 if isinstance(end, KeyboardInterrupt) else 1
    if isinstance(end, SystemExit):
        code = end.code
    else:
        with contextlib.suppress(OSError):
            traceback.print_exception(end)
    if isinstance(code, str):
        _say(code.removeprefix("hjepa_jax: "))
        code = 1
    watched.flush_output()
    os._exit(code or 0)


if __name__ == "__main__":
    run()

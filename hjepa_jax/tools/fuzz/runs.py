"""Target `runs`: a run with damaged files is loaded, evaluated, resumed and compared.

An attempt is right if it restores the latest checkpoint bit-exact, or the previous one if the
latest was damaged. Stray files next to the checkpoints must do no harm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import random
import shutil
import tempfile
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import PyTree

from hjepa_jax.config import Settings, base_config
from hjepa_jax.config.checks import typed
from hjepa_jax.config.files import differences
from hjepa_jax.config.files import save as save_settings
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import UserError
from hjepa_jax.evaluate import restore
from hjepa_jax.evaluation.compare.runs import load_result
from hjepa_jax.loading import load_run
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.workdir_lock import WorkdirLock
from hjepa_jax.runtime.writers.open import create_writer
from hjepa_jax.storage import checksums
from hjepa_jax.tools.fuzz.damage import damage_bytes, damage_json, damage_place, odd_value
from hjepa_jax.training.prepare import PreparedRun, prepare
from hjepa_jax.training.resume import (
    DataIdentity,
    data_identity,
    open_checkpoints,
    restore_or_init,
    save,
)
from hjepa_jax.training.saved_run import (
    check_encoder,
    check_replaceable,
    chosen_step,
    initial_state,
    open_saved,
    restore_parts,
    saved_config,
)
from hjepa_jax.training.state import TrainState

_STEPS = (1, 2)
# Irrelevant without config.checkpoint.keep_every_epochs.
_EPOCH_STEPS = 1
# Files that are read as JSON before a checksum can be compared.
_RECORDS = ("config.json", "lock", "checksums.json", "_CHECKPOINT_METADATA")
_NAMES = ("3.damaged", "2~", "9", "002", "٣", "1\n", ".nfs00", "3.orbax-checkpoint-tmp-7", "notes")
_NAMES += ("2.damaged", "1.metrics.damaged", "metadata", "x" * 250, "\udcff", "9" * 40)


@dataclasses.dataclass(frozen=True)
class _Sample:
    """A run with random states: its files, and the state of each checkpoint."""

    settings: Settings
    run: PreparedRun
    identity: DataIdentity
    states: dict[int, TrainState]
    files: dict[str, bytes]


def _settings() -> Settings:
    """The smallest run with all parts: flow, batch statistics, moments, and a best checkpoint."""
    config = base_config()
    config.data.update(
        name="digits", image_size=16, batch_size=8, max_train_images=16, num_threads=1
    )
    config.resnet.update(width=4, stage_blocks=(1, 1, 1, 1), embed_dim=8, token_dim=8)
    config.dynamics.update(hidden_dim=4, depth=1)
    config.checkpoint.update(keep_best=1, best_mode="max")
    return typed(config)


def _random_state(run: PreparedRun, step: int) -> TrainState:
    rng = np.random.default_rng(step)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        floating = np.issubdtype(leaf.dtype, np.floating)
        return rng.random(leaf.shape, np.float32) if floating else np.zeros(leaf.shape, leaf.dtype)

    state = jax.tree.map(draw, run.abstract_state)
    return state.replace(step=np.int32(step), failed_step=np.int32(-1))


@functools.cache
def _sample() -> _Sample:
    """Makes the run, once per process."""
    settings = _settings()
    source = open_split(settings, "train")
    run, identity = (
        prepare(settings, len(source), sharding.data_mesh()),
        data_identity(settings.data, settings.seed, source),
    )
    states = {step: _random_state(run, step) for step in _STEPS}
    with tempfile.TemporaryDirectory(prefix="hjepa_jax_run_") as folder:
        workdir = pathlib.Path(folder) / "run"
        with (
            WorkdirLock(workdir),
            contextlib.closing(open_checkpoints(settings, workdir, _EPOCH_STEPS)) as to,
        ):
            for step, state in states.items():
                save(settings, identity, [], jax.device_put(state), to, {"total": float(step)})
        save_settings(settings, workdir)
        with contextlib.closing(create_writer(workdir)) as writer:
            writer.write_scalars(1, {"loss/total": 1.0, "optim/lr": 0.1})
        report = workdir.parent / "eval" / "run"
        report.mkdir(parents=True)
        (report / "metrics.json").write_text(json.dumps(_metrics()))
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(pathlib.Path(folder).rglob("*"))
            if path.is_file()
        }
    return _Sample(settings, run, identity, states, files)


def _metrics() -> dict[str, object]:
    """Plausible metrics of an evaluation of the run."""
    one = {
        "state_part": "q",
        "knn": {"k_values": [1, 20], "top1": [0.5, 0.6], "top5": [0.5, 0.9]},
        "linear_probe": {"top1": 0.5, "top5": 0.9},
        "diagnostics": {
            "covariance_spectrum_topq": {
                "eigenvalues": [2.0, 1.0],
                "effective_rank": 3.0,
                "participation_ratio": 2.0,
            },
            "alignment_uniformity": {"alignment": 0.5, "uniformity": -2.0},
        },
    }
    return {
        "schema_version": 1,
        "info": {"run": "run", "step": 2, "data": "digits"},
        "num_classes": 10,
        "headline_k": 20,
        "encoders": {"trained": one, "random": one},
    }


def _write(files: dict[str, bytes], folder: pathlib.Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _put_odd(rng: random.Random, path: pathlib.Path) -> str:
    """Creates a foreign file, folder or link at an unused path, and returns its kind."""
    kind = rng.choice(("file", "folder", "pipe", "broken link", "endless", "link", "JSON"))
    if kind == "file":
        path.write_bytes(rng.randbytes(rng.choice((0, 10, 5000))))
    elif kind == "folder":
        (path / "inside").mkdir(parents=True)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "JSON":
        path.write_text(json.dumps(odd_value(rng)))
    else:
        targets = {"broken link": "nowhere", "endless": "/dev/zero", "link": path.parent}
        path.symlink_to(targets[kind])
    return kind


def _stray(rng: random.Random, workdir: pathlib.Path) -> str:
    place = rng.choice((workdir / "checkpoints", workdir / "checkpoints", workdir))
    path = place / rng.choice(_NAMES)
    if not place.is_dir() or os.path.lexists(path):
        return ""
    return f"stray {path.name!a}: {_put_odd(rng, path)}"


def _files(workdir: pathlib.Path) -> list[pathlib.Path]:
    found = [path for path in workdir.rglob("*") if not path.is_symlink() and path.is_file()]
    # Orbax gives array files random names, but an attempt must be repeatable.
    return sorted(found, key=lambda p: (p.parent, p.stat().st_size if p.parent.name == "d" else p))


def _damage_file(rng: random.Random, workdir: pathlib.Path) -> str:
    files = _files(workdir)
    small = [path for path in files if path.name in _RECORDS]
    small += [path for path in files if path.parent.name in ("meta", "metrics")]
    if not files:
        return ""
    path = rng.choice(small if small and rng.random() < 0.6 else files)
    name = str(path.relative_to(workdir))
    how = rng.choice(("bytes", "JSON", "place", "rename", "signed"))
    if how == "place":
        return f"{name} is {damage_place(rng, path)}"
    if how == "rename":
        path.rename(path.with_name(rng.choice(("renamed", f"{path.name}~", f".{path.name}"))))
        return f"{name} is renamed"
    content = path.read_bytes()
    damage = damage_bytes
    if how != "bytes" and (path.suffix == ".json" or path in small):
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(content)
            damage = damage_json
    about, damaged = damage(rng, content)
    path.write_bytes(damaged)
    if how == "signed" and path.parent.name in ("meta", "metrics"):
        with contextlib.suppress(checksums.DamagedError, OSError):
            checksums.write_manifest(path.parent.parent)
            about = f"{about}, checksums updated"
    return f"{name}: {about}"


def _damage_folder(rng: random.Random, workdir: pathlib.Path) -> str:
    folders = [workdir / "checkpoints", *(workdir / "checkpoints").glob("[0-9]*")]
    folders += (workdir / "checkpoints").glob("[0-9]*/*/")
    real = [path for path in sorted(folders) if path.is_dir() and not path.is_symlink()]
    if not real:
        return ""
    path = rng.choice(real)
    name = str(path.relative_to(workdir))
    if rng.random() < 0.3:
        path.rename(path.with_name(rng.choice(("renamed", "7", f"{path.name}.damaged"))))
        return f"{name} is renamed"
    if rng.random() < 0.3:
        return f"{name} has a stray {_put_odd(rng, path / 'stray')}"
    shutil.rmtree(path)
    return f"{name} is gone" if rng.random() < 0.3 else f"{name} is {_put_odd(rng, path)}"


def _equal(one: PyTree[jax.Array], two: PyTree[jax.Array]) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


@dataclasses.dataclass
class _Attempt:
    """A damaged run, and ways of reading it."""

    sample: _Sample
    workdir: pathlib.Path
    touched: set[str]

    def check(self, step: int, found: PyTree, wanted: Callable[[TrainState], PyTree]) -> None:
        """Compares a restored value with the one saved at that step."""
        assert step in _STEPS, f"step {step} was never saved"
        assert step == 2 or "checkpoints/2" in self.touched, "the latest was not taken"
        assert _equal(found, wanted(self.sample.states[step])), f"step {step} has changed"

    def load(self, rng: random.Random) -> None:
        step = rng.choice((None, None, 1, 2))
        loaded = load_run(self.workdir, step=step, batch_size=4)
        assert step in (None, loaded.step), f"step {loaded.step} instead of {step}"
        if step != 1:
            self.check(loaded.step, loaded.encoder.variables["params"], _encoder)
        differing = differences(self.sample.settings, loaded.settings, _matters)
        assert not differing, f"the configuration has changed: {differing}"

    def evaluate(self, rng: random.Random) -> None:
        which, settings = rng.choice(("latest", "latest", "best", "1", "2")), self.sample.settings
        check_encoder(settings, saved_config(self.workdir), self.workdir)
        checkpointer = open_saved(settings, self.workdir)
        step = chosen_step(checkpointer, which)
        state, _ = restore_parts(checkpointer, self.sample.run, step)
        if which in ("latest", "2"):
            self.check(int(state["step"]), state["params"], lambda s: s.params)
        settings = settings.replace({"evaluation.random_baseline": False})
        assert restore(settings, self.sample.run, self.workdir, which).step == int(state["step"])

    def resume(self, rng: random.Random) -> None:
        sample, workdir = self.sample, self.workdir
        check_replaceable(workdir)
        with WorkdirLock(workdir) as lock:
            checkpointer = open_checkpoints(sample.settings, workdir, _EPOCH_STEPS)
            try:
                begins = not checkpointer.steps()
                state, skipped, _ = restore_or_init(
                    sample.run, checkpointer, sample.settings, sample.identity
                )
                step = int(state.step)
                if begins:
                    folders = [str(n) for n in _STEPS if f"checkpoints/{n}" not in self.touched]
                    assert not folders, f"{folders} were not seen"
                    return
                assert skipped == [], skipped
                self.check(step, state, lambda s: s)
                if rng.random() < 0.5:
                    save_settings(sample.settings, workdir)
                    lock.check()
                    following = state.replace(step=state.step + 1)
                    save(sample.settings, sample.identity, [], following, checkpointer)
                    checkpointer.wait()
                    again, _ = checkpointer.restore(sample.run.abstract_state)
                    assert _equal(again, following), "the next checkpoint has changed"
            finally:
                checkpointer.close()

    def compare(self, rng: random.Random) -> None:
        del rng
        result = load_result(self.workdir, self.workdir.parent / "eval")
        assert isinstance(result.config, dict)
        assert result.figures()["knn"] == 0.6
        if "config.json" not in self.touched:
            assert result.config["data.image_size"] == 16

    def begin_from(self, rng: random.Random) -> None:
        del rng
        settings = self.sample.settings.replace({"train.init_from": str(self.workdir)})
        state = initial_state(settings, self.sample.run)
        steps = [n for n, saved in self.sample.states.items() if _equal(saved.params, state.params)]
        assert steps, "the parameters are not those of a checkpoint"
        self.check(steps[0], state.batch_stats, lambda s: s.batch_stats)


def _encoder(state: TrainState) -> PyTree[jax.Array]:
    return state.params["encoder"]


def _matters(name: str) -> bool:
    return name.startswith(("model.", "dynamics.", "loss.", "method", "seed", "train.lr"))


def make(rng: random.Random, folder: pathlib.Path) -> tuple[str, Callable[[], None]]:
    """Writes a damaged run; returns a description and one way of reading it."""
    sample, workdir = _sample(), folder / "run"
    if rng.random() < 0.02:
        jax.clear_caches()  # Each attempt compiles the run again, which fills the caches.
    _write(sample.files, folder)
    damages, only_strays = [], rng.random() < 0.2
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.random()
        if only_strays or kind < 0.2:
            damages.append(_stray(rng, workdir))
        else:
            damages.append((_damage_folder if kind < 0.4 else _damage_file)(rng, workdir))
    touched = _touched(sample, folder)
    attempt = _Attempt(sample, workdir, touched)
    ways = (attempt.load, attempt.evaluate, attempt.resume, attempt.resume, attempt.compare)
    way = rng.choice((*ways, attempt.begin_from))

    def run() -> None:
        try:
            way(rng)
        except UserError as error:
            if not touched:
                raise AssertionError("refused, though nothing was damaged") from error
            raise

    about = "; ".join(damage for damage in damages if damage) or "nothing"
    return f"{way.__name__}: {about}", run


def _touched(sample: _Sample, folder: pathlib.Path) -> set[str]:
    """Returns those of 'config.json', 'checkpoints/<step>' and so on whose files differ."""
    touched = set()
    for name, content in sample.files.items():
        path = folder / name
        same = path.is_file() and path.stat().st_size == len(content)
        if not same or path.read_bytes() != content:
            parts = pathlib.PurePath(name).parts
            touched.add("/".join(parts[1 : 3 if parts[1] == "checkpoints" else 2]))
    return touched

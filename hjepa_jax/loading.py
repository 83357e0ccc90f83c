"""A trained run as a Python object: encode images, flow states. Public as `hjepa_jax.load`."""

from __future__ import annotations

import functools
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh
from jaxtyping import PyTree

from hjepa_jax.config import Settings
from hjepa_jax.errors import CheckpointError, UserError, first_line
from hjepa_jax.evaluation.report.folder import read_metrics, reports_of
from hjepa_jax.methods.base import HasFlow
from hjepa_jax.models.base import applied
from hjepa_jax.pretrained.encoder import Preprocessing, TrainedEncoder, check_batch_size
from hjepa_jax.pretrained.hub import WEIGHTS, Origin
from hjepa_jax.pretrained.images import Images
from hjepa_jax.runtime import arithmetic, sharding
from hjepa_jax.storage.checkpoint_meta import DataPosition, Meta
from hjepa_jax.storage.files import local_path
from hjepa_jax.training.prepare import PreparedRun, make_project, prepare
from hjepa_jax.training.saved_run import chosen_step, open_saved, restore_parts, saved_config
from hjepa_jax.training.setup import build_encoder


class LoadedRun:
    """The encoder and predictor of a run, ready for use.

    Attributes:
      settings: the configuration that the run was trained with.
      step: optimizer step of its checkpoint.
      run: method and mesh.
      encoder: the encoder's module, variables and preprocessing, for example to fine-tune it.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        run: PreparedRun,
        state: dict[str, PyTree[jax.Array]],
        data: DataPosition,
        batch_size: int,
    ):
        """Stores a prepared run, the parts of its state that inference needs, and its data."""
        self._workdir, self._data = workdir, data
        self.settings: Settings = run.settings
        self.step = int(state["step"])
        self.run = run
        self.encoder = TrainedEncoder(
            build_encoder(run.settings),
            {
                "params": state["params"]["encoder"],
                "batch_stats": state["batch_stats"].get("encoder", {}),
            },
            Preprocessing.of(run.settings),
            Origin.of(run.settings, self.step, data.get("num_images"), data.get("imported")),
            run.mesh,
            split_qp=run.settings.model.split_qp,
            batch_size=batch_size,
            matmul_precision=run.settings.runtime.matmul_precision,
        )
        self._project = make_project(run.setup, state["params"], state["batch_stats"])
        self._predictor_params = state["params"].get("predictor", {})

    def __repr__(self) -> str:
        data = self.settings.data
        return (
            f"LoadedRun(method={self.settings.method!r}, data={data.name!r}, "
            f"step={self.step}, image_size={data.image_size})"
        )

    def encode(
        self,
        images: Images,
        *,
        value_range: tuple[float, float] | None = None,
        progress: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Returns the states float32 [N, D] of images, or [D] of one image: the encoder's output.

        `project` gives that of the projector, if there is one.

        Images are PIL images, arrays, paths, folders, lists, or iterators; see
        `hjepa_jax.pretrained.encoder.TrainedEncoder.encode` for arguments and errors.
        """
        return self.encoder.encode(images, value_range=value_range, progress=progress)

    def encode_state_part(
        self, images: Images, state_part: str | None = None
    ) -> npt.NDArray[np.float32]:
        """Encodes images and keeps one part of the state.

        Args:
          images: see `encode`.
          state_part: 'q', 'p' or 'qp'; config.evaluation.state_part by default.

        Raises:
          ConfigError: if the state part is unknown, or the encoder has no q and p.
        """
        chosen = self.settings.evaluation.state_part if state_part is None else state_part
        return self.encoder.encode(images, state_part=chosen)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        license: str | None = None,
        eval_dir: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
    ) -> pathlib.Path:
        """Writes the encoder in the layout of the Hugging Face hub.

        The model card has the scores of this checkpoint's evaluations, if there are any. See
        `hjepa_jax.pretrained.encoder.TrainedEncoder.save_pretrained` for the files, the other
        arguments and the errors.

        Args:
          folder: the folder to write.
          license: identifier for the card, such as 'apache-2.0'; None = not stated.
          eval_dir: folder of evaluations beside the run's own, as `--eval_dir`.
          overwrite: whether to replace these files if they exist.

        Returns:
          The folder.
        """
        return self.encoder.save_pretrained(
            folder,
            license=license,
            overwrite=overwrite,
            evaluations=self._evaluations(
                None if eval_dir is None else local_path(eval_dir, "eval_dir")
            ),
        )

    def _evaluations(self, eval_dir: pathlib.Path | None) -> list[dict[str, Any]]:
        """Returns the metrics of the evaluations of this checkpoint, not of another of its name."""
        own = {"step": self.step, "method": self.settings.method}
        known = ("num_images", "fingerprint")
        trained = {name: value for name, value in self._data.items() if name in known}
        found = []
        for folder in reports_of(self._workdir, eval_dir):
            try:
                metrics = read_metrics(folder)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{first_line(error)} Remove {folder}, or evaluate again, to have the scores "
                    "in the model card."
                ) from error
            info = metrics.get("info")
            if isinstance(info, dict) and info.get("training_data") == trained:
                same = {name: info.get(name) for name in own} == own
                # The shared encoder has no projector.
                same = same and info.get("features") != "projector"
                found += [metrics] if same else []
        return found

    def project(self, z: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Maps states to what the loss saw of them, by the run's projector.

        Args:
          z: states [..., D], as returned by `encode`.

        Returns:
          The projected states float32 [..., D'], which `flow` and `energy` take; the states
          themselves for config.model.projector='identity'.

        Raises:
          UserError: if the width is wrong.
        """
        return np.asarray(self._project(_checked(z, self.encoder.dim, "encode")), np.float32)

    def flow(self, z: npt.ArrayLike, direction: int = 1) -> npt.NDArray[np.float32]:
        """Maps states by the run's predictor: the learned flow over `steps * dt`.

        Args:
          z: states [..., D], as returned by `encode`, and by `project` if there is a projector.
          direction: 1 forward in time, -1 backward.

        Returns:
          The predicted states float32 [..., D].

        Raises:
          UserError: if the run has no predictor, or the width or direction is wrong.
        """
        states = self._checked_states(z)
        if direction not in (1, -1):
            raise UserError(f"direction is {direction!r}: it must be 1 (forward) or -1 (backward).")
        return np.asarray(self._apply(states, np.float32(direction), method=None))

    def energy(self, z: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Returns the learned Hamiltonian H(z) of states [..., D], as in `flow`, as float32 [...].

        Raises:
          UserError: if the run has no Hamiltonian, or the width is wrong.
        """
        states = self._checked_states(z)
        if self._flow_method.flow_time is None:
            raise UserError(
                "The predictor of this run has no energy; with config.method='hjepa', "
                "config.dynamics.predictor='hamiltonian' has one."
            )
        return np.asarray(self._apply(states, method="energy"))

    @property
    def residual_scale(self) -> jax.Array:
        """The residual scale of the last training step, whose warm-up may not have ended."""
        return self._flow_method.residual_scale(jnp.asarray(max(self.step - 1, 0)))

    @property
    def predictor(self) -> tuple[nn.Module | None, dict[str, PyTree[jax.Array]]]:
        """The predictor's module (None without one) and variables {'params': ...}."""
        method = self.run.method
        module = method.predictor if isinstance(method, HasFlow) else None
        return module, {"params": self._predictor_params}

    @property
    def _flow_method(self) -> HasFlow:
        """The method, if it has a flow; UserError if not."""
        method = self.run.method
        if not isinstance(method, HasFlow):
            raise UserError(
                f"This run was trained with config.method={self.settings.method!r}, which has "
                "no predictor: there is no flow. Load an 'hjepa' run."
            )
        return method

    @functools.cached_property
    def _apply(self) -> Callable[..., jax.Array]:
        predictor, variables = self._flow_method.predictor, self.predictor[1]
        scale = self.residual_scale

        @functools.partial(jax.jit, static_argnames="method")
        def apply(*inputs: jax.Array, method: str | None) -> jax.Array:
            return applied(predictor, variables, *inputs, scale, method=method)

        return apply

    def _checked_states(self, z: npt.ArrayLike) -> npt.NDArray[np.float32]:
        _ = self._flow_method
        source = "encode" if self.settings.model.projector == "identity" else "project"
        return _checked(z, self.run.method.shape.dim, source)


def _checked(z: npt.ArrayLike, width: int, source: str) -> npt.NDArray[np.float32]:
    """Returns states as float32 [..., width]; UserError for another width."""
    states = np.asarray(z, np.float32)
    if states.ndim < 1 or states.shape[-1] != width:
        raise UserError(
            f"States have shape {states.shape}, but those of this run are [..., {width}]: "
            f"use what {source} returns (the full state, not its q or p)."
        )
    return states


def _mesh(batch_size: int) -> Mesh:
    """Returns as many of this process's devices as a batch divides evenly over."""
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    return sharding.data_mesh(devices[:count])


def load_run(
    workdir: str | os.PathLike[str], *, step: int | str | None = None, batch_size: int = 64
) -> LoadedRun:
    """Loads a run for inference, without a dataset or memory for the optimizer state.

    Args:
      workdir: folder that training wrote: `config.json` and `checkpoints/`.
      step: the checkpoint's step; None for the newest readable one, 'best' for the best by the
        run's config.checkpoint.best_metric.
      batch_size: images per pass of the encoder; fewer are padded, so that it compiles once.

    Raises:
      CheckpointError: if there is no run, no such step, or no readable checkpoint.
      UserError: if the batch size is below 1.
    """
    folder = local_path(workdir, "workdir")
    check_batch_size(batch_size)
    if (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} is a shared encoder: use hjepa_jax.from_pretrained.")
    settings = saved_config(folder)
    # Its states are of use with or without, to a program that has started its GPU already.
    arithmetic.set_up(settings.runtime, needed=False)
    checkpointer = open_saved(settings, folder)
    if isinstance(step, str):
        step = chosen_step(checkpointer, step)
    elif step is not None and (isinstance(step, bool) or not isinstance(step, (int, np.integer))):
        raise CheckpointError(f"step is {step!r}: use an integer, 'best', or None.")
    steps = checkpointer.steps()
    if not steps or (step is not None and step not in steps):
        wanted = "no complete checkpoint" if step is None else f"no checkpoint of step {step}"
        raise CheckpointError(f"{folder}/checkpoints holds {wanted}; its steps are {steps}.")
    data = settings.data

    @functools.cache
    def of_images(count: int) -> PreparedRun:
        rest = 0 if data.drop_last else count % data.batch_size
        return prepare(settings, count, _mesh(math.gcd(data.batch_size, rest)))

    def prepared(meta: Meta) -> PreparedRun:
        # Schedules depend on the number of training images, if it is recorded.
        return of_images(meta["data"].get("num_images", settings.data.batch_size))

    state, meta = restore_parts(checkpointer, prepared, step)
    return LoadedRun(folder, prepared(meta), state, meta["data"], batch_size)

"""Preparation of a run: the modules, optimizer, and compiled functions of a configuration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import PyTree

from hjepa_jax.config import Settings, steps_per_epoch, total_steps
from hjepa_jax.config.sections.projection import evaluates_projection
from hjepa_jax.config.settings import MatmulPrecision
from hjepa_jax.config.training import Train
from hjepa_jax.errors import ConfigError, first_line
from hjepa_jax.methods.base import Method, Metrics
from hjepa_jax.models.base import Encoder, applied
from hjepa_jax.runtime import arithmetic, sharding
from hjepa_jax.runtime.devices import UNOPTIMIZED
from hjepa_jax.training.encoding.batch import Batch, Parts
from hjepa_jax.training.encoding.views import normalize
from hjepa_jax.training.setup import StepSetup, build_setup
from hjepa_jax.training.state import TrainState, init_state
from hjepa_jax.training.step import train_step


def compiler_options(train: Train) -> dict[str, Any] | None:
    """Returns the compiler options of the train step and of functions that must agree with it."""
    return UNOPTIMIZED if train.fast_compile else None


class Step(Protocol):
    """The jitted train step, which donates the state."""

    def __call__(self, state: TrainState, batch: Batch, /) -> tuple[TrainState, Metrics]:
        """Returns the new state and scalar metrics, see `train_step`."""
        ...

    def lower(
        self, state: TrainState, batch: Mapping[str, PyTree[jax.Array | jax.ShapeDtypeStruct]], /
    ) -> jax.stages.Lowered:
        """Returns the step lowered for arguments, or for their ShapeDtypeStructs."""
        ...

    def trace(
        self, state: TrainState, batch: Mapping[str, PyTree[jax.Array | jax.ShapeDtypeStruct]], /
    ) -> jax.stages.Traced:
        """Returns the step traced for arguments, as `lower` takes them."""
        ...


Steps: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class FrozenEncoder(Protocol):
    """The jitted `frozen_encoder`."""

    def __call__(self, variables: Parts, images: jax.Array, /) -> jax.Array:
        """Returns the states float32 [N, D] of uint8 images [N, S, S, 3]."""
        ...


class PreparedRun(NamedTuple):
    """A prepared run: its setup and compiled functions.

    Attributes:
      setup: modules, method, and optimizer.
      mesh: the devices.
      num_steps: number of steps of the complete training.
      init: returns the initial state.
      step: the compiled train step.
      steps: several of them in one call, see `train_steps`; on a CPU, where XLA's convolutions are
        slow in a loop and the host waits for nothing, one after the other.
      encode: the compiled encoder.
      project: the compiled projector, see `jit_frozen_projector`.
      abstract_state: the state with ShapeDtypeStructs, with shardings, as leaves.
    """

    setup: StepSetup
    mesh: Mesh
    num_steps: int
    init: Callable[[], TrainState]
    step: Step
    steps: Steps
    encode: FrozenEncoder
    project: Callable[[Parts, ArrayLike], jax.Array]
    abstract_state: TrainState

    @property
    def settings(self) -> Settings:
        """The run's configuration."""
        return self.setup.settings

    @property
    def encoder(self) -> Encoder:
        """The encoder's module."""
        return self.setup.encoder

    @property
    def method(self) -> Method:
        """The run's method."""
        return self.setup.method


def _check_batch(settings: Settings, num_images: int, mesh: Mesh) -> None:
    """Refuses a batch that does not split over the devices or exceeds the dataset.

    Raises:
      ConfigError: naming the batch size.
    """
    sentence = sharding.divisibility_error(
        settings.data.batch_size,
        mesh,
        "config.data.batch_size",
        accumulation=settings.train.accumulation,
    )
    if sentence:
        raise ConfigError(sentence)
    if settings.data.batch_size > num_images:
        raise ConfigError(
            f"config.data.batch_size is {settings.data.batch_size} but the training split has only "
            f"{num_images} images: set it to {num_images} or less."
        )


def _check_last_batch(settings: Settings, method: Method, num_images: int, mesh: Mesh) -> None:
    """Refuses a partial last batch that does not split over the devices, or is too small.

    Raises:
      ConfigError: naming its size.
    """
    data, rest = settings.data, num_images % settings.data.batch_size
    if data.drop_last or not rest:
        return
    begin = f"config.data.drop_last is False, but the last batch of an epoch has {rest} images"
    end = "set it to True, or choose another config.data.batch_size."
    parts = mesh.size * settings.train.accumulation
    if rest % parts:
        devices = f"{mesh.size} devices times config.train.accumulation={parts // mesh.size}"
        raise ConfigError(f"{begin}, which do not split evenly over {devices}: {end}")
    views = data.num_global_views + data.num_local_views

    def shapes(images: int) -> dict[str, tuple[int, ...]]:
        sizes = {"num_rows": views * images, "num_images": images, "dtype": jnp.float32}
        draw = functools.partial(method.draw, **sizes)
        drawn = jax.eval_shape(draw, jax.random.key(0), jnp.int32(0))
        return {name: leaf.shape for name, leaf in drawn.items()}

    try:
        here, full = shapes(rest), shapes(data.batch_size)
    except ValueError as error:
        raise ConfigError(f"{begin}, too few ({first_line(error)}): {end}") from error
    for name, interval in method.redraw().items():
        if interval > 1 and here[name] != full[name]:
            raise ConfigError(
                f"{begin}, too few for the random array {name!r} of shape {full[name]}, which "
                f"stays the same for {interval} steps: {end}"
            )


def prepare(
    settings: Settings, num_images: int, mesh: Mesh, num_classes: int | None = None
) -> PreparedRun:
    """Builds modules, optimizer, and the jitted, donated init and step functions.

    Args:
      settings: the run's settings.
      num_images: number of images in the training split, which determines the length of an epoch.
      mesh: mesh from `sharding.data_mesh`.
      num_classes: number of classes of the training labels; None = the state has no online probe.

    Raises:
      ConfigError: if the batch does not split over the devices or exceeds the dataset.
    """
    _check_batch(settings, num_images, mesh)
    data = settings.data
    epoch_steps = steps_per_epoch(num_images, data.batch_size, data.drop_last)
    num_steps = total_steps(settings.train, epoch_steps)
    groups = mesh.size if settings.model.batch_norm == "local" else 1
    setup = build_setup(
        settings, total_steps=num_steps, steps_per_epoch=epoch_steps, norm_groups=groups
    )
    _check_last_batch(settings, setup.method, num_images, mesh)
    init = functools.partial(init_state, setup, num_classes)
    key = jax.random.key(settings.seed)
    everywhere = sharding.replicated(mesh)
    shapes = jax.eval_shape(init, key)
    placement = sharding.state_shardings(
        mesh, shapes, shard_optimizer=settings.train.shard_optimizer
    )
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        placement,
    )
    step, steps = (
        jax.jit(
            functools.partial(function, setup, mesh=mesh),
            donate_argnums=0,
            out_shardings=(placement, everywhere),
            compiler_options=compiler_options(settings.train),
        )
        for function in (train_step, train_steps)
    )

    # Programs for a mesh without devices are only lowered.
    if isinstance(mesh, Mesh) and mesh.devices.flat[0].platform == "cpu":
        steps = functools.partial(_one_by_one, step)

    def initialize() -> TrainState:
        lowered = jax.jit(init, out_shardings=placement).lower(key)
        # It runs once: optimizing its many small random draws takes ten times longer.
        return lowered.compile(compiler_options=UNOPTIMIZED)(key)

    data, precision = settings.data, settings.runtime.matmul_precision
    encode = jit_frozen_encoder(setup.encoder, data.mean, data.std, precision, mesh)
    project = jit_frozen_projector(setup, mesh)
    return PreparedRun(setup, mesh, num_steps, initialize, step, steps, encode, project, abstract)


def _shared(batches: Batch) -> tuple[Batch, Batch]:
    """Returns the entries that all of several batches share, and the stacked ones."""
    whole = {name: array for name, array in batches.items() if name in sharding.WHOLE}
    return whole, {name: array for name, array in batches.items() if name not in whole}


def _one_by_one(step: Step, state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
    """`train_steps` as calls of the jitted step, to the last bit."""
    whole, stacked = _shared(batches)
    found = []
    for turn in range(len(next(iter(stacked.values())))):
        batch = {name: array[turn] for name, array in stacked.items()}
        state, metrics = step(state, {**batch, **whole})
        found.append(metrics)
    return state, jax.tree.map(lambda *each: jnp.stack(each), *found)


def train_steps(
    setup: StepSetup, state: TrainState, batches: Batch, *, mesh: Mesh
) -> tuple[TrainState, Metrics]:
    """Several of `train_step`, one after the other in one program, for accelerators.

    Args:
      setup: see `train_step`.
      state: see `train_step`.
      batches: the entries of K batches, stacked [K, ...] unless every device has them as a whole.
      mesh: see `train_step`.

    Returns:
      (the state after the last, metrics [K]).
    """
    whole, stacked = _shared(batches)

    def one(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return train_step(setup, state, {**batch, **whole}, mesh=mesh)

    return jax.lax.scan(one, state, stacked)


def frozen_encoder(
    encoder: Encoder,
    mean: Sequence[float],
    std: Sequence[float],
    precision: MatmulPrecision,
    variables: Parts,
    images: jax.Array,
) -> jax.Array:
    """Returns the states float32 [N, D] of uint8 images [N, S, S, 3], using running statistics."""
    inputs = normalize(images, mean, std, encoder.dtype)
    with arithmetic.products(precision):
        return applied(encoder, variables, inputs, train=False)


def jit_frozen_encoder(
    encoder: Encoder,
    mean: Sequence[float],
    std: Sequence[float],
    precision: MatmulPrecision,
    mesh: Mesh,
) -> FrozenEncoder:
    """Returns the jitted `frozen_encoder`, whose states every device of the mesh holds."""
    function = functools.partial(frozen_encoder, encoder, tuple(mean), tuple(std), precision)
    return jax.jit(function, out_shardings=sharding.replicated(mesh))


def jit_frozen_projector(
    setup: StepSetup, mesh: Mesh | None
) -> Callable[[Parts, ArrayLike], jax.Array]:
    """Returns the jitted projector: (variables, states [..., D]) -> what the loss sees of them.

    Every device of the mesh holds its output; with None a process calls it alone.
    """

    def project(variables: Parts, z: ArrayLike) -> jax.Array:
        with arithmetic.products(setup.settings.runtime.matmul_precision):
            return applied(setup.projector, variables, z, train=False)

    return jax.jit(project, out_shardings=None if mesh is None else sharding.replicated(mesh))


def _variables(part: str, params: Parts, batch_stats: Parts) -> Parts:
    """Returns the variables of the encoder or the projector."""
    return {"params": params.get(part, {}), "batch_stats": batch_stats.get(part, {})}


def make_project(
    setup: StepSetup, params: Parts, batch_stats: Parts
) -> Callable[[ArrayLike], jax.Array]:
    """Returns the frozen projector, for a process alone; it returns what it gets without one."""
    if setup.settings.model.projector == "identity":
        return jnp.asarray
    variables = jax.device_get(_variables("projector", params, batch_stats))
    return functools.partial(jit_frozen_projector(setup, None), variables)


def make_encode(
    run: PreparedRun, params: Parts, batch_stats: Parts
) -> Callable[[np.ndarray], jax.Array]:
    """Returns the frozen encoder: uint8 images [N, S, S, 3] -> float32 [N, D].

    With config.evaluation.features='projector' the projector follows. All encoders of one run share
    its compiled functions. N must be divisible by the devices of the run's mesh. All processes must
    call it together, with the same images.
    """
    encoder, projector = (
        _variables(part, params, batch_stats) for part in ("encoder", "projector")
    )
    projects = evaluates_projection(run.settings)

    def encode(images: np.ndarray) -> jax.Array:
        z = run.encode(encoder, sharding.put_whole(run.mesh, "image", images))
        return run.project(projector, z) if projects else z

    return encode

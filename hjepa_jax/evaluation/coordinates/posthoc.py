"""An H that is fitted to the frozen training features of any run, of any method.

The kinds are those of HamSIGReg. 'diag', 'chain' and 'chain_grid' have no parameter. 'learnable' is
a monotone radial envelope without a base spectrum, fitted so that H^{1/2} z comes closest to an
isotropic Gaussian: it minimizes SIGReg of c H^{1/2} (z - mean) plus HamSIGReg's penalty on the
spectrum. c, which a gauge cannot express, is the scale at which the projections have variance 1.
H is symmetric, so the directions are transformed instead of the features: (H^{1/2} z) a is
z (H^{1/2} a).

The evaluation takes H^{1/2} z with neither mean nor scale, so that it differs from z by H alone.
Source: arXiv 2605.20107, evaluation protocol and HamSIGReg.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from hjepa_jax.config import Settings
from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.config.sections.projection import evaluates_projection
from hjepa_jax.console import BOARD
from hjepa_jax.errors import ConfigError
from hjepa_jax.evaluation.coordinates.transformed import Coordinates, Fit, in_chunks
from hjepa_jax.evaluation.distribution.slices import default_sigreg
from hjepa_jax.kernels.characteristic_function import characteristic_means
from hjepa_jax.methods.hamsigreg import HamSIGReg
from hjepa_jax.methods.hamsigreg_settings import GRID_KINDS, HamSIGRegSection
from hjepa_jax.methods.regularizers.sigreg import SIGRegSection
from hjepa_jax.models.base import StateShape
from hjepa_jax.objectives.hamsigreg_spectrum import spectral_health, spectral_regularizer
from hjepa_jax.objectives.sigreg import expected_epps_pulley, random_slices
from hjepa_jax.training.setup import build_encoder, projected_shape

# Eight parameters need no more rows, of which each step takes a block.
_MOST_ROWS, _BLOCK_ROWS = 32768, 4096
# Directions by which the report compares z with H^{1/2} z.
_REPORT_SLICES = 256
# Of features that have variance 1 unless all are equal; its power -3/2 is finite in float32.
_SMALLEST_VARIANCE = 1e-12
# A seed for each use, so that the report does not test on the directions of the fit.
_ORDER, _STEPS, _REPORT = 0, 1, 2


class _Fitted(NamedTuple):
    """Parameters of the spectrum, and the loss of each step [steps]."""

    params: PyTree
    losses: np.ndarray


def check_posthoc(settings: Settings) -> None:
    """Checks that the states have what config.evaluation.posthoc acts on.

    Raises:
      ConfigError: a kind for token grids, but states without one.
    """
    kind, model = settings.evaluation.posthoc, settings.model
    if kind in GRID_KINDS and _shape(settings).token_grid is None:
        raise ConfigError(
            f"config.evaluation.posthoc is {kind!r}, which acts on the token grid, but the states "
            f"of config.model.encoder={model.encoder!r} have none here: set it to 'chain' or "
            "'diag'."
        )


def _shape(settings: Settings) -> StateShape:
    if evaluates_projection(settings):
        return projected_shape(settings)
    return build_encoder(settings).shape(settings.data.image_size)


def _family(settings: Settings) -> HamSIGReg:
    """Returns HamSIGReg at its defaults but for the kind and, of 'learnable', the span."""
    defaults = HamSIGRegSection()
    span = settings.evaluation.posthoc_span
    fields = {
        **vars(defaults),
        "kind": settings.evaluation.posthoc,
        "base": "identity",
        "span_max": span,
        "init_loglambda_span": span / 4,
        "log_lambda_clip": span,
    }
    changed = settings.replace({f"hamsigreg.{name}": value for name, value in fields.items()})
    return HamSIGReg(changed, _shape(settings), 1)


def _statistic(rows: jax.Array, directions: jax.Array) -> jax.Array:
    """Returns SIGReg of rows [N, D] along directions [D, K], centered and scaled to variance 1.

    All directions have the same scale, so that those of less variance still count as such.
    """
    projections = jnp.matmul(rows, directions, precision=jax.lax.Precision.HIGHEST)
    projections -= jnp.mean(projections, axis=0)
    variance = jnp.maximum(jnp.mean(jnp.square(projections)), _SMALLEST_VARIANCE)
    return default_sigreg(projections * jax.lax.rsqrt(variance), characteristic_means)


def _gaussian() -> float:
    """Returns the expected SIGReg of centered samples of an isotropic Gaussian."""
    options = SIGRegSection()
    return expected_epps_pulley(
        t_max=options.t_max,
        n_points=options.n_points,
        weight_type=options.weight_type,
        centered=True,
    )


def _loss(
    params: PyTree, rows: jax.Array, key: jax.Array, family: HamSIGReg
) -> tuple[jax.Array, jax.Array]:
    """Returns the loss of a spectrum on rows [N, D], and SIGReg within it."""
    section = family.hamsigreg
    slices = random_slices(key, rows.shape[1], SIGRegSection().num_slices)
    coordinates = {"params": params, "alpha": 1.0, "beta": 1.0}
    value = _statistic(rows, family.transform(coordinates, slices.T).T)
    penalty = spectral_regularizer(
        family.spectrum(params, 1.0, 1.0),
        curvature_weight=section.curvature_weight,
        loglambda_l2_weight=section.loglambda_l2_weight,
        cond_max=section.cond_max,
        cond_weight=section.cond_weight,
    )
    return value + section.regularizer_weight * penalty, value


@functools.partial(jax.jit, static_argnames=("family", "steps", "lr"))
def _descend(
    params: PyTree, rows: jax.Array, key: jax.Array, *, family: HamSIGReg, steps: int, lr: float
) -> tuple[PyTree, jax.Array]:
    """Returns the parameters after AdamW on blocks of rows [N, D], and SIGReg of each step."""
    size = min(_BLOCK_ROWS, len(rows))
    optimizer = optax.adamw(optax.cosine_decay_schedule(lr, steps), weight_decay=0.0)

    def step(
        carry: tuple[PyTree, optax.OptState], number: jax.Array
    ) -> tuple[tuple[PyTree, optax.OptState], jax.Array]:
        params, state = carry
        start = number % (len(rows) // size) * size
        block = jax.lax.dynamic_slice_in_dim(rows, start, size)
        draw = jax.random.fold_in(key, number)
        (_, value), gradient = jax.value_and_grad(_loss, has_aux=True)(params, block, draw, family)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, _), values = jax.lax.scan(
        step, (params, optimizer.init(params)), jnp.arange(steps), length=steps
    )
    return params, values


def _standardized(states: np.ndarray) -> np.ndarray:
    """Returns states [N, D] with mean 0 and mean square 1, for float32's sake."""
    centered = states - states.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.sqrt(np.mean(np.square(centered), dtype=np.float64))
    return centered / np.float32(scale) if scale > 0 else centered


def _fit(states: np.ndarray, family: HamSIGReg, settings: Evaluation) -> _Fitted:
    """Fits the parameters to states [N, D]; None, without steps, for a kind without any."""
    if not family.learns:
        return _Fitted(None, np.zeros(0))
    order = np.random.default_rng((settings.seed, _ORDER)).permutation(len(states))[:_MOST_ROWS]
    params, losses = _descend(
        family.init_state()["params"],
        jnp.asarray(_standardized(states[order])),
        jax.random.fold_in(jax.random.key(settings.seed), _STEPS),
        family=family,
        steps=settings.posthoc_steps,
        lr=settings.posthoc_lr,
    )
    return _Fitted(jax.device_get(params), np.asarray(losses))


def _sigreg(states: np.ndarray, settings: Evaluation) -> tuple[float, int]:
    """Returns SIGReg of states [N, D] along fresh directions, and the number of rows used."""
    rng = np.random.default_rng((settings.seed, _ORDER, _REPORT))
    rows = _standardized(states[rng.permutation(len(states))[:_BLOCK_ROWS]])
    key = jax.random.fold_in(jax.random.key(settings.seed), _REPORT)
    slices = random_slices(key, rows.shape[1], _REPORT_SLICES)
    return float(_statistic(jnp.asarray(rows), slices)), len(rows)


def _record(
    found: _Fitted, family: HamSIGReg, states: np.ndarray, moved: np.ndarray, settings: Evaluation
) -> dict[str, Any]:
    """Returns what metrics.json says about the fit; see `fit_posthoc`."""
    before, rows = _sigreg(states, settings)
    after, _ = _sigreg(moved, settings)
    record: dict[str, Any] = {
        "kind": family.hamsigreg.kind,
        "fitted_on": "training images",
        "images": len(states),
        "scale": float(max(moved.var(axis=0).mean(dtype=np.float64), 1e-30) ** -0.5),
        "sigreg_raw": before,
        "sigreg_sqrt_h": after,
        "sigreg_gaussian": _gaussian(),
        "sigreg_rows": rows,
    }
    if family.learns:
        spectrum = family.spectrum(found.params, 1.0, 1.0)
        record |= {
            "steps": settings.posthoc_steps,
            "lr": settings.posthoc_lr,
            "seed": settings.seed,
            "condition_number": float(spectral_health(spectrum)["lam_cond"]),
            "log_envelope": np.asarray(spectrum.envelope).tolist(),
            "log_spectrum": np.log(np.asarray(spectrum.spectrum)).tolist(),
            "params": jax.tree.map(lambda x: np.asarray(x).tolist(), dict(found.params)),
            "losses": found.losses.tolist(),
        }
    return record


def fit_posthoc(settings: Settings) -> Fit:
    """Returns the function that fits config.evaluation.posthoc to an encoder's training states.

    Its record has 'kind', 'images' (fitted on), 'scale' (c), SIGReg of the standardized training
    states, of H^{1/2} z, and of a Gaussian ('sigreg_raw', 'sigreg_sqrt_h', 'sigreg_gaussian', on
    'sigreg_rows' rows); of a learnable H also its parameters, its spectrum, and SIGReg of each step
    ('losses').

    Raises:
      ConfigError: see `check_posthoc`.
    """
    check_posthoc(settings)
    family = _family(settings)
    transform = jax.jit(family.transform)

    def fit(states: np.ndarray) -> Coordinates:
        with BOARD.busy("fitting H to training features"):
            found = _fit(states, family, settings.evaluation)
            coordinates = {"params": found.params, "alpha": 1.0, "beta": 1.0}
            apply = in_chunks(lambda z: transform(coordinates, z))
            record = _record(found, family, states, apply(states), settings.evaluation)
        return Coordinates(apply, record)

    return fit

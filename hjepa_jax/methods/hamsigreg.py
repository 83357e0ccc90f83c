"""HamSIGReg: LeJEPA with SIGReg applied to H^{1/2} z, so that the target covariance is H^{-1}.

With kind 'learnable' the spectrum of H is trained as well: after the encoder's step, every
`update_interval` steps, its own AdamW updates it on the detached states of that step with fresh
slices, against the encoder (update_mode 'max') or jointly with it ('min').

Source: "Beyond Isotropy in JEPAs", arXiv 2605.20107.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import PyTree
from ml_collections import ConfigDict

from hjepa_jax.config import Settings
from hjepa_jax.methods.base import Metrics, Randomness, Suspect
from hjepa_jax.methods.clipping import clip_by_global_norm
from hjepa_jax.methods.hamsigreg_settings import (
    HamSIGRegSection,
    envelope_start,
    problems,
    training_epochs,
    unfinished,
)
from hjepa_jax.methods.lejepa import LeJEPA
from hjepa_jax.models.base import StateShape
from hjepa_jax.objectives.hamsigreg import (
    apply_chain,
    apply_diag,
    apply_tokens,
    blend_identity,
    chain_spectrum_1d,
    chain_spectrum_grid,
)
from hjepa_jax.objectives.hamsigreg_spectrum import (
    Spectrum,
    increment_spectrum,
    init_increments,
    init_learnable,
    learnable_spectrum,
    spectral_buffers,
    spectral_health,
    spectral_regularizer,
)
from hjepa_jax.objectives.hamsigreg_updates import (
    alpha_schedule,
    beta_schedule,
    is_update_step,
    update_loss,
)
from hjepa_jax.objectives.regularizers import at_least_float32
from hjepa_jax.objectives.shares import AxisName

# Stream of the run's key; LeJEPA has 1 and 2.
_SPECTRUM_SLICES = 3
# What both envelopes of the learned spectrum have.
_COMMON = ("gauge", "log_lambda_clip", "eps_ridge")


class HamSIGReg(LeJEPA):
    """SIGReg of H^{1/2} z with a fixed or learned H.

    Attributes:
      hamsigreg: the section `hamsigreg`.
      learns: whether H is learned.
    """

    sections: ClassVar[Mapping[str, type]] = {**LeJEPA.sections, "hamsigreg": HamSIGRegSection}
    losses: ClassVar[tuple[str, ...]] = (*LeJEPA.losses, "spec")
    coordinate_fields: ClassVar[tuple[str, ...]] = ("hamsigreg.",)

    def __init__(self, settings: Settings, shape: StateShape, steps_per_epoch: int):
        """See `Method`."""
        super().__init__(settings, shape, steps_per_epoch)
        self.hamsigreg = settings.section(HamSIGRegSection)
        self.learns = self.hamsigreg.kind == "learnable"

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction in the settings."""
        yield from super().problems(settings)
        yield from problems(settings)

    @classmethod
    def unfinished(cls, settings: Settings, epochs: float) -> Iterator[tuple[str, float]]:
        """Yields (field, value) for each warm-up or ramp that does not end in time."""
        yield from super().unfinished(settings, epochs)
        yield from unfinished(settings, epochs)

    @classmethod
    def shrink(cls, config: ConfigDict) -> None:
        """Ends the ramps within the single epoch of a smoke test."""
        section = config.hamsigreg
        if section.kind != "diag":
            ramps = (
                "identity_epochs",
                "base_ramp_epochs",
                "learnable_ramp_epochs",
                "frozen_epochs",
            )
            for name in ramps:
                section[name] = min(section[name], 0.5)
            section.update(learnable_start_epoch=1, alpha_start_epoch=None)

    def _optimizer(self) -> optax.GradientTransformation:
        """Returns the spectrum's AdamW: scaled, then clipped gradients, no weight decay."""
        section = self.hamsigreg
        chain = [optax.scale(section.grad_scale)]
        if section.grad_clip is not None:
            chain.append(clip_by_global_norm(section.grad_clip))
        chain.append(optax.adam(section.lr))
        return optax.chain(*chain)

    def init_state(self) -> PyTree:
        """Returns {'params', 'opt_state'} of the learned spectrum, {} if H is fixed."""
        if not self.learns:
            return {}
        section = self.hamsigreg
        if section.envelope == "free":
            params = init_increments(section.bins)
        else:
            params = init_learnable(
                bins=section.bins,
                span_max=section.span_max,
                init_loglambda_span=section.init_loglambda_span,
            )
        return {"params": params, "opt_state": self._optimizer().init(params)}

    def schedule(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (alpha, beta) for the epoch of `step`; epochs are counted from 1."""
        section = self.hamsigreg
        epoch = step // self.steps_per_epoch + 1
        alpha = alpha_schedule(epoch, section.learnable_ramp_epochs, envelope_start(section))
        beta = beta_schedule(epoch, section.identity_epochs, section.base_ramp_epochs)
        return alpha, beta if self.learns else section.beta * beta

    def coordinates(self, method_state: PyTree, step: jax.Array) -> PyTree:
        """Returns the learned parameters, if any, and (alpha, beta) of the step."""
        alpha, beta = self.schedule(step)
        return {"params": method_state.get("params"), "alpha": alpha, "beta": beta}

    def transform(self, coordinates: PyTree, z: jax.Array) -> jax.Array:
        """Returns H^{1/2} z of states z [..., D], with H of `coordinates`."""
        z, section, beta = at_least_float32(z), self.hamsigreg, coordinates["beta"]
        if section.kind == "diag":
            return apply_diag(z)
        if section.kind == "chain":
            base = chain_spectrum_1d(z.shape[-1], section.kappa, section.eps, section.gauge)
            return apply_chain(z, jnp.sqrt(blend_identity(base, beta, z.dtype)))
        side, token_dim = self._grid()
        if section.kind == "chain_grid":
            base = chain_spectrum_grid(side, side, section.kappa, section.eps, section.gauge)
            root = jnp.sqrt(blend_identity(base, beta, z.dtype))
        else:
            learned = self.spectrum(coordinates["params"], coordinates["alpha"], beta)
            root = jnp.sqrt(learned.spectrum).astype(z.dtype)
        # If rows == channels, the published code treats a learnable grid as channels-first.
        ambiguous = self.learns and side == token_dim
        return apply_tokens(
            z,
            root,
            token_dim,
            split_qp=self.settings.model.split_qp and not section.reference_layout,
            channels_first=section.reference_layout and ambiguous,
        )

    def _grid(self) -> tuple[int, int]:
        """Returns (rows, channels) of the square token grid, which `problems` requires."""
        assert self.shape.token_grid is not None
        assert self.shape.token_dim is not None
        return self.shape.token_grid, self.shape.token_dim

    def spectrum(
        self, params: PyTree, alpha: jax.Array | float, beta: jax.Array | float
    ) -> Spectrum:
        """Returns the learned spectrum of H."""
        section, (side, _) = self.hamsigreg, self._grid()
        buffers = spectral_buffers(
            side,
            side,
            bins=section.bins,
            binning=section.binning,
            base=section.base,
            base_ridge=section.base_ridge,
            base_strength=section.base_strength,
        )
        common = {name: getattr(section, name) for name in _COMMON}
        if section.envelope == "free":
            return increment_spectrum(params, buffers, alpha, **common)
        return learnable_spectrum(
            params,
            buffers,
            alpha,
            beta,
            span_max=section.span_max,
            delta_clip=section.delta_clip,
            center_delta=section.center_delta,
            **common,
        )

    def _regularizer(self, spectrum: Spectrum) -> jax.Array:
        """Returns the regularizer of the learned spectrum."""
        section = self.hamsigreg
        return spectral_regularizer(
            spectrum,
            curvature_weight=section.curvature_weight,
            loglambda_l2_weight=section.loglambda_l2_weight,
            cond_max=section.cond_max,
            cond_weight=section.cond_weight,
        )

    def draw(
        self, key: jax.Array, step: jax.Array, *, num_rows: int, num_images: int, dtype: DTypeLike
    ) -> Randomness:
        """Draws like LeJEPA, plus 'alpha', 'beta' and the spectrum's slices; see `Method`."""
        drawn = super().draw(key, step, num_rows=num_rows, num_images=num_images, dtype=dtype)
        drawn["alpha"], drawn["beta"] = self.schedule(step)
        if self.learns:
            drawn["spectral_slices"] = self.regularizer.slices(
                key, step, dtype, stream=_SPECTRUM_SLICES
            )
        return drawn

    def redraw(self) -> dict[str, int]:
        """Returns LeJEPA's, with the spectrum's slices."""
        own = {"spectral_slices": self.sigreg.refresh_interval} if self.learns else {}
        return super().redraw() | own

    def loss(
        self,
        params: Mapping[str, PyTree],
        method_state: PyTree,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[jax.Array, Metrics]:
        """Returns prediction, SIGReg of H^{1/2} z and the spectrum's regularizer; see `Method`.

        With a learned spectrum the metrics have 'spec', its health, 'alpha' and 'beta'.
        """
        del params
        spectrum_params = method_state.get("params")
        alpha, beta = randomness["alpha"], randomness["beta"]
        coordinates = {"params": spectrum_params, "alpha": alpha, "beta": beta}
        total, metrics = self.regularized(
            z, randomness, step, functools.partial(self.transform, coordinates), axis_name
        )
        if self.learns:
            spectrum = self.spectrum(spectrum_params, alpha, beta)
            spec = self._regularizer(spectrum)
            # A constant to the encoder, counted so that the total is the full min-max objective.
            total = total + self.hamsigreg.regularizer_weight * spec
            metrics |= {"spec": spec, **spectral_health(spectrum)}
            metrics |= {"total": total, "alpha": alpha, "beta": beta}
        return total, metrics

    def is_due(self, step: jax.Array) -> jax.Array:
        """Returns whether the learned spectrum is updated after a step."""
        first, end = (e * self.steps_per_epoch for e in training_epochs(self.hamsigreg))
        return jnp.asarray(is_update_step(step, self.hamsigreg.update_interval, first, end))

    def update_state(
        self,
        method_state: PyTree,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        axis_name: AxisName = None,
    ) -> PyTree:
        """Updates the learned spectrum if this step is due for an update; see `Method`."""
        if not self.learns:
            return method_state
        optimizer, weight = self._optimizer(), self.regularizer.weight(step)

        def update(current: PyTree) -> PyTree:
            gradient = jax.grad(self.spectrum_loss)(
                current["params"], z, randomness, weight, axis_name
            )
            updates, opt_state = optimizer.update(gradient, current["opt_state"], current["params"])
            params = optax.apply_updates(current["params"], updates)
            return {"params": params, "opt_state": opt_state}

        return jax.lax.cond(self.is_due(step), update, lambda current: current, method_state)

    def spectrum_loss(
        self,
        params: PyTree,
        z: jax.Array,
        randomness: Randomness,
        weight: jax.Array | float,
        axis_name: AxisName = None,
    ) -> jax.Array:
        """Returns the loss of the spectrum's optimizer for states z and SIGReg's weight."""
        options = self.hamsigreg
        alpha, beta = randomness["alpha"], randomness["beta"]
        coordinates = {"params": params, "alpha": alpha, "beta": beta}
        value = self.regularizer.statistic(
            self.transform(coordinates, jax.lax.stop_gradient(z)),
            randomness["spectral_slices"],
            randomness,
            axis_name,
        )
        spectrum = self.spectrum(params, alpha, beta)
        return update_loss(
            value,
            self._regularizer(spectrum),
            mode=options.update_mode,
            weight=weight,
            spectral_weight=options.regularizer_weight,
            adversarial_multiplier=options.adversarial_multiplier,
        )

    def weights(self) -> dict[str, float]:
        """Returns the factor of each term in the total loss, and the ratio of the first two."""
        weights = super().weights()
        if self.learns:
            weights["spec"] = self.hamsigreg.regularizer_weight
        return weights

    def suspects(self) -> dict[str, Suspect]:
        """Returns the fields behind each term."""
        fields = ("hamsigreg.regularizer_weight",)
        return {**super().suspects(), "spec": Suspect("the loss term spec", fields)}

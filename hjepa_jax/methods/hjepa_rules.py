"""The rules between the fields of HJEPA."""

from __future__ import annotations

import math
from collections.abc import Iterator

from hjepa_jax.config.parts import REGULARIZERS, load_part
from hjepa_jax.config.settings import Settings
from hjepa_jax.methods.hjepa_settings import Dynamics, Loss, Parity
from hjepa_jax.methods.regularizers.sigreg import SIGRegSection

# The fourth-order integrator takes a middle step backward of this length, as a fraction of dt.
_YOSHIDA = 2 ** (1 / 3) / (2 - 2 ** (1 / 3))
# A momentum damped by more than this power of e vanishes, and grows as much backward.
_DAMPING = 10.0
# Running the flow backward amplifies rounding by this power of e: four of float32's seven digits.
_REVERSIBLE_DAMPING = 4.0


def problems(settings: Settings) -> Iterator[str]:
    """Yields a sentence for each contradiction of the settings."""
    yield from _parts(settings)
    yield from _flow(settings)
    yield from _views(settings)
    yield from _regularizer(settings)


def _regularizer(settings: Settings) -> Iterator[str]:
    """The form of the loss is HJEPA's, whatever the regularizer."""
    chosen = load_part(REGULARIZERS, settings.section(Loss).regularizer)
    convex = settings.section(SIGRegSection).loss_form == "convex"
    if convex and "sigreg" in chosen.sections:
        yield (
            "config.sigreg.loss_form is 'convex', but HJEPA adds SIGReg to its prediction: leave "
            "it at 'additive', and set config.sigreg.weight."
        )
    factor = settings.section(SIGRegSection).prediction_weight
    if factor != 1 and "sigreg" in chosen.sections:
        yield (
            f"config.sigreg.prediction_weight is {factor}, but HJEPA's prediction has weight 1: "
            "leave it at 1.0, and set config.sigreg.weight."
        )


def _parts(settings: Settings) -> Iterator[str]:
    """The encoder, projector and predictor are compatible with the loss."""
    model, dynamics = settings.model, settings.section(Dynamics)
    energy_weight = settings.section(Loss).energy_weight
    if not model.split_qp:
        yield (
            f"config.model.split_qp is False but config.method={settings.method!r} needs the state "
            "as [q | p]: set config.model.split_qp=True."
        )
    if model.projector == "mlp":
        yield (
            "config.model.projector is 'mlp', which mixes q and p: set config.model.projector="
            f"'halves' (one for q, one for p) or 'identity' for config.method={settings.method!r}."
        )
    if dynamics.learn_dt:
        yield (
            "config.dynamics.learn_dt is True, but a learned dt collapses to zero in training "
            "(the prediction loss is smallest when nothing moves): set it to False."
        )
    if energy_weight > 0 and dynamics.predictor != "hamiltonian":
        yield (
            f"config.loss.energy_weight is {energy_weight}, but predictor "
            f"{dynamics.predictor!r} has no energy: set it to 0."
        )
    if (dynamics.predictor, dynamics.hamiltonian) == ("mlp", "quadratic"):
        yield (
            "config.dynamics.hamiltonian is 'quadratic', which leaves config.dynamics.predictor="
            "'mlp' no parameters to match: set it to 'separable' or 'learnable'."
        )


def _flow(settings: Settings) -> Iterator[str]:
    """The integrator is stable on the quadratic well, and damping leaves momentum to predict."""
    dynamics = settings.section(Dynamics)
    if dynamics.predictor != "hamiltonian":
        return
    generic = dynamics.integrator == "leapfrog" and dynamics.hamiltonian != "separable"
    if settings.section(Parity).reference_leapfrog and generic and dynamics.damping > 0:
        yield (
            f"config.dynamics.damping is {dynamics.damping}, which the published leapfrog of "
            f"config.parity.reference_leapfrog lacks: set one of them to its default."
        )
    stiffness = 1.0 if dynamics.hamiltonian == "quadratic" else dynamics.base_coeff
    longest = _YOSHIDA if dynamics.integrator == "yoshida4" else 1.0
    if dynamics.dt * math.sqrt(stiffness) * longest >= 2:
        well = (
            ""
            if dynamics.hamiltonian == "quadratic"
            else f" with config.dynamics.base_coeff={dynamics.base_coeff}"
        )
        bound = "inf" if stiffness == 0 else f"{2 / math.sqrt(stiffness) / longest:.4g}"
        yield (
            f"config.dynamics.dt is {dynamics.dt}: {dynamics.integrator}{well} is unstable at this "
            f"step size and the prediction would diverge: set it below {bound}."
        )
    decay = dynamics.damping * dynamics.dt * dynamics.steps
    if decay > _DAMPING:
        yield (
            f"config.dynamics.damping is {dynamics.damping}: over the flow it shrinks the momentum "
            f"by exp(-{decay:.4g}), and the backward prediction grows by as much: set it to "
            f"{_DAMPING / dynamics.dt / dynamics.steps:.4g} or less."
        )
    elif dynamics.reversible and decay > _REVERSIBLE_DAMPING:
        yield (
            f"config.dynamics.reversible is True, but with config.dynamics.damping="
            f"{dynamics.damping} running the flow backward amplifies rounding by exp({decay:.4g}): "
            f"set the damping to {_REVERSIBLE_DAMPING / dynamics.dt / dynamics.steps:.4g} or less, "
            "or config.dynamics.reversible=False."
        )


def _views(settings: Settings) -> Iterator[str]:
    """Every view takes part in the prediction."""
    data, pairing = settings.data, settings.section(Loss).pairing
    if pairing != "local_to_global" and data.num_global_views < 2:
        yield (
            f"config.data.num_global_views is {data.num_global_views}, but config.loss.pairing="
            f"{pairing!r} predicts one global view from another and needs 2 or more."
        )
    if pairing == "local_to_global" and data.num_local_views == 0:
        yield (
            "config.loss.pairing is 'local_to_global' but config.data.num_local_views is 0: "
            "add local views, for example config.data.num_local_views=6."
        )
    if pairing != "local_to_global" and data.num_local_views > 0:
        yield (
            f"config.data.num_local_views is {data.num_local_views}, but config.loss.pairing="
            f"{pairing!r} predicts no local view: set it to 0, or config.loss.pairing="
            "'local_to_global'."
        )
    if pairing == "first_two" and data.num_global_views > 2:
        yield (
            f"config.data.num_global_views is {data.num_global_views}, but config.loss.pairing="
            "'first_two' predicts only two of them: set it to 2, or config.loss.pairing="
            "'all_global'."
        )

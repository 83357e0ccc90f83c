"""Conditions under which fields have an effect, each with what to set so that it holds."""

from __future__ import annotations

from typing import Any

from hjepa_jax.config.fields import Condition

HJEPA = Condition(lambda c: c.objective == "hjepa", "config.objective='hjepa'")
SIGREG = Condition(lambda c: c.objective == "sigreg", "config.objective='sigreg'")

CHAIN_KINDS = ("chain", "chain_grid")
GRID_KINDS = ("chain_grid", "learnable")


def has_potential(config: Any) -> bool:
    """Returns whether the flow has a learned potential with a residual scale."""
    dynamics = config.dynamics
    return (
        config.objective == "hjepa"
        and dynamics.predictor == "hamiltonian"
        and dynamics.hamiltonian != "quadratic"
    )


def has_parameters(config: Any) -> bool:
    """Returns whether the predictor has parameters."""
    dynamics = config.dynamics
    return (
        config.objective == "hjepa"
        and dynamics.predictor != "identity"
        and dynamics.hamiltonian != "quadratic"
    )


def has_spectrum(config: Any) -> bool:
    """Returns whether SIGReg sees the states through a chain or a learnable spectrum."""
    return config.objective == "sigreg" and config.spectral.kind in (*CHAIN_KINDS, "learnable")


def has_warmup_of_residual(config: Any) -> bool:
    """Returns whether the residual scale grows during training."""
    return has_potential(config) and config.dynamics.residual_scale_warmup_epochs > 0


def uses_generic_leapfrog(config: Any) -> bool:
    """Returns whether parity.reference_leapfrog changes the flow."""
    dynamics = config.dynamics
    return (
        config.objective == "hjepa"
        and dynamics.predictor == "hamiltonian"
        and dynamics.hamiltonian != "separable"
        and (dynamics.integrator == "leapfrog" or dynamics.hamiltonian == "learnable")
    )


MOVES = Condition(
    lambda c: c.dynamics.predictor != "identity",
    "config.dynamics.predictor='hamiltonian' or 'mlp'",
)
FLOWS = Condition(
    lambda c: c.dynamics.predictor == "hamiltonian", "config.dynamics.predictor='hamiltonian'"
)
PREDICTOR = Condition(has_parameters, "a predictor that has parameters")
POTENTIAL = Condition(has_potential, "a config.dynamics.hamiltonian with a potential")
CHAIN = Condition(
    lambda c: c.spectral.kind in CHAIN_KINDS, "config.spectral.kind='chain' or 'chain_grid'"
)
SPECTRUM = Condition(has_spectrum, "config.spectral.kind='chain', 'chain_grid' or 'learnable'")
LEARNABLE = Condition(lambda c: c.spectral.kind == "learnable", "config.spectral.kind='learnable'")
SQRT_H = Condition(
    lambda c: c.objective == "sigreg" and c.spectral.kind != "identity",
    "config.objective='sigreg' with another config.spectral.kind than 'identity'",
)

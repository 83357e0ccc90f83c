"""Variants of recipes: the predictors of HJEPA, and the transforms of HamSIGReg."""

from __future__ import annotations

from ml_collections import ConfigDict


def mlp_predictor(config: ConfigDict) -> None:
    """Replaces the Hamiltonian flow by a residual MLP of the same parameter count."""
    config.dynamics.predictor = "mlp"


def identity_predictor(config: ConfigDict) -> None:
    """Replaces the Hamiltonian flow by the identity: plain invariance between views."""
    config.dynamics.predictor = "identity"
    config.train.predictor_lr = None


def _hamsigreg(config: ConfigDict, **fields: str | float) -> None:
    config.method = "hamsigreg"
    config.hamsigreg.update(**fields)


def ham_diag(config: ConfigDict) -> None:
    """SIGReg of a fixed diagonal transform of the state."""
    _hamsigreg(config, kind="diag")


def ham_chain(config: ConfigDict) -> None:
    """SIGReg of the state transformed by the token grid's periodic Laplacian."""
    _hamsigreg(config, kind="chain_grid")


def ham_learnable(config: ConfigDict) -> None:
    """SIGReg with a learned radial spectrum on the token grid, trained adversarially."""
    _hamsigreg(
        config,
        kind="learnable",
        gauge="logdet",
        identity_epochs=1.0,
        base_ramp_epochs=5.0,
        learnable_ramp_epochs=5.0,
    )


def _with_projector(config: ConfigDict, method: str) -> None:
    """Selects a baseline with a projector of three layers, and no decay of biases and norms."""
    config.method = method
    config.model.update(projector="mlp", projector_widths=(2048, 2048, 2048))
    config.train.decay_exclude = ("biases", "norms")


def vicreg(config: ConfigDict) -> None:
    """VICReg with the weights of its paper."""
    _with_projector(config, "vicreg")


def barlow(config: ConfigDict) -> None:
    """Barlow Twins with the weight of its paper."""
    _with_projector(config, "barlow")


def visreg(config: ConfigDict) -> None:
    """VISReg with the weight and slices that its paper takes for Imagenette."""
    _with_projector(config, "visreg")

"""Variants of configurations: methods, and the `smoke` size that runs anywhere in seconds."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from hjepa_jax.errors import ConfigError


def smoke(config: ConfigDict) -> None:
    """Shrinks any configuration to a few seconds on the embedded digits, the method unchanged."""
    resnet = config.model.encoder == "resnet"
    imagenet_stem = resnet and config.resnet.stem == "imagenet"
    config.data.update(
        name="digits",
        root=None,
        test_split="test",
        batch_size=16,
        num_workers=0,
        max_train_images=64,
        max_test_images=32,
        image_size=64 if imagenet_stem else 16,
        eval_resize=None,
    )
    if config.data.num_local_views:
        config.data.local_size = config.data.image_size
    config.data.augment.blur_kernel = 3
    config.model.compute_dtype = "float32"
    if resnet:
        config.resnet.update(width=8, stage_blocks=(1, 1, 1, 1), token_layer="layer2", token_dim=8)
    if config.resnet.token_grid is not None:
        config.resnet.token_grid = 2
    if config.objective == "hjepa":
        config.loss.logdet_dim = 8
        if config.dynamics.predictor != "identity":
            config.dynamics.hidden_dim = 16
        if config.dynamics.predictor == "hamiltonian":
            _shorten(config.dynamics, "residual_scale_warmup_epochs", 0.75)
    if config.objective == "sigreg" and config.spectral.kind != "identity":
        for name in ("identity_epochs", "base_ramp_epochs", "learnable_ramp_epochs"):
            _shorten(config.spectral, name, 0.5)
    config.train.update(max_steps=2, epochs=1, warmup_epochs=0.5, fast_compile=True)
    config.evaluation.update(batch_size=32, probe_epochs=2, knn_k=(1, 5, 20))
    config.log.every_steps = 1


def _shorten(section: ConfigDict, name: str, epochs: float) -> None:
    """Makes a schedule end within the smoke size's only epoch."""
    section[name] = min(section[name], epochs)


def chain(*changes: Callable[[ConfigDict], None]) -> Callable[[ConfigDict], None]:
    """Returns one change that makes all of them in order."""

    def apply(config: ConfigDict) -> None:
        for change in changes:
            change(config)

    return apply


def mlp_predictor(config: ConfigDict) -> None:
    """Replaces the Hamiltonian flow by a residual MLP of the same parameter count."""
    config.dynamics.predictor = "mlp"


def identity_predictor(config: ConfigDict) -> None:
    """Replaces the Hamiltonian flow by the identity: plain invariance between the views."""
    config.dynamics.predictor = "identity"
    config.train.predictor_lr = None


def ham_diag(config: ConfigDict) -> None:
    """SIGReg of a fixed diagonal transform of the state."""
    config.spectral.kind = "diag"


def ham_chain(config: ConfigDict) -> None:
    """SIGReg of the state under the token grid's periodic Laplacian."""
    config.spectral.kind = "chain_grid"


def ham_learnable(config: ConfigDict) -> None:
    """SIGReg against a learnt radial spectrum on the token grid, trained adversarially."""
    config.spectral.update(
        kind="learnable",
        gauge="logdet",
        identity_epochs=1.0,
        base_ramp_epochs=5.0,
        learnable_ramp_epochs=5.0,
    )


def apply_variants(
    config: ConfigDict, variant: str, methods: Mapping[str, Callable[[ConfigDict], None]]
) -> ConfigDict:
    """Applies one method (the first of `methods` by default), then 'smoke' if it is named.

    Args:
      config: changed in place and returned.
      variant: nothing, 'METHOD', 'smoke' or 'METHOD-smoke'.
      methods: the changes that each method makes.

    Raises:
      ConfigError: if a name is unknown; the sentence names the nearest one.
    """
    names = [name for name in variant.split("-") if name]
    options = (*methods, "smoke")
    for name in names:
        if name not in options:
            nearest = difflib.get_close_matches(name, options, 1, 0.0)[0]
            raise ConfigError(
                f"{name!r} is no variant of this configuration ({', '.join(options)}): "
                f"did you mean ':{nearest}'?"
            )
    chosen = [name for name in names if name != "smoke"] or [next(iter(methods))]
    if len(chosen) > 1:
        raise ConfigError(
            f"variant {variant!r} names {len(chosen)} methods: name one, and at most 'smoke' "
            f"beside it, for example ':{chosen[0]}-smoke'."
        )
    methods[chosen[0]](config)
    if "smoke" in names:
        smoke(config)
    return config

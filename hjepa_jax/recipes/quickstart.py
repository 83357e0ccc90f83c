"""Two minutes on the embedded UCI digits: the full system on two CPU cores, without a download.

    hjepa train --config=quickstart --workdir=runs/quickstart

Variants: hjepa (default), mlp, identity, sigreg; NAME-smoke for two steps.
README.md lists the expected results.
"""

from ml_collections import ConfigDict

from hjepa_jax.config import base_config
from hjepa_jax.recipes.variants.apply import apply_variants, chain
from hjepa_jax.recipes.variants.methods import identity_predictor, mlp_predictor


def hjepa(config: ConfigDict) -> None:
    """The CIFAR-100 method with a smaller log-det rank, for the smaller state."""
    config.loss.logdet_dim = 64


def sigreg(config: ConfigDict) -> None:
    """The LeJEPA baseline."""
    config.method = "lejepa"
    config.train.grad_clip = None


METHODS = {
    "hjepa": hjepa,
    "mlp": chain(hjepa, mlp_predictor),
    "identity": chain(hjepa, identity_predictor),
    "sigreg": sigreg,
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration of the named variants, joined by '-'."""
    config = base_config()
    config.data.update(name="digits", batch_size=128, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    # The scans have 8x8 pixels, so crops of 16 pixels lose nothing.
    config.data.image_size = 16
    # A mirrored or inverted digit is a different digit, or not a digit.
    config.data.augment.update(flip_probability=0.0, solarize_probability=0.0)
    config.model.compute_dtype = "float32"
    config.resnet.update(width=16, token_dim=16)
    config.train.update(epochs=20, lr=2e-3, warmup_epochs=2.0)
    config.log.every_steps = 5
    return apply_variants(config, variant, METHODS)

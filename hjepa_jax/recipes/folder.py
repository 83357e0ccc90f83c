"""Any folder of images, with or without labels, on any device.

    hjepa train --config=folder --data=DIR --workdir=runs/own

The sizes of views, batch, encoder and schedule are chosen from the images and the device, and are
printed with the reasons; whatever is set on the command line is kept. The run's config.json holds
what was chosen.

Variants, as `--config=folder:NAME`:
  hjepa (default)  Hamiltonian predictor with floors
  mlp, identity    the same with a matched MLP predictor, or none
  sigreg           LeJEPA baseline: view-center prediction with SIGReg
  NAME-smoke       two steps of it on the embedded digits, to check that everything runs
"""

from ml_collections import ConfigDict

from hjepa_jax.config import base_config
from hjepa_jax.config.fields import AUTO
from hjepa_jax.recipes.variants.apply import apply_variants
from hjepa_jax.recipes.variants.methods import identity_predictor, mlp_predictor


def hjepa(config: ConfigDict) -> None:
    """Hamiltonian predictor with floors."""
    config.dynamics.residual_scale_warmup_epochs = AUTO
    config.loss.logdet_dim = AUTO


def mlp(config: ConfigDict) -> None:
    """The matched MLP predictor."""
    config.loss.logdet_dim = AUTO
    mlp_predictor(config)


def identity(config: ConfigDict) -> None:
    """No predictor."""
    config.loss.logdet_dim = AUTO
    identity_predictor(config)


def sigreg(config: ConfigDict) -> None:
    """The LeJEPA baseline."""
    config.method = "lejepa"
    config.train.grad_clip = None


METHODS = {"hjepa": hjepa, "mlp": mlp, "identity": identity, "sigreg": sigreg}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration of the named variants, joined by '-'."""
    config = base_config()
    config.data.update(
        name="folder",
        test_holdout=AUTO,
        image_size=AUTO,
        batch_size=AUTO,
        mean=AUTO,
        std=AUTO,
        num_workers=AUTO,
        # One damaged file among many is no reason to stop.
        on_corrupt="skip",
    )
    config.data.augment.blur_kernel = AUTO
    config.model.compute_dtype = AUTO
    config.resnet.update(stem=AUTO, width=AUTO, token_dim=AUTO, token_grid=AUTO)
    config.train.update(lr=1e-3, epochs=AUTO, warmup_epochs=AUTO)
    config.evaluation.batch_size = AUTO
    config.checkpoint.every_steps = AUTO
    config.log.every_steps = AUTO
    return apply_variants(config, variant, METHODS)

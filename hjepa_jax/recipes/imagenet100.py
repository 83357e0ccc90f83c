"""ImageNet-100, ResNet-18 tokens pooled to 8x8 (arXiv 2605.20107, section on ImageNet-100).

    hjepa train --config=imagenet100 --workdir=runs/imagenet100 \
        --config.data.root=<folder with train/<class>/* (or train.X1..X4) and val/<class>/*>

Variants, as `--config=imagenet100:NAME`:
  hjepa (default)  Hamiltonian predictor with floors, the potential at a tenth of the learning rate
  mlp, identity    the same with a matched MLP predictor, or none
  parity           HJEPA as the published script runs it (docs/parity.md)
  sigreg           LeJEPA baseline: view-center prediction with SIGReg
  ham_diag, ham_chain, ham_learnable   SIGReg of H^{1/2} z (HamSIGReg)
  NAME-smoke       two steps of it on the embedded digits, to check that everything runs

45 epochs, batch 256. Published (kNN@20 / linear probe): HJEPA ahead of SIGReg by +4.82 / +7.52.
"""

from ml_collections import ConfigDict

from hjepa_jax.config import base_config
from hjepa_jax.recipes.variants.apply import apply_variants, chain
from hjepa_jax.recipes.variants.methods import (
    ham_chain,
    ham_diag,
    ham_learnable,
    identity_predictor,
    mlp_predictor,
)


def hjepa(config: ConfigDict) -> None:
    """Floors, prediction of the full state, and a slower potential."""
    config.loss.update(
        match="qp",
        var_weight=1.0,
        logdet_weight=1.0,
        q_logdet_floor=-1.2,
        p_logdet_floor=-1.2,
        q_pr_floor=0.25,
        p_pr_floor=0.25,
        q_eigmax_ceiling=0.10,
        p_eigmax_ceiling=0.10,
    )
    config.train.predictor_lr = 5e-5


def sigreg(config: ConfigDict) -> None:
    """The LeJEPA baseline: no predictor, no clipping."""
    config.method = "lejepa"
    config.train.grad_clip = None


def parity(config: ConfigDict) -> None:
    """HJEPA exactly as in the published ImageNet script."""
    config.dynamics.residual_scale_warmup_epochs = 0.0
    config.parity.update(
        forward_directions_only=True,
        q_variance_floor_only=True,
        unclipped_predictor=True,
        shared_lr_floor=True,
    )
    config.evaluation.reference_evaluation = True


METHODS = {
    "hjepa": hjepa,
    "mlp": chain(hjepa, mlp_predictor),
    "identity": chain(hjepa, identity_predictor),
    "parity": chain(hjepa, parity),
    "sigreg": sigreg,
    **{f.__name__: chain(sigreg, f) for f in (ham_diag, ham_chain, ham_learnable)},
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration of the named variants, joined by '-'."""
    config = base_config()
    config.data.update(
        name="folder",
        batch_size=256,
        image_size=224,
        global_scale=(0.4, 1.0),
        num_workers=8,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        eval_resize=256,
        test_split="val",
    )
    config.data.augment.blur_kernel = 23
    config.resnet.update(stem="imagenet", token_grid=8)
    config.train.epochs = 45
    return apply_variants(config, variant, METHODS)

"""Encoders whose weights other software trained: `hjepa import-torch` makes runs of them.

    hjepa import-torch --checkpoint=resnet50.safetensors --config=pretrained:resnet50 \
        --workdir=runs/resnet50 --data=DIR

The images of --data are those to evaluate on. A training with the same configuration begins with
the weights by --config.train.init_from=runs/resnet50.

Variants, as `--config=pretrained:NAME`:
  resnet18, resnet34   pooled features of 512 dimensions
  resnet50 (default), resnet101, resnet152   pooled features of 2048 dimensions
  vit_tiny, vit_small, vit_base   the class token of patches of 16 pixels, 192, 384, 768 dimensions
  convnext_tiny        pooled features of 768 dimensions
  NAME-smoke           the same encoder, shrunk, on the embedded digits

Images are prepared as for torchvision's evaluation: short side 256, center crop of 224, mean and
standard deviation of ImageNet.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from hjepa_jax.config import base_config
from hjepa_jax.recipes.variants.apply import apply_variants

_VIT_WIDTHS = {"tiny": 192, "small": 384, "base": 768}


def _resnet(depth: int) -> Callable[[ConfigDict], None]:
    """Returns the change to a ResNet of torchvision."""

    def apply(config: ConfigDict) -> None:
        config.resnet.update(depth=depth, stem="imagenet", head="pooled")

    return apply


def _vit(width: int) -> Callable[[ConfigDict], None]:
    """Returns the change to a Vision Transformer of timm or torchvision."""

    def apply(config: ConfigDict) -> None:
        config.model.encoder = "vit"
        config.vit.update(width=width, patch_size=16, head="class")

    return apply


def _convnext(config: ConfigDict) -> None:
    """The ConvNeXt-T of timm or torchvision."""
    config.model.encoder = "convnext"
    config.convnext.update(patch_size=4, head="mean")


METHODS = {
    **{f"resnet{depth}": _resnet(depth) for depth in (50, 18, 34, 101, 152)},
    **{f"vit_{size}": _vit(width) for size, width in _VIT_WIDTHS.items()},
    "convnext_tiny": _convnext,
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration of the named variants, joined by '-'."""
    config = base_config()
    config.data.update(
        name="folder",
        batch_size=64,
        image_size=224,
        eval_resize=256,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        test_split="val",
    )
    config.data.augment.blur_kernel = 23
    config.method = "lejepa"
    config.model.update(split_qp=False, compute_dtype="float32")
    config.evaluation.state_part = "qp"
    config.train.grad_clip = None
    return apply_variants(config, variant, METHODS)

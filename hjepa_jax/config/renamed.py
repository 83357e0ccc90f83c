"""Fields of older versions, so that an old configuration gets one clear sentence."""

from __future__ import annotations

# Old dotted name -> new one.
RENAMED: dict[str, str] = {
    "data.augment.grey_probability": "data.augment.gray_probability",
    "data.augment.solarise_probability": "data.augment.solarize_probability",
    "data.augment.solarise_threshold": "data.augment.solarize_threshold",
    "model.width": "resnet.width",
    "model.stage_blocks": "resnet.stage_blocks",
    "model.stem": "resnet.stem",
    "model.mode": "resnet.head",
    "model.token_layer": "resnet.token_layer",
    "model.token_dim": "resnet.token_dim",
    "model.token_hw": "resnet.token_grid",
    "model.embed_dim": "resnet.embed_dim",
    "model.remat": "resnet.remat",
    "evaluation.variant": "evaluation.state_part",
    "evaluation.qp_variants": "evaluation.all_state_parts",
}

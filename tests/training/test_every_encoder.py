"""HJEPA trains on every encoder, with every predictor, head, and regularizer of the ablation."""

import jax
import numpy as np
import pytest

from hjepa_jax.config.flags import resolve_arguments
from hjepa_jax.config.parts import ENCODERS
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.runtime import sharding
from hjepa_jax.tools.ablation.axes import AXES
from hjepa_jax.tools.sweep import override_flag, with_effect
from hjepa_jax.train import load_batch
from hjepa_jax.training.prepare import prepare

# Small forms of encoders; others are tested at their default size.
SIZES = {
    "resnet18": ("resnet.depth=18", "resnet.width=4"),
    "resnet50": ("resnet.depth=50", "resnet.width=4"),
    "convnext": (
        *("model.encoder=convnext", "convnext.width=8", "convnext.stage_blocks=1,1,1,1"),
        *("convnext.patch_size=2", "convnext.token_stage=2", "convnext.token_dim=8"),
    ),
    "vit": ("model.encoder=vit", "vit.patch_size=4", "vit.width=16", "vit.depth=1", "vit.heads=2"),
}
KINDS = {name.removesuffix("18").removesuffix("50") for name in SIZES}
SIZES |= {name: (f"model.encoder={name}",) for name in ENCODERS if name not in KINDS}
# Each predictor, head, and regularizer with each encoder, though not all of their combinations.
ARMS = {
    "identity": ("none", "sigreg"),
    "mlp": ("halves", "floors"),
    "hamiltonian": ("halves", "sigreg"),
}


def test_the_arms_have_every_level() -> None:
    assert set(ARMS) == set(AXES["predictor"])
    for axis, used in zip(("head", "regularizer"), zip(*ARMS.values()), strict=True):
        assert set(used) == set(AXES[axis])


@pytest.mark.parametrize("predictor", ARMS)
@pytest.mark.parametrize("encoder", SIZES)
def test_one_step_moves_every_matrix(encoder, predictor) -> None:
    head, regularizer = ARMS[predictor]
    levels = {"head": head, "predictor": predictor, "regularizer": regularizer}
    overrides = (
        *SIZES[encoder],
        *(part for axis, level in levels.items() for part in AXES[axis][level]),
        "loss.match=qp",
        "dynamics.residual_scale_warmup_epochs=0",
        "model.projector_widths=32,32",
        "data.backend=host",
    )
    given = with_effect("quickstart:smoke", overrides)
    settings = resolve_arguments(["--config=quickstart:smoke", *map(override_flag, given)])
    source = open_split(settings, "train")
    run = prepare(settings, len(source), sharding.data_mesh())
    before = run.init()
    start = jax.device_get(before.params)
    after, metrics = run.step(before, load_batch(settings, run, source, {}, 0))
    assert metrics["failed_step"] == -1
    assert np.isfinite(metrics["total"])
    for part in ("encoder", *(["projector"] if head == "halves" else [])):
        found = jax.tree_util.tree_leaves_with_path(start[part])
        moved = jax.tree.leaves(jax.device_get(after.params[part]))
        assert len(found) > 3
        for (path, one), other in zip(found, moved, strict=True):
            # Each is moved by its gradient, as the weight decay alone would shrink it.
            shrunk = one * (1 - 1e-2 * settings.train.lr * settings.train.weight_decay)
            unlike = np.abs(other - shrunk).max() > 1e-7
            assert one.ndim < 2 or unlike, f"{part}{jax.tree_util.keystr(path)}"
    trained = predictor != "identity"
    assert ("predictor" in start and len(jax.tree.leaves(start["predictor"])) > 0) == trained
    if trained:
        changes = [
            np.abs(np.asarray(a) - b).max() > 0
            for a, b in zip(
                jax.tree.leaves(after.params["predictor"]),
                jax.tree.leaves(start["predictor"]),
                strict=True,
            )
        ]
        assert any(changes)

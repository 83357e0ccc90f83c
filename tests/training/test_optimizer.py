"""LARS and AdamW with masks: every step against NumPy, and a resumed run to the last bit."""

import shutil

import jax
import numpy as np
import optax
import pytest

from hjepa_jax.config import Settings
from hjepa_jax.config.checks import typed
from hjepa_jax.config.training import Train
from hjepa_jax.recipes import quickstart
from hjepa_jax.tools.kill_test import differing_arrays
from hjepa_jax.train import train
from hjepa_jax.training.optimizer import excluded, learning_rates, make_optimizer
from hjepa_jax.training.setup import build_method, build_setup
from hjepa_jax.training.state import init_state

STEPS, TOTAL, PER_EPOCH = 7, 10, 3


def parameters(seed: int, scale: float = 1.0):
    """Two parts with layers, a normalization, a zero bias and a scalar."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    zero = np.zeros(3, np.float32) if scale == 1.0 else draw(3)
    return {
        "encoder": {
            "conv": {"kernel": draw(2, 3)},
            "norm": {"scale": draw(3), "bias": draw(3)},
            "head": {"kernel": draw(3, 3), "bias": zero},
        },
        "predictor": {"layer": {"kernel": draw(3, 2), "bias": draw(2)}, "raw_dt": draw()},
    }


def rate(step: int, options: Train, peak: float) -> float:
    """Linear warm-up from a fraction of the peak, then a cosine to its floor."""
    warmup = options.warmup_epochs * PER_EPOCH
    if step < warmup:
        start = options.warmup_init_ratio
        return peak * (start + (1 - start) * step / warmup)
    floor = peak * options.min_lr_ratio
    turn = np.pi * (step - warmup) / (TOTAL - warmup)
    return floor + (peak - floor) * (1 + np.cos(turn)) / 2


def is_excluded(name: str, kinds: tuple[str, ...]) -> bool:
    in_norm = name.startswith("encoder/norm/")
    return ("norms" in kinds and in_norm) or (
        "biases" in kinds and name.endswith("/bias") and not in_norm
    )


def named(tree) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def lars_step(w, g, buffer, lr, options: Train, masked: bool):
    """LARS (arXiv 1708.03888), Algorithm 1: layer rate, decayed gradient, momentum."""
    if not masked:
        g = g + options.weight_decay * w
        sizes = np.linalg.norm(w), np.linalg.norm(g)
        if min(sizes) > 0:
            g = options.trust_coefficient * sizes[0] / sizes[1] * g
    buffer = options.momentum * buffer + lr * g
    step = lr * g + options.momentum * buffer if options.nesterov else buffer
    return w - step, buffer


def adamw_step(w, g, moments, lr, step, options: Train, masked: bool):
    """AdamW (arXiv 1711.05101), with the decay scaled by the rate."""
    m = options.b1 * moments[0] + (1 - options.b1) * g
    v = options.b2 * moments[1] + (1 - options.b2) * g * g
    hat_m, hat_v = m / (1 - options.b1**step), v / (1 - options.b2**step)
    update = hat_m / (np.sqrt(hat_v) + options.adam_eps)
    return w - lr * (update + (0 if masked else options.weight_decay) * w), (m, v)


LARS = {
    "optimizer": "lars",
    "lr": 0.3,
    "predictor_lr": 0.7,
    "weight_decay": 0.02,
    "trust_coefficient": 0.05,
}
CASES = {
    "lars": LARS | {"grad_clip": None},
    "lars, clipped, all masked": LARS | {"decay_exclude": ("biases", "norms")},
    "lars, nesterov, norms masked": LARS
    | {"decay_exclude": ("norms",), "nesterov": True, "momentum": 0.8, "grad_clip": 0.5},
    "adamw, all masked": {"lr": 0.01, "weight_decay": 2.0, "decay_exclude": ("biases", "norms")},
    "adamw, biases masked": {"lr": 0.01, "weight_decay": 2.0, "decay_exclude": ("biases",)},
}


def configured(fields) -> Settings:
    config = quickstart.get_config("smoke")
    with config.train.unlocked(), config.train.ignore_type():
        config.train.update(warmup_epochs=1.0, **fields)
    return typed(config)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_numpy(name) -> None:
    settings = configured(CASES[name])
    options, method = settings.train, build_method(settings, PER_EPOCH)
    optimizer = make_optimizer(options, method, learning_rates(options, method, total_steps=TOTAL))
    params = parameters(0)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    expected = named(params)
    memory = {path: np.zeros_like(w) for path, w in expected.items()}
    if options.optimizer == "adamw":
        memory = {path: (zero, zero) for path, zero in memory.items()}
    for step in range(STEPS):
        gradient = parameters(step + 1, scale=2.0)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        slopes = named(gradient)
        if options.grad_clip is not None:
            size = np.sqrt(sum(np.sum(g**2) for g in slopes.values()))
            slopes = {
                path: g * min(1.0, options.grad_clip / (size + 1e-6)) for path, g in slopes.items()
            }
        for path, w in expected.items():
            own = options.predictor_lr if path.startswith("predictor") else None
            lr = rate(step, options, own or options.lr)
            masked = is_excluded(path, options.decay_exclude)
            arguments = (w, slopes[path], memory[path], lr)
            if options.optimizer == "lars":
                expected[path], memory[path] = lars_step(*arguments, options, masked)
            else:
                expected[path], memory[path] = adamw_step(*arguments, step + 1, options, masked)
    for path, w in named(params).items():
        np.testing.assert_allclose(w, expected[path], rtol=2e-5, atol=2e-6, err_msg=path)


def test_a_mask_finds_the_biases_and_norms_of_a_resnet_and_a_projector() -> None:
    config = quickstart.get_config("sigreg-smoke")
    config.model.update(projector="mlp", projector_widths=(8, 6, 4))
    settings = typed(config)
    setup = build_setup(settings, total_steps=1, steps_per_epoch=1)
    params = jax.eval_shape(lambda: init_state(setup, None, jax.random.key(0))).params
    found = {kind: named(excluded(params, (kind,))) for kind in ("biases", "norms")}
    names = {kind: {path for path, yes in tree.items() if yes} for kind, tree in found.items()}
    assert names["biases"] == {f"projector/{x}/bias" for x in ("hidden", "hidden2", "output")}
    # Every vector that is no bias of a Linear layer belongs to a normalization.
    vectors = {path for path, leaf in shapes(params).items() if len(leaf) < 2}
    assert names["norms"] == vectors - names["biases"]
    assert {"projector/norm2/bias", "encoder/stem_norm/scale"} <= names["norms"]


def shapes(params) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def test_a_resumed_run_with_lars_ends_in_the_same_bits(tmp_path) -> None:
    def run(folder):
        config = quickstart.get_config("sigreg-smoke")
        config.train.update(
            optimizer="lars", lr=0.3, max_steps=3, decay_exclude=("biases", "norms")
        )
        config.model.update(projector="mlp", projector_widths=(12, 8))
        config.checkpoint.update(every_steps=1, keep_last=3)
        return jax.device_get(train(config, folder))

    whole = run(tmp_path / "whole")
    traces = [leaf for leaf in jax.tree.leaves(whole.opt_state) if leaf.ndim == 2]
    assert all(np.abs(leaf).max() > 0 for leaf in traces)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (2, 3):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(step))
    assert not differing_arrays(run(tmp_path / "cut"), whole)

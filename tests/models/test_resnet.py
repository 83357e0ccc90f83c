"""Encoder: layers against NumPy loops, published parameter counts, layout, dtypes and errors."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resnets import resnet

from hjepa_jax.kernels.convolution import conv2d
from hjepa_jax.kernels.max_pool import max_pool_3x3
from hjepa_jax.models.layers import BatchNorm, Conv, Linear, default_uniform
from hjepa_jax.models.parameter_matching import count_parameters
from hjepa_jax.models.pooling import adaptive_average_pool
from hjepa_jax.models.residual_blocks import BLOCKS
from hjepa_jax.models.token_layers import flatten_tokens

TINY = {"width": 4, "token_dim": 6}


def shapes(model, size=32):
    return jax.eval_shape(
        lambda key, x: model.init(key, x, train=False), jax.random.key(0), images(size)
    )


def images(size, count=2):
    return jax.random.normal(jax.random.key(7), (count, size, size, 3))


def names(tree):
    return {
        jax.tree_util.keystr(p, simple=True) for p, _ in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    ("fields", "published"),
    [
        ({"stage_blocks": (2, 2, 2, 2)}, 11_689_512),
        ({"depth": 18}, 11_689_512),
        ({"depth": 34}, 21_797_672),
        ({"depth": 50}, 25_557_032),
        ({"block": "bottleneck", "stage_blocks": (3, 4, 6, 3)}, 25_557_032),
        ({"depth": 101}, 44_549_160),
        ({"depth": 152}, 60_192_808),
    ],
)
def test_published_parameter_count(fields, published):
    """torchvision's ResNets with their 1000 classes."""
    model = resnet(stem="imagenet", head="global", embed_dim=1000, **fields)
    assert count_parameters(shapes(model, 64)["params"]) == published


def test_the_stride_of_a_bottleneck_is_in_its_3x3_convolution():
    model = resnet(**TINY, block="bottleneck", stage_blocks=(1, 1, 1, 1), token_layer="layer2")
    text = jax.jit(lambda v, x: model.apply(v, x, train=False)).lower(shapes(model), images(32))
    strided = [line for line in text.as_text().splitlines() if "stride = [2, 2]" in line]
    kernels = sorted(re.findall(r"tensor<(\dx\dx\d+x\d+)xf32>\) ->", "\n".join(strided)))
    assert kernels == ["1x1x16x32", "3x3x8x8"]


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_block_of_zero_scale_begins_as_its_shortcut(block):
    kind, x = BLOCKS[block], jax.nn.relu(images(8, 4))
    x = jnp.concatenate([x] * 4 * kind.expansion, -1)[..., : 4 * kind.expansion]
    outputs = []
    for zero_init in (False, True):
        module = kind(4, zero_init=zero_init)
        variables = module.init(jax.random.key(0), x, train=True)
        outputs.append(module.apply(variables, x, train=True, mutable=["batch_stats"])[0])
    assert np.abs(outputs[0] - x).max() > 0.1
    np.testing.assert_array_equal(outputs[1], x)


def test_zero_init_reaches_the_last_scale_of_every_block_alone():
    model = resnet(**TINY, depth=50, token_layer="layer2", zero_init=True)
    params = jax.jit(lambda: model.init(jax.random.key(0), images(16), train=False)["params"])()
    for name, block in params.items():
        if name.startswith("layer"):
            sums = {norm: np.sum(block[norm]["scale"]) for norm in block if "norm" in norm}
            assert sums.pop("norm3") == 0
            assert all(total > 0 for total in sums.values())


@pytest.mark.parametrize(("layer", "stages"), [("layer2", 2), ("layer3", 3), ("layer4", 4)])
def test_layers_above_the_tapped_one_are_not_built(layer, stages):
    """Each stage has as many parameters as torchvision's."""
    params = shapes(resnet(token_layer=layer))["params"]
    blocks = [f"layer{s}_block{b}" for s in range(1, stages + 1) for b in range(2)]
    assert set(params) == {"stem_conv", "stem_norm", *blocks, "token_projection", "token_norm"}
    published = (147_968, 525_568, 2_099_712, 8_393_728)
    for stage in range(1, stages + 1):
        both = [params[f"layer{stage}_block{b}"] for b in range(2)]
        assert count_parameters(both) == published[stage - 1]
    assert count_parameters(params["stem_conv"]) == 27 * 64
    assert count_parameters(params["token_projection"]) == (64 << (stages - 1)) * 32


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, 32),
        ({"token_layer": "layer2"}, 33),
        ({"token_layer": "layer4"}, 20),
        ({"stem": "imagenet"}, 65),
        ({"stem": "imagenet", "token_grid": 5}, 64),
        ({"head": "global", "embed_dim": 10}, 32),
        ({"head": "pooled"}, 32),
        ({"head": "pooled", "depth": 50, "stem": "imagenet"}, 65),
        ({"depth": 50, "token_layer": "layer4"}, 33),
    ],
)
def test_output_dim_is_the_width_of_the_state(fields, size):
    model = resnet(**TINY, **fields)
    variables = shapes(model, size)
    out = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images(size))
    assert out.shape == (2, model.shape(size).dim)
    if model.settings.head == "tokens":
        assert out.shape[1] == model.shape(size).token_grid ** 2 * model.settings.token_dim


def test_default_state_has_2048_numbers():
    assert resnet().shape(32).dim == 2048
    assert resnet(stem="imagenet", token_grid=8).shape(224).dim == 2048


def test_width_scales_every_stage():
    kernel = shapes(resnet(width=6, token_layer="layer4"))["params"]["layer4_block1"]["conv2"]
    assert kernel["kernel"].shape == (3, 3, 48, 48)


@pytest.mark.parametrize(("size", "stride"), [(1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("side", [8, 9])
def test_convolution_pads_symmetrically(size, stride, side):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, side, side, 3)), rng.normal(size=(size, size, 3, 4))
    pad = (size - 1) // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = (side + 2 * pad - size) // stride + 1
    expected = np.zeros((2, out, out, 4))
    for i in range(out):
        for j in range(out):
            window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            expected[:, i, j] = np.tensordot(window, kernel, 3)
    actual = conv2d(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), stride, pad)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize(("side", "out"), [(14, 8), (4, 2), (5, 1), (2, 5), (3, 3)])
def test_adaptive_pool_averages_torch_windows(side, out):
    x = np.random.default_rng(0).normal(size=(2, side, side + 1, 3)).astype(np.float32)
    expected = np.zeros((2, out, out, 3))
    for i in range(out):
        for j in range(out):
            rows = slice(math.floor(i * side / out), math.ceil((i + 1) * side / out))
            width = side + 1
            columns = slice(math.floor(j * width / out), math.ceil((j + 1) * width / out))
            expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    np.testing.assert_allclose(adaptive_average_pool(jnp.asarray(x), out), expected, atol=1e-6)


@pytest.mark.parametrize("side", [6, 7])
def test_max_pool_pads_with_minus_infinity(side):
    x = -1 - np.random.default_rng(0).uniform(size=(2, side, side, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    out = (side + 1) // 2
    expected = [
        [padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(out)]
        for i in range(out)
    ]
    actual = max_pool_3x3(jnp.asarray(x))
    np.testing.assert_array_equal(actual, np.moveaxis(np.array(expected), 2, 0))


def apply_norm(x, train, stats=None, scale=None, bias=None):
    channels = x.shape[-1]
    variables = {
        "params": {
            "scale": jnp.ones(channels) if scale is None else scale,
            "bias": jnp.zeros(channels) if bias is None else bias,
        },
        "batch_stats": stats or {"mean": jnp.zeros(channels), "var": jnp.ones(channels)},
    }
    out, new = BatchNorm().apply(variables, x, train=train, mutable=["batch_stats"])
    return out, new["batch_stats"]


def test_batch_norm_matches_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, size=(3, 4, 5, 2)).astype(np.float32)
    scale, bias, old_mean = rng.normal(size=(3, 2)).astype(np.float32)
    old_var = np.array([0.5, 2], np.float32)
    stats = {"mean": jnp.asarray(old_mean), "var": jnp.asarray(old_var)}
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    out, new = apply_norm(x, True, stats, scale, bias)
    np.testing.assert_allclose(out, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, atol=1e-5)
    np.testing.assert_allclose(new["mean"], 0.9 * old_mean + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(new["var"], 0.9 * old_var + 0.1 * var * 60 / 59, rtol=1e-5)
    out, new = apply_norm(x, False, stats, scale, bias)
    expected = (x - old_mean) / np.sqrt(old_var + 1e-5) * scale + bias
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_array_equal(new["mean"], old_mean)


def test_batch_norm_is_accurate_where_the_mean_dwarfs_the_spread():
    x = 1e4 + np.random.default_rng(0).normal(size=(512, 1)).astype(np.float32)
    wide = x.astype(np.float64)
    _, new = apply_norm(jnp.asarray(x), True)
    np.testing.assert_allclose(new["var"], 0.9 + 0.1 * wide.var(ddof=1), rtol=1e-3)


def test_batch_norm_statistics_of_low_precision_inputs_are_float32():
    x = (100 + jax.random.normal(jax.random.key(0), (4096, 2))).astype(jnp.bfloat16)
    out, new = apply_norm(x, True)
    assert out.dtype == jnp.bfloat16
    assert new["mean"].dtype == jnp.float32
    np.testing.assert_allclose(new["mean"], 0.1 * np.asarray(x, np.float64).mean(0), rtol=1e-5)


def test_batch_norm_refuses_to_train_on_one_value():
    with pytest.raises(ValueError, match="one value per channel"):
        apply_norm(jnp.ones((1, 1, 1, 3)), True)


def test_split_tokens_put_q_first():
    tokens = np.arange(2 * 3 * 3 * 4).reshape(2, 3, 3, 4)
    joint = np.asarray(flatten_tokens(jnp.asarray(tokens), True))
    np.testing.assert_array_equal(joint[:, :18], tokens[..., :2].reshape(2, -1))
    np.testing.assert_array_equal(joint[:, 18:], tokens[..., 2:].reshape(2, -1))
    plain = np.asarray(flatten_tokens(jnp.asarray(tokens), False))
    np.testing.assert_array_equal(plain, tokens.reshape(2, -1))


def test_initialization_is_torchvisions():
    key = jax.random.key(0)
    normal = Conv(64, 3).init(key, jnp.zeros((1, 4, 4, 32)))["params"]["kernel"]
    np.testing.assert_allclose(np.std(normal), math.sqrt(2 / (9 * 64)), rtol=0.03)
    assert np.abs(normal).max() > 2.5 * np.std(normal)
    uniform = Conv(64, 3, initializer=default_uniform)
    kernel = np.asarray(uniform.init(key, jnp.zeros((1, 4, 4, 32)))["params"]["kernel"])
    bound = 1 / math.sqrt(9 * 32)
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / math.sqrt(3), rtol=0.03)
    linear = Linear(100).init(key, jnp.zeros((1, 400)))["params"]
    for leaf in linear.values():
        assert 0.04 < np.abs(leaf).max() <= 0.05


def test_stem_and_projection_have_the_default_initialization():
    model = resnet(width=16, token_dim=32)

    @jax.jit
    def kernels(key):
        # Only these two are returned, so jit drops the rest of the initialization.
        params = model.init(key, images(16), train=False)["params"]
        return [params[name]["kernel"] for name in ("stem_conv", "token_projection")]

    for kernel, fan_in in zip(kernels(jax.random.key(0)), (27, 64)):
        assert 0.95 / math.sqrt(fan_in) < np.abs(kernel).max() <= 1 / math.sqrt(fan_in)


def test_initializing_leaves_running_statistics_alone():
    stats = BatchNorm().init(jax.random.key(0), jnp.arange(8.0).reshape(4, 2), train=True)
    np.testing.assert_array_equal(stats["batch_stats"]["mean"], 0)
    np.testing.assert_array_equal(stats["batch_stats"]["var"], 1)


@pytest.fixture(scope="module")
def tiny():
    """A small encoder with random kernels from NumPy, which costs no compilation."""
    model = resnet(**TINY, token_layer="layer2")
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(size=leaf.shape).astype(np.float32) / math.sqrt(leaf.size)
        return np.full(leaf.shape, name in ("scale", "var"), np.float32)

    return model, jax.tree_util.tree_map_with_path(draw, shapes(model))


def test_evaluation_treats_images_apart_and_training_does_not(tiny):
    model, variables = tiny
    x = images(16, 4)
    evaluate = jax.jit(lambda x: model.apply(variables, x, train=False))
    z_eval = evaluate(x)
    np.testing.assert_allclose(z_eval[:2], evaluate(x[:2].repeat(2, 0))[::2], atol=1e-5)
    train = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]))
    z, updates = train(x)
    assert np.abs(z - z_eval).max() > 0.1
    assert names(updates["batch_stats"]) == names(variables["batch_stats"])
    assert all(
        np.any(np.asarray(a) != np.asarray(b))
        for a, b in zip(
            jax.tree.leaves(updates["batch_stats"]), jax.tree.leaves(variables["batch_stats"])
        )
    )
    # The token head ends in a BatchNorm of scale 1: every channel is standardized over the batch.
    tokens = np.asarray(z).reshape(4, 2, 64, 3)
    np.testing.assert_allclose(tokens.mean((0, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(tokens.std((0, 2)), 1, atol=1e-2)


@pytest.mark.parametrize("head", ["tokens", "global", "pooled"])
def test_tokens_are_the_feature_map_before_the_head(head) -> None:
    """Projected and normalized, or averaged, they are the state."""
    model = resnet(width=4, head=head, token_dim=6, embed_dim=6, token_layer="layer2")
    variables = model.init(jax.random.key(0), images(16), train=False)
    x = images(16, 3)
    tokens = model.apply(variables, x, method="tokens")
    side, width = (8, 8) if head == "tokens" else (2, 32)
    assert tokens.shape == (3, side * side, width)
    params = variables["params"]
    if head == "tokens":
        kernel = params["token_projection"]["kernel"][0, 0]
        expected = (tokens @ kernel / math.sqrt(1 + 1e-5)).reshape(3, side, side, 6)
        expected = flatten_tokens(expected, True)
    else:
        expected = tokens.mean(1)
    if head == "global":
        expected = expected @ params["head"]["kernel"] + params["head"]["bias"]
    z = model.apply(variables, x, train=False)
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)


def test_low_precision_computes_in_bfloat16_and_returns_float32(tiny):
    model, variables = tiny
    low = model.clone(dtype=jnp.bfloat16)
    x = images(16, 8)
    run = jax.jit(lambda x: low.apply(variables, x, train=True, mutable=["batch_stats"]))
    text = run.lower(x).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(convolutions) == 11
    assert all("bf16" in line and "xf32" not in line for line in convolutions)
    z, updates = run(x)
    assert z.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
    wide = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]))
    difference = np.asarray(z - wide(x)[0])
    assert 1e-4 < np.sqrt((difference**2).mean()) < 0.05


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stem": "vit"}, "unknown stem 'vit'.*cifar"),
        ({"head": "patch"}, "unknown head 'patch'.*tokens"),
        ({"token_layer": "layer5"}, "unknown token_layer 'layer5'.*layer4"),
        ({"token_dim": 5}, "token_dim 5 must be even"),
        ({"depth": 51}, "depth is 51: use one of 18, 34, 50, 101, 152, or None"),
    ],
)
def test_errors_say_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        shapes(resnet(**fields))


def test_images_of_another_layout_are_refused():
    with pytest.raises(ValueError, match=r"\[N,H,W,3\].*\(2, 3, 8, 8\)"):
        jax.eval_shape(
            lambda key, x: resnet().init(key, x, train=False),
            jax.random.key(0),
            jnp.zeros((2, 3, 8, 8)),
        )

"""The Vision Transformer against NumPy in float64, its counts, layout, dtypes and errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vits import vit

from hjepa_jax.config import resolve
from hjepa_jax.errors import ConfigError
from hjepa_jax.models.base import Encoder
from hjepa_jax.models.parameter_matching import count_parameters
from hjepa_jax.recipes import quickstart

from .test_block import linear, normalized, random_like, reference


def shapes(model, size=16):
    init = functools.partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, size, size, 3), model.dtype))


@pytest.mark.parametrize(
    ("width", "patch", "published"),
    [
        (192, 16, 5_524_416),
        (384, 16, 21_665_664),
        (768, 16, 85_798_656),
        (384, 8, 21_670_272),
    ],
)
def test_published_parameter_count(width, patch, published) -> None:
    """timm's vit_tiny, vit_small and vit_base for 224 pixels, without classes."""
    model = vit(width=width, patch_size=patch, depth=12, heads=None, head="class", image_size=224)
    assert count_parameters(shapes(model, 224)["params"]) == published


def cubic_matrix(size: int, out: int) -> np.ndarray:
    """Keys' cubic convolution with a = -1/2, widened where the size gets smaller."""
    scale = max(size / out, 1)
    centers = (np.arange(out) + 0.5) * size / out - 0.5
    distance = np.abs(centers[:, None] - np.arange(size)) / scale
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def all_tokens(params, x, patch: int, heads: int, grid: int) -> np.ndarray:
    """All tokens after the blocks, in NumPy."""
    number, side = x.shape[0], x.shape[1] // patch
    patches = np.zeros((number, side * side, patch * patch * 3))
    for row in range(side):
        for column in range(side):
            cut = x[:, row * patch :, column * patch :][:, :patch, :patch]
            patches[:, row * side + column] = cut.reshape(number, -1)
    matrix = np.eye(grid) if side == grid else cubic_matrix(grid, side)
    position = np.einsum("ik,jl,klc->ijc", matrix, matrix, params["position"])
    tokens = linear(patches, params["patches"]) + position.reshape(side * side, -1)
    first = [params["registers"]] if "registers" in params else []
    if "class_token" in params:
        first.insert(0, params["class_token"] + params["class_position"])
    first = np.concatenate([np.zeros((0, tokens.shape[-1])), *first])
    tokens = np.concatenate([np.broadcast_to(first, (number, *first.shape)), tokens], 1)
    for block in sorted(name for name in params if name.startswith("block")):
        tokens = reference(tokens, params[block], heads, np.ones((number, 2)))
    return tokens


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"head": "class", "registers": 2}, 16),
        ({"head": "class", "embed_dim": 10, "patch_size": 8}, 16),
        ({"head": "mean", "registers": 1, "class_token": False}, 8),
        ({"head": "mean", "embed_dim": 4}, 24),
        ({"head": "tokens", "class_token": False, "split_qp": False}, 16),
        ({"head": "tokens", "registers": 3}, 16),
        ({"head": "tokens", "token_grid": 2}, 24),
    ],
)
def test_states_and_tokens_equal_numpy(fields, size) -> None:
    with jax.enable_x64(True):
        model = vit(image_size=16, dtype=jnp.float64, **fields)
        settings = model.settings
        variables = random_like(shapes(model))
        if settings.head == "tokens":
            variables["batch_stats"]["token_norm"]["var"] = np.full(6, 0.7)
        x = np.random.default_rng(2).normal(size=(3, size, size, 3))
        params = variables["params"]
        every = all_tokens(params, x, settings.patch_size, 3, 16 // settings.patch_size)
        before = int(settings.class_token) + settings.registers
        patches = normalized(every[:, before:], params["norm"])
        tokens = jax.jit(functools.partial(model.apply, method="tokens"))(variables, x)
        np.testing.assert_allclose(tokens, patches, rtol=1e-10, atol=1e-10)
        if settings.head == "class":
            expected = normalized(every[:, 0], params["norm"])
        elif settings.head == "mean":
            expected = patches.mean(1)
        else:
            expected = token_states(variables, patches, settings.token_grid, model.split_qp)
        if "head" in params:
            expected = linear(expected, params["head"])
        got = jax.jit(functools.partial(model.apply, train=False))(variables, x)
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)
        assert got.shape == (3, model.shape(size).dim)


def token_states(variables, patches, grid, split_qp) -> np.ndarray:
    """The token head in NumPy: pooled, projected and normalized; all q, then all p."""
    params, stats = variables["params"], variables["batch_stats"]["token_norm"]
    number, side = patches.shape[0], round(patches.shape[1] ** 0.5)
    x = patches.reshape(number, side, side, -1)
    if grid:
        step = side // grid
        x = x.reshape(number, grid, step, grid, step, -1).mean((2, 4))
    x = (x @ params["token_projection"]["kernel"][0, 0] - stats["mean"]) / np.sqrt(
        stats["var"] + 1e-5
    )
    x = x * params["token_norm"]["scale"] + params["token_norm"]["bias"]
    if not split_qp:
        return x.reshape(number, -1)
    return np.concatenate([x[..., :3].reshape(number, -1), x[..., 3:].reshape(number, -1)], 1)


def test_the_grid_of_the_states_is_that_of_the_patches() -> None:
    assert vit(token_dim=32).shape(32) == (2048, 8, 32)
    assert vit(token_grid=5).shape(64) == (150, 5, 6)
    assert vit(head="mean").shape(64) == (12, None, None)
    assert vit(head="class", embed_dim=7).shape(64) == (7, None, None)


def test_low_precision_is_near_float32_and_returns_float32() -> None:
    model = vit(head="class", image_size=16)
    x = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    variables = random_like(shapes(model))
    low, high = (
        jax.jit(functools.partial(each.apply, train=False))(variables, x)
        for each in (model.clone(dtype=jnp.bfloat16), model)
    )
    assert low.dtype == high.dtype == jnp.float32
    difference = np.abs(low - high).max() / np.abs(high).max()
    assert 1e-5 < difference < 0.05


def test_paths_are_left_out_by_the_keys_of_the_images() -> None:
    """An image with its key gives the same state in any company; another key gives another."""
    model = vit(head="class", image_size=16, stochastic_depth=0.9)
    variables = random_like(shapes(model))
    x = jax.random.normal(jax.random.key(1), (6, 16, 16, 3))
    keys = jax.random.split(jax.random.key(2), 6)
    run = jax.jit(functools.partial(model.apply, train=True))
    z = run(variables, x, keys=keys)
    order = np.array([4, 0, 5])
    np.testing.assert_allclose(
        run(variables, x[order], keys=keys[order]), z[order], rtol=1e-5, atol=1e-5
    )
    frozen = model.apply(variables, x, train=False)
    assert np.any(np.abs(frozen - z).max(1) > 1e-3)
    again = run(variables, x, keys=jax.random.split(jax.random.key(3), 6))
    assert np.any(np.abs(again - z).max(1) > 1e-3)
    # The first block is never skipped: with a depth of 1 nothing is.
    one = vit(head="class", image_size=16, stochastic_depth=0.9, depth=1)
    params = {name: leaf for name, leaf in variables["params"].items() if name != "block1"}
    np.testing.assert_allclose(
        one.apply({"params": params}, x, train=True, keys=keys),
        one.apply({"params": params}, x, train=False),
        rtol=1e-5,
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="one for each image"):
        model.apply(variables, x, train=True)
    assert not vit().takes_keys


def test_recomputed_blocks_give_the_same_gradient() -> None:
    with jax.enable_x64(True):
        model = vit(head="mean", image_size=16, stochastic_depth=0.5, dtype=jnp.float64)
        variables = random_like(shapes(model))
        x = np.random.default_rng(0).normal(size=(4, 16, 16, 3))
        keys = jax.random.split(jax.random.key(0), 4)

        def gradient(remat):
            settings = dataclasses.replace(model.settings, remat=remat)
            each = model.clone(settings=settings)

            def loss(params, x):
                return jnp.sum(jnp.sin(each.apply({"params": params}, x, train=True, keys=keys)))

            return jax.jit(jax.grad(loss, (0, 1)))(variables["params"], x)

        plain, again = gradient("none"), gradient("blocks")
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"vit.patch_size": 5}, r"patch_size is 5, which does not divide config.data.image_size"),
        ({"vit.width": 100, "vit.heads": 3}, r"width is 100, which 3 heads do not divide"),
        ({"vit.head": "class", "vit.class_token": False}, "class_token is False: set it to True"),
        ({"vit.token_dim": 7}, "token_dim is 7: with config.model.split_qp=True it must be even"),
        (
            {"data.num_local_views": 2, "data.local_size": 8},
            r"local_size \(8\) differs .* set config.vit.token_grid",
        ),
        (
            {"data.num_local_views": 2, "data.local_size": 10},
            r"patch_size is 4, which does not divide config.data.local_size=10",
        ),
        ({"vit.head": "mean", "vit.embed_dim": 5}, "states have 5 dimensions"),
    ],
)
def test_contradictions_are_named(fields, sentence) -> None:
    config = quickstart.get_config()
    config.model.encoder = "vit"
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=sentence):
        resolve(config)


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes images \[N,S,S,3\]"):
        vit().init(jax.random.key(0), jnp.zeros((2, 16, 8, 3)), train=False)
    with pytest.raises(ValueError, match="patch_size 4 does not divide 18"):
        vit().init(jax.random.key(0), jnp.zeros((2, 18, 18, 3)), train=False)
    with pytest.raises(ValueError, match="5 heads do not divide 12"):
        vit(heads=5).init(jax.random.key(0), jnp.zeros((2, 16, 16, 3)), train=False)


def test_an_encoder_without_tokens_says_so() -> None:
    with pytest.raises(Exception, match="has no tokens"):
        Encoder().apply({}, jnp.zeros((2, 8, 8, 3)), method="tokens")

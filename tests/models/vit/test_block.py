"""A transformer block against NumPy in float64, and what it computes in which dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from hjepa_jax.models.vit.block import Block, attention

SHAPE = (2, 5, 12)


def normalized(x, parameters):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * parameters["scale"] + parameters["bias"]


def linear(x, parameters):
    return x @ parameters["kernel"] + parameters["bias"]


def attended(x, parameters, heads):
    """One image, head and query at a time."""
    parts, size = linear(x, parameters["qkv"]), x.shape[-1] // heads
    out = np.zeros_like(x)
    for image in range(x.shape[0]):
        for head in range(heads):
            q, k, v = (
                parts[image, :, each * x.shape[-1] + head * size :][:, :size] for each in range(3)
            )
            for token in range(x.shape[1]):
                weights = np.exp(k @ q[token] / np.sqrt(size))
                out[image, token, head * size :][:size] = weights @ v / weights.sum()
    return linear(out, parameters["projection"])


def reference(x, parameters, heads, scales=((1, 1), (1, 1))):
    """The block in NumPy."""
    first, second = (np.reshape(each, (-1, 1, 1)) for each in np.transpose(scales))
    branch = attended(normalized(x, parameters["norm1"]), parameters["attention"], heads)
    x = x + first * branch * parameters.get("layer_scale1", {"scale": 1})["scale"]
    hidden = linear(normalized(x, parameters["norm2"]), parameters["fc1"])
    branch = linear(hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))), parameters["fc2"])
    return x + second * branch * parameters.get("layer_scale2", {"scale": 1})["scale"]


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape), tree)


@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_equals_numpy(layer_scale) -> None:
    with jax.enable_x64(True):
        block = Block(3, layer_scale, jnp.float64)
        x = np.random.default_rng(1).normal(size=SHAPE)
        shapes = jax.eval_shape(block.init, jax.random.key(0), x)
        variables = random_like(shapes)
        assert ("layer_scale1" in variables["params"]) == (layer_scale is not None)
        for scales in (None, np.array([[0, 2], [1.5, 0]])):
            got = jax.jit(block.apply)(variables, x, scales)
            given = {} if scales is None else {"scales": scales}
            expected = reference(x, variables["params"], 3, **given)
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_initialization_is_that_of_vit() -> None:
    block = Block(4, 1e-5, jnp.bfloat16)
    params = block.init(jax.random.key(0), jnp.zeros((1, 2, 64), jnp.bfloat16))["params"]
    for layer in (params["fc1"], params["attention"]["qkv"]):
        np.testing.assert_allclose(np.std(layer["kernel"]), 0.02, rtol=0.05)
        assert not np.any(layer["bias"])
    np.testing.assert_array_equal(params["layer_scale2"]["scale"], np.float32(1e-5))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def test_bfloat16_products_have_bfloat16_inputs_in_both_directions() -> None:
    """The softmax between them is in float32, and its gradient is near that of float32."""
    rng = np.random.default_rng(0)
    wide = [jnp.asarray(rng.normal(size=(2, 3, 7, 8)), jnp.float32) for _ in range(3)]
    narrow = [x.astype(jnp.bfloat16) for x in wide]

    def total(*arrays):
        return jnp.sum(jnp.sin(attention(*arrays).astype(jnp.float32)))

    gradient = jax.jit(jax.grad(total, (0, 1, 2)))
    text = gradient.lower(*narrow).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 6
    assert all(line.split(" : ")[1].split("->")[0].count("xbf16>") == 2 for line in products)
    softmax = [line for line in text.splitlines() if "stablehlo.exponential" in line]
    assert softmax
    assert all("xf32>" in line for line in softmax)
    for a, b in zip(gradient(*narrow), gradient(*wide)):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02 * np.abs(b).max())

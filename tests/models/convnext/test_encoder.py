"""ConvNeXt against NumPy in float64, its counts, weights of other software, and errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convnexts import convnext
from scipy.special import erf

from hjepa_jax.config import resolve
from hjepa_jax.errors import ConfigError, DataError
from hjepa_jax.interop.foreign_weights import translate
from hjepa_jax.models.parameter_matching import count_parameters
from hjepa_jax.recipes import quickstart


def shapes(model, size=16):
    init = functools.partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, size, size, 3), model.dtype))


def random_like(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape), tree)


def normalized(x, parameters):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * parameters["scale"] + parameters["bias"]


def linear(x, parameters):
    return x @ parameters["kernel"] + parameters["bias"]


def patchified(x, size, parameters):
    """A convolution whose stride is its size, one position at a time."""
    rows, columns = x.shape[1] // size, x.shape[2] // size
    kernel = parameters["kernel"].reshape(size, size, x.shape[-1], -1)
    out = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            cut = x[:, i * size : (i + 1) * size, j * size : (j + 1) * size]
            out[:, i, j] = np.tensordot(cut, kernel, 3)
    return out + parameters["bias"]


def block(x, parameters, scale):
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    out = np.zeros_like(x)
    for i in range(7):
        for j in range(7):
            window = padded[:, i : i + x.shape[1], j : j + x.shape[2]]
            out += window * parameters["depthwise"]["kernel"][i, j, 0]
    out = normalized(out + parameters["depthwise"]["bias"], parameters["norm"])
    hidden = linear(out, parameters["fc1"])
    out = linear(hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))), parameters["fc2"])
    return x + np.reshape(scale, (-1, 1, 1, 1)) * out * parameters["layer_scale"]["scale"]


def feature_map(params, x, patch, counts):
    x = normalized(patchified(x, patch, params["stem"]), params["stem_norm"])
    for stage, count in enumerate(counts, 1):
        if stage > 1:
            x = normalized(x, params[f"downsample{stage}_norm"])
            x = patchified(x, 2, params[f"downsample{stage}"])
        for number in range(count):
            x = block(x, params[f"stage{stage}_block{number}"], np.ones(len(x)))
    return x


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"head": "mean"}, 16),
        ({"head": "mean", "embed_dim": 5, "patch_size": 1}, 9),
        ({"head": "tokens"}, 16),
        ({"head": "tokens", "token_grid": 2, "split_qp": False}, 19),
    ],
)
def test_states_and_tokens_equal_numpy(fields, size) -> None:
    with jax.enable_x64(True):
        model = convnext(dtype=jnp.float64, **fields)
        settings = model.settings
        variables = random_like(shapes(model, size))
        params = variables["params"]
        if settings.head == "tokens":
            variables["batch_stats"]["token_norm"] = {"mean": np.zeros(6), "var": np.ones(6)}
            params["token_norm"] = {"scale": np.ones(6), "bias": np.zeros(6)}
        x = np.random.default_rng(2).normal(size=(3, size, size, 3))
        found = feature_map(params, x, settings.patch_size, settings.blocks)
        tokens = jax.jit(functools.partial(model.apply, method="tokens"))(variables, x)
        np.testing.assert_allclose(
            tokens, found.reshape(3, -1, found.shape[-1]), rtol=1e-10, atol=1e-10
        )
        if settings.head == "mean":
            expected = normalized(found.mean((1, 2)), params["norm"])
            if settings.embed_dim:
                expected = linear(expected, params["head"])
        else:
            if settings.token_grid:
                found = found.reshape(3, 2, 2, 2, 2, -1).mean((2, 4))
            found = found @ params["token_projection"]["kernel"][0, 0] / np.sqrt(1 + 1e-5)
            halves = np.split(found, 2, -1) if model.split_qp else [found]
            expected = np.concatenate([half.reshape(3, -1) for half in halves], 1)
        got = jax.jit(functools.partial(model.apply, train=False))(variables, x)
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)
        assert got.shape == (3, model.shape(size).dim)


def test_published_parameter_count() -> None:
    """timm's convnext_tiny without classes."""
    model = convnext(width=96, stage_blocks=(3, 3, 9, 3), patch_size=4, head="mean")
    assert count_parameters(shapes(model, 64)["params"]) == 27_820_128


def test_blocks_are_left_out_and_recomputed_alike() -> None:
    with jax.enable_x64(True):
        model = convnext(head="mean", stochastic_depth=0.5, dtype=jnp.float64)
        variables = random_like(shapes(model))
        x = np.random.default_rng(0).normal(size=(6, 16, 16, 3))
        keys = jax.random.split(jax.random.key(0), 6)
        gradients = []
        for remat in ("none", "blocks"):
            each = model.clone(settings=dataclasses.replace(model.settings, remat=remat))

            def loss(params, x, keys, each=each):
                z = each.apply({"params": params}, x, train=True, keys=keys)
                return jnp.sum(jnp.sin(z)), z

            gradient = jax.jit(jax.grad(loss, has_aux=True))
            gradients.append(gradient(variables["params"], x, keys))
        (plain, z), (again, _) = gradients
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
        _, part = gradient(variables["params"], x[2:4], keys[2:4])
        np.testing.assert_allclose(part, z[2:4], rtol=1e-9)
        frozen = model.apply(variables, x, train=False)
        assert np.any(np.abs(frozen - z).max(1) > 1e-6)
        with pytest.raises(ValueError, match="one for each image"):
            model.apply(variables, x, train=True)


def test_low_precision_is_near_float32_and_returns_float32() -> None:
    model = convnext(head="mean")
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    variables = random_like(shapes(model))
    low, high = (
        jax.jit(functools.partial(each.apply, train=False))(variables, x)
        for each in (model.clone(dtype=jnp.bfloat16), model)
    )
    assert low.dtype == high.dtype == jnp.float32
    assert 1e-5 < np.abs(low - high).max() / np.abs(high).max() < 0.05


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"convnext.patch_size": 8}, r"image_size is 16, but 3 stages .* need 32 pixels"),
        ({"convnext.token_dim": 7}, "token_dim is 7: with config.model.split_qp=True"),
        (
            {"data.num_local_views": 2, "data.local_size": 8},
            r"local_size \(8\) differs .* set config.convnext.token_grid",
        ),
        (
            {"convnext.head": "mean", "convnext.embed_dim": 5},
            "states have 5 dimensions",
        ),
    ],
)
def test_contradictions_are_named(fields, sentence) -> None:
    config = quickstart.get_config()
    config.model.encoder = "convnext"
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=sentence):
        resolve(config)


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match=r"larger images \[N,H,W,3\] than of shape \(2, 3, 3, 3\)"):
        convnext().init(jax.random.key(0), jnp.zeros((2, 3, 3, 3)), train=False)


def _model(library):
    torch = pytest.importorskip("torch")
    made = pytest.importorskip(library)
    if library == "timm":
        sizes = {"depths": (1, 2, 1, 1), "dims": (6, 12, 24, 48)}
        model = made.create_model("convnext_tiny", num_classes=0, **sizes)
    else:
        from torchvision.models.convnext import CNBlockConfig, ConvNeXt

        channels, counts = (6, 12, 24, 48, None), (1, 2, 1, 1)
        blocks = [CNBlockConfig(*each) for each in zip(channels[:4], channels[1:], counts)]
        model = ConvNeXt(blocks, num_classes=3)
        model.classifier[2] = torch.nn.Identity()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return torch, model.eval()


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("size", [32, 45])
def test_random_weights_give_their_features(library, size) -> None:
    torch, model = _model(library)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    encoder = convnext(patch_size=4, head="mean")
    found = translate(encoder, 32, tensors, "x")
    assert not found.left_out
    images = np.random.default_rng(0).normal(size=(3, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    features = jax.jit(functools.partial(encoder.apply, train=False))(found.variables, images)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=2e-4 * np.abs(expected).max())
    # Tokens of an earlier stage leave the later ones out.
    tokens = translate(convnext(patch_size=4), 32, tensors, "x")
    assert tokens.own == ("token_projection", "token_norm")
    reasons = set(tokens.left_out.values())
    assert "of a stage above config.convnext.token_stage" in reasons
    assert "the normalization of pooled features" in reasons
    with pytest.raises(DataError, match="has tensors that the ConvNeXt of --config does not take"):
        translate(convnext(patch_size=4, stage_blocks=(1, 1, 1, 1)), 32, tensors, "x")


def test_parameters_are_as_many_as_in_timm() -> None:
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model("convnext_tiny", num_classes=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 27_820_128

"""Weights of timm and torchvision: their features, positions of other sizes, and faults."""

import functools

import jax
import numpy as np
import pytest
from vits import vit

from hjepa_jax.errors import DataError, UserError
from hjepa_jax.interop.foreign_weights import translate
from hjepa_jax.models.parameter_matching import count_parameters

SMALL = {"width": 48, "depth": 2, "heads": 3, "patch_size": 8, "head": "class", "image_size": 32}


def file_of(encoder, size=32, **changes):
    """A state dict in timm's names with random values for an encoder, whose own shapes it has."""
    settings, rng = encoder.settings, np.random.default_rng(0)
    width, grid = settings.width, (size // settings.patch_size) ** 2
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, grid + 1, width),
        "patch_embed.proj.weight": (width, 3, settings.patch_size, settings.patch_size),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (10, width),
        "head.bias": (10,),
    }
    linear = {"attn.qkv": 3 * width, "attn.proj": width, "mlp.fc1": 4 * width}
    for block in range(settings.depth):
        for name, outputs in linear.items():
            shapes[f"blocks.{block}.{name}.weight"] = (outputs, width)
            shapes[f"blocks.{block}.{name}.bias"] = (outputs,)
        shapes[f"blocks.{block}.mlp.fc2.weight"] = (width, 4 * width)
        shapes[f"blocks.{block}.mlp.fc2.bias"] = (width,)
        for norm in ("norm1", "norm2"):
            shapes[f"blocks.{block}.{norm}.weight"] = (width,)
            shapes[f"blocks.{block}.{norm}.bias"] = (width,)
    shapes |= changes
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
        if shape is not None
    }


def test_every_tensor_has_its_place() -> None:
    encoder = vit(**SMALL)
    tensors = file_of(encoder, mask_token=(1, 48))
    found = translate(encoder, 32, tensors, "x")
    params = found.variables["params"]
    assert found.left_out.keys() == {"head.weight", "head.bias", "mask_token"}
    np.testing.assert_array_equal(params["position"].reshape(16, 48), tensors["pos_embed"][0, 1:])
    np.testing.assert_array_equal(params["class_position"], tensors["pos_embed"][0, :1])
    # A pixel of a patch: row 2, column 5, green.
    np.testing.assert_array_equal(
        params["patches"]["kernel"][(2 * 8 + 5) * 3 + 1],
        tensors["patch_embed.proj.weight"][:, 1, 2, 5],
    )
    tokens = translate(vit(**{**SMALL, "head": "tokens"}), 32, tensors, "x")
    assert tokens.own == ("token_projection", "token_norm")


def test_positions_of_another_size_are_interpolated_as_local_views_are() -> None:
    tensors = file_of(vit(**SMALL))
    small, large = (translate(vit(**{**SMALL, "image_size": s}), s, tensors, "x") for s in (32, 48))
    assert large.variables["params"]["position"].shape == (6, 6, 48)
    images = np.random.default_rng(1).normal(size=(2, 48, 48, 3)).astype(np.float32)
    states = [
        vit(**{**SMALL, "image_size": size}).apply(each.variables, images, train=False)
        for size, each in ((32, small), (48, large))
    ]
    np.testing.assert_allclose(*states, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "changes", "error", "sentence"),
    [
        ({}, {"cls_token": None}, DataError, "x has no tensor cls_token: describe"),
        ({}, {"blocks.0.ls1.gamma": (48,)}, DataError, r"ViT of --config does not take: blocks"),
        ({}, {"fc_norm.weight": (48,)}, DataError, r"does not take: fc_norm\.weight"),
        ({"depth": 1}, {}, DataError, r"does not take: blocks\.1"),
        ({"patch_size": 4}, {}, DataError, r"proj\.weight has shape \(48, 3, 8, 8\)"),
        ({}, {"pos_embed": (1, 19, 48)}, DataError, r"pos_embed has shape \(1, 19, 48\)"),
        ({}, {"pos_embed": (48,)}, DataError, r"pos_embed has shape \(48,\)"),
        (
            {"registers": 2},
            {"reg_token": (1, 2, 48), "pos_embed": (1, 19, 48)},
            UserError,
            "positions, some of them for its register tokens",
        ),
    ],
)
def test_a_file_of_another_model_is_one_sentence(fields, changes, error, sentence) -> None:
    tensors = file_of(vit(**SMALL), **changes)
    with pytest.raises(error, match=sentence):
        translate(vit(**{**SMALL, **fields}), 32, tensors, "x")


def _timm(torch, **fields):
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "vit_tiny_patch16_224",
        **{"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_classes": 0},
        dynamic_img_size=True,
        **fields,
    )
    return _randomized(torch, model)


def _randomized(torch, model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def _compare(torch, model, encoder, size) -> None:
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    found = translate(encoder, 32, tensors, "x")
    images = np.random.default_rng(0).normal(size=(3, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    apply = jax.jit(functools.partial(encoder.apply, train=False))
    features = apply(found.variables, images)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"init_values": 0.5}, {"layer_scale": 0.5}),
        ({"reg_tokens": 3, "no_embed_class": True}, {"registers": 3}),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, {"head": "mean"}),
    ],
)
@pytest.mark.parametrize("size", [32, 48, 16])
def test_random_weights_of_timm_give_its_features(theirs, ours, size) -> None:
    torch = pytest.importorskip("torch")
    encoder = vit(**{**SMALL, "class_token": "class_token" not in theirs, **ours})
    _compare(torch, _timm(torch, **theirs), encoder, size)


def test_random_weights_of_torchvision_give_its_features() -> None:
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    model = models.VisionTransformer(32, 8, 2, 3, 48, 192)
    model.heads = torch.nn.Identity()
    _compare(torch, _randomized(torch, model), vit(**SMALL), 32)


@pytest.mark.parametrize(("size", "width"), [("tiny", 192), ("small", 384), ("base", 768)])
@pytest.mark.parametrize("patch", [16, 8])
def test_parameters_are_as_many_as_in_timm(size, width, patch) -> None:
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(f"vit_{size}_patch16_224", patch_size=patch, num_classes=0)
    encoder = vit(width=width, depth=12, heads=None, patch_size=patch, head="class", image_size=224)
    shapes = jax.eval_shape(
        functools.partial(encoder.init, train=False),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32),
    )
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(shapes["params"]) == expected

"""Weights of torchvision and timm: names, features, runs, and faults that name the tensor."""

import json
import struct

import forked
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from resnets import resnet
from tiny_encoder import Halves

import hjepa_jax
from hjepa_jax.config.checks import typed
from hjepa_jax.errors import CheckpointError, ConfigError, DataError, UserError
from hjepa_jax.evaluate import evaluate
from hjepa_jax.interop import foreign_weights
from hjepa_jax.models.parameter_matching import count_parameters
from hjepa_jax.recipes import folder, pretrained
from hjepa_jax.tools.commands import import_torch
from hjepa_jax.tools.show.state import read_state
from hjepa_jax.train import train
from hjepa_jax.training.saved_run import initial_state
from hjepa_jax.training.setup import build_encoder

TINY = {"width": 4, "block": "bottleneck", "stage_blocks": (1, 2, 1, 1), "head": "pooled"}


def state_of(encoder, size=32):
    """A state dict with random values, in the names and shapes of torchvision."""
    fresh = jax.eval_shape(
        lambda key, x: encoder.init(key, x, train=False),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, size, size, 3), np.float32),
    )
    rng = np.random.default_rng(0)
    state = {"fc.weight": np.ones((10, 7), np.float32), "fc.bias": np.ones(10, np.float32)}
    for entry in encoder.foreign_names({}).entries:
        leaf = fresh[entry.collection]
        for part in entry.path:
            leaf = leaf[part]
        value = rng.uniform(0.5, 1, leaf.shape)
        if value.ndim == 4:
            value = rng.normal(0, np.prod(leaf.shape[:3]) ** -0.5, leaf.shape).transpose(3, 2, 0, 1)
        # safetensors writes the memory of an array as it lies.
        state[entry.name] = value.astype(np.float32, order="C")
    state["bn1.num_batches_tracked"] = np.array(3)
    return state


@pytest.mark.parametrize("fields", [{}, {"block": "basic"}, {"head": "tokens", "token_dim": 6}])
def test_every_tensor_has_its_place(fields) -> None:
    encoder = resnet(**{**TINY, **fields}, stem="imagenet")
    state = state_of(encoder)
    state["layer4.0.conv1.weight"] = state.get("layer4.0.conv1.weight", np.zeros(1))
    found = foreign_weights.translate(encoder, 32, state, "x")
    params, stats = (found.variables[name] for name in ("params", "batch_stats"))
    kernel = params["layer2_block0"]["downsample_conv"]["kernel"]
    assert kernel[0, 0, 2, 1] == state["layer2.0.downsample.0.weight"][1, 2, 0, 0]
    np.testing.assert_array_equal(
        stats["layer1_block0"]["norm2"]["var"], state["layer1.0.bn2.running_var"]
    )
    expected = {"fc.weight": "the classifier", "fc.bias": "the classifier"}
    expected["bn1.num_batches_tracked"] = "a counter"
    tokens = fields.get("head") == "tokens"
    if tokens:
        expected["layer4.0.conv1.weight"] = "of a stage above config.resnet.token_layer"
    assert found.left_out == expected
    assert found.own == (("token_projection", "token_norm") if tokens else ())


@pytest.fixture(scope="module")
def smoke():
    """The encoder of the shrunk recipe, and a state dict for it."""
    encoder = build_encoder(typed(pretrained.get_config("smoke")))
    return encoder, state_of(encoder, 64)


def test_the_command_makes_a_run_that_encodes_tunes_and_evaluates(smoke, tmp_path) -> None:
    encoder, state = smoke
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(state, path)
    done = forked.run(
        "scripts/import_torch_checkpoint.py",
        f"--checkpoint={path}",
        "--config=pretrained:resnet50-smoke",
        f"--workdir={tmp_path}/run",
    )
    assert done.returncode == 0, done.stderr
    assert "left out, the classifier: fc.bias, fc.weight" in done.stdout
    assert "mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225)" in done.stdout
    data = json.loads((tmp_path / "run/config.json").read_text())["data"]
    assert data["mean"] == [0.485, 0.456, 0.406]
    run = hjepa_jax.load(tmp_path / "run", batch_size=4)
    assert (run.step, run.encoder.dim) == (0, 8 * 8 * 4)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    inputs = (images / 255 - data["mean"]) / data["std"]
    weights = foreign_weights.translate(encoder, 64, state, "x")
    expected = encoder.apply(weights.variables, inputs.astype(np.float32), train=False)
    np.testing.assert_allclose(run.encode(images), expected, rtol=1e-4)
    run.save_pretrained(tmp_path / "shared")
    card = (tmp_path / "shared/README.md").read_text()
    assert "whose weights were read from `weights.safetensors` by" in card
    assert "trained without labels" not in card
    shared = hjepa_jax.from_pretrained(tmp_path / "shared", batch_size=4)
    assert shared.origin.imported == "weights.safetensors"
    np.testing.assert_array_equal(shared.encode(images), run.encode(images))
    with pytest.raises(CheckpointError, match="exists already"):
        foreign_weights.save_weights(weights, run.settings, tmp_path / "run")

    shown = read_state(tmp_path / "run")
    assert (shown.status, shown.total_steps) == ("imported", None)
    assert shown.next.startswith("hjepa eval ")
    with pytest.raises(CheckpointError, match=r"no training goes on there.*init_from=.*run\."):
        train(run.settings, tmp_path / "run")

    metrics = evaluate(run.settings, tmp_path / "run", tmp_path / "eval")
    assert 0 < metrics["encoders"]["trained"]["linear_probe"]["top1"] <= 1
    config = pretrained.get_config("smoke")
    config.train.init_from = str(tmp_path / "run")
    begun = initial_state(typed(config), run.run).params["encoder"]
    jax.tree.map(np.testing.assert_array_equal, begun, run.encoder.variables["params"])


def _changed(state, **changes):
    merged = {**state, **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in merged.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"conv1__weight": None}, "x has no tensor conv1.weight: describe"),
        (
            {"layer1__3__a": np.ones(1)},
            r"ResNet of --config does not take: layer1\.3\.a",
        ),
        ({"conv1__weight": np.ones((8, 3, 3, 3))}, r"conv1\.weight has shape .* stem_conv/kernel"),
        ({"conv1__weight": np.ones(8)}, r"conv1\.weight has shape \(8,\)"),
        ({"bn1__weight": np.ones(8, int)}, r"bn1\.weight has no weights, but int64"),
        ({"bn1__weight": np.full(8, np.nan)}, r"bn1\.weight has numbers that are NaN"),
        ({"bn1__weight": np.full(8, 1e300)}, r"bn1\.weight has numbers .* in float32"),
    ],
)
def test_a_file_of_another_model_is_one_sentence(changes, sentence, smoke) -> None:
    encoder, state = smoke
    with pytest.raises(DataError, match=sentence):
        foreign_weights.translate(encoder, 64, _changed(state, **changes), "x")


def test_half_precision_is_widened(smoke) -> None:
    encoder, state = smoke
    for kind in (np.float16, ml_dtypes.bfloat16):
        low = _changed(state, bn1__weight=state["bn1.weight"].astype(kind))
        scale = foreign_weights.translate(encoder, 64, low, "x").variables["params"]["stem_norm"]
        assert scale["scale"].dtype == np.float32
        np.testing.assert_array_equal(scale["scale"], low["bn1.weight"].astype(np.float32))


def test_damaged_files_are_one_sentence(tmp_path) -> None:
    good = safetensors.numpy.save({"module.a": np.arange(4.0)})
    cases = {
        "empty": b"",
        "short": good[:-3],
        "header": struct.pack("<Q", 1 << 40) + good[8:],
        "no tensors": safetensors.numpy.save({}),
        "kind": good.replace(b'"F64"', b'"F99"'),
    }
    for name, content in cases.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=rf"{name}\.safetensors (cannot be read|has no tensors)"
        ):
            foreign_weights.read_tensors(path)
    with pytest.raises(DataError, match="does not exist"):
        foreign_weights.read_tensors(tmp_path / "none.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        foreign_weights.read_tensors(tmp_path / "folder.safetensors")
    path.write_bytes(good)
    np.testing.assert_array_equal(foreign_weights.read_tensors(path)["a"], np.arange(4.0))


def test_what_the_weights_were_trained_with_is_not_chosen_from_images() -> None:
    with pytest.raises(ConfigError, match=r"config\.data\.image_size is 'auto'"):
        foreign_weights.check_given(folder.get_config())
    foreign_weights.check_given(pretrained.get_config())


def test_the_normalization_is_that_of_timms_config(tmp_path) -> None:
    path, settings = tmp_path / "model.safetensors", typed(pretrained.get_config())
    foreign_weights.check_normalization(path, settings)
    about = {"mean": [0.485, 0.456, 0.406], "std": [0.5, 0.5, 0.5], "crop_pct": 0.9}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": about}))
    with pytest.raises(ConfigError, match=r"data\.std is \(0\.229, .* but \(0\.5, 0\.5, 0\.5\) in"):
        foreign_weights.check_normalization(path, settings)
    same = settings.replace({"data.std": (0.5, 0.5, 0.5)})
    foreign_weights.check_normalization(path, same)
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": "x"}}))
    with pytest.raises(DataError, match=r"pretrained_cfg\.mean.*get it again"):
        foreign_weights.check_normalization(path, same)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["another"]}))
    foreign_weights.check_normalization(path, settings)


def test_an_encoder_without_names_is_told(smoke) -> None:
    with pytest.raises(UserError, match="Halves takes no weights of other software"):
        foreign_weights.translate(Halves(), 16, smoke[1], "x")


def test_weights_need_a_configuration(tmp_path) -> None:
    argv = ["import-torch", "--checkpoint=x.safetensors", f"--workdir={tmp_path}/run"]
    rest = import_torch.PROGRAM.parse(argv)
    with pytest.raises(UserError, match="--config=pretrained:resnet50"):
        import_torch.main(rest)


def test_a_state_dict_that_torch_saved_is_read(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision").models
    state = models.resnet18().state_dict()
    torch.save(state, tmp_path / "x.pth")
    found = foreign_weights.read_tensors(tmp_path / "x.pth")
    assert list(found) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())


@pytest.mark.parametrize(
    ("library", "depth", "dim"),
    [
        ("torchvision", 18, 512),
        ("torchvision", 50, 2048),
        ("torchvision", 101, 2048),
        ("timm", 50, 2048),
    ],
)
def test_random_weights_give_their_features(library, depth, dim) -> None:
    torch = pytest.importorskip("torch")
    made = pytest.importorskip(library)
    torch.manual_seed(depth)
    if library == "timm":
        model = made.create_model(f"resnet{depth}", num_classes=0)
    else:
        model = getattr(made.models, f"resnet{depth}")()
        published = sum(p.numel() for p in model.parameters()) - 1000 * (dim + 1)
        model.fc = torch.nn.Identity()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight, 0.5, 1)
            torch.nn.init.uniform_(norm.bias, -0.2, 0.2)
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    encoder = build_encoder(typed(pretrained.get_config(f"resnet{depth}")))
    found = foreign_weights.translate(encoder, 64, tensors, "x")
    assert set(found.left_out.values()) == {"a counter"}
    if library == "torchvision":
        assert count_parameters(found.variables["params"]) == published
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model.eval()(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    features = jax.jit(lambda x: encoder.apply(found.variables, x, train=False))(images)
    assert features.shape == expected.shape == (2, dim)
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

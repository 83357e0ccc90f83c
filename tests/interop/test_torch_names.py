"""Torch names and torch files, against states and a file written here without torch."""

import os
import pickle
import zipfile

import jax
import numpy as np
import pytest
from resnets import resnet

from hjepa_jax.interop import torch_file, torch_names
from hjepa_jax.models.projector import Projector

NORM = ("weight", "bias", "running_mean", "running_var")


def published_state(model):
    """A state dict with the published names and layouts of `model`, and random values."""
    variables = jax.eval_shape(
        lambda key, x: model.init(key, x, train=False),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32),
    )
    rng = np.random.default_rng(0)
    state = {}
    for entry in torch_names.encoder_entries(model.settings.head, model.settings.token_layer):
        leaf = variables[entry.collection]
        for part in entry.path:
            leaf = leaf[part]
        shape = leaf.shape
        if len(shape) == 4:
            shape = (shape[3], shape[2], shape[0], shape[1])
        state[entry.name] = rng.normal(size=shape[::-1] if len(shape) == 2 else shape)
    return variables, state


@pytest.mark.parametrize("fields", [{}, {"token_layer": "layer2"}, {"head": "global"}])
def test_encoder_names_cover_the_model(fields):
    model = resnet(width=4, token_dim=6, embed_dim=5, **fields)
    variables, state = published_state(model)
    extra = {"stem.1.num_batches_tracked": np.array(3)}
    if model.settings.head == "tokens":
        extra["layer4.1.conv2.weight"] = np.zeros((1, 1, 3, 3))
    params, stats, ignored = torch_names.encoder_from_torch(
        state | extra, head=model.settings.head, token_layer=model.settings.token_layer
    )
    shapes = jax.tree.map(lambda x: x.shape, variables)
    assert jax.tree.map(lambda x: x.shape, {"params": params, "batch_stats": stats}) == shapes
    assert ignored == sorted(extra)
    prefix = "backbone.0" if model.settings.head == "global" else "stem.0"
    for i, o, y, x in ((0, 1, 2, 0), (2, 3, 0, 1)):
        assert params["stem_conv"]["kernel"][y, x, i, o] == state[f"{prefix}.weight"][o, i, y, x]
    if model.settings.head == "global":
        np.testing.assert_array_equal(params["head"]["kernel"], state["fc.weight"].T)
        name = "backbone.7.0.downsample.1.running_var"
        np.testing.assert_array_equal(stats["layer4_block0"]["downsample_norm"]["var"], state[name])


def test_every_missing_and_unknown_name_is_listed():
    _, state = published_state(resnet(width=4, token_dim=6))
    del state["stem.0.weight"], state["layer3.1.bn2.bias"]
    state["stem.0.bias"] = state["gamma"] = np.zeros(1)
    with pytest.raises(
        ValueError,
        match=r"missing: layer3\.1\.bn2\.bias, stem\.0\.weight; unknown: gamma, stem\.0\.bias",
    ):
        torch_names.encoder_from_torch(state)
    with pytest.raises(ValueError, match="'layer9'"):
        torch_names.encoder_from_torch(state, token_layer="layer9")


def test_projector_names():
    rng = np.random.default_rng(0)
    state = {"net.0.weight": rng.normal(size=(5, 3)), "net.0.bias": rng.normal(size=5)}
    state |= {f"net.1.{name}": rng.normal(size=5) for name in NORM}
    state |= {"net.3.weight": rng.normal(size=(2, 5)), "net.3.bias": rng.normal(size=2)}
    params, stats, ignored = torch_names.projector_from_torch(
        state | {"net.1.num_batches_tracked": np.array(1)}
    )
    variables = jax.eval_shape(
        lambda key, z: Projector("mlp", (5, 2)).init(key, z, train=False),
        jax.random.key(0),
        jax.ShapeDtypeStruct((4, 3), np.float32),
    )
    found = jax.tree.map(lambda x: x.shape, {"params": params, "batch_stats": stats})
    assert found == jax.tree.map(lambda x: x.shape, variables)
    assert ignored == ["net.1.num_batches_tracked"]
    assert torch_names.projector_from_torch({}) == ({}, {}, [])
    with pytest.raises(ValueError, match=r"projector.*missing: net\.3\.bias"):
        torch_names.projector_from_torch({k: v for k, v in state.items() if k != "net.3.bias"})


@pytest.mark.parametrize("prefix", ["H.residual_V", "H.residual"])
def test_predictor_names(prefix):
    state = {"dt": np.array(0.1), "raw_dt": np.array(-2.0)}
    for i, (fan_in, fan_out) in zip((0, 2, 4), ((3, 4), (4, 5), (5, 1))):
        state[f"{prefix}.{i}.weight"] = np.full((fan_out, fan_in), float(i))
        state[f"{prefix}.{i}.bias"] = np.zeros(fan_out)
    params, ignored = torch_names.predictor_from_torch(state)
    assert ignored == ["dt"]
    assert params["raw_dt"].shape == ()
    kernels = {name: layer["kernel"].shape for name, layer in params["potential"].items()}
    assert kernels == {"layer0": (3, 4), "layer1": (4, 5), "layer2": (5, 1)}
    assert params["potential"]["layer2"]["kernel"][0, 0] == 4
    del state[f"{prefix}.2.bias"]
    with pytest.raises(ValueError, match=r"missing: .*\.2\.bias"):
        torch_names.predictor_from_torch(state)
    with pytest.raises(ValueError, match="unknown: momentum"):
        torch_names.predictor_from_torch({"momentum": np.zeros(1)})


def write_torch_file(path, body, storages):
    """`body` is a pickle whose storages are persistent references."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", body)
        for key, values in storages.items():
            archive.writestr(f"model/data/{key}", values.tobytes())


def tensor_pickle(size, stride, offset):
    """Protocol-2 opcodes of {'w': tensor} as torch.save writes them."""
    numbers = "".join(f"I{n}\n" for n in size), "".join(f"I{n}\n" for n in stride)
    return (
        b"\x80\x02}(U\x01wctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\n"
        b"U\x010U\x03cpuI8\ntQ"
        + f"I{offset}\n({numbers[0]}t({numbers[1]}t".encode()
        + b"\x89ccollections\nOrderedDict\n)RtRu."
    )


def test_torch_files_are_read_without_torch(tmp_path):
    path = tmp_path / "model.pth"
    values = np.arange(8, dtype=np.float32)
    write_torch_file(path, tensor_pickle((2, 3), (1, 2), 1), {"0": values})
    (tensor,) = torch_file.load_torch_file(path).values()
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor, values[1 + np.array([[0, 2, 4], [1, 3, 5]])])


def test_damaged_and_unsafe_torch_files_are_refused(tmp_path):
    path = tmp_path / "model.pth"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        torch_file.load_torch_file(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="not a readable torch checkpoint"):
        torch_file.load_torch_file(path)
    write_torch_file(path, tensor_pickle((3, 3), (3, 1), 0), {"0": np.zeros(8, np.float32)})
    with pytest.raises(ValueError, match="outside its storage"):
        torch_file.load_torch_file(path)
    write_torch_file(path, pickle.dumps(eval), {})
    with pytest.raises(ValueError, match="eval, which is not allowed"):
        torch_file.load_torch_file(path)


class _Evil:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_torch_files_that_attack_do_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth"
    write_torch_file(path, pickle.dumps({"w": _Evil()}, protocol=2), {})
    with pytest.raises(ValueError, match="system, which is not allowed"):
        torch_file.load_torch_file(path)
    assert not (tmp_path / "hacked").exists()
    # A tensor of a terabyte, all of it one stored number.
    small = np.zeros(8, np.float32)
    write_torch_file(path, tensor_pickle((1_000_000, 250_000), (0, 0), 0), {"0": small})
    with pytest.raises(ValueError, match="larger than its storage"):
        torch_file.load_torch_file(path)
    # A storage that unpacks to a thousand times its size.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", tensor_pickle((2, 3), (1, 2), 1))
        archive.writestr("model/data/0", bytes(10_000_000))
    with pytest.raises(ValueError, match="unpack to 1000"):
        torch_file.load_torch_file(path)
    # Names that lead out of the archive are read from it, if at all, and written nowhere.
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../model/data.pkl", tensor_pickle((2, 3), (1, 2), 1))
        archive.writestr("../../model/data/0", small.tobytes())
    torch_file.load_torch_file(path)
    assert [file.name for file in tmp_path.rglob("*")] == ["model.pth"]


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((2, 3), (1, 2), -2),
        ((2, 3), (1, 2), -(2**40)),
        ((2, 3), (1, 2), 2**40),
        ((2, 3), (1, 2), 2**63),
        ((2, 3), (-1, 2), 1),
        ((2, 3), (1, 2**62), 0),
        ((-2, -3), (1, 2), 0),
        ((2, 3), (1,), 0),
        ((1,) * 40, (1,) * 40, 0),
        ((9,), (1,), 0),
        ((8,), (1,), 1),
        ((0, 2**61), (1, 1), 0),
    ],
)
def test_tensors_never_reach_outside_their_storage(size, stride, offset, tmp_path):
    path = tmp_path / "model.pth"
    write_torch_file(path, tensor_pickle(size, stride, offset), {"0": np.arange(8, dtype="f4")})
    with pytest.raises(ValueError, match=r"torch checkpoint: .*(tensor|array)"):
        torch_file.load_torch_file(path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"I0\n(", b"F0.5\n(", "not an integer"),
        (b"I0\n(", b"I01\n(", "not an integer"),
        (b"I8\n", b"I9\n", "wrong size"),
        (b"I8\n", b"I-8\n", "wrong size"),
        (b"FloatStorage", b"UntypedStorage", "UntypedStorage, which is not allowed"),
        (b"U\x07storage", b"U\x07stomach", "other than a storage of numbers"),
        (b"U\x010U\x03cpu", b"U\x015U\x03cpu", "has no storage '5'"),
    ],
)
def test_references_that_do_not_fit_are_refused(old, new, reason, tmp_path):
    body = tensor_pickle((2, 3), (1, 2), 0)
    assert body.count(old) == 1
    write_torch_file(
        tmp_path / "x.pth", body.replace(old, new), {"0": np.arange(8, dtype=np.float32)}
    )
    with pytest.raises(ValueError, match=reason):
        torch_file.load_torch_file(tmp_path / "x.pth")


def test_a_zip_is_not_believed_its_sizes(tmp_path):
    """A compressed member that claims a small size, and unpacks to two thousand times its own."""
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", tensor_pickle((2, 3), (1, 2), 1))
        archive.writestr("model/data/0", bytes(1 << 24))
    content = path.read_bytes()
    path.write_bytes(content.replace((1 << 24).to_bytes(4, "little"), b"\x20\0\0\0"))
    with pytest.raises(ValueError, match="members are compressed"):
        torch_file.load_torch_file(path)


def test_other_members_that_do_not_fit_are_refused(tmp_path):
    path, body = tmp_path / "model.pth", tensor_pickle((2, 3), (1, 2), 1)
    write_torch_file(path, body, {"0": np.zeros(8, np.float32)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/byteorder", "big")
    with pytest.raises(ValueError, match="little-endian"):
        torch_file.load_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", body)
        archive.writestr("model/data/0", bytes(32))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("model/data/0", b"\xff" * 32)
    with pytest.raises(ValueError, match="duplicate members"):
        torch_file.load_torch_file(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="named pipe"):
        torch_file.load_torch_file(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "module.module."])
def test_wrapped_models_are_read_as_they_are(prefix):
    model = resnet(width=4, token_dim=6)
    _, state = published_state(model)
    plain = torch_names.encoder_from_torch(state)
    wrapped = torch_names.encoder_from_torch({f"{prefix}{name}": v for name, v in state.items()})
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(wrapped), strict=True):
        np.testing.assert_array_equal(a, b)
    half = {f"{prefix}{k}" if i % 2 else k: v for i, (k, v) in enumerate(state.items())}
    with pytest.raises(
        ValueError, match=r"names of a torch state begin with '(module|_orig_mod)\.'"
    ):
        torch_names.encoder_from_torch(half)


def test_messages_stay_short():
    _, state = published_state(resnet(width=4, token_dim=6))
    foreign = {f"other.{name}": value for name, value in state.items()}
    with pytest.raises(ValueError, match=r"and \d\d more") as caught:
        torch_names.encoder_from_torch(foreign)
    assert len(str(caught.value)) < 1000
    state["stem.0.weight"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"stem\.0\.weight has the shape \(3,\)"):
        torch_names.encoder_from_torch(state)

"""The encoder as a file: read back without the run, it gives the run's features."""

import json
import pathlib
import sys

import forked
import jax
import numpy as np
import pytest
from random_states import save_initial_run

import hjepa_jax
from hjepa_jax.errors import ConfigError, UserError
from hjepa_jax.interop.export_encoder import encoder_function, export_encoder
from hjepa_jax.recipes import imagenet100, pretrained, quickstart


def _loaded(config, folder: pathlib.Path):
    save_initial_run(config, folder)
    return hjepa_jax.load(folder, batch_size=8)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A run with the ImageNet stem and pooled tokens, which computes in bfloat16."""
    config = imagenet100.get_config("smoke")
    config.model.compute_dtype = "bfloat16"
    return _loaded(config, tmp_path_factory.mktemp("imagenet"))


def _images(run, count: int) -> np.ndarray:
    shape = (count, run.settings.data.image_size, run.settings.data.image_size, 3)
    return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)


def _assert_equal(found, expected) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.std(expected) > 0.1


SCRIPT = "scripts/export_encoder.py"


def test_script_writes_what_jax_alone_reads_for_any_number_of_images(tmp_path) -> None:
    config = quickstart.get_config("smoke")
    config.runtime.matmul_precision = "tf32"
    run = _loaded(config, tmp_path / "run")
    out = tmp_path / "new" / "encoder.stablehlo"
    done = forked.run(SCRIPT, f"--workdir={tmp_path}/run", f"--out={out}", "--state_part=p")
    assert done.returncode == 0, done.stderr
    assert "uint8 images [N, 16, 16, 3]" in done.stdout
    exported = jax.export.deserialize(bytearray(out.read_bytes()))
    assert set(exported.platforms) == {"cpu", "cuda", "rocm", "tpu"}
    # The precision of the run, as where it was loaded: of two operands each.
    assert run.encoder.matmul_precision == "tf32"
    text = exported.mlir_module()
    assert text.count("<precision HIGH>") == 2 * text.count("stablehlo.convolution(") > 0
    for count in (1, 5):
        images = _images(run, count)
        _assert_equal(np.asarray(exported.call(images)), run.encode_state_part(images, "p"))
    about = json.loads((out.parent / "encoder.stablehlo.json").read_text())
    assert (about["image_size"], about["state_part"], about["step"]) == (16, "p", 0)
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name, f"{out.name}.json"]


def test_a_name_without_suffix_is_a_folder_for_the_hub(tmp_path) -> None:
    run = _loaded(quickstart.get_config("smoke"), tmp_path / "run")
    out = tmp_path / "encoder"
    command = (SCRIPT, f"--workdir={tmp_path}/run", f"--out={out}")
    done = forked.run(*command, "--license=apache-2.0")
    assert done.returncode == 0, done.stderr
    assert f"hjepa_jax.from_pretrained('{out}')" in done.stdout
    assert "license: apache-2.0" in (out / "README.md").read_text()
    images = _images(run, 3)
    shared = hjepa_jax.from_pretrained(out, batch_size=8)
    np.testing.assert_array_equal(shared.encode(images), run.encode(images))

    again = forked.run(*command)
    assert again.returncode == 1
    assert "overwrite" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out=encoder", "--state_part=q"], "--state_part applies to files"),
        (["--out=encoder.onnx", "--license=mit"], "--license and --overwrite apply to a folder"),
    ],
)
def test_flags_of_the_other_kind_of_output_are_refused(arguments, sentence, tmp_path) -> None:
    done = forked.run(SCRIPT, "--workdir=nowhere", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"hjepa export: {sentence}")


def test_imagenet_stem_and_bfloat16(imagenet, tmp_path) -> None:
    export_encoder(imagenet, tmp_path / "e.stablehlo")
    exported = jax.export.deserialize(bytearray((tmp_path / "e.stablehlo").read_bytes()))
    images = _images(imagenet, 3)
    found, expected = np.asarray(exported.call(images)), imagenet.encode(images)
    # Two compilations of bfloat16 arithmetic round differently.
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
    # What ONNX is made of computes the same in float32.
    portable = jax.jit(encoder_function(imagenet, portable=True))(images)
    assert np.abs(portable - expected).max() < 0.03 * np.abs(expected).max()


def test_bottlenecks(tmp_path) -> None:
    run = _loaded(pretrained.get_config("resnet50-smoke"), tmp_path / "run")
    export_encoder(run, tmp_path / "e.stablehlo")
    exported = jax.export.deserialize(bytearray((tmp_path / "e.stablehlo").read_bytes()))
    images = _images(run, 3)
    expected = run.encode(images)
    assert expected.shape == (3, 8 * 8 * 4)
    _assert_equal(np.asarray(exported.call(images)), expected)
    _assert_equal(np.asarray(jax.jit(encoder_function(run, portable=True))(images)), expected)


def test_onnx(imagenet, tmp_path) -> None:
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    export_encoder(imagenet, tmp_path / "e.onnx", state_part="q")
    session = runtime.InferenceSession(tmp_path / "e.onnx")
    encode = jax.jit(encoder_function(imagenet, "q", portable=True))
    for count in (1, 5):
        images = _images(imagenet, count)
        (found,) = session.run(["features"], {"images": images})
        _assert_equal(found, encode(images))


@pytest.mark.parametrize(
    ("encoder", "fields"),
    [
        ("vit", {"width": 16, "depth": 2, "heads": 2, "registers": 2, "layer_scale": 1.0}),
        (
            "convnext",
            {"width": 8, "stage_blocks": (1, 1, 1, 1), "head": "mean", "layer_scale": 1.0},
        ),
    ],
)
def test_encoders_with_tokens(encoder, fields, tmp_path) -> None:
    """As StableHLO, and as ONNX where its converter is installed."""
    config = quickstart.get_config("smoke")
    config.model.encoder = encoder
    config[encoder].update(fields)
    run = _loaded(config, tmp_path / "run")
    export_encoder(run, tmp_path / "e.stablehlo")
    exported = jax.export.deserialize(bytearray((tmp_path / "e.stablehlo").read_bytes()))
    images = _images(run, 3)
    _assert_equal(np.asarray(exported.call(images)), run.encode(images))
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    export_encoder(run, tmp_path / "e.onnx")
    session = runtime.InferenceSession(tmp_path / "e.onnx")
    (found,) = session.run(["features"], {"images": images})
    _assert_equal(found, run.encode(images))


def test_what_cannot_be_written_is_a_sentence(imagenet, tmp_path, monkeypatch) -> None:
    with pytest.raises(UserError, match=r"e\.pb must end in \.stablehlo or \.onnx"):
        export_encoder(imagenet, tmp_path / "e.pb")
    with pytest.raises(ConfigError, match="'z'"):
        export_encoder(imagenet, tmp_path / "e.stablehlo", state_part="z")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"needs jax2onnx: pip install 'hjepa_jax\[onnx\]'"):
        export_encoder(imagenet, tmp_path / "e.onnx")

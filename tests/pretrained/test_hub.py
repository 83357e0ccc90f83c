"""Encoders as folders in the layout of the Hugging Face hub: the same ones, bit for bit."""

import hashlib
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from image_files import photo
from PIL import Image
from random_states import save_initial_run

import hjepa_jax
from configs import quickstart
from hjepa_jax.config import base_config, files
from hjepa_jax.config.checks import typed
from hjepa_jax.errors import CheckpointError, UserError
from hjepa_jax.pretrained.encoder import Preprocessing, TrainedEncoder
from hjepa_jax.pretrained.hub import Origin, check_target
from hjepa_jax.runtime import sharding
from hjepa_jax.training.setup import build_encoder

NAMES = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> TrainedEncoder:
    """That of a run of no steps, with other sizes before and after the crop."""
    folder = tmp_path_factory.mktemp("hub") / "run"
    config = quickstart.get_config("smoke")
    config.data.eval_resize = 20
    save_initial_run(config, folder)
    return hjepa_jax.load(folder, batch_size=4).encoder


@pytest.fixture(scope="module")
def shared(encoder, tmp_path_factory) -> pathlib.Path:
    return encoder.save_pretrained(tmp_path_factory.mktemp("shared") / "my-digits")


@pytest.fixture
def copy(shared, tmp_path) -> pathlib.Path:
    return shutil.copytree(shared, tmp_path / "copy")


def edit(path: pathlib.Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_the_same_encoder_comes_back_bit_for_bit(encoder, shared, tmp_path) -> None:
    found = hjepa_jax.from_pretrained(shared, batch_size=4)
    assert jax.tree.structure(found.variables) == jax.tree.structure(encoder.variables)
    for one, other in zip(jax.tree.leaves(found.variables), jax.tree.leaves(encoder.variables)):
        np.testing.assert_array_equal(one, other)
    assert (found.module, found.preprocessing) == (encoder.module, encoder.preprocessing)
    images = [photo(seed, 20 + seed, 25) for seed in range(5)]
    np.testing.assert_array_equal(found.encode(images), encoder.encode(images))
    assert np.std(found.encode(images)) > 0.1
    assert sorted(path.name for path in shared.iterdir()) == NAMES
    again = found.save_pretrained(tmp_path / "my-digits")
    for name in NAMES:
        assert (again / name).read_bytes() == (shared / name).read_bytes(), name


def test_preprocessor_config_says_all_that_another_library_needs(encoder, shared) -> None:
    told = json.loads((shared / "preprocessor_config.json").read_text())
    image, side = Image.fromarray(photo(1, 30, 45)), told["crop_size"]["height"]
    short = told["size"]["shortest_edge"]
    assert told["resample"] == Image.Resampling.BILINEAR
    resized = image.resize((int(short * 45 / 30), short), told["resample"])
    left, top = (resized.width - side) // 2, (resized.height - side) // 2
    pixels = np.asarray(resized.crop((left, top, left + side, top + side)))
    inputs = (pixels * told["rescale_factor"] - told["image_mean"]) / told["image_std"]
    np.testing.assert_allclose(encoder.normalize(encoder.crop(image))[0], inputs, atol=1e-5)


def test_the_card_says_what_is_known(encoder, shared, tmp_path) -> None:
    text = (shared / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: hjepa_jax\n")
    assert "license:" not in text
    parameters = sum(leaf.size for leaf in jax.tree.leaves(encoder.variables["params"]))
    for words in (
        "# my-digits",
        f"ResNet with {parameters:,} parameters",
        "images of 16x16 pixels to states of 512 dimensions, `[q | p]`",
        "| data | `digits`, split `train` |",
        "| method | `hjepa` |",
        f"| steps | 0 of {quickstart.get_config('smoke').data.batch_size} images |",
        "No evaluation was found",
        "has not stated a license",
        "float32 [N, 512]",
    ):
        assert words in text, words
    assert "fine-tuning" not in text
    tuned = encoder.replace(encoder.variables)
    metrics = {
        "info": {"data": "digits", "test_images": {"evaluated": 1234}},
        "encoders": {"trained": scores(0.5, 0.75), "random": scores(0.25, None)},
    }
    none = {"knn": {"k_values": [1, 20], "top1": [None, None]}, "no_accuracy": "no labels."}
    told = {"data": "folder", "coordinates": "sqrt_h"}
    unlabeled = {"info": told, "encoders": {"trained": scores(0, None) | none}}
    folder = tuned.save_pretrained(
        tmp_path / "a_b", license="mit", evaluations=[metrics, unlabeled]
    )
    text = (folder / "README.md").read_text()
    for words in (
        "\nlicense: mit\n",
        "# a\\_b",
        "`mit`, chosen by the author",
        "by fine-tuning",
        "Frozen states on `digits`, 1,234 test images, with 95 % intervals:",
        "| encoder | kNN@20 % | kNN@1 % | probe top-1 % | effective rank |",
        "| trained | 60.0 | 50.0 | 75.0 (70.0 to 80.0) | 12.3 |",
        "| random | 60.0 | 25.0 | - | 12.3 |",
        "Frozen states, as H^{1/2} z, on `folder`, with",
        "| encoder | effective rank |\n|---|---|\n| trained | 12.3 |\n\nNo accuracy: no labels.",
    ):
        assert words in text, words
    assert hjepa_jax.from_pretrained(folder).origin.fine_tuned


def scores(first: float, probe: float | None) -> dict:
    """Returns the metrics of an encoder, as an evaluation has them."""
    interval = {} if probe is None else {"top1_interval": [probe - 0.05, probe + 0.05]}
    return {
        "knn": {"k_values": [1, 20, 200], "top1": [first, 0.6, 0.1]},
        "linear_probe": {"top1": probe, "top5": 1.0, **interval},
        "diagnostics": {
            "covariance_spectrum_topq": {"effective_rank": 12.3, "participation_ratio": 4.0},
            "alignment_uniformity": {"alignment": 0.1, "uniformity": -1.0},
        },
    }


@pytest.mark.parametrize("license", ["My License", "", "MIT", "a\nb"])
def test_a_license_is_an_identifier(encoder, tmp_path, license) -> None:
    with pytest.raises(UserError, match=r"license is .*: give an identifier"):
        encoder.save_pretrained(tmp_path / "x", license=license)
    assert not (tmp_path / "x").exists()


def test_paths_of_this_machine_are_not_shared(tmp_path) -> None:
    config = base_config()
    config.data.update(name="folder", root="/home/me/secret", num_workers=3)
    config.train.init_from = "/home/me/secret/run"
    origin = Origin.of(typed(config), 7, 99)
    assert (origin.values()["data.name"], origin.values()["seed"]) == ("folder", 42)
    assert "secret" not in json.dumps(origin.settings)


def test_existing_files_are_not_overwritten_unasked(encoder, copy, shared) -> None:
    (copy / "config.json").unlink()
    (copy / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(UserError, match=r"has model\.safetensors and preprocessor_config\.json"):
        encoder.save_pretrained(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    tuned = encoder.replace(jax.tree.map(lambda x: 2 * np.asarray(x), encoder.variables))
    tuned.save_pretrained(copy, overwrite=True)
    found = hjepa_jax.from_pretrained(copy)
    np.testing.assert_array_equal(
        found.variables["params"]["stem_conv"]["kernel"],
        2 * encoder.variables["params"]["stem_conv"]["kernel"],
    )
    assert (copy / "notes.txt").read_text() == "mine"


def test_a_run_or_a_file_is_no_place_for_an_encoder(tmp_path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="run is a run's workdir: choose another folder"):
        check_target(tmp_path / "run", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file, not a folder"):
        check_target(tmp_path / "file", overwrite=False)


def test_variables_of_another_encoder_are_refused_before_anything_is_written(
    encoder, tmp_path
) -> None:
    params = jax.device_get(encoder.variables["params"])
    for variables, words in (
        ({"params": {}}, "is missing in the variables"),
        ({**encoder.variables, "head": {"bias": np.zeros(2)}}, "head.bias is in the variables"),
        (
            {**encoder.variables, "params": jax.tree.map(lambda x: x[..., None], params)},
            "has shape",
        ),
        ({**encoder.variables, "params": jax.tree.map(lambda x: x + np.nan, params)}, "NaN"),
    ):
        with pytest.raises(CheckpointError, match=words):
            encoder.replace(variables).save_pretrained(tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_an_encoder_of_ones_own_is_not_imported_by_a_file(tmp_path, monkeypatch) -> None:
    config = base_config(encoder="tiny_encoder:Halves")
    config.data.image_size = 8
    config.runtime.matmul_precision = "highest"
    settings = typed(config)
    mesh = sharding.local_mesh()
    own = TrainedEncoder(
        build_encoder(settings),
        {"params": {"scale": np.float32(3)}, "batch_stats": {}},
        Preprocessing.of(settings),
        Origin.of(settings, 5, 80),
        mesh,
        split_qp=True,
        batch_size=2,
        matmul_precision="highest",
    )
    folder = own.save_pretrained(tmp_path / "own")
    found = hjepa_jax.from_pretrained(folder, batch_size=2)
    assert found.matmul_precision == found.replace(found.variables).matmul_precision == "highest"
    np.testing.assert_array_equal(found.encode(photo(0)), own.encode(photo(0)))
    assert (found.origin.step, found.origin.num_images) == (5, 80)
    assert "| data | `digits`, split `train`, 80 images |" in (folder / "README.md").read_text()
    monkeypatch.delitem(sys.modules, "tiny_encoder")
    with pytest.raises(CheckpointError, match=r"its encoder is tiny_encoder:Halves.*import its"):
        hjepa_jax.from_pretrained(folder)
    assert "tiny_encoder" not in sys.modules


def write_weights(folder: pathlib.Path, content: bytes) -> None:
    """Writes weights with the right checksum."""
    (folder / "model.safetensors").write_bytes(content)
    edit(folder / "config.json", weights_sha256=hashlib.sha256(content).hexdigest())


def changed_array(folder: pathlib.Path, change) -> None:
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    change(arrays)
    write_weights(folder, safetensors.numpy.save(arrays))


STEM = "params.stem_conv.kernel"


def flip_byte(folder: pathlib.Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-9] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def edit_training(folder: pathlib.Path, section: str, **fields) -> None:
    training = json.loads((folder / "config.json").read_text())["training"]
    training[section] = {**training[section], **fields}
    edit(folder / "config.json", training=training)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: shutil.rmtree(f), "is not a folder here: download the model first"),
        (lambda f: (f / "config.json").unlink(), "copy has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json cannot be read"),
        (
            lambda f: edit(f / "config.json", model_type="bert"),
            "model_type 'bert', not 'hjepa_jax'",
        ),
        (lambda f: edit(f / "config.json", model_type=None), "that other software wrote"),
        (lambda f: edit(f / "config.json", step="x"), "the field 'step' must be a whole number"),
        (lambda f: edit(f / "config.json", training={}), r"field 'training\.model' is missing"),
        (lambda f: edit_training(f, "resnet", wide=3), "describes no encoder .*resnet.wide is not"),
        (lambda f: edit_training(f, "model", encoder="resnett"), "did you mean 'resnet'"),
        (lambda f: edit_training(f, "model", encoder="this:X"), "this:X, a class of your own"),
        (lambda f: edit_training(f, "data", image_size=-1), "data.image_size"),
        (lambda f: edit_training(f, "resnet", width=64), "has shape .* in this configuration"),
        (lambda f: edit_training(f, "data", mean=[0, 0, 0]), "image_mean .* get both files again"),
        (lambda f: edit(f / "preprocessor_config.json", resample=3), "has resample 3, but"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json cannot be"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (flip_byte, "model.safetensors is damaged, or not the file"),
        (lambda f: write_weights(f, b"no weights"), "model.safetensors cannot be read"),
        (lambda f: write_weights(f, b"\xff" * 64), "model.safetensors cannot be read"),
        (lambda f: changed_array(f, lambda a: a.pop(STEM)), f"{STEM} is missing"),
        (lambda f: changed_array(f, lambda a: a.update(extra=np.zeros(2))), "extra is in"),
        (lambda f: changed_array(f, lambda a: a[STEM].fill(np.inf)), f"{STEM} has numbers"),
        (
            lambda f: changed_array(f, lambda a: a.update({STEM: a[STEM].astype(np.float16)})),
            "float16",
        ),
    ],
)
def test_a_damaged_or_foreign_folder_is_one_sentence(copy, damage, words) -> None:
    damage(copy)
    with pytest.raises(CheckpointError, match=words) as caught:
        hjepa_jax.from_pretrained(copy)
    assert "\n" not in str(caught.value)
    assert "this" not in sys.modules


def test_each_loader_names_the_other(shared, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"use hjepa_jax\.from_pretrained"):
        hjepa_jax.load(shared)
    files.save(typed(quickstart.get_config("smoke")), tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=r"is a run's workdir: use hjepa_jax\.load"):
        hjepa_jax.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="batch_size is 0"):
        hjepa_jax.from_pretrained(shared, batch_size=0)

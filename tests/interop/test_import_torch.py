"""Import of published checkpoints: a made one through the script, and faults that name the keys."""

import functools

import forked
import jax
import numpy as np
import pytest

from golden_checks.common import golden_file
from hjepa_jax.config.checks import typed
from hjepa_jax.errors import CheckpointError
from hjepa_jax.interop import torch_import
from hjepa_jax.interop.published.translate import config_from_torch
from hjepa_jax.interop.torch_names import encoder_entries
from hjepa_jax.loading import load_run
from hjepa_jax.methods.hjepa_settings import Dynamics
from hjepa_jax.tools.layout_check import float64_setup

PUBLISHED = {
    "seed": 3,
    "data": {"batch_size": 8, "num_global_views": 2},
    "model": {"encoder_mode": "tokens", "token_layer": "layer2", "token_d_f": 4, "split_qp": True},
    "hjepa": {
        "steps": 3,
        "dt": 0.05,
        "hamiltonian": "separable",
        "hidden_dim": 6,
        "depth": 1,
        "residual_scale": 0.02,
        "residual_scale_warmup_epochs": 10,
        "base_coeff": 0.1,
    },
    "loss": {"match": "q", "p_weight": 0.2},
    "regularizer": {"q_logdet_floor": -1.5, "p_logdet_floor": -1.5, "q_logdet_proj_dim": 16},
    "train": {"epochs": 30, "lr": 0.001, "grad_clip": 1.0, "lambda_var": 0.5, "precision": "fp32"},
}


@functools.cache
def made_checkpoint():
    """Returns a published-format checkpoint made from our own initial state, and that state."""
    config = config_from_torch(PUBLISHED)
    with jax.enable_x64(True):
        setup, state = float64_setup(typed(config), total=10, per_epoch=1)
    assert setup.settings.section(Dynamics).steps == 3
    encoder = {}
    for name, collection, path, _ in encoder_entries("tokens", "layer2"):
        node = (state.params if collection == "params" else state.batch_stats)["encoder"]
        for key in path:
            node = node[key]
        value = np.asarray(node, np.float32)
        encoder[name] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    encoder["layer3.0.conv1.weight"] = np.zeros((2, 2, 3, 3), np.float32)
    predictor = {"dt": np.float32(0.05)}
    for layer, tree in state.params["predictor"]["potential"].items():
        index = 2 * int(layer.removeprefix("layer"))
        predictor[f"H.residual_V.{index}.weight"] = np.asarray(tree["kernel"], np.float32).T
        predictor[f"H.residual_V.{index}.bias"] = np.asarray(tree["bias"], np.float32)
    checkpoint = {
        "config": PUBLISHED,
        "epoch": 4,
        "global_step": 12,
        "encoder": encoder,
        "projector": {},
        "regularizer": None,
        "predictor": predictor,
    }
    return checkpoint, state


def test_an_imported_run_encodes_and_flows(tmp_path) -> None:
    checkpoint, state = made_checkpoint()
    imported = torch_import.translate(checkpoint)
    assert imported.step == 12
    assert "layer3.0.conv1.weight" in imported.ignored
    torch_import.save_imported(imported, tmp_path / "run")
    run = load_run(tmp_path / "run", batch_size=4)
    assert run.step == 12
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    z = run.encode(images)
    assert z.shape == (3, 16 * 16 * 4)
    np.testing.assert_allclose(run.flow(run.flow(z, 1), -1), z, atol=1e-4)
    kernel = run.predictor[1]["params"]["potential"]["layer0"]["kernel"]
    expected = state.params["predictor"]["potential"]["layer0"]["kernel"]
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    with pytest.raises(CheckpointError, match="exists already"):
        torch_import.save_imported(imported, tmp_path / "run")


def test_missing_and_unknown_entries_are_named() -> None:
    checkpoint, _ = made_checkpoint()
    encoder = dict(checkpoint["encoder"])
    del encoder["layer1.0.conv1.weight"]
    encoder["stem.9.weight"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight.*stem\.9\.weight"):
        torch_import.translate({**checkpoint, "encoder": encoder})
    with pytest.raises(CheckpointError, match="optimizer_state_of_somebody"):
        torch_import.translate({**checkpoint, "optimizer_state_of_somebody": 1})
    regularizer = {"learnable_h.raw_spam": np.zeros(())}
    with pytest.raises(CheckpointError, match=r"learnable_h\.raw_spam"):
        torch_import.translate({**checkpoint, "regularizer": regularizer})


def test_a_data_parallel_checkpoint_is_translated() -> None:
    checkpoint, _ = made_checkpoint()
    plain = torch_import.translate(checkpoint)
    wrapped = {
        **checkpoint,
        "encoder": {f"module.{name}": value for name, value in checkpoint["encoder"].items()},
        "predictor": {f"_orig_mod.{name}": v for name, v in checkpoint["predictor"].items()},
    }
    imported = torch_import.translate(wrapped)
    assert imported.ignored == plain.ignored
    jax.tree.map(np.testing.assert_array_equal, imported.params, plain.params)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"encoder": 3}, "the field 'encoder' must be a mapping, or null, not 3"),
        ({"encoder": {3: np.zeros(1)}}, "the field 'encoder.3' must be text, not 3"),
        ({"encoder": {"x": "text"}}, "'x' of the encoder is not a tensor but the text 'text'"),
        ({"predictor": [1]}, "the field 'predictor' must be a mapping"),
        ({"global_step": -1}, "'global_step' must be a whole number from 0"),
        ({"global_step": "3"}, "'global_step' must be a whole number from 0"),
        ({"global_step": np.ones(3)}, "'global_step' must be a whole number from 0"),
        ({"config": [1]}, "the field 'config' must be a mapping"),
        ({b"odd": 1, 3: 2}, "unknown entries: 3, odd"),
    ],
)
def test_entries_of_a_wrong_type_are_named(fields, sentence) -> None:
    checkpoint, _ = made_checkpoint()
    with pytest.raises(CheckpointError) as caught:
        torch_import.translate({**checkpoint, **fields})
    assert sentence in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_weights_that_are_not_finite_are_refused(value) -> None:
    checkpoint, _ = made_checkpoint()
    encoder = dict(checkpoint["encoder"])
    weights = encoder["layer1.0.conv1.weight"].astype(np.float64)
    weights[0, 0, 0, 0] = value
    encoder["layer1.0.conv1.weight"] = weights
    with pytest.raises(CheckpointError, match=r"not finite \(encoder/layer1_block0/conv1"):
        torch_import.translate({**checkpoint, "encoder": encoder})


def test_statistics_of_another_shape_are_refused_before_anything_is_written(tmp_path) -> None:
    checkpoint, _ = made_checkpoint()
    encoder = {**checkpoint["encoder"], "stem.1.running_var": np.ones(3, np.float32)}
    imported = torch_import.translate({**checkpoint, "encoder": encoder})
    with pytest.raises(
        CheckpointError, match=r"stem_norm/var has shape \(3,\) in the checkpoint but \(64,\)"
    ):
        torch_import.save_imported(imported, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_script_reads_a_published_file_or_says_what_is_wrong(tmp_path) -> None:
    path = golden_file("checkpoint_ref.pth")
    source = path or tmp_path / "broken.pth"
    if path is None:
        source.write_bytes(b"no zip archive")
    command = ("scripts/import_torch_checkpoint.py", f"--checkpoint={source}")
    done = forked.run(*command, f"--workdir={tmp_path}/run")
    assert "Traceback" not in done.stderr
    if path is None:
        assert done.returncode != 0
        assert "broken.pth cannot be read" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "left out: layer4" in done.stdout
        assert (tmp_path / "run/config.json").is_file()

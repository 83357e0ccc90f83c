"""Evaluation in the coordinates H^{1/2} z, and of data that the run was not trained on."""

import json

import forked
import jax
import numpy as np
import pytest
from image_files import write_folder
from PIL import Image
from random_states import random_state, save_initial_run

import hjepa_jax
from hjepa_jax.config import resolve
from hjepa_jax.config.checks import typed
from hjepa_jax.data.pipeline import eval_batches
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import CheckpointError, ConfigError
from hjepa_jax.evaluate import check_before_training, evaluate, restore
from hjepa_jax.evaluation.monitor import OnlineKnn
from hjepa_jax.methods.hamsigreg import HamSIGReg
from hjepa_jax.recipes import cifar100, quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.storage.metrics_file import read_metrics
from hjepa_jax.training.prepare import make_encode, prepare
from hjepa_jax.training.saved_run import check_encoder, saved_config
from tests.training.test_load import save_run


def _images(count: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def _dense_transform(spectrum: np.ndarray, z: np.ndarray, channels: int) -> np.ndarray:
    """H^{1/2} z on the token grid by a dense Fourier matrix, in float64."""
    h, w = spectrum.shape
    rows, columns = (np.fft.fft(np.eye(n)) / np.sqrt(n) for n in (h, w))
    grid = z.reshape(len(z), h, w, channels).astype(np.float64)
    modes = np.einsum("yh,xw,nhwc->nyxc", rows, columns, grid)
    modes *= np.sqrt(spectrum)[None, :, :, None]
    back = np.einsum("yh,xw,nyxc->nhwc", rows.conj(), columns.conj(), modes)
    return back.real.reshape(z.shape)


def test_encoder_is_composed_with_the_learned_spectrum_of_its_step(tmp_path) -> None:
    config = cifar100.get_config("ham_learnable-smoke")
    config.hamsigreg.update(
        span_max=3.0, identity_epochs=1.0, base_ramp_epochs=5.0, learnable_ramp_epochs=2.0
    )
    save_run(config, tmp_path, (8,))
    run = prepare(typed(config), len(open_split(typed(config), "train")), sharding.data_mesh())
    raw = restore(typed(config), run, tmp_path).encoders["trained"](_images(3))
    config.evaluation.coordinates = "sqrt_h"
    # Another dataset has other epochs; the spectrum's ramps count in those of the training.
    elsewhere = prepare(typed(config), 16, sharding.data_mesh())
    encoders, sqrt_h, step, flow, *_ = restore(typed(config), elsewhere, tmp_path)
    assert flow is None
    assert sqrt_h is not None
    given = np.asarray(raw)
    coordinates = sqrt_h(given)
    assert coordinates.record == {}
    # The eighth step of four an epoch is the second epoch: identity ended with the first.
    alpha, beta = 1.0, (2 - 1) / 5.0
    state = random_state(run, 8)
    assert isinstance(run.method, HamSIGReg)
    spectrum = np.asarray(run.method.spectrum(state.method_state["params"], alpha, beta).spectrum)
    assert step == 8
    assert np.ptp(spectrum) > 0.5
    expected = _dense_transform(spectrum, given, config.resnet.token_dim)
    found = coordinates.apply(given)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found - given).max() > 0.05 * np.abs(given).max()
    np.testing.assert_array_equal(encoders["trained"](_images(3)), raw)
    # The random encoder has the same H.
    random = np.asarray(encoders["random"](_images(3)))
    assert np.abs(random - given).max() > 0.05 * np.abs(given).max()
    expected = _dense_transform(spectrum, random, config.resnet.token_dim)
    np.testing.assert_allclose(sqrt_h(random).apply(random), expected, rtol=1e-4, atol=1e-5)


def test_online_knn_is_in_the_same_coordinates(monkeypatch) -> None:
    config = cifar100.get_config("ham_diag-smoke")
    config.evaluation.update(online_every_epochs=1.0, coordinates="sqrt_h")
    settings = typed(config)
    source = open_split(settings, "train")
    run = prepare(settings, len(source), sharding.data_mesh())
    state = jax.device_put(random_state(run, 4))
    seen = []

    def capture(features, *_, **__):
        seen.append(features)
        return {"top1": [0.5], "top5": [0.75]}

    monkeypatch.setattr("hjepa_jax.evaluation.monitor.knn_accuracy", capture)
    scores, _ = OnlineKnn(settings, run, source)(state)
    assert scores["online/knn_top1"] == 0.5
    with eval_batches(settings.data, source, 32) as batches:
        raw = make_encode(run, state.params, state.batch_stats)(next(batches)["image"])
    values = np.linspace(1, 2, raw.shape[1])
    root = np.sqrt(values / np.exp(np.log(values).mean()))
    np.testing.assert_allclose(seen[0][:32], raw * root, rtol=1e-4, atol=1e-5)


def test_where_it_has_no_meaning_is_one_sentence(tmp_path) -> None:
    for variant, name in (("smoke", "sqrt_h"), ("sigreg-smoke", "sqrt_h"), ("smoke", "both")):
        config = quickstart.get_config(variant)
        config.evaluation.coordinates = name
        words = rf"coordinates is set to '{name}' but has no effect .*or fit an H afterwards by"
        with pytest.raises(ConfigError, match=words):
            resolve(config)
        config.evaluation.posthoc = "chain"
        resolve(config)
    config.evaluation.coordinates = "raw"
    with pytest.raises(ConfigError, match="posthoc is set to 'chain' but has no effect"):
        resolve(config)
    config = cifar100.get_config("ham_diag-smoke")
    config.evaluation.coordinates = "sqrt_h"
    resolve(config)
    save_run(config, tmp_path, (2,))
    other = cifar100.get_config("ham_chain-smoke")
    check_encoder(typed(other), typed(saved_config(tmp_path)), tmp_path)
    other.evaluation.coordinates = "sqrt_h"
    with pytest.raises(
        CheckpointError, match=r"hamsigreg.kind \('diag' there, 'chain_grid' here\)"
    ):
        evaluate(other, tmp_path, tmp_path / "eval")
    config.model.projector = "mlp"
    with pytest.raises(ConfigError, match="H acts on the output of the projector 'mlp'"):
        resolve(config)
    config.evaluation.features = "projector"
    resolve(config)
    config.evaluation.features = "encoder"
    # An H that is fitted to the encoder's states acts on these.
    config.evaluation.posthoc = "chain"
    resolve(config)


def test_both_coordinates_of_a_run_are_in_one_report(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("hjepa_jax.evaluate.painters", lambda *_: {})
    monkeypatch.setattr("hjepa_jax.evaluate.evaluation_page", lambda *_: "")
    config = cifar100.get_config("ham_diag-smoke")
    save_run(config, tmp_path / "run", (2,))
    config.evaluation.update(
        coordinates="both", probe_epochs=1, random_baseline=False, alignment_samples=8
    )
    metrics = evaluate(config, tmp_path / "run")
    assert list(metrics["encoders"]) == ["trained", "trained sqrt_h"]
    assert metrics["info"]["coordinates"] == "both"
    assert "posthoc" not in metrics["encoders"]["trained sqrt_h"]
    norms = [one["diagnostics"]["feature_norms"] for one in metrics["encoders"].values()]
    # H^{1/2} is a ramp of geometric mean 1.
    assert norms[0]["p50"] != norms[1]["p50"] == pytest.approx(norms[0]["p50"], rel=0.2)
    logged = read_metrics(tmp_path / "run")
    for tag in ("eval/knn20", "eval/sqrt_h/knn20"):
        row = metrics["encoders"]["trained sqrt_h" if "sqrt_h" in tag else "trained"]
        assert logged[tag][1][-1] == pytest.approx(row["knn"]["top1"][-1])
    # Another kind of H is another evaluation.
    config.evaluation.posthoc = "chain"
    other = evaluate(config, tmp_path / "run")
    assert other["info"]["posthoc"] == "chain"
    assert other["encoders"]["trained sqrt_h"]["posthoc"]["kind"] == "chain"
    assert other["encoders"]["trained"]["knn"] == metrics["encoders"]["trained"]["knn"]
    assert len(list((tmp_path / "run").glob("evaluation*"))) == 2


def test_no_image_is_read_for_an_h_that_does_not_exist(tmp_path, monkeypatch) -> None:
    config = quickstart.get_config("smoke")
    config.resnet.update(head="global", embed_dim=8)
    config.evaluation.update(coordinates="both", posthoc="learnable")
    save_run(quickstart.get_config("smoke"), tmp_path, (2,))
    monkeypatch.setattr("hjepa_jax.evaluation.ready.open_sets", lambda *_: pytest.fail("opened"))
    with pytest.raises(ConfigError, match="posthoc is 'learnable', which acts on the token grid"):
        check_before_training(typed(config), None)
    config.evaluation.posthoc = None
    with pytest.raises(ConfigError, match="coordinates is set to 'both' but has no effect"):
        evaluate(config, tmp_path)


def test_an_imported_run_does_not_know_its_epochs(tmp_path) -> None:
    config = cifar100.get_config("ham_diag-smoke")
    run = prepare(typed(config), 64, sharding.data_mesh())
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    checkpointer.save(3, jax.device_put(random_state(run, 3)), {"data": {"step": 3}})
    checkpointer.close()
    assert restore(typed(config), run, tmp_path).step == 3
    config.evaluation.coordinates = "sqrt_h"
    with pytest.raises(CheckpointError, match=r"was imported .*coordinates='raw'"):
        restore(typed(config), run, tmp_path)
    config.evaluation.posthoc = "diag"
    assert restore(typed(config), run, tmp_path).sqrt_h is not None


def test_a_run_of_digits_is_evaluated_on_a_folder_of_images(tmp_path) -> None:
    """The command line of the README: fewer images than a batch, other classes and sizes."""
    save_initial_run(quickstart.get_config("smoke"), tmp_path / "digits")
    counts = {"train": {"cat": 5, "dog": 6}, "val": {"cat": 2, "dog": 3}}
    root = write_folder(tmp_path / "images", counts)
    done = forked.run(
        *("-m", "hjepa_jax.main", "--mode=eval", "--config=configs/quickstart.py:smoke"),
        f"--workdir={tmp_path}/digits",
        f"--eval_dir={tmp_path}/eval",
        "--config.data.name=folder",
        f"--config.data.root={root}",
        "--config.data.test_split=val",
        "--config.evaluation.all_state_parts=False",
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "eval/digits/metrics.json").read_text())
    assert (metrics["num_classes"], metrics["info"]["data"]) == (2, "folder")
    assert metrics["info"]["trained_on"] == "digits"
    assert metrics["encoders"]["trained"]["knn"]["k_values"] == [1, 5]
    # What was measured are the run's features of the folder's test images.
    paths = sorted((root / "val").glob("*/*.jpg"))
    loaded = hjepa_jax.load(tmp_path / "digits")
    q = loaded.encode_state_part([np.asarray(Image.open(path)) for path in paths], "q")
    norms = np.linalg.norm(q, axis=1)
    found = metrics["encoders"]["trained"]["diagnostics"]["feature_norms"]
    assert found["min"] == pytest.approx(norms.min(), rel=1e-5)
    assert found["max"] == pytest.approx(norms.max(), rel=1e-5)
    assert norms.max() > norms.min() * 1.01

"""Loading a run as an object, and exporting its features."""

import gc
import json
import pathlib
import shutil

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_states import random_state

import hjepa_jax
from hjepa_jax.config import files
from hjepa_jax.config.checks import typed
from hjepa_jax.data.augmentation.host import eval_image
from hjepa_jax.data.pipeline import eval_batches
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import CheckpointError, ConfigError, UserError
from hjepa_jax.evaluate import restore
from hjepa_jax.interop.export_encoder import export_encoder
from hjepa_jax.interop.export_features import export_features, save_features
from hjepa_jax.methods.hjepa_settings import Dynamics
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.training.prepare import make_encode, prepare
from hjepa_jax.training.resume import data_identity, save


def save_run(config, workdir: pathlib.Path, steps: tuple[int, ...]) -> None:
    """Writes what training would, with random numbers in place of trained ones."""
    settings = typed(config)
    source = open_split(settings, "train")
    run = prepare(settings, len(source), sharding.data_mesh())
    checkpointer = Checkpointer(workdir / "checkpoints")
    files.save(settings, workdir)
    for step in steps:
        state = jax.device_put(random_state(run, step))
        identity = data_identity(settings.data, settings.seed, source)
        save(settings, identity, [], state, checkpointer)
    checkpointer.close()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
    """A smoke run with checkpoints of steps 1 and 2, when the warm-up of the flow is not over."""
    folder = tmp_path_factory.mktemp("load") / "run"
    save_run(quickstart.get_config("smoke"), folder, (1, 2))
    return folder


@pytest.fixture(scope="module")
def loaded(workdir):
    """The run, loaded where there is no dataset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hjepa_jax.data.sources.open.open_source", _no_data)
        return hjepa_jax.load(workdir, batch_size=8)


def _no_data(*_):
    raise AssertionError("loading a run opened a dataset")


def _reference(workdir: pathlib.Path):
    """The same run restored whole, as training and evaluation do."""
    settings = typed(quickstart.get_config("smoke"))
    run = prepare(settings, len(open_split(settings, "train")), sharding.data_mesh())
    checkpointer = Checkpointer(workdir / "checkpoints", read_only=True)
    state, _ = checkpointer.restore(run.abstract_state)
    return run, state


def test_encode_equals_the_evaluation(workdir, loaded) -> None:
    run, state = _reference(workdir)
    images = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
    padded = np.concatenate([images, images[:5]])
    expected = np.asarray(make_encode(run, state.params, state.batch_stats)(padded))[:11]
    # Another encoder of the run is another argument of the same compiled function.
    zeros = jax.tree.map(jax.numpy.zeros_like, state.params)
    assert not np.asarray(make_encode(run, zeros, state.batch_stats)(padded)).any()
    assert run.encode._cache_size() == 1
    found = loaded.encode(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.std(found) > 0.01
    assert loaded.step == 2
    assert loaded.settings.seed == 42
    np.testing.assert_array_equal(
        loaded.encode_state_part(images, "p"), found[:, found.shape[1] // 2 :]
    )
    np.testing.assert_array_equal(loaded.encode_state_part(images), found[:, : found.shape[1] // 2])


def test_the_flow_of_a_run_with_a_projector_takes_projected_states(tmp_path) -> None:
    config = quickstart.get_config("smoke")
    config.model.update(projector="halves", projector_widths=(12, 10))
    save_run(config, tmp_path, (1,))
    run = hjepa_jax.load(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    states = run.encode(images)
    projected = run.project(states)
    assert projected.shape == (5, 10)
    # q' depends on q alone, p' on p.
    mixed = run.project(np.concatenate([states[:, :64], states[::-1, 64:]], axis=1))
    np.testing.assert_allclose(mixed[:, :5], projected[:, :5], rtol=1e-6)
    np.testing.assert_allclose(mixed[:, 5:], projected[::-1, 5:], rtol=1e-6)
    np.testing.assert_allclose(run.flow(run.flow(projected), -1), projected, atol=1e-4)
    assert np.isfinite(run.energy(projected)).all()
    with pytest.raises(UserError, match=r"\[..., 10\]: use what project returns"):
        run.flow(states)


def test_any_size_and_number_is_resized_like_the_evaluation_and_compiles_once(loaded) -> None:
    rng = np.random.default_rng(1)
    sizes = [(16, 16), (40, 25), (9, 31)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    resized = np.stack([eval_image(image, 16, None) for image in images])
    loaded.encode(resized[:1])
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "compile" in event else None
    )
    found = loaded.encode(images)
    many = loaded.encode(np.concatenate([resized] * 5))
    assert compiled == []
    np.testing.assert_allclose(found, loaded.encode(resized), atol=1e-6)
    np.testing.assert_allclose(many[12:], found, atol=1e-6)


def test_the_listener_of_compilations_hears_them() -> None:
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "compile" in event else None
    )
    jax.jit(lambda x: x * 3 + 0.123)(np.float32(1))
    assert compiled


def test_flow_is_the_trained_predictor_and_reverses(workdir, loaded) -> None:
    run, state = _reference(workdir)
    width = loaded.encode(np.zeros((1, 8, 8, 3), np.uint8)).shape[1]
    z = np.random.default_rng(2).normal(size=(3, width)).astype(np.float32)
    scale = run.method.residual_scale(1)
    assert scale < loaded.settings.section(Dynamics).residual_scale
    predictor, variables = run.method.predictor, {"params": state.params["predictor"]}
    for direction in (1, -1):
        expected = predictor.apply(variables, jnp.asarray(z), float(direction), scale)
        np.testing.assert_allclose(loaded.flow(z, direction), expected, rtol=1e-5, atol=1e-6)
    there = loaded.flow(z)
    assert np.abs(there - z).max() > 1e-3
    back = loaded.flow(there, -1)
    # Leapfrog with negative dt is leapfrog undone.
    np.testing.assert_allclose(back, z, atol=1e-4)
    energy = predictor.apply(variables, jnp.asarray(z), scale, method="energy")
    np.testing.assert_allclose(loaded.energy(z), energy, rtol=1e-5)


def test_the_evaluation_follows_the_same_flow(workdir, loaded) -> None:
    """The residual scale is that of the training's epochs, whatever the data evaluated."""
    settings = typed(quickstart.get_config("smoke"))
    found = restore(settings, prepare(settings, 16, sharding.data_mesh()), workdir).flow
    z = np.random.default_rng(3).normal(size=(2, 512)).astype(np.float32)
    for direction in (1, -1):
        np.testing.assert_allclose(
            found.step(z, float(direction)), loaded.flow(z, direction), rtol=1e-5, atol=1e-6
        )
    np.testing.assert_allclose(found.energy(z), loaded.energy(z), rtol=1e-5)
    assert found.duration == pytest.approx(0.1)


def test_an_older_step_and_a_damaged_newest_one(workdir, loaded, tmp_path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    images = np.full((1, 16, 16, 3), 200, np.uint8)
    first = hjepa_jax.load(copy, step=1, batch_size=8)
    assert first.step == 1
    assert not np.allclose(first.encode(images), loaded.encode(images))
    for file in (copy / "checkpoints/2/state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert hjepa_jax.load(copy).step == 1
    with pytest.raises(CheckpointError, match="step 2"):
        hjepa_jax.load(copy, step=2)


def test_the_optimizer_state_takes_no_memory(workdir) -> None:
    _, state = _reference(workdir)
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    del state
    gc.collect()
    before = {id(array) for array in jax.live_arrays()}
    run = hjepa_jax.load(workdir)
    new = sum(array.nbytes for array in jax.live_arrays() if id(array) not in before)
    # AdamW's two moments would make it three times the parameters.
    assert run.step == 2
    assert parameters <= new < 1.5 * parameters


def test_errors_are_sentences(workdir, loaded, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json does not exist"):
        hjepa_jax.load(tmp_path)
    shutil.copy(workdir / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        hjepa_jax.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; its steps are \[1, 2\]"):
        hjepa_jax.load(workdir, step=7)
    # Both are equal to 1, a step that there is.
    for step in (True, 1.0):
        with pytest.raises(CheckpointError, match=f"step is {step}: use an integer"):
            hjepa_jax.load(workdir, step=step)
    assert hjepa_jax.load(workdir, step=np.int64(1)).step == 1
    with pytest.raises(UserError, match=r"^batch_size is 0: it must be 1 or more\.$"):
        hjepa_jax.load(tmp_path, batch_size=0)
    with pytest.raises(UserError, match=r"^images\[0\] has dtype float32"):
        loaded.encode(np.full((2, 16, 16, 3), 2, np.float32))
    with pytest.raises(UserError, match="at least one"):
        loaded.encode(np.zeros((0, 16, 16, 3), np.uint8))
    with pytest.raises(ConfigError, match="'z'"):
        loaded.encode_state_part(np.zeros((1, 16, 16, 3), np.uint8), "z")
    with pytest.raises(UserError, match="direction is 2"):
        loaded.flow(np.zeros((1, 512), np.float32), 2)
    with pytest.raises(UserError, match="the full state"):
        loaded.flow(np.zeros((1, 3), np.float32))


def test_a_shared_encoder_has_the_scores_of_its_own_checkpoint(loaded, tmp_path) -> None:
    source = open_split(loaded.settings, "train")
    trained = {"num_images": len(source), "fingerprint": source.fingerprint()}
    info = {"run": "run", "step": 2, "method": "hjepa", "data": "digits", "training_data": trained}
    others = [{"step": 1}, {"method": "lejepa"}, {"training_data": {**trained, "num_images": 3}}]
    own = loaded.save_pretrained(tmp_path / "none", eval_dir=tmp_path / "absent")
    assert "No evaluation was found" in (own / "README.md").read_text()
    for number, changes in enumerate(({}, *others)):
        measured = {
            "knn": {"k_values": [20], "top1": [0.9 - number / 10]},
            "linear_probe": {"top1": None, "top5": None},
            "diagnostics": {
                "covariance_spectrum_topq": {"effective_rank": 7.0, "participation_ratio": 2.0},
                "alignment_uniformity": {"alignment": 0, "uniformity": 0},
            },
        }
        report = tmp_path / "evals" / f"run-step{number}-digits-0000000{number}"
        report.mkdir(parents=True)
        metrics = {"info": {**info, **changes}, "encoders": {"trained": measured}}
        (report / "metrics.json").write_text(json.dumps(metrics))
    own = loaded.save_pretrained(tmp_path / "own", eval_dir=tmp_path / "evals")
    text = (own / "README.md").read_text()
    assert "| trained | 90.0 | 7.0 |" in text
    assert text.count("| trained |") == 1
    assert f"{len(source)} images" in text
    damaged = tmp_path / "evals" / "run"
    damaged.mkdir()
    for content, words in (
        ("{", r"evals/run/metrics\.json is damaged.* Remove .*evals/run, or evaluate again"),
        (json.dumps({"info": info, "encoders": {"trained": {}}}), "not what metrics.json has"),
    ):
        (damaged / "metrics.json").write_text(content)
        with pytest.raises(UserError, match=words):
            loaded.save_pretrained(tmp_path / "damaged", eval_dir=tmp_path / "evals")
    found = hjepa_jax.from_pretrained(own, batch_size=8)
    images = np.random.default_rng(6).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(found.encode(images), loaded.encode(images))


def test_a_sigreg_run_has_no_flow(tmp_path) -> None:
    save_run(quickstart.get_config("sigreg-smoke"), tmp_path, (2,))
    run = hjepa_jax.load(tmp_path)
    assert run.encode(np.zeros((1, 16, 16, 3), np.uint8)).shape[0] == 1
    with pytest.raises(UserError, match="no predictor"):
        run.flow(np.zeros((1, 4), np.float32))


def test_a_run_fine_tunes_from_its_encoder(loaded) -> None:
    """One step of gradient descent in training mode lowers the loss that it is taken on."""
    encoder = loaded.encoder
    images = np.random.default_rng(5).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    statistics = encoder.variables["batch_stats"]

    @jax.jit
    def loss(params):
        variables = {"params": params, "batch_stats": statistics}
        inputs = encoder.normalize(images)
        states, updates = encoder.module.apply(
            variables, inputs, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(jnp.square(states)), updates["batch_stats"]

    (before, new), gradient = jax.value_and_grad(loss, has_aux=True)(encoder.variables["params"])
    params = jax.tree.map(lambda x, g: x - 1e-3 * g, encoder.variables["params"], gradient)
    assert loss(params)[0] < before
    tuned = encoder.replace({"params": params, "batch_stats": new})
    assert not np.allclose(tuned.encode(images), encoder.encode(images), rtol=1e-4)
    np.testing.assert_array_equal(loaded.encode(images), encoder.encode(images))


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_export_writes_features_and_labels(loaded, tmp_path, suffix) -> None:
    out = tmp_path / "new folder" / f"features{suffix}"
    export_features(loaded, out, "test", state_part="q")
    source = open_split(loaded.settings, "test")
    batch = next(eval_batches(loaded.settings.data, source, 32))
    expected = loaded.encode_state_part(batch["image"], "q")
    if suffix == ".npz":
        with np.load(out) as file:
            features, labels = file["features"], file["labels"]
            about = json.loads(str(file["about"]))
            assert file["class_names"].tolist() == list(source.class_names)
    else:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(out)
        features = np.array(table["features"].to_pylist(), np.float32)
        labels = table["label"].to_numpy()
        about = json.loads(table.schema.metadata[b"hjepa_jax"])
    np.testing.assert_allclose(features, expected, atol=1e-6)
    np.testing.assert_array_equal(labels, source.labels())
    assert (about["split"], about["state_part"], about["step"]) == ("test", "q", 2)
    assert about["config"]["seed"] == 42
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_export_refuses_what_it_cannot_do(loaded, tmp_path) -> None:
    with pytest.raises(UserError, match=r"\.npz or \.parquet"):
        export_features(loaded, tmp_path / "x.csv")
    with pytest.raises(UserError, match="'train' or 'test'"):
        export_features(loaded, tmp_path / "x.npz", "val")
    (tmp_path / "file").write_text("")
    found = export_features(loaded, tmp_path / "x.npz")
    with pytest.raises(UserError, match="cannot be written"):
        save_features(tmp_path / "file" / "x.npz", found, ("a",))


def test_an_export_tries_its_file_before_it_encodes(loaded, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("hjepa_jax.interop.export_features.split_features", _no_data)
    monkeypatch.setattr("hjepa_jax.interop.export_encoder.encoder_function", _no_data)
    with pytest.raises(UserError, match="file is a file, not a folder"):
        export_features(loaded, tmp_path / "file" / "x.npz")
    with pytest.raises(UserError, match="file is a file, not a folder"):
        export_encoder(loaded, tmp_path / "file" / "x.stablehlo")
    with pytest.raises(UserError, match="remote address"):
        export_features(loaded, "gs://bucket/x.npz")


def test_a_workdir_may_begin_with_the_home_folder(workdir, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(workdir.parent))
    assert hjepa_jax.load(f"~/{workdir.name}", batch_size=8).step == 2
    assert hjepa_jax.load(workdir.as_uri(), batch_size=8).step == 2
    with pytest.raises(UserError, match="remote address"):
        hjepa_jax.load("s3://bucket/run")


def test_export_script(workdir, tmp_path) -> None:
    command = ("scripts/export_features.py", f"--out={tmp_path}/x.npz")
    done = forked.run(*command, f"--workdir={workdir}", "--split=train", "--batch_size=32")
    assert done.returncode == 0, done.stderr
    assert "64 images x " in done.stdout
    done = forked.run(*command, "--workdir=/nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("hjepa features: /nowhere")

"""The online probe: it learns, it never touches the encoder, and it survives a resume."""

import shutil

import jax
import numpy as np
import pytest
from event_files import only_events

import hjepa_jax
from hjepa_jax.config import resolve
from hjepa_jax.config.checks import typed
from hjepa_jax.errors import CheckpointError
from hjepa_jax.evaluate import restore
from hjepa_jax.recipes import cifar100, quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.devices import UNOPTIMIZED
from hjepa_jax.train import train
from hjepa_jax.training.online_probe import init_online_probe, logged_figures, update_online_probe
from hjepa_jax.training.prepare import prepare


def _leaves(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    }


def _assert_equal(one, two) -> None:
    one, two = _leaves(one), _leaves(two)
    assert one.keys() == two.keys()
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, two[name], err_msg=name)


def _two_steps(config, online):
    """Returns the state and metrics after two steps on random images."""
    config.evaluation.online_probe = online
    mesh = sharding.data_mesh()
    run = prepare(typed(config), 64, mesh, num_classes=10)
    rng, batch_size = np.random.default_rng(0), config.data.batch_size
    views = rng.integers(0, 256, (2, batch_size, 16, 16, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, batch_size, dtype=np.int32)
    batch = sharding.put_batch(mesh, {"global_views": views, "label": labels})
    state, metrics = run.init(), {}
    for _ in range(2):
        state, metrics = run.step(state, batch)
    return state, metrics


def test_training_is_the_same_to_the_bit_with_and_without(monkeypatch) -> None:
    # As users compile: the older emitters, which the other tests use, round by what is beside.
    if "xla_cpu_use_fusion_emitters" in UNOPTIMIZED:
        monkeypatch.setitem(UNOPTIMIZED, "xla_cpu_use_fusion_emitters", True)
    without, plain = _two_steps(cifar100.get_config("identity-smoke"), online=False)
    with_it, watched = _two_steps(cifar100.get_config("identity-smoke"), online=True)
    assert without.probe == {}
    assert np.abs(with_it.probe["params"].kernel).max() > 0
    _assert_equal(without, with_it.replace(probe={}))
    extra = watched.keys() - plain.keys()
    assert extra == {"online/probe_loss", "online/probe_top1"}
    _assert_equal(plain, {name: watched[name] for name in plain})


def test_it_learns_the_evaluated_part_of_the_states() -> None:
    config = quickstart.get_config("smoke")
    config.evaluation.probe_lr = 0.05
    evaluation = typed(config).evaluation
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 24)
    q = rng.normal(size=(3, 8))[labels] + 0.1 * rng.normal(size=(2, 24, 8))
    z = np.concatenate([q, rng.normal(size=q.shape)], axis=-1)
    probe = init_online_probe(evaluation, True, 16, 3, jax.random.key(0))
    start = probe["params"]
    update = jax.jit(lambda probe, z: update_online_probe(evaluation, True, probe, z, labels))
    learned, first = update(probe, z)
    # Its loss is the cross-entropy of Linear(LayerNorm(q)) over both views, recomputed here.
    normal = (q - q.mean(-1, keepdims=True)) / np.sqrt(q.var(-1, keepdims=True) + 1e-5)
    logits = normal @ np.asarray(start.kernel) + np.asarray(start.bias)
    picked = np.take_along_axis(logits, np.broadcast_to(labels, (2, 24))[..., None], -1)[..., 0]
    expected = np.mean(np.log(np.exp(logits).sum(-1)) - picked)
    assert float(first["online/probe_loss"]) == pytest.approx(expected, rel=1e-5)
    top1 = np.mean(logits.argmax(-1) == labels)
    assert float(first["online/probe_top1"]) == pytest.approx(top1)
    # The first step of AdamW moves by the learning rate (its decay is a millionth of that).
    moved = np.abs(np.asarray(learned["params"].kernel) - np.asarray(start.kernel))
    np.testing.assert_allclose(moved, 0.05, rtol=1e-3)
    for _ in range(20):
        learned, scores = update(learned, z)
    assert float(scores["online/probe_top1"]) == 1.0
    assert float(scores["online/probe_loss"]) < 0.1 < expected


def test_images_without_label_do_not_train_it() -> None:
    evaluation = typed(quickstart.get_config("smoke")).evaluation
    rng = np.random.default_rng(2)
    z = rng.normal(size=(2, 24, 16))
    labels = rng.integers(0, 3, 24)
    missing = labels.copy()
    missing[::3] = -1
    update = jax.jit(
        lambda probe, z, labels: update_online_probe(evaluation, True, probe, z, labels)
    )
    probe = init_online_probe(evaluation, True, 16, 3, jax.random.key(0))
    learned, scores = update(probe, z, missing)
    kept = missing >= 0
    alone, expected = update(probe, z[:, kept], labels[kept])
    for name, value in expected.items():
        assert float(scores[name]) == pytest.approx(float(value), rel=1e-5)
    for name, leaf in _leaves(alone).items():
        np.testing.assert_allclose(_leaves(learned)[name], leaf, rtol=1e-4, atol=1e-6)
    # A batch without a label leaves it as it is, although AdamW has momentum by now.
    after, scores = update(learned, z, np.full(24, -1))
    _assert_equal(after, learned)
    assert all(np.isnan(float(value)) for value in scores.values())
    assert logged_figures({"total": 1.0, **{k: float(v) for k, v in scores.items()}}) == {
        "total": 1.0
    }
    assert logged_figures({"online/probe_top1": 0.5}) == {"online/probe_top1": 0.5}


def test_resumed_probe_is_the_uninterrupted_one_and_a_changed_one_is_refused(tmp_path) -> None:
    config = quickstart.get_config("smoke")
    config.evaluation.online_probe = True
    config.checkpoint.update(every_steps=1, keep_last=2)
    whole = train(config, tmp_path)
    assert whole.probe["params"].kernel.shape == (256, 10)
    logged = {v.tag: v.simple_value for e in only_events(tmp_path) for v in e.summary.value}
    assert 0 <= logged["online/probe_top1"] <= 1
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    _assert_equal(train(config, tmp_path), whole)
    config.evaluation.probe_lr = 0.5
    with pytest.raises(CheckpointError, match=r"config\.evaluation\.probe_lr \(0\.001 there, 0\.5"):
        train(config, tmp_path)
    config.evaluation.update(online_probe=False, probe_lr=1e-3)
    with pytest.raises(CheckpointError, match=r"probe/\S+ is in checkpoint .* not part of this"):
        train(config, tmp_path)
    # What needs no probe reads such a checkpoint without one.
    assert hjepa_jax.load(tmp_path).step == 2
    settings = typed(config)
    assert restore(settings, prepare(settings, 64, sharding.data_mesh()), tmp_path).step == 2


@pytest.mark.parametrize("features", ["encoder", "projector"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_behind_a_projector_it_sees_the_side_that_is_evaluated(features, accumulation) -> None:
    config = quickstart.get_config("sigreg-smoke")
    config.model.update(projector="mlp", projector_widths=(12, 8))
    config.evaluation.update(online_probe=True, features=features, state_part="qp")
    config.train.accumulation = accumulation
    settings = resolve(config)
    mesh = sharding.data_mesh()
    run = prepare(settings, 64, mesh, num_classes=10)
    state, rng = run.init(), np.random.default_rng(0)
    views = rng.integers(0, 256, (2, 16, 16, 16, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, 16, dtype=np.int32)
    # The encoder and the projector in training mode, applied by hand to each micro-batch.
    pixels = (views / 255 - 0.5) / 0.25
    expected = np.zeros((2, 16, 512 if features == "encoder" else 8), np.float32)
    for part in range(accumulation):
        rows = np.swapaxes(pixels[:, part::accumulation], 0, 1)
        output = rows.reshape(-1, 16, 16, 3).astype(np.float32)
        for name in ("encoder", "projector") if features == "projector" else ("encoder",):
            variables = {"params": state.params[name], "batch_stats": state.batch_stats[name]}
            output, _ = getattr(run.setup, name).apply(
                variables, output, train=True, mutable=["batch_stats"]
            )
        expected[:, part::accumulation] = np.swapaxes(
            np.asarray(output).reshape(-1, 2, expected.shape[-1]), 0, 1
        )
    assert state.probe["params"].kernel.shape == (expected.shape[-1], 10)
    wanted, scores = update_online_probe(
        settings.evaluation, False, jax.device_get(state.probe), expected, labels
    )
    batch = sharding.put_batch(mesh, {"global_views": views, "label": labels})
    after, metrics = run.step(state, batch)
    for name, value in scores.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-4)
    moved = np.asarray(after.probe["params"].kernel), np.asarray(wanted["params"].kernel)
    np.testing.assert_allclose(*moved, atol=2e-4)

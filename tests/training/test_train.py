"""Training end to end: every configuration runs, and what cannot go on says so."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

from hjepa_jax.config.checks import typed
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import CheckpointError, ConfigError, TrainingError
from hjepa_jax.recipes import cifar100, imagenet100, lejepa, quickstart
from hjepa_jax.recipes.variants.apply import smoke
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.tools.kill_test import final_state
from hjepa_jax.tools.plan.step_cost import abstract_batch
from hjepa_jax.train import train
from hjepa_jax.training.announcement import cautions
from hjepa_jax.training.prepare import prepare
from hjepa_jax.training.setup import build_method

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOGGED = {"total", "pred", "lr", "grad_norm"}
HJEPA_LOGGED = LOGGED | set(
    [
        "budget",
        "var",
        "logdet",
        "mean",
        "q_pr",
        "p_pr",
        "q_logdet",
        "p_logdet",
        "q_eigmax",
        "p_eigmax",
        "q_std_min",
        "p_std_min",
        "q2",
        "p2",
        "z_mean2",
        "V_var",
    ]
)


# Terms of the losses of other baselines.
OWN = {
    "vicreg": {"pred", "hinge", "covariance"},
    "barlow": {"invariance", "redundancy"},
    "visreg": {"pred", "center", "scale", "shape"},
}
RECIPES = [(m, name) for m in (cifar100, imagenet100, lejepa, quickstart) for name in m.METHODS]
# Every method, and every base; the others are traced alone, which finds what does not fit.
RUN = [(cifar100, name) for name in cifar100.METHODS]
RUN += [(imagenet100, "parity"), (quickstart, "hjepa"), (lejepa, "cifar10")]


@pytest.mark.parametrize(("module", "method"), [one for one in RECIPES if one not in RUN])
def test_a_step_of_every_config_is_traced(module, method) -> None:
    settings = typed(module.get_config(f"{method}-smoke"))
    run = prepare(settings, settings.data.batch_size, sharding.data_mesh())
    state, metrics = jax.eval_shape(
        run.step, run.abstract_state, abstract_batch(settings.data, run.mesh)
    )
    given, found = (
        jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (run.abstract_state, state)
    )
    assert given == found
    assert metrics["total"].shape == ()
    assert (HJEPA_LOGGED if settings.method == "hjepa" else LOGGED) - {"V_var"} <= metrics.keys()


@pytest.mark.parametrize(("module", "method"), RUN)
def test_every_config_takes_two_steps(module, method) -> None:
    config = module.get_config(f"{method}-smoke")
    mesh = sharding.data_mesh()
    settings = typed(config)
    run = prepare(settings, len(open_split(settings, "train")), mesh)
    rng = np.random.default_rng(0)
    size = config.data.image_size
    views = rng.integers(0, 256, (2, config.data.batch_size, size, size, 3), dtype=np.uint8)
    batch = sharding.put_batch(mesh, {"global_views": views})
    state = run.init()
    # Copies: a view of a buffer on the CPU would keep the step from reusing it. jax 0.11's `int`
    # leaves one, `item` does not.
    before = jax.tree.map(np.array, state.params)
    for step in range(2):
        given, (state, metrics) = state, run.step(state, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given)), "buffers not reused"
        values = {name: float(value) for name, value in metrics.items()}
        assert all(np.isfinite(list(values.values()))), values
        assert state.step.item() == step + 1
    others = (LOGGED - {"pred"}) | OWN.get(method, {"pred", "sigreg"})
    expected = HJEPA_LOGGED if config.method == "hjepa" else others
    if config.dynamics.predictor != "hamiltonian":
        expected = expected - {"V_var"}
    assert expected <= values.keys()
    after = jax.device_get(state.params)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
    still = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, value in jax.tree_util.tree_leaves_with_path(moved)
        if not value
    ]
    # A bias before a normalization has no gradient; Adam, unlike LARS, enlarges its rounding.
    still = [path for path in still if not re.fullmatch(r"projector/hidden\d*/bias", path)]
    # The potential's last bias has no gradient, so it is neither moved nor decayed.
    potential = config.method == "hjepa" and config.dynamics.predictor == "hamiltonian"
    assert still == (["predictor/potential/layer2/bias"] if potential else [])


OPTIONS = {
    "local crops of their own size to global ones, blocks recomputed": (
        "hjepa",
        {
            "data.num_local_views": 2,
            "data.local_size": 8,
            "resnet.token_grid": 2,
            "loss.pairing": "local_to_global",
            "loss.match": "qp",
            "resnet.remat": "blocks",
        },
    ),
    "learnable Hamiltonian by implicit midpoint, device augmentation, micro-batches": (
        "hjepa",
        {
            "dynamics.hamiltonian": "learnable",
            "dynamics.integrator": "implicit_midpoint",
            "loss.energy_weight": 0.1,
            "data.backend": "device",
            "train.accumulation": 2,
        },
    ),
    "global mode, Yoshida with damping": (
        "hjepa",
        {
            "resnet.head": "global",
            "resnet.embed_dim": 32,
            "resnet.token_layer": "layer3",
            "resnet.token_dim": 32,
            "dynamics.integrator": "yoshida4",
            "dynamics.damping": 0.1,
        },
    ),
    "a projector of three layers for q and one for p": (
        "hjepa",
        {"model.projector": "halves", "model.projector_widths": (24, 20, 16)},
    ),
    "bottlenecks that begin as their shortcuts, pooled to q and p": (
        "hjepa",
        {
            "resnet.block": "bottleneck",
            "resnet.zero_init": True,
            "resnet.head": "pooled",
            "resnet.token_layer": "layer3",
            "resnet.token_dim": 32,
        },
    ),
    "convex flattened SIGReg of an MLP projection": (
        "sigreg",
        {
            "sigreg.loss_form": "convex",
            "sigreg.statistics": "flattened",
            "sigreg.subsample": 12,
            "sigreg.clip_value": 0.01,
            "sigreg.weight_warmup_epochs": 0.5,
            "model.projector": "mlp",
            "model.projector_hidden": 16,
            "model.projector_dim": 24,
        },
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_the_method_train_through_the_pipeline(name, tmp_path) -> None:
    method, fields = OPTIONS[name]
    config = cifar100.get_config(f"{method}-smoke")
    for path, value in fields.items():
        section, _, leaf = path.rpartition(".")
        config[section][leaf] = value
    config.checkpoint.update(every_steps=1, keep_last=2)
    state = train(config, tmp_path)
    assert int(state.step) == 2
    assert int(state.failed_step) == -1
    earlier = Checkpointer(tmp_path / "checkpoints", read_only=True).restore(state, step=1)[0]
    old, new = (s.params["encoder"]["stem_conv"]["kernel"] for s in (earlier, state))
    assert np.isfinite(new).all()
    assert not np.array_equal(old, new)


def test_another_configuration_in_the_workdir_is_refused(tmp_path) -> None:
    config = quickstart.get_config("smoke")
    train(config, tmp_path)
    config.train.lr = 0.123
    with pytest.raises(CheckpointError, match=r"config.train.lr \(0.002 there, 0.123 here\)"):
        train(config, tmp_path)
    config.train.lr = quickstart.get_config("smoke").train.lr
    config.log.every_steps = 7
    assert int(train(config, tmp_path).step) == 2


def test_a_loss_that_is_not_finite_stops_and_spares_the_checkpoint(tmp_path) -> None:
    config = quickstart.get_config("smoke")
    config.train.update(max_steps=12, epochs=3, warmup_epochs=0.0, lr=1e18, grad_clip=None)
    config.checkpoint.every_steps = 1
    with pytest.raises(TrainingError, match=r"NaN or infinite at step \d+ .*train.lr"):
        train(config, tmp_path)
    report = json.loads((tmp_path / "failure.json").read_text())
    assert report["action"] == "stop"
    assert len(set(report["images"])) == config.data.batch_size
    state = final_state(tmp_path)
    # The step that failed is the one that would have followed the newest checkpoint.
    assert report["step"] == report["batch"] == int(state.step)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))
    assert int(state.failed_step) == -1


def test_a_batch_larger_than_the_data_is_one_sentence(tmp_path) -> None:
    config = quickstart.get_config("smoke")
    config.data.batch_size = 128
    with pytest.raises(ConfigError, match="only 64 images: set it to 64 or less"):
        train(config, tmp_path)


def test_too_few_rows_for_the_logdet_floor_are_warned_of() -> None:
    config = cifar100.get_config()
    assert not list(build_method(typed(config), 97).warnings())
    config.data.batch_size = 64
    (sentence,) = build_method(typed(config), 97).warnings()
    assert "only 128 rows" in sentence
    assert "set it to 32 or less" in sentence


def test_a_run_that_max_steps_ends_within_its_warmup_is_warned_of() -> None:
    config = cifar100.get_config()
    config.model.compute_dtype = "float32"
    for steps in (None, 2, 11 * 97):
        config.train.max_steps = steps
        assert not list(cautions(typed(config), build_method(typed(config), 97), 50_000))
    config.train.max_steps = 970
    (sentence,) = cautions(typed(config), build_method(typed(config), 97), 50_000)
    assert "after 10 epochs" in sentence
    for name in ("train.warmup_epochs=10", "dynamics.residual_scale_warmup_epochs=10"):
        assert f"config.{name}" in sentence


def test_bfloat16_on_a_cpu_is_warned_of(monkeypatch) -> None:
    config = cifar100.get_config()
    method = build_method(typed(config), 97)
    (sentence,) = cautions(typed(config), method, 50_000)
    assert "--config.model.compute_dtype=float32" in sentence
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not list(cautions(typed(config), method, 50_000))
    monkeypatch.undo()
    config.model.compute_dtype = "float32"
    assert not list(cautions(typed(config), method, 50_000))


def test_smoke_keeps_the_method() -> None:
    config = cifar100.get_config("sigreg")
    smoke(config)
    assert config.method == "lejepa"
    assert config.sigreg == cifar100.get_config("sigreg").sigreg

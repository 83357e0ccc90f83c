"""Golden vectors of the encoder, the projector and a published-format checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resnets import resnet

from golden_checks.common import assert_close, golden_file, groups, load, subtree
from hjepa_jax.dynamics import hamiltonian as hm
from hjepa_jax.dynamics.integrators import integrate
from hjepa_jax.interop.published.translate import config_from_torch
from hjepa_jax.interop.torch_file import load_torch_file
from hjepa_jax.interop.torch_names import (
    Entry,
    encoder_entries,
    encoder_from_torch,
    predictor_from_torch,
    projector_entries,
    projector_from_torch,
)
from hjepa_jax.models.projector import Projector
from hjepa_jax.models.resnet import ResNet

FILES = ("encoder_cifar.npz", "encoder_imagenet.npz", "encoder_global.npz")
TOLERANCE = 1e-9


def _cases() -> list[Any]:
    found = [(f, g) for f in FILES for g in groups(load(f)) if f"{g}/z_eval" in load(f)]
    return found or [pytest.param("none", "none", marks=pytest.mark.skip(reason="no encoders"))]


def _group_state(data: Mapping[str, np.ndarray], group: str) -> dict[str, np.ndarray]:
    """The torch state of a group: the trunk of the file, with its own head if it has one."""
    state = subtree(data, "param/")
    head = subtree(data, f"{group}/param/")
    if head and any(name.startswith("backbone.") for name in state):
        places = {"0": "stem.0", "1": "stem.1", "4": "layer1", "5": "layer2", "6": "layer3"}
        places["7"] = "layer4"
        renamed = {}
        for name, value in state.items():
            parts = name.split(".")
            if parts[0] == "backbone":
                renamed[".".join([places[parts[1]], *parts[2:]])] = value
        state = renamed
    return state | head


def _scalar(data: Mapping[str, np.ndarray], names: list[str], default: int) -> int:
    return next((int(data[name]) for name in names if name in data), default)


def _encoder(data: Mapping[str, np.ndarray], group: str, state: dict[str, Any]) -> ResNet:
    """Reads the architecture off the shapes and the scalars of the group."""
    is_global = "fc.weight" in state
    stem = state["backbone.0.weight" if is_global else "stem.0.weight"]
    fields: dict[str, Any] = {
        "stem": "imagenet" if stem.shape[-1] == 7 else "cifar",
        "width": stem.shape[0],
        "dtype": jnp.float64,
    }
    if is_global:
        return resnet(head="global", embed_dim=state["fc.weight"].shape[0], **fields)
    token_dim, channels = state["token_proj.0.weight"].shape[:2]
    token_hw = _scalar(data, [f"{group}/token_hw"], -1)
    split = _scalar(data, [f"{group}/split_qp"], 0 if group.endswith("split0") else 1)
    return resnet(
        token_layer=f"layer{1 + (channels // stem.shape[0]).bit_length() - 1}",
        token_dim=token_dim,
        token_grid=None if token_hw < 0 else token_hw,
        split_qp=bool(split),
        **fields,
    )


def _lookup(tree: Any, path: tuple[str, ...]) -> np.ndarray:
    for part in path:
        tree = tree[part]
    return np.asarray(tree)


def _check_statistics(
    expected: Mapping[str, np.ndarray],
    before: Mapping[str, np.ndarray],
    stats: Any,
    entries: list[Entry],
) -> None:
    """Compares running statistics, and that torch's own counters moved by the one step we took."""
    places = {entry.name: entry.path for entry in entries if entry.collection == "batch_stats"}
    checked = 0
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            assert value == before[name] + 1
        elif name in places:
            assert_close(_lookup(stats, places[name]), value, TOLERANCE, name)
            checked += 1
    assert checked == (len(places) if expected else 0)


def _check_gradients(
    data: Mapping[str, np.ndarray], start: str, gradient: Any, entries: list[Entry]
) -> None:
    """Compares gradients, and the norm of the gradient of every parameter."""
    for entry in entries:
        if entry.collection != "params":
            continue
        actual = _lookup(gradient, entry.path)
        if f"{start}grad/{entry.name}" in data:
            expected = entry.layout(data[f"{start}grad/{entry.name}"])
            assert_close(actual, expected, TOLERANCE, f"gradient of {entry.name}")
        if f"{start}grad_l2norm/{entry.name}" in data:
            norm = data[f"{start}grad_l2norm/{entry.name}"]
            assert_close(np.linalg.norm(actual), norm, TOLERANCE, f"norm of {entry.name}")


def _as_float64(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


@pytest.mark.parametrize(("file", "group"), _cases())
def test_golden_models_encoder(file: str, group: str) -> None:
    """State in both modes, running statistics and gradients, in float64."""
    data = load(file)
    state = _group_state(data, group)
    with jax.enable_x64(True):
        model = _encoder(data, group, state)
        params, stats, _ = _as_float64_encoder(state, model)
        x = data[f"{group}/x" if f"{group}/x" in data else "input/x"].transpose(0, 2, 3, 1)

        # At full width running unoptimized code takes longer than a little optimization.
        @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
        def run(params: Any, stats: Any, x: jax.Array, cot: jax.Array | None) -> Any:
            def train(params: Any) -> tuple[jax.Array, Any]:
                variables = {"params": params, "batch_stats": stats}
                z, updates = model.apply(variables, x, train=True, mutable=["batch_stats"])
                return z, updates["batch_stats"]

            z_eval = model.apply({"params": params, "batch_stats": stats}, x, train=False)
            if cot is None:
                return z_eval, *train(params), None
            z_train, pullback, updates = jax.vjp(train, params, has_aux=True)
            return z_eval, z_train, updates, pullback(cot)[0]

        cot = jnp.asarray(data[f"{group}/cot"], jnp.float64) if f"{group}/cot" in data else None
        z_eval, z_train, updates, gradient = run(params, stats, jnp.asarray(x, jnp.float64), cot)
    assert z_eval.shape[-1] == model.shape(x.shape[1]).dim
    assert_close(z_eval, data[f"{group}/z_eval"], TOLERANCE, "z_eval")
    assert_close(z_train, data[f"{group}/z_train"], TOLERANCE, "z_train")
    entries = list(encoder_entries(model.settings.head, model.settings.token_layer))
    _check_statistics(subtree(data, f"{group}/running_after/"), state, updates, entries)
    if gradient is not None:
        _check_gradients(data, f"{group}/", gradient, entries)


def _as_float64_encoder(state: dict[str, Any], model: ResNet) -> tuple[Any, Any, list[str]]:
    params, stats, ignored = encoder_from_torch(
        state, head=model.settings.head, token_layer=model.settings.token_layer
    )
    return _as_float64(params), _as_float64(stats), ignored


def test_golden_models_projector() -> None:
    """The MLP projector in both modes, its statistics and gradients, in float64."""
    data = load("projector.npz")
    if not data:
        pytest.skip("no projector.npz")
    state = subtree(data, "param/")
    with jax.enable_x64(True):
        params, stats, _ = projector_from_torch(state)
        params, stats = _as_float64(params), _as_float64(stats)
        output_dim, hidden_dim = state["net.3.weight"].shape
        model = Projector("mlp", (hidden_dim, output_dim), jnp.float64)
        x = jnp.asarray(data["x"])
        out = model.apply({"params": params, "batch_stats": stats}, x, train=False)
        assert_close(np.asarray(out), data["eval/out"], TOLERANCE, "eval/out")

        def train(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": stats}
            out, updates = model.apply(variables, x, train=True, mutable=["batch_stats"])
            return out, updates["batch_stats"]

        out, pullback, updates = jax.vjp(train, params, x, has_aux=True)
        gradient, grad_x = pullback(jnp.asarray(data["train/cot"]))
    assert_close(out, data["train/out"], TOLERANCE, "train/out")
    assert_close(grad_x, data["train/grad_x"], TOLERANCE, "train/grad_x")
    entries = list(projector_entries())
    _check_statistics(subtree(data, "train/running_after/"), state, updates, entries)
    _check_gradients(data, "train/", gradient, entries)


def _checkpoint() -> Mapping[str, Any] | None:
    path = golden_file("checkpoint_ref.pth")
    return None if path is None else load_torch_file(path)


@pytest.mark.parametrize(
    ("dtype", "key", "tolerance"),
    [
        pytest.param(jnp.float32, "features/eval_f32", 1e-4, id="float32"),
        pytest.param(jnp.float64, "features/eval_f64", TOLERANCE, id="float64"),
    ],
)
def test_golden_models_checkpoint(dtype: Any, key: str, tolerance: float) -> None:
    """Features, flow and potential of a checkpoint written by the published code."""
    checkpoint, data = _checkpoint(), load("checkpoint_ref_features.npz")
    if checkpoint is None or not data:
        pytest.skip("no checkpoint_ref.pth or no features of it")
    config = config_from_torch(checkpoint["config"])
    dynamics = config.dynamics
    assert int(checkpoint["epoch"]) == int(data["epoch"])
    assert (config.resnet.head, dynamics.hamiltonian) == ("tokens", "separable")
    model = resnet(
        stem=config.resnet.stem,
        token_layer=config.resnet.token_layer,
        token_dim=config.resnet.token_dim,
        token_grid=config.resnet.token_grid,
        split_qp=config.model.split_qp,
        dtype=dtype,
    )
    with jax.enable_x64(dtype == jnp.float64):
        params, stats, ignored = encoder_from_torch(
            checkpoint["encoder"], token_layer=config.resnet.token_layer
        )
        assert all("num_batches_tracked" in name or "layer4" in name for name in ignored)
        variables = {"params": params, "batch_stats": stats}
        variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
        scaled = (data["images/uint8_nhwc"] / 255.0 - data["images/mean"]) / data["images/std"]
        normalized = data["images/normalised_nchw"]
        assert_close(scaled.transpose(0, 3, 1, 2), normalized, 1e-6, "normalized images")
        x = jnp.asarray(normalized.transpose(0, 2, 3, 1), dtype)
        z = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)
        assert_close(z, data[key], tolerance, key)
        tree, ignored = predictor_from_torch(checkpoint["predictor"])
        assert ignored == ["dt"]
        layers = [tree["potential"][f"layer{i}"] for i in range(dynamics.depth + 1)]
        layers = tuple(jax.tree.map(lambda x: jnp.asarray(x, dtype), layers))
        system = hm.separable(
            layers,
            base_coeff=dynamics.base_coeff,
            residual_scale=dynamics.residual_scale,
            activation=dynamics.activation,
        )
        dt = float(checkpoint["predictor"]["dt"])
        flow = integrate(
            system, z, method=dynamics.integrator, steps=dynamics.steps, dt=dt, direction=1
        )
        potential = system.potential(hm.split_state(z)[0])
    assert_close(flow, data["features/predictor_fwd_f64"], tolerance, "flow")
    assert_close(potential, data["features/potential_f64"], tolerance, "potential")

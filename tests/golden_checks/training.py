"""Whole training steps of the published scripts, followed in float64 (train_steps.npz).

Every group is run through our own train step with the configuration translated from its YAML, from
the recorded initial parameters, with the recorded images, projections and slices.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml

from golden_checks.common import assert_close, golden_file, groups, load, subtree
from hjepa_jax.config import resolve
from hjepa_jax.config.checks import typed
from hjepa_jax.interop.published.translate import config_from_torch
from hjepa_jax.interop.torch_names import encoder_entries, encoder_from_torch, predictor_from_torch
from hjepa_jax.methods.base import HasFlow
from hjepa_jax.methods.hamsigreg import HamSIGReg
from hjepa_jax.methods.hjepa_settings import Parity
from hjepa_jax.models.resnet import ResNetSection
from hjepa_jax.tools.layout_check import float64_setup
from hjepa_jax.training.step import apply_gradient, loss_and_gradient

FILE = load("train_steps.npz")
GROUPS = [
    group
    for group in groups(FILE)
    if f"{group}/x" in FILE and golden_file(f"train_steps_{group}.yaml") is not None
]
TOLERANCE = 1e-9
# The record stores the predictor's weight matrices rounded to float32.
ROUNDED = 1e-7


def tolerance_of(group):
    """The learnable spectrum's base is a float32 buffer, whose rounding the record lacks."""
    return ROUNDED if f"{group}/h_update_steps" in FILE else TOLERANCE


def recorded_config(group):
    """Returns our configuration of a group's recorded YAML."""
    path = golden_file(f"train_steps_{group}.yaml")
    assert path is not None
    config = config_from_torch(yaml.safe_load(path.read_text()))
    # The recorded run is shorter than the published warm-up of the residual.
    resolve(config, training=False)
    config.data.batch_size = FILE[f"{group}/x"].shape[2]
    config.data.image_size = FILE[f"{group}/x"].shape[-1]
    return config


def initial_state(group, config, state):
    """Puts the recorded initial parameters into a state."""
    name = f"init_{group}/encoder."
    encoder = subtree(FILE, name if subtree(FILE, name) else "init_hjepa/encoder.")
    params, stats, _ = encoder_from_torch(
        encoder, head=config.resnet.head, token_layer=config.resnet.token_layer
    )
    parts = {"encoder": params}
    predictor = subtree(FILE, f"{group}/init/predictor.")
    if predictor:
        parts["predictor"] = predictor_from_torch(predictor)[0]
    method_state = state.method_state
    learnable = subtree(FILE, f"{group}/init/learnable_h.")
    if learnable:
        method_state = {**method_state, "params": learnable}
    to64 = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float64))
    assert jax.tree.structure(parts) == jax.tree.structure(state.params)
    return state.replace(
        params=to64(parts),
        batch_stats={"encoder": to64(stats)},
        method_state=method_state | {"params": to64(method_state["params"])}
        if method_state
        else {},
    )


def projection_indices(group, half, method):
    """Returns which of a half's recorded projections each step uses.

    The common `R_index` is that of both halves only if they are drawn at the same steps.
    """
    steps = range(int(FILE[f"{group}/num_steps"]))
    drawn = [step // method.redraw()[half] for step in steps]
    if f"{group}/R_index_{half}" in FILE:
        found = FILE[f"{group}/R_index_{half}"].tolist()
    elif len(set(method.redraw().values())) > 1 and len(FILE[f"{group}/R_{half}"]) == drawn[-1] + 1:
        found = drawn
    else:
        found = FILE[f"{group}/R_index"].tolist()
    # They change at the steps that the interval says.
    assert np.diff(found).astype(bool).tolist() == np.diff(drawn).astype(bool).tolist()
    return found


def recorded_randomness(group, step, method):
    """Returns what the published run drew at a step.

    alpha and beta come from our schedule, rounded as the published buffers are: the record's own
    `alpha` and `beta` list the values of every call, of which there are two a step.
    """
    to64 = lambda x: jnp.asarray(x, jnp.float64)  # noqa: E731
    if f"{group}/R_index" in FILE:
        halves = {half: projection_indices(group, half, method) for half in ("q", "p")}
        return {h: to64(FILE[f"{group}/R_{h}"][indices[step]]) for h, indices in halves.items()}
    drawn = {"slices": to64(FILE[f"{group}/A"][step])}
    if isinstance(method, HamSIGReg):
        schedule = method.schedule(step)
        drawn["alpha"], drawn["beta"] = (to64(np.float32(value)) for value in schedule)
    if f"{group}/h/A" in FILE:
        updates = FILE[f"{group}/h_update_steps"].tolist()
        position = updates.index(step + 1) if step + 1 in updates else 0
        drawn["spectral_slices"] = to64(FILE[f"{group}/h/A"][position])
    return drawn


def run(group):
    """Follows all recorded steps; returns (state, metrics of each step, gradient of step 0)."""
    config = recorded_config(group)
    steps = int(FILE[f"{group}/num_steps"])
    per_epoch = int(FILE[f"{group}/hp/batches_per_epoch"])
    setup, state = float64_setup(typed(config), total=steps, per_epoch=per_epoch)
    state = initial_state(group, config, state)

    # Steps of full width: here running takes longer than compiling.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def both(state, batch, drawn):
        step = loss_and_gradient(setup, state, batch, drawn)
        return step, *apply_gradient(setup, state, step)

    history, spectra, first = [], [], None
    for step in range(steps):
        x = jnp.asarray(FILE[f"{group}/x"][step].transpose(0, 1, 3, 4, 2), jnp.float64)
        drawn = recorded_randomness(group, step, setup.method)
        found, state, metrics = both(state, {"global_views": x}, drawn)
        first = jax.device_get(found) if first is None else first
        rates = {f"lr_{name}": float(rate(step)) for name, rate in setup.rates.items()}
        scales = {}
        if isinstance(setup.method, HasFlow):
            scales["scale"] = float(setup.method.residual_scale(jnp.asarray(step)))
        history.append({k: float(v) for k, v in metrics.items()} | rates | scales)
        spectra.append(jax.device_get(state.method_state.get("params")))
    return jax.device_get(state), history, spectra, first, setup


def ours(entries, name, state):
    """Returns our array for a torch name, in torch's layout."""
    part, _, rest = name.partition(".")
    if part == "encoder":
        collection, path, _ = entries[rest]
        tree = state.params if collection == "params" else state.batch_stats
        leaf = functools.reduce(lambda node, key: node[key], path, tree["encoder"])
        return leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf
    if part == "learnable_h":
        return state.method_state["params"][rest]
    layer, kind = rest.split(".")[2:]
    leaf = state.params["predictor"]["potential"][f"layer{int(layer) // 2}"]
    return leaf["kernel"].T if kind == "weight" else leaf["bias"]


def check_losses(group, history):
    names = {"reg": "sigreg"}
    for theirs, values in subtree(FILE, f"{group}/f64/loss/").items():
        found = [step[names.get(theirs, theirs)] for step in history]
        assert_close(found, values, tolerance_of(group), f"{group} loss {theirs}")
    for ours_name, theirs in (("lr_main", "lr"), ("lr_predictor", "lr_predictor")):
        if f"{group}/{theirs}" in FILE:
            found = np.array([step[ours_name] for step in history])
            np.testing.assert_allclose(found, FILE[f"{group}/{theirs}"], rtol=1e-9)
    if f"{group}/residual_scale" in FILE:
        found = [step["scale"] for step in history]
        np.testing.assert_allclose(found, FILE[f"{group}/residual_scale"], rtol=1e-9)


def check_first_gradient(group, setup, state, first, entries):
    clipped = first.gradient
    if setup.settings.train.grad_clip is not None:
        # What the optimizer sees: the recorded gradients are after clipping.
        clipped, _ = optax.identity().update(clipped, optax.EmptyState())
        skip = setup.settings.section(Parity).unclipped_predictor
        counted = {k: v for k, v in clipped.items() if not (skip and k == "predictor")}
        norm = float(optax.tree.norm(counted))
        assert_close(norm, FILE[f"{group}/f64/grad_norm_preclip"][0], TOLERANCE, "norm")
        factor = min(1.0, setup.settings.train.grad_clip / (norm + 1e-6))
        scaled = jax.tree.map(lambda g: g * factor, counted)
        clipped = {**clipped, **scaled}
    seen = state.replace(params=clipped)
    for name, value in subtree(FILE, f"{group}/f64/grad_step0/").items():
        assert_close(
            ours(entries, name, seen), value, tolerance_of(group), f"{group} gradient {name}"
        )
    for name, value in subtree(FILE, f"{group}/f64/grad_step0_l2norm/").items():
        norm = np.linalg.norm(ours(entries, name, seen))
        assert_close(norm, value, tolerance_of(group), f"{group} gradient norm {name}")


@pytest.mark.parametrize("group", GROUPS or ["none"])
def test_golden_training(group) -> None:
    if group not in GROUPS:
        pytest.skip("train_steps.npz is not in the folder of golden vectors")
    with jax.enable_x64(True):
        state, history, spectra, first, setup = run(group)
        resnet = setup.settings.section(ResNetSection)
        entries = {
            name: (collection, path, layout)
            for name, collection, path, layout in encoder_entries(resnet.head, resnet.token_layer)
        }
        check_losses(group, history)
        z = first.z.reshape(-1, first.z.shape[-1])
        assert_close(z, FILE[f"{group}/z_step0"], 1e-4, "z of step 0")
        check_first_gradient(group, setup, state, first, entries)
        for name, value in subtree(FILE, f"{group}/f64/final/").items():
            rounded = name.startswith("predictor") and name.endswith("weight")
            tolerance = ROUNDED if rounded else tolerance_of(group)
            assert_close(ours(entries, name, state), value, tolerance, f"{group} final {name}")
        if f"{group}/h_update_steps" in FILE:
            check_spectrum(group, history, spectra)


def check_spectrum(group, history, spectra):
    """The spectrum moves at the recorded steps alone, to the recorded values."""
    updates = FILE[f"{group}/h_update_steps"].tolist()
    previous = subtree(FILE, f"{group}/init/learnable_h.")
    for step, params in enumerate(spectra):
        moved = not np.allclose(params["raw_span"], previous["raw_span"], atol=0, rtol=1e-12)
        assert moved == (step + 1 in updates), f"step {step}"
        previous = params
        if step + 1 in updates:
            position = updates.index(step + 1)
            for name, value in params.items():
                # Recorded in float32 only; a first Adam step amplifies rounding of the gradient.
                recorded = FILE[f"{group}/h/after_update.{name}"][position]
                assert_close(value, recorded, 1e-4, f"{group} {name} after step {step}")

"""Golden checks of the losses and of SIGReg (losses.npz, sigreg.npz)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import quick_jit

from golden_checks.common import assert_close, groups, load, subtree
from hjepa_jax.dynamics.hamiltonian import Hamiltonian, energy_of_state, separable
from hjepa_jax.dynamics.integrators import integrate
from hjepa_jax.objectives import regularizers
from hjepa_jax.objectives.hjepa import prediction_loss
from hjepa_jax.objectives.lejepa import lejepa_prediction
from hjepa_jax.objectives.sigreg import epps_pulley, epps_pulley_two_sided, sigreg

LOSSES, SIGREG = load("losses.npz"), load("sigreg.npz")
FLOAT64, FLOAT32 = 1e-9, 1e-5


def cases(mapping: Mapping[str, Any], prefix: str = "", skip: tuple[str, ...] = ()) -> list[Any]:
    """The group names below a prefix, or one skipped case."""
    found = [name for name in groups(mapping, prefix) if name not in skip]
    missing = pytest.mark.skip(reason="golden vectors are not in this folder")
    return found or [pytest.param("none", marks=missing)]


def flag(value: np.ndarray) -> bool:
    return bool(value.item())


def check_both(
    group: Mapping[str, Any], function: Any, variable: str, float32_grad: float = FLOAT32
) -> None:
    """Checks value and gradient (of the sum with `cot` if any) in float64 and in float32."""
    for prefix, dtype in (("f64/", jnp.float64), ("", jnp.float32)):
        with jax.enable_x64(True):
            x = jnp.asarray(group[variable], dtype)
            name = "loss" if "loss" in group else "stat"
            cot = jnp.asarray(group.get("cot", 1.0), dtype)

            def both(x: jax.Array, cot: jax.Array) -> Any:
                value, pull = jax.vjp(lambda x: function(x, dtype), x)  # noqa: B023
                return value, *pull(jnp.broadcast_to(cot, value.shape))

            value, gradient = quick_jit(both)(x, cot)
            assert value.dtype == dtype
            exact = dtype == jnp.float64
            assert_close(value, group[prefix + name], FLOAT64 if exact else FLOAT32, prefix + name)
            tolerance = FLOAT64 if exact else float32_grad
            assert_close(gradient, group[prefix + "grad"], tolerance, prefix + "grad")


class Flow(NamedTuple):
    """The flow of the prediction cases, which is compiled once for all of them."""

    steps: int
    dt: float
    base_coeff: float
    residual_scale: float

    def hamiltonian(self, params: Any) -> Hamiltonian:
        # The published scripts always take this activation.
        return separable(
            params,
            base_coeff=self.base_coeff,
            residual_scale=self.residual_scale,
            activation="gelu",
        )


@functools.partial(jax.jit, static_argnums=0)
def golden_hamiltonian_flow(
    flow: Flow, params: Any, z: jax.Array, direction: jax.Array
) -> jax.Array:
    system = flow.hamiltonian(params)
    return integrate(
        system, z, method="leapfrog", steps=flow.steps, dt=flow.dt, direction=direction
    )


@functools.partial(jax.jit, static_argnums=0)
def golden_energy(flow: Flow, params: Any, z: jax.Array) -> jax.Array:
    return energy_of_state(flow.hamiltonian(params), z)


@pytest.mark.parametrize("case", cases(LOSSES, "hcl/", skip=("param",)))
def test_golden_objectives_prediction(case: str) -> None:
    root, group = subtree(LOSSES, "hcl/"), subtree(LOSSES, f"hcl/{case}/")
    names = sorted(
        {k.rsplit(".", 1)[0] for k in root if k.startswith("param/")},
        key=lambda name: int(name.rsplit(".", 1)[1]),
    )
    match, energy_flag, bidirectional, detach = case.split("_")
    options: dict[str, Any] = {
        "match": "qp" if match == "qp" else "q",
        "p_weight": group["p_weight"].item(),
        "energy_weight": group["energy_weight"].item(),
        "bidirectional": bidirectional == "bi1",
        "detach_target": detach == "det1",
    }
    assert (options["energy_weight"] > 0) == (energy_flag == "e1")
    flow = Flow(*(root[name].item() for name in Flow._fields))
    with jax.enable_x64(True):
        params = tuple(
            {"kernel": jnp.asarray(root[f"{n}.weight"].T), "bias": jnp.asarray(root[f"{n}.bias"])}
            for n in names
        )

        def loss(params: Any, za: jax.Array, zb: jax.Array) -> jax.Array:
            return prediction_loss(
                lambda z, direction: golden_hamiltonian_flow(flow, params, z, direction),
                lambda z: golden_energy(flow, params, z),
                jnp.stack([za, zb]),
                num_global_views=2,
                pairing="first_two",
                reverse_direction_sign=-1,
                **options,
            )

        za, zb = jnp.asarray(root["z_a"]), jnp.asarray(root["z_b"])
        value, grads = jax.value_and_grad(loss, (0, 1, 2))(params, za, zb)
        assert_close(value, group["loss"], FLOAT64, "loss")
        assert_close(grads[1], group["grad_z_a"], FLOAT64, "grad_z_a")
        assert_close(grads[2], group["grad_z_b"], FLOAT64, "grad_z_b")
        for name, grad in zip(names, grads[0]):
            key = name.removeprefix("param/")
            assert_close(grad["kernel"].T, group[f"grad_param/{key}.weight"], FLOAT64, key)
            assert_close(grad["bias"], group[f"grad_param/{key}.bias"], FLOAT64, key)


@pytest.mark.parametrize("case", cases(LOSSES, "budget/"))
def test_golden_objectives_budget(case: str) -> None:
    group = subtree(LOSSES, f"budget/{case}/")
    targets = group["q_target"].item(), group["p_target"].item()
    check_both(group, lambda z, _: regularizers.budget(z, *targets), "z")


@pytest.mark.parametrize("case", cases(LOSSES, "varfloor/"))
def test_golden_objectives_variance_floor(case: str) -> None:
    group = subtree(LOSSES, f"varfloor/{case}/")
    arguments = group["std_floor"].item(), group["eps"].item()
    check_both(group, lambda x, _: regularizers.variance_floor(x, *arguments), "x")


@pytest.mark.parametrize("case", cases(LOSSES, "logdet/"))
def test_golden_objectives_logdet_floor(case: str) -> None:
    group = subtree(LOSSES, f"logdet/{case}/")
    samples, dim = group["x"].shape
    rank = regularizers.projection_rank(group["proj_dim"].item(), dim, samples)
    assert rank == group["k"].item() == group["R"].shape[1]

    def function(x: jax.Array, dtype: Any) -> tuple[jax.Array, regularizers.LogdetStatistics]:
        has_pr, has_eig = flag(group["has_pr_norm_floor"]), flag(group["has_eigmax_frac_ceiling"])
        return regularizers.logdet_floor(
            x,
            jnp.asarray(group["R"], dtype),
            logdet_floor=group["logdet_floor"].item(),
            eps=group["eps"].item(),
            pr_floor=group["pr_norm_floor"].item() if has_pr else None,
            eigmax_ceiling=group["eigmax_frac_ceiling"].item() if has_eig else None,
            pr_weight=group["pr_weight"].item(),
            eigmax_weight=group["eigmax_weight"].item(),
        )

    names = {
        "logdet_per_dim": "last_logdet_per_dim",
        "pr": "last_pr",
        "pr_norm": "last_pr_norm",
        "eigmax_frac": "last_eigmax_frac",
        "trace": "last_tr",
    }
    for prefix, dtype in (("f64/", jnp.float64), ("", jnp.float32)):
        with jax.enable_x64(True):
            both = jax.value_and_grad(lambda x: function(x, dtype), has_aux=True)  # noqa: B023
            (loss, statistics), grad = quick_jit(both)(jnp.asarray(group["x"], dtype))
            exact = dtype == jnp.float64
            assert_close(loss, group[prefix + "loss"], FLOAT64 if exact else FLOAT32, "loss")
            tolerance = FLOAT64 if exact else 1e-4
            assert_close(grad, group[prefix + "grad"], tolerance, "grad")
            for ours, theirs in names.items():
                assert_close(getattr(statistics, ours), group[prefix + theirs], tolerance, theirs)


@pytest.mark.skipif(not LOSSES, reason="golden vectors are not in this folder")
def test_golden_objectives_mean_penalty() -> None:
    with jax.enable_x64(True):
        z = jnp.asarray(LOSSES["mean/z"], jnp.float64)
        value, grad = jax.value_and_grad(regularizers.mean_penalty)(z)
        assert_close(value, LOSSES["mean/loss"], FLOAT64, "loss")
        assert_close(grad, LOSSES["mean/grad"], FLOAT64, "grad")


@pytest.mark.parametrize("case", cases(LOSSES, "lejepa_pred/"))
def test_golden_objectives_lejepa_prediction(case: str) -> None:
    group = subtree(LOSSES, f"lejepa_pred/{case}/")
    with jax.enable_x64(True):
        value, grad = jax.value_and_grad(lejepa_prediction)(
            jnp.asarray(group["z_views"]), group["num_global_views"].item()
        )
        assert_close(value, group["loss"], FLOAT64, "loss")
        assert_close(grad, group["grad"], FLOAT64, "grad")


@pytest.mark.parametrize("case", cases(SIGREG, "ep/"))
def test_golden_objectives_epps_pulley(case: str) -> None:
    group = subtree(SIGREG, f"ep/{case}/")
    weight_type = "uniform" if flag(group["weight_uniform"]) else "gaussian"

    def function(x: jax.Array, _: Any) -> jax.Array:
        x = x[:, None] if x.ndim == 1 else x
        return epps_pulley(
            x,
            t_max=group["t_max"].item(),
            n_points=group["n_points"].item(),
            weight_type=weight_type,
        )

    check_both(group, function, "x")


@pytest.mark.parametrize("case", cases(SIGREG, "sigreg/"))
def test_golden_objectives_sigreg(case: str) -> None:
    group = subtree(SIGREG, f"sigreg/{case}/")
    index: Any = group.get("subsample_idx")
    scalar = group["loss"].ndim == 0
    function = functools.partial(
        sigreg,
        t_max=group["t_max"].item(),
        n_points=group["n_points"].item(),
        weight_type="uniform" if flag(group["weight_uniform"]) else "gaussian",
        clip_value=group["clip_value"].item() if flag(group["has_clip"]) else None,
        reduction="none" if not scalar else "sum" if case.endswith("sum") else "mean",
        subsample_index=index,
    )
    check_both(group, lambda z, dtype: function(z, jnp.asarray(group["A"], dtype)), "z")


@pytest.mark.parametrize("case", cases(SIGREG, "wrapper/"))
def test_golden_objectives_two_sided(case: str) -> None:
    group = subtree(SIGREG, f"wrapper/{case}/")
    arguments = {name: group[name].item() for name in ("t_min", "t_max", "num_t")}

    def function(z: jax.Array, dtype: Any) -> jax.Array:
        return jnp.mean(epps_pulley_two_sided(z @ jnp.asarray(group["A"], dtype), **arguments))

    check_both(group, function, "z")

"""Golden vectors of Hamiltonians and integrators (leapfrog.npz)."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from golden_checks.common import assert_close, groups, load, subtree
from hjepa_jax.dynamics import hamiltonian as hm
from hjepa_jax.dynamics.integrators import integrate
from hjepa_jax.interop.torch_names import predictor_from_torch

FILE = "leapfrog.npz"
ACTIVATIONS = ("gelu", "silu", "relu")
HAMILTONIANS = ("quadratic", "learnable", "separable")
METHODS = ("leapfrog", "symplectic_euler")
DIRECTIONS = {"fwd": 1, "bwd": -1}


def _cases(low_precision: bool) -> list[Any]:
    names = [n for n in groups(load(FILE)) if (f"{n}/z0_bf16" in load(FILE)) == low_precision]
    return names or [pytest.param("none", marks=pytest.mark.skip(reason=f"no {FILE} cases"))]


def _params(data: Mapping[str, np.ndarray], case: str, root: str) -> dict[str, Any]:
    """The torch entries below `case/root/` as our pytree: {'mlp': layers, 'raw_dt': scalar}."""
    tree, _ = predictor_from_torch(subtree(data, f"{case}/{root}/"))
    layers = tree.get("potential", {})
    out: dict[str, Any] = {"mlp": tuple(layers[f"layer{i}"] for i in range(len(layers)))}
    return out | ({"raw_dt": tree["raw_dt"]} if "raw_dt" in tree else {})


def _named(case: str, choices: tuple[str, ...]) -> Any:
    """The choice in the name of a case, where it is not recorded otherwise."""
    (found,) = (choice for choice in choices if choice in case.split("_"))
    return found


def _build(data: Mapping[str, np.ndarray], case: str, kind: str, params: Any) -> hm.Hamiltonian:
    if kind == "quadratic":
        return hm.quadratic()
    code = data.get(f"{case}/activation")
    activation = _named(case, ACTIVATIONS) if code is None else ACTIVATIONS[int(code)]
    scale = float(data[f"{case}/residual_scale"])
    if kind == "learnable":
        return hm.learnable(params["mlp"], residual_scale=scale, activation=activation)
    base = float(data[f"{case}/base_coeff"])
    return hm.separable(params["mlp"], base_coeff=base, residual_scale=scale, activation=activation)


@contextlib.contextmanager
def _expected_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not symplectic on a non-separable.*")
        yield


def _check(
    pull: Callable[..., Any],
    data: Mapping[str, np.ndarray],
    case: str,
    params: Any,
    prefix: str,
    reference: bool,
) -> None:
    """Compares the flow and its gradients in both directions with the keys of `prefix`."""
    z, cot = jnp.asarray(data[f"{case}/z0"]), jnp.asarray(data[f"{case}/cot"])
    for name, direction in DIRECTIONS.items():
        start = f"{case}/{name}/{prefix}"
        out, (bar_params, bar_z) = pull(params, z, cot, direction, reference)
        assert_close(out, data[f"{start}zT"], 1e-9, f"{start}zT")
        assert_close(bar_z, data[f"{start}grad_z0"], 1e-9, f"{start}grad_z0")
        expected = _params(data, case, f"{name}/{prefix}grad_param")
        assert jax.tree.structure(expected) == jax.tree.structure(bar_params)
        for got, want in zip(jax.tree.leaves(bar_params), jax.tree.leaves(expected)):
            assert_close(got, want, 1e-9, f"{start}grad_param")


@pytest.mark.parametrize("case", _cases(low_precision=False))
def test_golden_dynamics(case: str) -> None:
    """Energy, partial derivatives, flow and gradients, the published error included, in float64."""
    data = load(FILE)
    kind = HAMILTONIANS[int(data[f"{case}/hamiltonian"])]
    method = METHODS[int(data[f"{case}/method"])]
    with jax.enable_x64(True), _expected_warnings():
        params = _params(data, case, "param")
        z = jnp.asarray(data[f"{case}/z0"])
        start = _build(data, case, kind, params)
        q, p = hm.split_state(z)
        assert_close(start.energy(q, p), data[f"{case}/H0"], 1e-9, "H0")
        assert_close(start.grad_q(q, p), data[f"{case}/dHdq0"], 1e-9, "dHdq0")
        assert_close(start.grad_p(q, p), data[f"{case}/dHdp0"], 1e-9, "dHdp0")

        @functools.partial(jax.jit, static_argnums=4)
        def pull(params: Any, x: jax.Array, cot: jax.Array, direction: int, reference: bool) -> Any:
            def flow(params: Any, x: jax.Array) -> jax.Array:
                dt = float(data[f"{case}/dt"])
                if "raw_dt" in params:
                    dt = jax.nn.softplus(params["raw_dt"])
                return integrate(
                    _build(data, case, kind, params),
                    x,
                    method=method,
                    steps=int(data[f"{case}/steps"]),
                    dt=dt,
                    direction=direction,
                    reference_leapfrog=reference,
                )

            out, pullback = jax.vjp(flow, params, x)
            return out, pullback(cot)

        if "raw_dt" in params:
            assert_close(jax.nn.softplus(params["raw_dt"]), data[f"{case}/dt"], 1e-9, "dt")
        generic = f"{case}/fwd/textbook_zT" in data
        _check(pull, data, case, params, "textbook_" if generic else "", False)
        if generic:
            _check(pull, data, case, params, "", method == "leapfrog")
        for name in DIRECTIONS:
            end = jnp.asarray(data[f"{case}/{name}/zT"])
            assert_close(hm.energy_of_state(start, end), data[f"{case}/{name}/HT"], 1e-9, "HT")


@pytest.mark.parametrize("case", _cases(low_precision=True))
def test_golden_dynamics_of_low_precision_states(case: str) -> None:
    """A bfloat16 state flows in float32 and is rounded once, at the end."""
    data = load(FILE)
    params = _params(data, case, "param")
    z = jnp.asarray(data[f"{case}/z0_bf16"])
    assert z.dtype == jnp.float32

    def flow(x: jax.Array) -> jax.Array:
        return integrate(
            _build(data, case, _named(case, HAMILTONIANS), params),
            x,
            method="leapfrog" if "leapfrog" in case.split("_") else "symplectic_euler",
            steps=int(data[f"{case}/steps"]),
            dt=float(data[f"{case}/dt"]),
        )

    assert_close(flow(z), data[f"{case}/zT_fp32"], 1e-5, "zT_fp32")
    rounded = flow(z.astype(jnp.bfloat16))
    assert rounded.dtype == jnp.bfloat16
    # One unit of bfloat16 rounding where the float32 values sit at a tie.
    assert_close(rounded.astype(jnp.float32), data[f"{case}/zT_bf16"], 2**-8, "zT_bf16")

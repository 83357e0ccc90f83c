"""Symplectic integrators of Hamiltonian flows, one `lax.scan` step function each.

| method            | order | measured | explicit | symplectic on               | time-symmetric |
| leapfrog          | 2     | 2.00     | yes      | separable H                 | yes            |
| symplectic_euler  | 1     | 1.00     | yes      | separable H                 | no             |
| yoshida4          | 4     | 4.00     | yes      | separable H (others: error) | yes            |
| implicit_midpoint | 2     | 2.00     | no       | every H                     | yes            |

The measured order is that of a pendulum over time 2, from the error at dt = 1/20 and 1/40 in
float64. A time-symmetric method run with direction -1 inverts its run with direction +1.

Sources: Hairer, Lubich & Wanner, "Geometric Numerical Integration", chapters II and VI; H. Yoshida,
"Construction of higher order symplectic integrators", Phys. Lett. A 150 (1990); damping as in
conformal symplectic splitting (Bhatt, Floyd & Moore, J. Sci. Comput. 66, 2016).
"""

import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import core
from jaxtyping import Array, Float, PyTree, Shaped

from hjepa_jax.dynamics.hamiltonian import Hamiltonian, Scalar, join_state, split_state
from hjepa_jax.dynamics.midpoint import converged_tolerance, implicit_midpoint_step

Integrator = Literal["leapfrog", "symplectic_euler", "yoshida4", "implicit_midpoint"]
INTEGRATORS: tuple[Integrator, ...] = get_args(Integrator)

# Substep lengths that cancel the third-order error of leapfrog (Yoshida 1990, equation 2.11).
_OUTER = 1.0 / (2.0 - 2.0 ** (1.0 / 3.0))
YOSHIDA4_SUBSTEPS = (_OUTER, 1.0 - 2.0 * _OUTER, _OUTER)

Half = Float[Array, "*batch d"]
Cache = PyTree[Shaped[Array, "..."]]
State = tuple[Half, Half, Cache]


class Scheme(NamedTuple):
    """One integrator.

    Attributes:
        start: (q, p) -> cache, what the integrator carries between steps.
        step: (q, p, cache) -> (q, p, cache) after one step.
    """

    start: Callable[[Half, Half], Cache]
    step: Callable[[State], State]


def separable_scheme(
    hamiltonian: Hamiltonian, h: Float[Array, ""], substeps: tuple[float, ...]
) -> Scheme:
    """Composes kick-drift-kick substeps and evaluates each force once.

    The force at the end of a substep opens the next one, so `steps` steps cost
    len(substeps) * steps + 1 evaluations; it depends on q alone, so damping p keeps it valid.

    Args:
        hamiltonian: a separable Hamiltonian.
        h: step length, negative to run backward in time.
        substeps: lengths of the substeps, as fractions of h that add up to 1.
    """

    def step(state: State) -> State:
        q, p, gradient = state
        for length in substeps:
            p = p - (0.5 * length * h) * gradient
            q = q + (length * h) * hamiltonian.grad_p(q, p)
            gradient = hamiltonian.grad_q(q, p)
            p = p - (0.5 * length * h) * gradient
        return q, p, gradient

    return Scheme(hamiltonian.grad_q, step)


def _generic_leapfrog(hamiltonian: Hamiltonian, h: Float[Array, ""]) -> Scheme:
    """Textbook kick-drift-kick with partial derivatives: two evaluations of grad_q per step."""

    def step(state: State) -> State:
        q, p, cache = state
        p = p - 0.5 * h * hamiltonian.grad_q(q, p)
        q = q + h * hamiltonian.grad_p(q, p)
        return q, p - 0.5 * h * hamiltonian.grad_q(q, p), cache

    return Scheme(lambda q, p: (), step)


def _reference_leapfrog(hamiltonian: Hamiltonian, h: Float[Array, ""]) -> Scheme:
    """The published generic leapfrog, with its error, for comparisons only.

    From the second step on its first half-kick takes the TOTAL derivative of H(q, p(q)), because
    p = p_half - h/2 H_q(q, p_half) of the step before still depends on q in its graph.
    """

    def finish(q: Half, p_half: Half) -> Half:
        return p_half - 0.5 * h * hamiltonian.grad_q(q, p_half)

    def step(state: State) -> State:
        q, p, (p_half, is_first) = state
        total = jax.grad(lambda x: jnp.sum(hamiltonian.energy(x, finish(x, p_half))))(q)
        first_kick = jnp.where(is_first, hamiltonian.grad_q(q, p), total)
        p_half = p - 0.5 * h * first_kick
        q = q + h * hamiltonian.grad_p(q, p_half)
        return q, finish(q, p_half), (p_half, jnp.zeros((), bool))

    return Scheme(lambda q, p: (p, jnp.ones((), bool)), step)


def _symplectic_euler(hamiltonian: Hamiltonian, h: Float[Array, ""]) -> Scheme:
    """Kicks p at the old q, then drifts q with the new p."""

    def step(state: State) -> State:
        q, p, cache = state
        p = p - h * hamiltonian.grad_q(q, p)
        return q + h * hamiltonian.grad_p(q, p), p, cache

    return Scheme(lambda q, p: (), step)


def _implicit_midpoint(
    hamiltonian: Hamiltonian, h: Float[Array, ""], iterations: int, tolerance: float
) -> Scheme:
    """Implicit midpoint; its cache is the largest residual so far, [...]."""

    def step(state: State) -> State:
        q, p, worst = state
        q, p, residual = implicit_midpoint_step(hamiltonian, q, p, h, iterations, tolerance)
        return q, p, jnp.maximum(worst, residual)

    # Zeros of q's own devices, where a batch is split by `jax.shard_map`.
    return Scheme(lambda q, p: jnp.zeros_like(q, shape=q.shape[:-1]), step)


def damped(scheme: Scheme, h: Float[Array, ""], damping: float) -> Scheme:
    """Scales p by exp(-damping*h/2) before and after each step: conformally symplectic.

    J^T Omega J = exp(-damping*T) Omega after time T. With negative h it inverts itself if the
    scheme does.

    Args:
        scheme: the undamped integrator.
        h: step length.
        damping: decay rate of the momenta, per unit of time; 0 returns `scheme` itself.
    """
    if damping == 0.0:
        return scheme
    factor = jnp.exp(-0.5 * damping * h)

    def step(state: State) -> State:
        q, p, cache = state
        q, p, cache = scheme.step((q, p * factor, cache))
        return q, p * factor, cache

    return Scheme(scheme.start, step)


def _check_arguments(method: Integrator, steps: int, damping: float, reference: bool) -> None:
    if method not in INTEGRATORS:
        raise ValueError(f"Unknown integrator '{method}': use one of {', '.join(INTEGRATORS)}.")
    if steps < 1:
        raise ValueError(f"An integrator needs at least 1 step, not {steps}.")
    if reference and (method != "leapfrog" or damping != 0.0):
        raise ValueError("reference_leapfrog=True needs method='leapfrog' and damping=0.")


def _warn_if_not_symplectic(hamiltonian: Hamiltonian, method: Integrator) -> None:
    if hamiltonian.is_separable or method == "implicit_midpoint":
        return
    if method == "yoshida4":
        raise ValueError(
            "yoshida4 has order 4 on separable Hamiltonians only: use implicit_midpoint here."
        )
    warnings.warn(
        f"The explicit integrator '{method}' is not symplectic on a non-separable Hamiltonian: "
        "use implicit_midpoint, which is.",
        stacklevel=4,
    )


def _explicit_scheme(
    hamiltonian: Hamiltonian, h: Float[Array, ""], method: Integrator, reference: bool
) -> Scheme:
    if method == "symplectic_euler":
        return _symplectic_euler(hamiltonian, h)
    if method == "yoshida4":
        return separable_scheme(hamiltonian, h, YOSHIDA4_SUBSTEPS)
    if reference:
        return _reference_leapfrog(hamiltonian, h)
    if hamiltonian.is_separable:
        return separable_scheme(hamiltonian, h, (1.0,))
    return _generic_leapfrog(hamiltonian, h)


def flow_dtype(z: Float[Array, "..."]) -> jnp.dtype:
    """Returns the dtype a flow of z is computed in: float32, or float64 for a float64 state."""
    return jnp.promote_types(z.dtype, jnp.float32)


def cast_gradients(hamiltonian: Hamiltonian, dtype: jnp.dtype) -> Hamiltonian:
    """Keeps the flow in `dtype` even when the parameters have a wider one."""
    return hamiltonian._replace(
        grad_q=lambda q, p: hamiltonian.grad_q(q, p).astype(dtype),
        grad_p=lambda q, p: hamiltonian.grad_p(q, p).astype(dtype),
    )


def integrate(
    hamiltonian: Hamiltonian,
    z: Float[Array, "*batch n"],
    *,
    method: Integrator = "leapfrog",
    steps: int,
    dt: Scalar,
    direction: Scalar = 1,
    damping: float = 0.0,
    midpoint_iterations: int = 50,
    midpoint_tolerance: float = 1e-6,
    return_trajectory: bool = False,
    reference_leapfrog: bool = False,
) -> Float[Array, "*batch n"] | Float[Array, "{steps}+1 *batch n"]:
    """Flows z along the Hamiltonian vector field for `steps` steps of direction * dt.

    Args:
        hamiltonian: the energy and its partial derivatives.
        z: states [..., 2d]. Half-precision states flow in float32 and are rounded at the end;
            float64 states flow in float64.
        method: one of INTEGRATORS. 'symplectic_euler' kicks first in both directions, so its
            direction -1 is not the exact inverse of +1.
        steps: number of steps, static.
        dt: step length, in the flow's unit of time; may be traced.
        direction: +1 or -1; may be traced.
        damping: decay rate of the momenta, per unit of time (static); 0 is bit-exact to the
            undamped method.
        midpoint_iterations: most fixed-point iterations per implicit step.
        midpoint_tolerance: residual relative to 1 + max|z| that counts as solved.
        return_trajectory: return all states [steps+1, ..., 2d], the first of them z.
        reference_leapfrog: the published code's faulty leapfrog, for comparisons only.

    Returns:
        Final states [..., 2d] or trajectory, in the dtype of z. Under jit, a state whose implicit
        step was not solved is NaN, so that it cannot go unnoticed.

    Raises:
        ValueError: unknown method, steps < 1, odd width, or yoshida4 on a non-separable
            Hamiltonian.
        FloatingPointError: outside jit, an implicit step that did not converge.
    """
    out, residual = integrate_with_residual(
        hamiltonian,
        z,
        method=method,
        steps=steps,
        dt=dt,
        direction=direction,
        damping=damping,
        midpoint_iterations=midpoint_iterations,
        midpoint_tolerance=midpoint_tolerance,
        return_trajectory=return_trajectory,
        reference_leapfrog=reference_leapfrog,
    )
    _raise_if_not_solved(residual, midpoint_tolerance)
    return out


def integrate_with_residual(
    hamiltonian: Hamiltonian,
    z: Float[Array, "*batch n"],
    *,
    method: Integrator = "leapfrog",
    steps: int,
    dt: Scalar,
    direction: Scalar = 1,
    damping: float = 0.0,
    midpoint_iterations: int = 50,
    midpoint_tolerance: float = 1e-6,
    return_trajectory: bool = False,
    reference_leapfrog: bool = False,
) -> tuple[Float[Array, "*batch n"] | Float[Array, "{steps}+1 *batch n"], Float[Array, "*batch"]]:
    """Flows z like `integrate`, but returns the residual where `integrate` raises.

    Args:
        hamiltonian: see `integrate`, as for all other arguments.
        z: states [..., 2d].
        method: one of INTEGRATORS.
        steps: number of steps.
        dt: step length.
        direction: +1 or -1.
        damping: decay rate of the momenta.
        midpoint_iterations: most fixed-point iterations per implicit step.
        midpoint_tolerance: relative residual that counts as solved.
        return_trajectory: return all states.
        reference_leapfrog: the published code's faulty leapfrog.

    Returns:
        (states, residual). The residual [...] is the largest one of the implicit equation over the
        steps, relative to 1 + max|z|: above midpoint_tolerance the states are NaN. It is zero for
        explicit methods.

    Raises:
        ValueError: see `integrate`.
    """
    _check_arguments(method, steps, damping, reference_leapfrog)
    _warn_if_not_symplectic(hamiltonian, method)
    dtype = flow_dtype(z)
    q, p = split_state(z.astype(dtype))
    h = jnp.asarray(dt, dtype) * jnp.asarray(direction, dtype)
    flow = cast_gradients(hamiltonian, dtype)
    if method == "implicit_midpoint":
        scheme = _implicit_midpoint(flow, h, midpoint_iterations, midpoint_tolerance)
    else:
        scheme = _explicit_scheme(flow, h, method, reference_leapfrog)
    scheme = damped(scheme, h, damping)

    def body(state: State, _: None) -> tuple[State, Cache]:
        state = scheme.step(state)
        return state, join_state(state[0], state[1]) if return_trajectory else None

    (q, p, cache), path = jax.lax.scan(body, (q, p, scheme.start(q, p)), None, length=steps)
    residual = cache if method == "implicit_midpoint" else jnp.zeros(z.shape[:-1], dtype)
    if return_trajectory:
        return jnp.concatenate([z[None], path.astype(z.dtype)]), residual
    return join_state(q, p).astype(z.dtype), residual


def _raise_if_not_solved(residual: Float[Array, "*batch"], tolerance: float) -> None:
    """Outside jit, names the residual of an implicit step that did not converge."""
    if isinstance(residual, core.Tracer):
        return
    limit = converged_tolerance(residual.dtype, tolerance)
    worst = float(jnp.max(residual, initial=0.0))
    if not worst <= limit:
        raise FloatingPointError(
            f"implicit_midpoint did not converge: residual {worst:.2e} above {limit:.2e}; use a "
            "smaller dt, more midpoint_iterations or a larger midpoint_tolerance."
        )

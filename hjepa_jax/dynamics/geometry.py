"""Phase-space diagnostics of any differentiable map z -> z, not only of Hamiltonian flows.

A map is a function of ONE state [2d], z = [q | p]; every diagnostic is a pure function that works
under jit and vmap (`jax.vmap(lambda z: symplectic_defect(flow, z))(batch)`). Reference: Hairer,
Lubich & Wanner, "Geometric Numerical Integration", chapter VI. Jacobians use forward mode; a map
with a custom reverse rule alone (`integrate_reversible`) has none.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hjepa_jax.dynamics.hamiltonian import Scalar

Map = Callable[[jax.Array], jax.Array]


def symplectic_form(half: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Returns Omega = [[0, I], [-I, 0]], [2 * half, 2 * half]."""
    return jnp.kron(jnp.array([[0, 1], [-1, 0]], dtype), jnp.eye(half, dtype=dtype))


def jacobian(flow: Map, z: jax.Array) -> jax.Array:
    """Returns the Jacobian of `flow` at z [2d], as [2d, 2d] with J[i, j] = d flow_i / d z_j."""
    return jax.jacfwd(flow)(z)


def defect_of_jacobian(matrix: jax.Array, conformal_factor: Scalar = 1.0) -> jax.Array:
    """Returns |J^T Omega J - c Omega| / |Omega| (Frobenius norms) of J [2d, 2d], a scalar."""
    half = matrix.shape[-1] // 2
    form = symplectic_form(half, matrix.dtype)
    # J^T Omega J = A - A^T, A = J_q^T J_p with the rows of J that give q and p.
    rows = jnp.dot(matrix[:half].T, matrix[half:], precision=jax.lax.Precision.HIGHEST)
    product = rows - rows.T
    return jnp.linalg.norm(product - conformal_factor * form) / jnp.linalg.norm(form)


def symplectic_defect(flow: Map, z: jax.Array, conformal_factor: Scalar = 1.0) -> jax.Array:
    """Returns how far `flow` is from symplectic at z [2d]: zero exactly when it is.

    `conformal_factor` c = exp(-damping * time) measures a damped flow, J^T Omega J = c Omega.
    """
    return defect_of_jacobian(jacobian(flow, z), conformal_factor)


def volume_factor(flow: Map, z: jax.Array) -> jax.Array:
    """Returns det J at z [2d]: 1 for a flow that keeps volumes (Liouville's theorem)."""
    return jnp.linalg.det(jacobian(flow, z))


def energy_drift(energy: Callable[[jax.Array], jax.Array], trajectory: jax.Array) -> jax.Array:
    """Returns energy(z_t) - energy(z_0), [T, ...], of a trajectory [T, ..., 2d].

    `energy` maps [..., 2d] to [...].
    """
    values = energy(trajectory)
    return values - values[:1]


def reversibility_error(forward: Map, backward: Map, z: jax.Array) -> jax.Array:
    """Returns |backward(forward(z)) - z| / (1 + |z|) of z [2d], a scalar."""
    return jnp.linalg.norm(backward(forward(z)) - z) / (1 + jnp.linalg.norm(z))


def covariance_transport(
    flow: Map, mean: jax.Array, covariance: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Carries a Gaussian cloud along: mean [2d] -> flow(mean), C [2d, 2d] -> J C J^T.

    Exact for affine maps, else to first order in the spread. A symplectic map keeps det C and the
    symplectic eigenvalues of C.
    """
    matrix = jacobian(flow, mean)
    return flow(mean), matrix @ covariance @ matrix.T


def symplectic_eigenvalues(covariance: jax.Array) -> jax.Array:
    """Returns the d symplectic eigenvalues of C [2d, 2d] > 0, ascending (Williamson's theorem).

    They are the moduli of the eigenvalues of Omega C, which come in pairs +-i nu: those of the
    Hermitian matrix i S^T Omega S with C = S S^T.
    """
    factor = jnp.linalg.cholesky(covariance)
    form = symplectic_form(covariance.shape[-1] // 2, covariance.dtype)
    values = jnp.linalg.eigvalsh(1j * (factor.T @ form @ factor))
    return values[covariance.shape[-1] // 2 :]

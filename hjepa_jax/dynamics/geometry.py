"""Phase-space diagnostics of any differentiable map z -> z, not only of Hamiltonian flows.

A map is a function of ONE state [2d], z = [q | p]; every diagnostic is a pure function that works
under jit and vmap (`jax.vmap(lambda z: symplectic_defect(flow, z))(batch)`). Jacobians use forward
mode; a map with only a custom reverse rule (`integrate_reversible`) has none.

Source: Hairer, Lubich & Wanner, "Geometric Numerical Integration", chapter VI.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hjepa_jax.dynamics.hamiltonian import Scalar

Map = Callable[[Float[Array, " n"]], Float[Array, " n"]]


def symplectic_form(
    half: int, dtype: jax.typing.DTypeLike = jnp.float32
) -> Float[Array, "2*{half} 2*{half}"]:
    """Returns Omega = [[0, I], [-I, 0]], [2 * half, 2 * half]."""
    return jnp.kron(jnp.array([[0, 1], [-1, 0]], dtype), jnp.eye(half, dtype=dtype))


def jacobian(flow: Map, z: Float[Array, " n"]) -> Float[Array, "n n"]:
    """Returns the Jacobian of `flow` at z [2d], as [2d, 2d] with J[i, j] = d flow_i / d z_j."""
    return jax.jacfwd(flow)(z)


def defect_of_jacobian(
    matrix: Float[Array, "n n"], conformal_factor: Scalar = 1.0
) -> Float[Array, ""]:
    """Returns the relative defect |J^T Omega J - c Omega| / |Omega|, in Frobenius norms.

    Args:
        matrix: J, [2d, 2d].
        conformal_factor: c; 1 for a symplectic map.

    Returns:
        A scalar, zero exactly when J is (conformally) symplectic.
    """
    half = matrix.shape[-1] // 2
    form = symplectic_form(half, matrix.dtype)
    # J^T Omega J = A - A^T, A = J_q^T J_p with the rows of J that give q and p.
    rows = jnp.dot(matrix[:half].T, matrix[half:], precision=jax.lax.Precision.HIGHEST)
    product = rows - rows.T
    return jnp.linalg.norm(product - conformal_factor * form) / jnp.linalg.norm(form)


def symplectic_defect(
    flow: Map, z: Float[Array, " n"], conformal_factor: Scalar = 1.0
) -> Float[Array, ""]:
    """Returns how far `flow` is from symplectic at z [2d]: zero exactly when it is.

    Args:
        flow: the map.
        z: the state, [2d].
        conformal_factor: c = exp(-damping * time) measures a damped flow, J^T Omega J = c Omega.

    Returns:
        The scalar of `defect_of_jacobian`.
    """
    return defect_of_jacobian(jacobian(flow, z), conformal_factor)


def volume_factor(flow: Map, z: Float[Array, " n"]) -> Float[Array, ""]:
    """Returns det J at z [2d]: 1 for a flow that preserves volume (Liouville's theorem)."""
    return jnp.linalg.det(jacobian(flow, z))


def energy_drift(
    energy: Callable[[Float[Array, "*batch n"]], Float[Array, "*batch"]],
    trajectory: Float[Array, "time *batch n"],
) -> Float[Array, " time *batch"]:
    """Returns energy(z_t) - energy(z_0), [T, ...].

    Args:
        energy: [..., 2d] -> [...].
        trajectory: states z_t, [T, ..., 2d].
    """
    values = energy(trajectory)
    return values - values[:1]


def reversibility_error(forward: Map, backward: Map, z: Float[Array, " n"]) -> Float[Array, ""]:
    """Returns |backward(forward(z)) - z| / (1 + |z|) of z [2d], a scalar."""
    return jnp.linalg.norm(backward(forward(z)) - z) / (1 + jnp.linalg.norm(z))


def covariance_transport(
    flow: Map, mean: Float[Array, " n"], covariance: Float[Array, "n n"]
) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """Transports a Gaussian cloud: mean -> flow(mean), C -> J C J^T.

    Exact for affine maps, else to first order in the spread. A symplectic map preserves det C and
    the symplectic eigenvalues of C.

    Args:
        flow: the map.
        mean: the cloud's mean, [2d].
        covariance: C, [2d, 2d].

    Returns:
        The transported mean [2d] and covariance [2d, 2d].
    """
    matrix = jacobian(flow, mean)
    return flow(mean), matrix @ covariance @ matrix.T


def symplectic_eigenvalues(covariance: Float[Array, "n n"]) -> Float[Array, " n//2"]:
    """Returns the d symplectic eigenvalues of C [2d, 2d] > 0, ascending (Williamson's theorem).

    They are the moduli of the eigenvalues of Omega C, which come in pairs +-i nu: those of the
    Hermitian matrix i S^T Omega S with C = S S^T.
    """
    factor = jnp.linalg.cholesky(covariance)
    form = symplectic_form(covariance.shape[-1] // 2, covariance.dtype)
    values = jnp.linalg.eigvalsh(1j * (factor.T @ form @ factor))
    return values[covariance.shape[-1] // 2 :]

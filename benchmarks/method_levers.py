"""Ways to compute what surrounds the convolutions in a step, each beside what hjepa_jax does.

    python benchmarks/method_levers.py --images 64 --width 64 --rank 128 --repeats 5

- The encoder's value and gradient: all views in one pass (used), or one pass for each view, whose
  batch normalization then sees one view alone.
- The flow's value and gradient: one force per step boundary (used), or two per step.
- The Cholesky factors of the floors of q and p: one after the other (used), or batched.
- The largest eigenvalue of a covariance: a full eigendecomposition (used), or power iteration.

All take turns and medians are printed. "error" is the largest difference from what is used, over
its largest entry; one pass for each view is another function, so it has none.
"""

from __future__ import annotations

import argparse
import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from convolutions import interleaved, relative_error
from leapfrog import RESIDUAL_SCALE
from startup import read_config

from hjepa_jax.config import base_config
from hjepa_jax.config.checks import typed
from hjepa_jax.dynamics.hamiltonian import init_mlp, separable
from hjepa_jax.dynamics.integrators import integrate
from hjepa_jax.training.setup import build_encoder


def report(
    name: str, ways: dict[str, Any], arguments: tuple[Any, ...], repeats: int, *, equal: bool = True
) -> None:
    """Prints a line for each way, a compiled function; the first is what is used."""
    functions = {way: lambda f=f: f(*arguments) for way, f in ways.items()}
    spent = interleaved(functions, repeats)
    used = next(iter(ways))
    for way, (seconds, _) in spent.items():
        error = f"{relative_error(functions[way](), functions[used]()):.0e}" if equal else ""
        gain = spent[used].wall / seconds
        print(f"| {name} | {way} | {1e3 * seconds:.2f} | {gain:.2f} | {error} |", flush=True)


def encoder_passes(args: argparse.Namespace) -> None:
    """All views at once, or each alone."""
    config = read_config("configs/cifar100.py")
    config.model.compute_dtype = "float32"
    config.resnet.width = args.width
    encoder = build_encoder(typed(config))
    keys = jax.random.split(jax.random.key(0))
    shape = (2, args.images, config.data.image_size, config.data.image_size, 3)
    views = jax.random.normal(keys[0], shape)
    variables = jax.jit(lambda key: encoder.init(key, views[0], train=False))(keys[1])

    def loss(params: Any, images: jax.Array) -> jax.Array:
        stats = {"params": params, "batch_stats": variables["batch_stats"]}
        z: Any = encoder.apply(stats, images, train=True, mutable=["batch_stats"])[0]
        return jnp.sum(jnp.sin(z))

    @jax.jit
    def together(params: Any, views: jax.Array) -> Any:
        return jax.grad(lambda p: loss(p, views.reshape(-1, *views.shape[2:])))(params)

    @jax.jit
    def apart(params: Any, views: jax.Array) -> Any:
        return jax.grad(lambda p: loss(p, views[0]) + loss(p, views[1]))(params)

    ways = {"one pass for all views": together, "one pass for each view": apart}
    report("encoder, 2 views", ways, (variables["params"], views), args.repeats, equal=False)


def forces(args: argparse.Namespace) -> None:
    """Steps + 1 evaluations of the force, or 2 steps."""
    settings, dim = base_config().dynamics, 1024
    keys = jax.random.split(jax.random.key(0))
    layers = init_mlp(keys[0], (dim, *[settings.hidden_dim] * settings.depth, 1))
    z = jax.random.normal(keys[1], (2 * args.images, 2 * dim))

    def compile_flow(one_force: bool) -> Any:
        def loss(layers: Any, z: jax.Array) -> jax.Array:
            hamiltonian = separable(
                layers, base_coeff=settings.base_coeff, residual_scale=RESIDUAL_SCALE
            )
            # Taken for one that is not separable, its force is evaluated anew for every kick.
            hamiltonian = hamiltonian._replace(is_separable=one_force)
            predicted = integrate(hamiltonian, z, steps=args.steps, dt=settings.dt)
            return jnp.mean(jnp.square(predicted - jax.lax.stop_gradient(z[::-1])))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that leapfrog is not symplectic then: here it is
            return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(layers, z).compile()

    ways = {
        "one force per step boundary": compile_flow(True),
        "two forces per step": compile_flow(False),
    }
    report(f"flow, {args.steps} steps", ways, (layers, z), args.repeats)


def power_iteration(matrix: jax.Array, iterations: int) -> jax.Array:
    """Returns the Rayleigh quotient after so many products with the matrix."""

    def body(_: Any, vector: jax.Array) -> jax.Array:
        product = matrix @ vector
        return product / jnp.linalg.norm(product)

    start = jnp.ones(matrix.shape[0]) / matrix.shape[0] ** 0.5
    top = jax.lax.fori_loop(0, iterations, body, start)
    return top @ matrix @ top


def factorizations(args: argparse.Namespace) -> None:
    """The floors' matrix functions, of covariances as training has them."""
    rows = jax.random.normal(jax.random.key(0), (2, 1024, args.rank))
    scales = jnp.exp(-jnp.arange(args.rank) / (0.4 * args.rank))
    pair = jnp.einsum("bni,bnj->bij", rows * scales, rows * scales) / 1024
    pair += 1e-4 * jnp.eye(args.rank)
    cholesky = {
        "one after the other": jax.jit(
            lambda c: jnp.stack([jnp.linalg.cholesky(c[i]) for i in (0, 1)])
        ),
        "batched": jax.jit(jnp.linalg.cholesky),
    }
    report(f"Cholesky of q and p, rank {args.rank}", cholesky, (pair,), args.repeats)
    largest: dict[str, Any] = {"eigendecomposition": jax.jit(lambda c: jnp.linalg.eigh(c)[0][-1])}
    for iterations in (10, 30, 100):
        name = f"power iteration, {iterations} products"
        largest[name] = jax.jit(functools.partial(power_iteration, iterations=iterations))
    report(f"largest eigenvalue, rank {args.rank}", largest, (pair[0],), args.repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rank", type=int, default=128, help="of the log-det floors' projection")
    parser.add_argument("--steps", type=int, default=2, help="of leapfrog")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"device: {jax.devices()[0].device_kind}; jax {jax.__version__}; float32\n")
    print("| what | way | ms | gain | error |\n|---|---|---:|---:|---:|")
    factorizations(args)
    forces(args)
    encoder_passes(args)


if __name__ == "__main__":
    main()

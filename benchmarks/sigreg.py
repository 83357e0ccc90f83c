"""SIGReg's time and memory: this implementation beside the direct form, and PyTorch's if installed.

    python benchmarks/sigreg.py --n 4096 --d 2048 --k 1024 --t 17
    python benchmarks/sigreg.py --scaling

The direct form evaluates cos and sin on an [N, K, T] array. "XLA's operations" is hjepa_jax without
its native CPU kernel, as on a CPU without a compiler. All take the value and the gradient
with respect to z [N, D]. Runs alternate (interleaved) and medians are printed, so that other load
on the machine falls on all alike. "temporary" is the peak of XLA's temporary buffers, beyond
arguments and results, as compiled; "x projections" divides it by the size of z A, [N, K]. "of
ceiling" compares the two products alone, 4 NDK operations, with a matrix product in the same turns.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from turns import Runner, add_ceiling_arguments, take_turns_to_ceiling

from hjepa_jax.kernels.build import kernels
from hjepa_jax.kernels.characteristic_function import characteristic_means
from hjepa_jax.objectives.sigreg import sigreg

T_MAX = 3.0


def quadrature(t: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns frequencies and weights (Gaussian included), float32 [T]."""
    frequencies = np.linspace(0, T_MAX, t)
    weights = np.full(t, 2 * T_MAX / (t - 1))
    weights[[0, -1]] /= 2
    return frequencies.astype(np.float32), (weights * np.exp(-(frequencies**2) / 2)).astype("f")


def direct(z: jax.Array, slices: jax.Array, t: int) -> jax.Array:
    """The textbook form, with an [N, K, T] array."""
    frequencies, weights = quadrature(t)
    angle = (z @ slices)[..., None] * frequencies
    error = jnp.mean(jnp.cos(angle), 0) - np.exp(-(frequencies**2) / 2)
    distance = jnp.square(error) + jnp.square(jnp.mean(jnp.sin(angle), 0))
    return jnp.mean(z.shape[0] * jnp.sum(distance * weights, -1))


def torch_runner(z: np.ndarray, slices: np.ndarray, t: int) -> Callable[[], float]:
    """The direct form in PyTorch, value and gradient."""
    torch: Any = importlib.import_module("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    frequencies, weights = (torch.tensor(a, device=device) for a in quadrature(t))
    z_torch = torch.tensor(z, device=device, requires_grad=True)
    slices_torch = torch.tensor(slices, device=device)

    def run() -> float:
        angle = (z_torch @ slices_torch)[..., None] * frequencies
        error = angle.cos().mean(0) - (-frequencies.square() / 2).exp()
        distance = error.square() + angle.sin().mean(0).square()
        loss = (z.shape[0] * (distance * weights).sum(-1)).mean()
        torch.autograd.grad(loss, z_torch)
        return loss.item()

    return run


def compile_both(n: int, d: int, k: int, t: int) -> tuple[dict[str, Any], tuple[Any, Any]]:
    """Returns {name: compiled value-and-gradient} and the arguments (z, slices)."""
    random = np.random.default_rng(0)
    z = random.standard_normal((n, d), np.float32)
    slices = random.standard_normal((d, k), np.float32)
    arguments = jnp.asarray(z), jnp.asarray(slices / np.linalg.norm(slices, axis=0))
    ours = functools.partial(sigreg, t_max=T_MAX, n_points=t, weight_type="gaussian")
    forms: dict[str, Callable[..., jax.Array]] = {
        "direct": lambda z, slices: direct(z, slices, t),
        "hjepa_jax": functools.partial(ours, means=characteristic_means),
    }
    if jax.default_backend() == "cpu" and kernels():
        forms["XLA's operations"] = ours
    compiled = {
        name: jax.jit(jax.value_and_grad(form)).lower(*arguments).compile()
        for name, form in forms.items()
    }
    return compiled, arguments


def measure(size: dict[str, int], args: argparse.Namespace) -> None:
    """Prints one line for each form at one size, with ratios to ours and to the ceiling."""
    compiled, arguments = compile_both(**size)
    runners: dict[str, Runner] = {
        name: lambda form=form: float(jax.block_until_ready(form(*arguments))[0])
        for name, form in compiled.items()
    }
    if importlib.util.find_spec("torch"):
        z, slices = map(np.asarray, arguments)
        runners["pytorch"] = torch_runner(z, slices, size["t"])
    values = {name: run() for name, run in runners.items()}
    spent, ceiling = take_turns_to_ceiling(runners, args)
    ours = spent["hjepa_jax"].wall
    # The projections and their gradient; what is between them has other operations.
    flops = 4 * size["n"] * size["d"] * size["k"]
    print(f"{'  '.join(f'{name.upper()}={value}' for name, value in size.items())}  ({ceiling})")
    for name, (seconds, _) in spent.items():
        share = flops / seconds / ceiling.flops
        line = f"  {name:16s} {1e3 * seconds:10.1f} ms  ({seconds / ours:5.2f} x ours)"
        line += f"  products {share:4.0%} of ceiling"
        if name in compiled:
            temporary = compiled[name].memory_analysis().temp_size_in_bytes
            line += f"  temporary {temporary / 2**20:9.1f} MiB"
            line += f" = {temporary / (4 * size['n'] * size['k']):6.2f} x projections"
        print(f"{line}  value {values[name]:.6f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, default in (("n", 4096), ("d", 2048), ("k", 1024), ("t", 17)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--scaling", action="store_true", help="three sizes of each of n, k and t: 1/4, 1/2 and 1"
    )
    add_ceiling_arguments(parser)
    args = parser.parse_args()
    size = {name: getattr(args, name) for name in "ndkt"}
    print(f"device: {jax.devices()[0].device_kind}")
    sizes = [size]
    if args.scaling:
        # T must be odd: the number of intervals is what is scaled.
        scaled = {
            "n": [size["n"] // 4, size["n"] // 2, size["n"]],
            "k": [size["k"] // 4, size["k"] // 2, size["k"]],
            "t": [(size["t"] - 1) // part // 2 * 2 + 1 for part in (4, 2, 1)],
        }
        sizes = [{**size, name: value} for name, values in scaled.items() for value in values]
    for one in sizes:
        measure(one, args)


if __name__ == "__main__":
    main()

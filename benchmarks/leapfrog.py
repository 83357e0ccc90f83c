"""Time and memory of the Hamiltonian predictor against its number of steps.

    python benchmarks/leapfrog.py --batch 512 --dim 1024 --steps 1 2 4 8 16 32 64

Value and gradient (parameters and states) of a mean squared error after `steps` leapfrog steps,
with plain backpropagation, which stores every step, and with reversible backpropagation, which
recomputes them by running the flow backwards. Runs alternate and medians are printed. "temporary"
is the peak of XLA's temporary buffers, beyond arguments and results, as compiled. The last column
is the largest difference of the two gradients over the largest gradient entry, per array.

Then the same memory of the whole train step of a recipe, with `dynamics.reversible` and without,
for each number in --step_flows. It is compiled and not run.
"""

from __future__ import annotations

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from turns import ONE_RUN, Runner, add_ceiling_arguments, take_turns_to_ceiling

from hjepa_jax.config import base_config
from hjepa_jax.config.flags import resolve_arguments
from hjepa_jax.models.predictor import build_predictor
from hjepa_jax.runtime import sharding
from hjepa_jax.tools.plan.step_cost import abstract_batch
from hjepa_jax.training.prepare import prepare

RESIDUAL_SCALE = 0.02


def compile_gradient(predictor: nn.Module, variables: Any, z: jax.Array) -> Any:
    """Returns the compiled (variables, z) -> (loss, gradients) of one predictor."""

    def loss(variables: Any, z: jax.Array) -> jax.Array:
        predicted: Any = predictor.apply(variables, z, 1, RESIDUAL_SCALE)
        # Another view's state stands in for the target.
        return jnp.mean(jnp.square(predicted - jax.lax.stop_gradient(z[::-1])))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(variables, z).compile()


def gradient_difference(first: Any, second: Any) -> float:
    """Returns the largest relative difference over the arrays of two gradients."""
    return max(
        float(jnp.max(jnp.abs(a - b)) / jnp.maximum(jnp.max(jnp.abs(a)), 1e-30))
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second))
    )


def flow_flops(args: argparse.Namespace, steps: int) -> int:
    """Returns the operations of the plain flow's products, value and gradient.

    A force is a pass of the potential's MLP and its gradient; there is one at each step boundary,
    and its own gradient counts twice.
    """
    one_pass = 2 * args.batch * args.hidden * (args.dim + (args.depth - 1) * args.hidden + 1)
    return 3 * 2 * one_pass * (steps + 1)


def measure(args: argparse.Namespace, steps: int) -> str:
    """Returns one line of the table."""
    key, data_key = jax.random.split(jax.random.key(0))
    z = jax.random.normal(data_key, (args.batch, 2 * args.dim))
    sizes = {"steps": steps, "hidden_dim": args.hidden, "depth": args.depth}
    fields = {**base_config().dynamics, **sizes}
    predictors = [
        build_predictor("hamiltonian", {**fields, "reversible": reversible})
        for reversible in (False, True)
    ]
    variables = predictors[0].init(key, z, 1, RESIDUAL_SCALE)
    compiled = [compile_gradient(predictor, variables, z) for predictor in predictors]
    gradients = [jax.block_until_ready(run(variables, z))[1] for run in compiled]
    runners: dict[str, Runner] = {
        name: lambda run=run: jax.block_until_ready(run(variables, z))
        for name, run in zip(("plain", "reversible"), compiled)
    }
    spent, ceiling = take_turns_to_ceiling(runners, args, settle=ONE_RUN)
    plain_ms, reversible_ms = (1e3 * side.wall for side in spent.values())
    plain_mb, reversible_mb = (run.memory_analysis().temp_size_in_bytes / 2**20 for run in compiled)
    share = flow_flops(args, steps) / spent["plain"].wall / ceiling.flops
    return (
        f"| {steps:5d} | {plain_ms:9.1f} | {share:10.0%} | {reversible_ms:13.1f} "
        f"| {reversible_ms / plain_ms:5.2f} | {plain_mb:9.1f} | {reversible_mb:14.1f} "
        f"| {gradient_difference(*gradients):10.1e} |"
    )


def step_memory(recipe: str, steps: int) -> str:
    """Returns one line of the table of train steps."""
    found = []
    for reversible in (False, True):
        flow = [f"steps={steps}", f"reversible={reversible}"]
        fields = [*(f"dynamics.{one}" for one in flow), "model.compute_dtype=float32"]
        arguments = [f"--config={recipe}", *(f"--config.{field}" for field in fields)]
        settings = resolve_arguments(arguments)
        mesh = sharding.data_mesh(jax.devices()[:1])
        run = prepare(settings, settings.data.batch_size, mesh)
        lowered = run.step.lower(run.abstract_state, abstract_batch(settings.data, mesh))
        memory = lowered.compile().memory_analysis()
        assert memory is not None  # XLA has it on all devices
        found.append(memory.temp_size_in_bytes / 2**20)
    plain, recomputed = found
    return f"| {steps:5d} | {plain:9.1f} | {recomputed:14.1f} | {plain - recomputed:9.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=512, help="states flowed at once")
    parser.add_argument("--dim", type=int, default=1024, help="d; a state has 2d numbers")
    parser.add_argument("--hidden", type=int, default=256, help="width of the potential's MLP")
    parser.add_argument("--depth", type=int, default=2, help="hidden layers of it")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--recipe", default="cifar100", help="of the train steps")
    parser.add_argument("--step_flows", type=int, nargs="*", default=[2, 16, 64], help="steps")
    add_ceiling_arguments(parser)
    args = parser.parse_args()
    print(f"device: {jax.devices()[0].device_kind}; B={args.batch} d={args.dim}")
    print(
        "| steps | plain, ms | of ceiling | reversible, ms | ratio | plain, MB | reversible, MB "
        "| difference |\n|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    for steps in args.steps:
        print(measure(args, steps), flush=True)
    print(
        f"\ntemporaries of the train step of {args.recipe}, float32\n"
        "| steps | plain, MB | reversible, MB | saved, MB |\n|---:|---:|---:|---:|"
    )
    for steps in args.step_flows:
        print(step_memory(args.recipe, steps), flush=True)


if __name__ == "__main__":
    main()

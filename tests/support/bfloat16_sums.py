"""Run by test_shares.py: in bfloat16, devices add gradients in float32; XLA's split does not.

The program of `jax.jit` is read behind XLA's partitioner, which inserts its collectives: the CPU's
compiler widens them later, so its results do not show in which type an accelerator adds.
"""

import collections
import math
import pathlib
import re
import tempfile

import jax
import numpy as np

from hjepa_jax.config.checks import typed
from hjepa_jax.recipes import cifar100
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.devices import UNOPTIMIZED, without_cpu_forms
from hjepa_jax.tools.layout_check import random_batch
from hjepa_jax.training.prepare import prepare
from hjepa_jax.training.step import loss_and_gradient

DEVICES = 8


def summed(text: str) -> collections.Counter[str]:
    """Returns how many values a program adds over devices, by their type."""
    found: collections.Counter[str] = collections.Counter()
    for result in re.findall(r" = (.*) all-reduce\(", text):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result):
            found[dtype] += math.prod(int(size) for size in shape.split(",") if size)
    return found


def loss_and_gradient_on(settings, devices: int, *, split: bool):
    """Returns loss and gradient, and what the partitioned program adds over devices."""
    mesh = sharding.data_mesh(jax.devices()[:devices])
    run = prepare(settings, settings.data.batch_size, mesh)

    def both(state, batch):
        step = loss_and_gradient(run.setup, state, batch, mesh=mesh if split else None)
        return step.total, step.gradient

    arguments = run.init(), sharding.put_batch(mesh, random_batch(settings.data, 0))
    with tempfile.TemporaryDirectory() as folder, without_cpu_forms():
        dump = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partition.*"}
        lowered = jax.jit(both, out_shardings=sharding.replicated(mesh)).lower(*arguments)
        compiled = lowered.compile({**UNOPTIMIZED, **dump})
        texts = [p.read_text() for p in pathlib.Path(folder).glob("*after_spmd-partitioning*")]
    found = sum(map(summed, texts), collections.Counter())
    return *jax.device_get(compiled(*arguments)), found


def norm(tree) -> float:
    return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))))


def main() -> None:
    jax.config.update("jax_num_cpu_devices", DEVICES)
    # A program from the cache is not partitioned again.
    jax.config.update("jax_enable_compilation_cache", False)
    config = cifar100.get_config("smoke")
    config.model.compute_dtype = "bfloat16"
    settings = typed(config)
    loss, gradient, _ = loss_and_gradient_on(settings, 1, split=False)
    kernels = [leaf for leaf in jax.tree.leaves(gradient["encoder"]) if leaf.ndim > 1]
    added = {}
    for split in (False, True):
        other_loss, other, added[split] = loss_and_gradient_on(settings, DEVICES, split=split)
        # A sum of eight numbers rounded to 8 bits.
        assert abs(other_loss - loss) < 2**-8 * abs(loss)
        difference = norm(jax.tree.map(np.subtract, other, gradient)) / norm(gradient)
        assert difference < 2**-7, (split, difference)
    # XLA adds the gradients of the convolutions' kernels as they come, in bfloat16.
    assert added[False]["bf16"] == sum(kernel.size for kernel in kernels), added
    assert set(added[True]) == {"f32"}, added
    print("float32 sums")


if __name__ == "__main__":
    main()

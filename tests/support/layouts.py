"""Run by test_shares.py: a step on each device's share of the batch, and one of the whole batch.

    python tests/support/layouts.py DEVICES CONFIG [OVERRIDE ...]

DEVICES are numbers such as 1,2,4. Loss and gradient must agree to 1e-12, all else to 1e-10; on 8
devices the collectives are counted as well, unless the loss sorts. With local batch normalization
or an online probe, states and metrics after a step are compared, to 1e-12 but for the probe, which
is in float32.
"""

import functools
import math
import sys

import jax
import numpy as np

from hjepa_jax.config.flags import resolve_arguments
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.devices import UNOPTIMIZED
from hjepa_jax.tools import layout_check
from hjepa_jax.tools.plan import step_cost
from hjepa_jax.tools.plan.program_text import count_program
from hjepa_jax.training.prepare import prepare
from hjepa_jax.training.step import train_step

CLASSES = 5
# These gather the projections of the whole batch, to sort them.
SORTS = ("--config.method=visreg", "--config.sigreg.test=")


def check_collectives(settings, devices: int) -> None:
    """Two for each batch normalization, two for the loss, and the sum of the gradients.

    With split moments that sum is scattered; the updates are gathered, and the norm is summed, as
    are those of each array for LARS.
    """
    mesh = sharding.data_mesh(jax.devices()[:devices])
    run = prepare(settings, settings.data.batch_size, mesh)
    stats = jax.tree.leaves(run.abstract_state.batch_stats)
    batch = step_cost.abstract_batch(settings.data, mesh)
    text = run.step.lower(run.abstract_state, batch).compile().as_text()
    found, split = count_program(text), settings.train.shard_optimizer
    # A normalization has two statistics, mean and variance.
    lars = settings.train.optimizer == "lars"
    expected = len(stats) + (5 + lars if split else 3)
    assert found.collectives.total() <= expected, (found.collectives, expected)
    shapes = [leaf.shape for leaf in jax.tree.leaves(run.abstract_state.params)]
    cut = [shape for shape in shapes if sharding.split_axis(devices, shape) is not None]
    gradient = 4 * sum(map(math.prod, cut))
    reduced = dict(found.reduced)
    if split:
        assert reduced.pop("all-reduce") < gradient / 4
        assert reduced == {"reduce-scatter": gradient, "all-gather": gradient // devices}
        assert found.collectives["reduce-scatter"] == found.collectives["all-gather"] == 1
    else:
        assert list(reduced) == ["all-reduce"]
        assert reduced["all-reduce"] >= gradient


def check_steps(settings, counts: list[int]) -> None:
    """A step on shares against one of the whole batch, whose groups are the shares."""
    batch = layout_check.random_batch(settings.data, settings.seed)
    labels = np.arange(settings.data.batch_size, dtype=np.int32) % CLASSES
    # The shares differ in how many images have a label.
    batch["label"] = np.where(labels == 1, -1, np.sort(labels))
    for count in counts:
        groups = count if settings.model.batch_norm == "local" else 1
        setup, state = layout_check.float64_setup(
            settings, total=10, per_epoch=2, norm_groups=groups, num_classes=CLASSES
        )
        mesh = sharding.data_mesh(jax.devices()[:count])
        results = []
        for step_mesh, devices in ((None, jax.devices()[:1]), (mesh, mesh.devices.flat)):
            place = sharding.data_mesh(devices)
            step = jax.jit(functools.partial(train_step, setup, mesh=step_mesh))
            placed = (
                jax.device_put(state, sharding.replicated(place)),
                sharding.put_batch(place, batch),
            )
            after, metrics = jax.device_get(step.lower(*placed).compile(UNOPTIMIZED)(*placed))
            results.append(
                {
                    "metrics": metrics,
                    "params": after.params,
                    "moments": after.opt_state,
                    "statistics": after.batch_stats,
                    "probe": after.probe,
                }
            )
        assert results[0]["metrics"]["online/probe_loss"] > 0
        for name, value in layout_check.relative_differences(*results).items():
            tolerance = 1e-5 if "probe" in name else 1e-12
            assert value <= tolerance, (count, name, value)


def main() -> None:
    counts = [int(number) for number in sys.argv[1].split(",")]
    jax.config.update("jax_num_cpu_devices", max(counts))
    settings = resolve_arguments([f"--config={sys.argv[2]}", *sys.argv[3:]])
    if max(counts) == 8 and not any(text.startswith(SORTS) for text in sys.argv):
        check_collectives(settings, max(counts))
    if settings.model.batch_norm == "local" or settings.evaluation.online_probe:
        with jax.enable_x64(True):
            check_steps(settings, counts)
        print("layouts agree")
        return
    with jax.enable_x64(True):
        compared = layout_check.compare_layouts(settings, counts)
    assert list(compared) == counts
    for count, differences in compared.items():
        for name, value in differences.items():
            tight = name.startswith(("loss", "gradient"))
            assert value <= (1e-12 if tight else 1e-10), (count, name, value)
    print("layouts agree")


if __name__ == "__main__":
    main()

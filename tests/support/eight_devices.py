"""Run by test_scaling.py in a process with eight devices: split moments, micro-batches, layouts."""

import pathlib
import sys
import tempfile
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from hjepa_jax.config.checks import typed
from hjepa_jax.methods.clipping import array_norms, part_norms
from hjepa_jax.recipes import cifar100
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.tools.plan.program_text import count_program
from hjepa_jax.training.prepare import PreparedRun, prepare
from hjepa_jax.training.step import StepLoss, apply_gradient

STEPS = 2


def prepared(devices: int, **train):
    config = cifar100.get_config("sigreg-smoke")
    config.resnet.remat = "blocks"
    config.train.update(accumulation=2, max_steps=STEPS, **train)
    return prepare(typed(config), 64, sharding.data_mesh(jax.devices()[:devices]))


def batches(run: PreparedRun):
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        views = rng.integers(0, 256, (2, 16, 16, 16, 3), dtype=np.uint8)
        yield sharding.put_batch(run.mesh, {"global_views": views})


def trained(run: PreparedRun):
    """Returns the state after two steps and the program, each state's buffers given away."""
    state, compiled = run.init(), None
    for batch in batches(run):
        if compiled is None:
            compiled = run.step.lower(state, batch).compile()
        before, (state, metrics) = state, compiled(state, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before)), "not donated"
        assert np.isfinite(float(metrics["total"]))
    assert compiled is not None
    return state, compiled.as_text()


def moments(state):
    return [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]


def bytes_on(device, arrays) -> int:
    return sum(s.data.nbytes for a in arrays for s in a.addressable_shards if s.device == device)


def assert_same(one, two, tolerance: float) -> None:
    """Compares the trees, each leaf relative to its largest entry."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(two), strict=True)
    for (path, a), b in pairs:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=str(path))


def check_checkpoints(states, runs) -> None:
    """A checkpoint of any layout is restored bit-exact, and placed as the new layout requires."""
    for saver, state in states.items():
        with tempfile.TemporaryDirectory() as folder:
            checkpointer = Checkpointer(pathlib.Path(folder))
            checkpointer.save(STEPS, state, {"data": {}})
            checkpointer.wait()
            for name, run in runs.items():
                restored, _ = checkpointer.restore(run.abstract_state)
                for a, b, wanted in zip(
                    *map(jax.tree.leaves, (restored, state, run.abstract_state)), strict=True
                ):
                    assert a.sharding == wanted.sharding, (saver, name)
                    assert np.array_equal(a, b, equal_nan=True), (saver, name)
            checkpointer.close()


def check_slices() -> None:
    """Slices of sums, their norms, and what is joined from them, against NumPy."""
    mesh, rng = sharding.data_mesh(), np.random.default_rng(0)
    # Arrays that split over eight devices along each axis, and two that do not split.
    shapes = {"one": [(3, 16, 8), (8,), ()], "two": [(16, 3), (2, 3, 24), (5, 3)]}
    each = {
        part: [rng.normal(size=(8, *shape)).astype(np.float32) for shape in all_]
        for part, all_ in shapes.items()
    }
    expected = jax.tree.map(lambda x: x.sum(0, dtype=np.float64), each)

    def sums(each):
        slices = sharding.sum_slices(jax.tree.map(lambda x: x[0], each), "data")
        joined = sharding.join_slices(slices, expected, "data")
        again = sharding.join_slices(sharding.own_slices(joined, "data"), joined, "data")
        norms = part_norms(slices, "data"), array_norms(slices, "data")
        return slices, norms, joined, again

    out_specs = (sharding.slice_specs(mesh, expected), *[PartitionSpec()] * 3)
    split = jax.shard_map(sums, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=out_specs)
    slices, norms, joined, again = jax.jit(split)(each)
    for got in (slices, joined, again):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)
    norms, each_norm = norms
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, np.linalg.norm(b), rtol=1e-6),
        each_norm,
        expected,
    )
    for part, arrays in expected.items():
        norm = np.sqrt(sum(np.sum(np.square(array)) for array in arrays))
        np.testing.assert_allclose(norms[part], norm, rtol=1e-6)


def check_packed_sums() -> None:
    """Sums of arrays of several sizes and dtypes, against NumPy, by one sum per dtype and size."""
    mesh, rng = sharding.data_mesh(), np.random.default_rng(1)
    shapes = [(3, 5), (2**17,), (), (4,), (300, 500)]
    dtypes = [np.float32, np.float32, np.float32, jnp.bfloat16, np.float32]
    each = [rng.integers(-8, 8, (8, *s)).astype(d) for s, d in zip(shapes, dtypes, strict=True)]

    def sums(each):
        return sharding.sum_packed([x[0] for x in each], "data")

    split = jax.jit(
        jax.shard_map(sums, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec())
    )
    for got, arrays in zip(split(each), each, strict=True):
        assert got.dtype == arrays.dtype
        # Small integers: exact in every order and dtype.
        np.testing.assert_array_equal(got, arrays.astype(np.float32).sum(0).astype(got.dtype))
    operands = split.lower(each).as_text().count("stablehlo.all_reduce")
    assert operands == 4, operands


def check_failure(run: PreparedRun, state) -> None:
    """A number that is not finite in the slice of a single device holds all of them back."""
    gradient = jax.tree.map(jnp.ones_like, state.params)
    kernel = gradient["encoder"]["stem_conv"]["kernel"]
    poisoned = {**gradient["encoder"], "stem_conv": {"kernel": kernel.at[0, 0, 0, -1].set(jnp.nan)}}

    @jax.jit
    def after(gradient):
        z = jnp.zeros((2, 8, 4))
        step = StepLoss(jnp.ones(()), gradient, state.batch_stats, {}, z, {})
        return apply_gradient(run.setup, state, step, mesh=run.mesh)[0]

    failed, good = after({**gradient, "encoder": poisoned}), after(gradient)
    assert (int(failed.failed_step), int(good.failed_step)) == (STEPS, -1)
    kept, changed = (jax.tree.leaves((new.params, new.opt_state)) for new in (failed, good))
    for old, same, other in zip(
        jax.tree.leaves((state.params, state.opt_state)), kept, changed, strict=True
    ):
        assert np.array_equal(old, same)
        assert not np.array_equal(old, other)


def main() -> None:
    assert jax.device_count() == 8
    split, whole = prepared(8, shard_optimizer=True), prepared(1)
    states, texts = {}, {}
    for name, run in (("split", split), ("whole", whole)):
        states[name], texts[name] = trained(run)
    assert_same(states["split"].params, states["whole"].params, 1e-4)
    assert_same(states["split"].batch_stats, states["whole"].batch_stats, 1e-5)
    assert_same(moments(states["split"]), moments(states["whole"]), 1e-3)

    total = bytes_on(jax.devices()[0], moments(states["whole"]))
    for device in jax.devices():
        share = bytes_on(device, moments(states["split"])) / total
        # An array of one entry, and those that eight does not divide, stay whole.
        assert 0.124 < share < 0.13, share
    for leaf in jax.tree.leaves(states["split"].params):
        assert leaf.sharding.is_fully_replicated
    # The updates are gathered, all at once; images and states never are.
    found = count_program(texts["split"]).collectives
    assert set(found) == {"all-reduce", "reduce-scatter", "all-gather"}
    assert found["reduce-scatter"] == found["all-gather"] == 1

    check_slices()
    check_packed_sums()
    check_failure(split, states["split"])
    check_checkpoints(
        states, {"split": split, "two": prepared(2, shard_optimizer=True), "whole": whole}
    )
    print("eight devices agree")


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(main())

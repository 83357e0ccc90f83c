"""Random arrays that the train state keeps until they change."""

import functools
import re

import jax
import numpy as np
import pytest

from hjepa_jax.config.checks import typed
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.methods import held
from hjepa_jax.recipes import cifar100
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.training.prepare import prepare
from hjepa_jax.training.resume import data_identity, restore_or_init, save

CASES = {
    "hjepa": ("loss.logdet_refresh_interval", {"q", "p"}),
    "sigreg": ("sigreg.refresh_interval", {"slices"}),
    "ham_learnable": ("sigreg.refresh_interval", {"slices", "spectral_slices"}),
}


@functools.cache
def prepared(variant: str, interval: int, of_p: int | None = None):
    config = cifar100.get_config(f"{variant}-smoke")
    config.update_from_flattened_dict({CASES[variant][0]: interval})
    config.loss.p_logdet_refresh_interval = of_p
    return prepare(typed(config), 64, sharding.data_mesh(jax.devices()[:1]))


def batch(run, number: int):
    data = run.settings.data
    shape = (2, data.batch_size, data.image_size, data.image_size, 3)
    views = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
    return sharding.put_batch(run.mesh, {"global_views": views})


def assert_equal(one, two) -> None:
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((one, two)))


def drawn_and_held(run):
    """Yields (drawn, held, what the method draws) of seven steps."""
    images = run.settings.data.batch_size
    sizes = {"num_rows": 2 * images, "num_images": images, "dtype": "float32"}
    method, key = run.method, jax.random.key(5)
    draw = jax.jit(functools.partial(method.draw, **sizes))

    @jax.jit
    def holding(kept, step):
        found = held.draw(method, kept, key, step, **sizes)
        return found, held.hold(method, kept, found, step)

    kept = held.init_held(method, key, **sizes)
    assert np.all(kept["number"] == -1)
    for step in map(np.int32, range(7)):
        found, kept = holding(kept, step)
        yield found, kept, draw(key, step)


@pytest.mark.parametrize("variant", CASES)
def test_held_arrays_are_those_that_the_method_draws(variant) -> None:
    """Bit by bit, at steps that draw and at those that do not."""
    for step, (found, kept, drawn) in enumerate(drawn_and_held(prepared(variant, 3))):
        assert_equal(found, drawn)
        assert set(kept["arrays"]) == CASES[variant][1]
        assert kept["number"] == step // 3


def test_each_half_is_drawn_at_its_own_interval() -> None:
    """The half that changes in each step is not held."""
    history = list(drawn_and_held(prepared("hjepa", 3, 2)))
    for step, (found, kept, drawn) in enumerate(history):
        assert_equal(found, drawn)
        assert kept["number"].tolist() == [step // 2, step // 3]
        for half, interval in (("q", 3), ("p", 2)):
            before = history[step - 1][0][half]
            assert np.array_equal(found[half], before) == (step % interval > 0), (half, step)
    for found, kept, drawn in drawn_and_held(prepared("hjepa", 3, 1)):
        assert_equal(found, drawn)
        assert set(kept["arrays"]) == {"q"}


def test_a_half_without_settings_of_its_own_is_drawn_as_ever() -> None:
    for (plain, _, _), (own, _, _) in zip(
        drawn_and_held(prepared("hjepa", 3)), drawn_and_held(prepared("hjepa", 3, 2))
    ):
        np.testing.assert_array_equal(plain["q"], own["q"])


def test_a_step_that_is_not_due_draws_nothing() -> None:
    """Normal numbers come from the inverse error function, which is in the branch alone."""
    run = prepared("hjepa", 3)
    text = run.step.lower(run.abstract_state, batch(run, 0)).compile().as_text()
    normal = [name for name in re.findall('op_name="([^"]*)"', text) if "erf_inv" in name]
    assert normal
    assert all("/cond/branch_" in name for name in normal)


@pytest.mark.parametrize("variant", CASES)
def test_nothing_is_held_that_changes_in_each_step(variant) -> None:
    assert prepared(variant, 1).abstract_state.held == {}


def test_a_state_that_holds_nothing_or_another_drawing_draws_the_same() -> None:
    run = prepared("hjepa", 3)

    def after(step: int, changed):
        state = run.init()
        for number in range(step):
            state, _ = run.step(state, batch(run, number))
        other = jax.tree.map(changed, state.held)
        return run.step(state.replace(held=other), batch(run, step))

    expected = after(2, lambda leaf: leaf)
    for number in (-1, 7):
        assert_equal(after(2, lambda leaf, n=number: leaf * 0 + n), expected)


def test_a_checkpoint_of_the_earlier_layout_is_completed(tmp_path) -> None:
    """Its next step equals that of the run that saved it."""
    run = prepared("hjepa", 3)
    identity = data_identity(
        run.settings.data, run.settings.seed, open_split(run.settings, "train")
    )
    state = run.init()
    for number in range(2):
        state, _ = run.step(state, batch(run, number))

    class Earlier(Checkpointer):
        """Saves as the version before."""

        def save(self, step, state, meta, metrics=None):
            fields = {name: part for name, part in vars(state).items() if name != "held"}
            super().save(step, fields, {n: m for n, m in meta.items() if n != "layout"}, metrics)

    for kind, number in ((Earlier, -1), (Checkpointer, 0)):
        checkpointer = kind(tmp_path / kind.__name__)
        save(run.settings, identity, [], state, checkpointer)
        checkpointer.wait()
        restored = restore_or_init(run, checkpointer, run.settings, identity).state
        assert restored.held["number"] == number
        checkpointer.close()
        assert_equal(run.step(restored, batch(run, 2))[0], run_on(run, state))


def run_on(run, state):
    """The next state, of a copy, since a step takes its state's memory."""
    return run.step(jax.tree.map(lambda leaf: leaf.copy(), state), batch(run, 2))[0]

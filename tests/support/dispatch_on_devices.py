"""Run by test_dispatch.py in a process with eight devices: training from images that stay there."""

import functools
import pathlib
import sys
import tempfile
import warnings
from typing import Any

import jax
import numpy as np

import hjepa_jax.train
from hjepa_jax.config.files import choose_part
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.tools.kill_test import differing_arrays
from hjepa_jax.training.prepare import PreparedRun, Steps, prepare, train_steps
from hjepa_jax.training.state import TrainState

MESH = sharding.data_mesh


def trained(devices: int, together: int, *, scanned: bool = False) -> TrainState:
    """Returns the state after four steps of a run on the first devices.

    Args:
      devices: their number.
      together: steps of a dispatch.
      scanned: whether these are one program, as on accelerators.
    """
    config = quickstart.get_config("smoke")
    config.data.backend = "device"
    # Without convolutions, which are slow in a CPU's loop.
    choose_part(config, "model.encoder", "examples.own_encoder:PatchMixer")
    config.train.update(max_steps=4, steps_per_dispatch=together)
    # Otherwise Adam moves by its rate, however small the gradient: its rounding error as well.
    config.train.adam_eps = 0.1
    config.log.every_steps = config.checkpoint.every_steps = 100
    calls = []

    def counted(steps: Steps, state: TrainState, batch: Any) -> Any:
        assert batch["resident_images"].rows.sharding.is_fully_replicated
        shares = {len(batch[name].sharding.device_set) for name in ("index", "global_parameters")}
        assert shares == {devices}
        calls.append(len(batch["index"]))
        return steps(state, batch)

    def built(*arguments: Any) -> PreparedRun:
        run = prepare(*arguments)
        scan = jax.jit(functools.partial(train_steps, run.setup, mesh=run.mesh), donate_argnums=0)
        return run._replace(steps=functools.partial(counted, scan if scanned else run.steps))

    sharding.data_mesh = lambda *_: MESH(jax.devices()[:devices])
    hjepa_jax.train.prepare = built
    with tempfile.TemporaryDirectory() as folder:
        state = hjepa_jax.train.train(config, pathlib.Path(folder))
    # The first step is logged.
    assert calls == ([] if together == 1 else [3])
    return jax.device_get(state)


def main() -> None:
    assert jax.device_count() == 8
    alone, split = trained(1, 1), trained(2, 1)
    assert differing_arrays(split, trained(2, 3)) == []
    for other in (split, trained(8, 3, scanned=True)):
        assert int(other.step) == 4
        for a, b in zip(*map(jax.tree.leaves, (other, alone)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    print("the devices agree")


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(main())

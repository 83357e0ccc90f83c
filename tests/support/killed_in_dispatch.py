"""Run by test_dispatch.py: a run that kills itself between two steps of a dispatch."""

import os
import pathlib
import signal
import sys
from typing import Any

import jax

from hjepa_jax.config.files import read
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.train import train
from hjepa_jax.training import prepare

ONE_BY_ONE, SAVE = prepare._one_by_one, Checkpointer.save


def main(config: str, workdir: str, last: str) -> None:
    """Ends, by SIGKILL, once step `last` is done."""

    def killed(step: Any, state: Any, batches: Any) -> Any:
        def one(state: Any, batch: Any) -> Any:
            state, metrics = jax.block_until_ready(step(state, batch))
            if int(state.step) == int(last):
                os.kill(os.getpid(), signal.SIGKILL)
            return state, metrics

        return ONE_BY_ONE(one, state, batches)

    def saved(self: Checkpointer, *arguments: Any, **options: Any) -> None:
        SAVE(self, *arguments, **options)
        self.wait()

    prepare._one_by_one = killed
    Checkpointer.save = saved
    train(read(pathlib.Path(config)), pathlib.Path(workdir))


if __name__ == "__main__":
    main(*sys.argv[1:])

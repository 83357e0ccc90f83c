"""Kills a run repeatedly, and checks that it ends bit-identical: the same as `hjepa kill-test`."""

from hjepa_jax.tools.commands.kill_test import run

if __name__ == "__main__":
    run()

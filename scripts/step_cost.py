"""Estimates memory and speed of a training step: the same as `hjepa plan`."""

from hjepa_jax.tools.plan.command import run

if __name__ == "__main__":
    run()

"""Compares HJEPA with its baselines: the same as `hjepa reproduce`."""

from hjepa_jax.tools.commands.reproduce import run

if __name__ == "__main__":
    run()

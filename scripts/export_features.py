"""Writes features and labels of a run's data: the same as `hjepa features`."""

from hjepa_jax.tools.commands.features import run

if __name__ == "__main__":
    run()

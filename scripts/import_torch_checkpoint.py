"""Converts a checkpoint of the published PyTorch code: the same as `hjepa import-torch`."""

from hjepa_jax.tools.commands.import_torch import run

if __name__ == "__main__":
    run()

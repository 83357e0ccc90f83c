"""Checks that the gradient does not depend on the number of devices: the same as `hjepa layout`."""

from hjepa_jax.tools.commands.layout import run

if __name__ == "__main__":
    run()

"""Compares symplectic maps with others: the same as `hjepa physics`."""

from hjepa_jax.tools.commands.physics import run

if __name__ == "__main__":
    run()

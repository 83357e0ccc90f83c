"""Compares evaluated runs in one HTML page: the same as `hjepa compare`."""

from hjepa_jax.tools.commands.compare import run

if __name__ == "__main__":
    run()

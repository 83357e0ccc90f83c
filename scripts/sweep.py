"""Runs variants, settings and seeds: the same as `hjepa sweep`."""

from hjepa_jax.tools.commands.sweep import run

if __name__ == "__main__":
    run()

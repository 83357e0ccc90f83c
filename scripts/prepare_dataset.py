"""Packs images into ArrayRecord shards: the same as `hjepa prepare`."""

from hjepa_jax.tools.commands.prepare import run

if __name__ == "__main__":
    run()

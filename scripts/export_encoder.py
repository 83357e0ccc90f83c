"""Writes a run's encoder as StableHLO or ONNX: the same as `hjepa export`."""

from hjepa_jax.tools.commands.export import run

if __name__ == "__main__":
    run()

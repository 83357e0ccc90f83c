"""Estimates memory and speed of a training step on a machine that you do not have yet.

    python scripts/step_cost.py --config=configs/cifar100.py --devices=8 \
        --peak_tflops=400 --bandwidth_gbs=2000 --interconnect_gbs=200 --efficiency=0.4

The same as `hjepa plan`, see hjepa_jax/tools/plan/command.py.
"""

from __future__ import annotations

from hjepa_jax.tools.plan.command import run

if __name__ == "__main__":
    run()

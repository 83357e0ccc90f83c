"""Compares symplectic maps with others: plots, a GIF and the measurements as JSON.

    python scripts/physics_showcase.py --out=physics
    python scripts/physics_showcase.py --out=physics --runs=runs/hjepa,runs/mlp

The first measures a pendulum under leapfrog, Runge-Kutta 4 and explicit Euler at equal cost, in
float64; the second a trained Hamiltonian predictor and its matched MLP, on encoded test images.
"""

from __future__ import annotations

import sys

import jax
from absl import app, flags

from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.physics.figures import save_all
from hjepa_jax.evaluation.physics.measure import compare_maps, showcase, summarize
from hjepa_jax.storage.files import check_writable_folder, local_path

_OUT = flags.DEFINE_string("out", "physics", "Folder for the pictures and figures.json.")
_RUNS = flags.DEFINE_list("runs", [], "Workdirs: an HJEPA run, then those to compare it with.")
_DT = flags.DEFINE_float("dt", 0.25, "Step length of leapfrog.", lower_bound=1e-6)
_APPLICATIONS = flags.DEFINE_integer("applications", 100, "Applications of each map.", 1)
_GRID = flags.DEFINE_integer("grid", 48, "Initial conditions per side of the energy grid.", 2)
_ENSEMBLE = flags.DEFINE_integer("ensemble", 256, "States of the ensemble.", 2)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    try:
        out = local_path(_OUT.value, "--out")
        check_writable_folder(out, "--out")
        if _RUNS.value:
            from hjepa_jax.tools.physics_runs import maps_of_runs

            maps, setup = maps_of_runs(
                [local_path(path, "--runs") for path in _RUNS.value],
                num_states=_ENSEMBLE.value,
                applications=_APPLICATIONS.value,
            )
            results = compare_maps(maps, setup)
        else:
            with jax.enable_x64(True):
                maps, setup = showcase(
                    dt=_DT.value,
                    applications=_APPLICATIONS.value,
                    grid_size=_GRID.value,
                    ensemble=_ENSEMBLE.value,
                )
                results = compare_maps(maps, setup)
        written = save_all(results, setup, out)
    except UserError as error:
        sys.exit(f"physics_showcase: {error}")
    except OSError as error:
        sys.exit(f"physics_showcase: cannot write to {_OUT.value}: {error}")
    for name, figures in summarize(results).items():
        drift, defect = figures["energy_drift_max_median"], figures["symplectic_defect_median"]
        shown = "  -" if drift is None else f"{drift:9.2e}"
        print(f"{name:16s} energy error {shown}   symplectic defect {defect:9.2e}")
    print(f"{len(written)} files in {_OUT.value}")


if __name__ == "__main__":
    app.run(main)

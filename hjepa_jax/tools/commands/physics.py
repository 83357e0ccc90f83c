"""Compare symplectic maps with others: plots, a GIF and the measurements as JSON.

    hjepa physics --out=physics
    hjepa physics --out=physics --runs=runs/hjepa,runs/mlp

The first measures a pendulum under leapfrog, Runge-Kutta 4 and explicit Euler at equal cost, in
float64; the second a trained Hamiltonian predictor and its matched MLP, on encoded test images.
"""

from __future__ import annotations

from absl import flags

from hjepa_jax.config.command_line.program import Program
from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import check_writable_folder, local_path

PROGRAM = Program("physics", __doc__)
_FLAGS = PROGRAM.flags
_OUT = flags.DEFINE_string(
    "out", "physics", "Folder for the pictures and figures.json.", flag_values=_FLAGS
)
_RUNS = flags.DEFINE_list(
    "runs", [], "Workdirs: an HJEPA run, then those to compare it with.", flag_values=_FLAGS
)
_DT = flags.DEFINE_float(
    "dt", 0.25, "Step length of leapfrog.", lower_bound=1e-6, flag_values=_FLAGS
)
_APPLICATIONS = flags.DEFINE_integer(
    "applications", 100, "Applications of each map.", 1, flag_values=_FLAGS
)
_GRID = flags.DEFINE_integer(
    "grid", 48, "Initial conditions per side of the energy grid.", 2, flag_values=_FLAGS
)
_ENSEMBLE = flags.DEFINE_integer("ensemble", 256, "States of the ensemble.", 2, flag_values=_FLAGS)


def main(argv: list[str]) -> None:
    """Measures, and writes the pictures."""
    del argv
    out = local_path(_OUT.value, "--out")
    check_writable_folder(out, "--out")
    import jax

    from hjepa_jax.evaluation.physics.figures import save_all
    from hjepa_jax.evaluation.physics.measure import compare_maps, showcase, summarize

    try:
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
    except OSError as error:
        raise UserError(f"cannot write to {_OUT.value}: {error}") from error
    for name, figures in summarize(results).items():
        drift, defect = figures["energy_drift_max_median"], figures["symplectic_defect_median"]
        shown = "  -" if drift is None else f"{drift:9.2e}"
        print(f"{name:16s} energy error {shown}   symplectic defect {defect:9.2e}")
    print(f"{len(written)} files in {_OUT.value}")


def run() -> None:
    """Entry point of `hjepa physics`."""
    PROGRAM.run(main)

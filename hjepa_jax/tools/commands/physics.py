"""Show what symplectic maps preserve, and how the states of runs are distributed.

    hjepa physics --out=physics
    hjepa physics --out=physics --system=double_well --which=surface,heatmap
    hjepa physics --out=physics --runs=runs/hjepa,runs/mlp
    hjepa physics --out=physics --runs=runs/hjepa --which=all

The first measures a pendulum under leapfrog, Runge-Kutta 4, and explicit and implicit Euler, in
float64; the third a trained Hamiltonian predictor and its matched MLP, on encoded test images.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from hjepa_jax.config.command_line.program import Program
from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.physics.names import COMPARISON, OF_ENERGIES, PICTURES, SYSTEMS
from hjepa_jax.storage.files import check_writable_folder, local_path

PROGRAM = Program("physics", __doc__)
_FLAGS = PROGRAM.flags
_OUT = flags.DEFINE_string(
    "out", "physics", "Folder for the pictures and figures.json.", flag_values=_FLAGS
)
_RUNS = flags.DEFINE_list(
    "runs", [], "Workdirs: an HJEPA run, then those to compare it with.", flag_values=_FLAGS
)
_SYSTEM = flags.DEFINE_string(
    "system",
    "pendulum",
    f"Classical system ({', '.join(SYSTEMS)}), or the workdir of a run.",
    flag_values=_FLAGS,
)
_WHICH = flags.DEFINE_list(
    "which",
    [],
    f"Pictures: {', '.join(PICTURES)}, or 'all' that there are; the first {len(COMPARISON)} unless "
    "given.",
    flag_values=_FLAGS,
)
_DT = flags.DEFINE_float(
    "dt",
    0.25,
    "Step length of leapfrog; surface and heat maps take half of it.",
    lower_bound=1e-6,
    flag_values=_FLAGS,
)
_APPLICATIONS = flags.DEFINE_integer(
    "applications",
    100,
    "Applications of each map, and steps of the heat maps.",
    1,
    flag_values=_FLAGS,
)
_GRID = flags.DEFINE_integer(
    "grid", 48, "Initial conditions per side of the grids.", 2, flag_values=_FLAGS
)
_ENSEMBLE = flags.DEFINE_integer("ensemble", 256, "States of the ensemble.", 2, flag_values=_FLAGS)


def subject() -> tuple[str | None, list[pathlib.Path]]:
    """Returns the classical system that is shown, or None and the workdirs of the runs.

    Raises:
      UserError: an unknown system, or both a system and runs.
    """
    system, runs = _SYSTEM.value, _RUNS.value
    if runs and _FLAGS["system"].present:
        raise UserError(f"--system={system} and --runs are both given: choose one of them.")
    if runs:
        return None, [local_path(path, "--runs") for path in runs]
    if system in SYSTEMS:
        return system, []
    workdir = local_path(system, "--system")
    if (workdir / "config.json").is_file():
        return None, [workdir]
    raise UserError(
        f"--system={system} is no classical system ({', '.join(SYSTEMS)}), and not the workdir of "
        "a run."
    )


def chosen(system: str | None) -> list[str]:
    """Returns the pictures that the command line asks for.

    Raises:
      UserError: an unknown one, or one that a classical system does not have.
    """
    asked = [name for name in _WHICH.value if name]
    unknown = [name for name in asked if name not in (*PICTURES, "all")]
    if unknown:
        raise UserError(
            f"--which={unknown[0]} is no picture: choose among {', '.join(PICTURES)}, or all."
        )
    there_are = PICTURES if system is None else (*COMPARISON, *OF_ENERGIES)
    if "all" in asked:
        return list(there_are)
    missing = [name for name in asked if name not in there_are]
    if missing:
        raise UserError(
            f"--which={missing[0]} shows the states of trained runs: name them with --runs."
        )
    return asked or list(COMPARISON)


def main(argv: list[str]) -> None:
    """Measures, and writes the pictures."""
    del argv
    out = local_path(_OUT.value, "--out")
    check_writable_folder(out, "--out")
    system, workdirs = subject()
    which = chosen(system)
    try:
        written = _of_system(out, system, which) if system else _of_runs(out, workdirs, which)
    except OSError as error:
        raise UserError(f"cannot write to {_OUT.value}: {error}") from error
    print(f"{len(written)} files in {_OUT.value}")


def _of_system(out: pathlib.Path, system: str, which: Sequence[str]) -> list[pathlib.Path]:
    import jax

    from hjepa_jax.evaluation.physics.cases import showcase
    from hjepa_jax.evaluation.physics.measure import compare_maps
    from hjepa_jax.tools import physics_pictures

    written = []
    compared = [name for name in which if name in COMPARISON]
    if compared:
        with jax.enable_x64(True):
            maps, setup = showcase(
                system,
                dt=_DT.value,
                applications=_APPLICATIONS.value,
                grid_size=_GRID.value,
                ensemble=_ENSEMBLE.value,
            )
            results = compare_maps(maps, setup)
        written = physics_pictures.save_comparison(out, results, setup, compared)
    painters = physics_pictures.of_system(
        system, which, dt=_DT.value, steps=_APPLICATIONS.value, grid=_GRID.value
    )
    return written + physics_pictures.save(out, painters)


def _of_runs(
    out: pathlib.Path, workdirs: Sequence[pathlib.Path], which: Sequence[str]
) -> list[pathlib.Path]:
    from hjepa_jax.evaluation.physics.measure import compare_maps
    from hjepa_jax.tools import physics_pictures
    from hjepa_jax.tools.physics_runs import maps_of_runs, shown_runs

    runs = shown_runs(workdirs)
    which = physics_pictures.possible(runs, which, strict="all" not in _WHICH.value)
    written = []
    compared = [name for name in which if name in COMPARISON]
    if compared:
        maps, setup = maps_of_runs(
            runs, num_states=_ENSEMBLE.value, applications=_APPLICATIONS.value
        )
        written = physics_pictures.save_comparison(out, compare_maps(maps, setup), setup, compared)
    painters = physics_pictures.of_runs(
        runs, which, dt=_DT.value, steps=_APPLICATIONS.value, grid=_GRID.value
    )
    return written + physics_pictures.save(out, painters)


def run() -> None:
    """Entry point of `hjepa physics`."""
    PROGRAM.run(main)

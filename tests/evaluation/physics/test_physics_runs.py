"""The physics diagnostics on trained predictors: a Hamiltonian flow and its matched MLP."""

import numpy as np
import pytest

from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.physics.measure import compare_maps, summarize
from hjepa_jax.recipes import quickstart
from hjepa_jax.tools.physics_runs import maps_of_runs
from hjepa_jax.train import train


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("physics")
    for method in ("hjepa", "mlp", "sigreg"):
        train(quickstart.get_config(f"{method}-smoke"), folder / method)
    return folder


def test_the_hamiltonian_run_is_symplectic_and_the_mlp_run_is_not(workdirs) -> None:
    maps, setup = maps_of_runs(
        [workdirs / "hjepa", workdirs / "mlp"], num_states=16, applications=4
    )
    figures = summarize(compare_maps(maps, setup))
    assert list(figures) == ["hjepa", "mlp"]
    defects = {name: values["symplectic_defect_median"] for name, values in figures.items()}
    assert defects["hjepa"] < 1e-5
    assert defects["mlp"] > 10 * defects["hjepa"]
    drifts = {name: values["energy_drift_max_median"] for name, values in figures.items()}
    assert np.isfinite(list(drifts.values())).all()
    assert drifts["hjepa"] < drifts["mlp"]


def test_a_run_without_predictor_is_refused(workdirs) -> None:
    with pytest.raises(UserError, match="sigreg has no predictor"):
        maps_of_runs([workdirs / "hjepa", workdirs / "sigreg"], num_states=4)

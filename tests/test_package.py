"""The public face of the package."""

import pathlib
import subprocess
import sys

import pytest

import hjepa_jax
from hjepa_jax.errors import UserError
from hjepa_jax.loading import LoadedRun, load_run
from hjepa_jax.pretrained.encoder import TrainedEncoder, from_pretrained

ROOT = pathlib.Path(__file__).resolve().parents[1]
FACE = {
    "LoadedRun": LoadedRun,
    "TrainedEncoder": TrainedEncoder,
    "UserError": UserError,
    "__version__": hjepa_jax.__version__,
    "from_pretrained": from_pretrained,
    "load": load_run,
}


def test_the_public_names_are_all_that_dir_shows() -> None:
    assert dir(hjepa_jax) == sorted(hjepa_jax.__all__) == sorted(FACE)
    for name, value in FACE.items():
        assert getattr(hjepa_jax, name) is value
    with pytest.raises(AttributeError, match="module 'hjepa_jax' has no attribute 'fit'"):
        _ = hjepa_jax.fit


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; before = {*sys.modules}; import hjepa_jax; assert 'load' in dir(hjepa_jax)\n"
        "print({name.partition('.')[0] for name in {*sys.modules} - before}\n"
        "      - {*sys.stdlib_module_names, 'hjepa_jax'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout == "set()\n"

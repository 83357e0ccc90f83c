"""The wheel: complete, described, and able to train outside of a checkout."""

import email
import os
import pathlib
import shutil
import site
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """A wheel of a copy, as a build writes beside the sources."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(
        ROOT / "hjepa_jax", folder / "hjepa_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in SOURCES:
        shutil.copy(ROOT / name, folder)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "dist")], cwd=folder, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    (found,) = (folder / "dist").glob("*.whl")
    return found


def test_the_wheel_holds_every_file_and_names_the_project_s_pages(wheel) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        fields = email.message_from_bytes(content.read(metadata))
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "hjepa_jax").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert "hjepa_jax/py.typed" in sources
    assert {name for name in names if ".dist-info/" not in name} == sources
    pages = dict(line.split(", ") for line in fields.get_all("Project-URL"))
    assert pages.keys() >= {"Documentation", "Changelog", "Issues", "Paper"}
    assert all(page.startswith("https://") for page in pages.values())


def test_the_installed_wheel_trains_a_recipe_outside_of_the_checkout(wheel, tmp_path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    subprocess.run([*command, "--no-index", str(wheel)], check=True)
    (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    # The dependencies; a .pth file in a folder that is named by another one is not read.
    others = {path for path in sys.path if path.endswith("site-packages")}
    (packages / "dependencies.pth").write_text("\n".join({*others, *site.getsitepackages()}))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", "import hjepa_jax; print(hjepa_jax.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert pathlib.Path(done.stdout.strip()).parents[1] == packages, done.stderr
    hjepa = tmp_path / "venv/bin/hjepa"
    arguments = ["train", "--config=quickstart:smoke", "--workdir=run", "--mode=train"]
    done = subprocess.run(
        [hjepa, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/checkpoints").is_dir()
    assert (tmp_path / "run/config.json").is_file()

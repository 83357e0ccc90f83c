"""The command lines around the data package run and say what they did."""

import os
import pathlib
import subprocess
import sys

from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def test_show_views_writes_a_contact_sheet(tmp_path) -> None:
    out = tmp_path / "views.png"
    done = run(
        "scripts/show_views.py", "--config=configs/quickstart.py", f"--out={out}", "--images=3"
    )
    assert done.returncode == 0, done.stderr
    assert "digits/train: 1437 images" in done.stdout
    # Two views of 64 pixels, three images, gaps of 2.
    with Image.open(out) as sheet:
        assert sheet.size == (2 * 66 + 2, 3 * 66 + 2)
    done = run(
        "scripts/show_views.py",
        "--config=configs/cifar100.py",
        f"--config.data.root={tmp_path / 'absent'}",
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith("hjepa views: cifar100: data.root")

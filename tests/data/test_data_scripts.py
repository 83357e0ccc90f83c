"""The command lines around the data package run and say what they did."""

import forked
from PIL import Image


def test_show_views_writes_a_contact_sheet(tmp_path) -> None:
    out = tmp_path / "views.png"
    command = ("scripts/show_views.py", "--config=configs/quickstart.py", f"--out={out}")
    done = forked.run(*command, "--images=3")
    assert done.returncode == 0, done.stderr
    assert "digits/train: 1437 images" in done.stdout
    # Two views of 64 pixels, three images, gaps of 2.
    with Image.open(out) as sheet:
        assert sheet.size == (2 * 66 + 2, 3 * 66 + 2)
    done = forked.run(
        "scripts/show_views.py",
        "--config=configs/cifar100.py",
        f"--config.data.root={tmp_path / 'absent'}",
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith("hjepa views: cifar100: data.root")

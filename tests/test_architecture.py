"""The walks of ARCHITECTURE.md are short, and a real step and a real batch take them."""

import pathlib
import re
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from hjepa_jax.recipes import quickstart
from hjepa_jax.train import train

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()


def walk(name: str) -> list[tuple[str, str]]:
    """Returns the (file, function) pairs of a walk, in order."""
    (block,) = re.findall(rf"<!-- walk: {name} -->\n(.*?)(?:\n\n|\Z)", TEXT, re.DOTALL)
    steps = re.findall(r"`(hjepa_jax/[\w/]+\.py): (\w+)`", block)
    assert len(steps) == len(re.findall(r"^\d+\. ", block, re.M))
    return steps


def called(function: Callable[[], object]) -> set[tuple[str, str]]:
    """Returns the (file, function) pairs of the package that a call enters, in any thread."""
    found = set()

    def profile(frame, event, argument) -> None:
        if event == "call":
            found.add((frame.f_code.co_filename, frame.f_code.co_name))

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    prefix = f"{ROOT}/"
    return {(file.removeprefix(prefix), name) for file, name in found if file.startswith(prefix)}


def photographs(root: pathlib.Path) -> str:
    """Writes twelve images of two classes and returns their folder."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 20, 3), np.uint8)
    for split in ("train", "val"):
        for i, image in enumerate(pixels):
            folder = root / split / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")
    return str(root)


@pytest.fixture(scope="module")
def entered(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """What a run of one step on image files enters."""
    folder = tmp_path_factory.mktemp("walk")
    config = quickstart.get_config("smoke")
    config.data.update(
        name="folder", root=photographs(folder / "images"), batch_size=8, num_workers=0
    )
    config.resnet.update(width=4, stage_blocks=(1, 1, 1, 1))
    config.train.max_steps = 1
    return called(lambda: train(config, folder / "run"))


@pytest.mark.parametrize("name", ["step", "image"])
def test_a_walk_opens_at_most_eight_files_and_is_taken(
    name: str, entered: set[tuple[str, str]]
) -> None:
    steps = walk(name)
    assert 4 <= len({file for file, _ in steps}) <= 8
    assert not set(steps) - entered


def test_every_function_named_in_the_walks_exists() -> None:
    for line in re.findall(r"^\d+\. .*(?:\n   .*)*", TEXT, re.M):
        (file,) = re.findall(r"`(hjepa_jax/[\w/]+\.py): \w+`", line)
        source = (ROOT / file).read_text()
        for function in re.findall(r"`(?:[\w/.]+: )?(\w+)`", line):
            assert re.search(rf"^\s*def {function}\(", source, re.M), f"{file}: {function}"


def test_every_room_is_described() -> None:
    rooms = {
        path.name for path in (ROOT / "hjepa_jax").iterdir() if (path / "__init__.py").exists()
    }
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.M)) == rooms

"""The notebook and the scripts of examples/ run; the notebook's outputs come from such a run."""

import ast
import contextlib
import io
import json
import pathlib
import re
import runpy
import shutil
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_encoder import Halves

import hjepa_jax
from examples.fine_tune import accuracy, fine_tune
from hjepa_jax.pretrained.encoder import Preprocessing, TrainedEncoder
from hjepa_jax.pretrained.hub import Origin
from hjepa_jax.runtime import sharding

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOK = json.loads((EXAMPLES / "first_hour.ipynb").read_text())
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def stored(cell: dict, stream: str) -> str:
    """Returns what a cell has printed, as the notebook stores it."""
    outputs = [output for output in cell["outputs"] if output.get("name") == stream]
    return "".join("".join(output["text"]) for output in outputs)


def masked(text: str) -> str:
    """Returns a text with every number replaced, and without padding."""
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.e+-]*", "#", text)).strip()


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> tuple[pathlib.Path, list[str]]:
    """Runs the cells, with fewer epochs and steps; returns the folder and what each one prints."""
    folder = tmp_path_factory.mktemp("first_hour")
    shutil.copy(EXAMPLES / "fine_tune.py", folder)
    main = types.ModuleType("__main__")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        # The class of its own loss is looked up there, as in Jupyter.
        patch.setitem(sys.modules, "__main__", main)
        for cell in CODE:
            text = source(cell).replace("EPOCHS, STEPS = 20, 60", "EPOCHS, STEPS = 1, 2")
            text = text.replace(
                "resnet.width = 8", "resnet.update(width=4, stage_blocks=(1, 1, 1, 1))"
            )
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(ast.parse(text), "first_hour", "exec"), vars(main))
            found.append(out.getvalue())
    assert (main.EPOCHS, main.config.resnet.width) == (1, 4)
    return folder, found


def test_the_notebook_runs_and_prints_what_it_stores(printed) -> None:
    _, found = printed
    compared = 0
    for cell, text in zip(CODE, found, strict=True):
        # What training and evaluation show depends on the terminal.
        if "print(" in source(cell):
            assert masked(stored(cell, "stdout")) == masked(text), source(cell)
            compared += 1
    assert compared == 5


def test_the_notebook_was_run_once_from_top_to_bottom() -> None:
    assert [cell["execution_count"] for cell in CODE] == [*range(1, len(CODE) + 1)]
    kinds = [output["output_type"] for cell in CODE for output in cell["outputs"]]
    assert "error" not in kinds
    pictures = [output for cell in CODE for output in cell["outputs"] if "data" in output]
    assert sum("image/png" in picture["data"] for picture in pictures) == 2
    text = (EXAMPLES / "first_hour.ipynb").read_text()
    assert len(text) < 400_000
    assert not re.search(r"/(tmp|home|root|work|Users)/", text)


def test_the_stored_run_learned_something() -> None:
    (tuned,) = [text for cell in CODE if "the run" in (text := stored(cell, "stdout"))]
    fresh, trained = map(float, re.findall(r"([\d.]+) %", tuned))
    assert fresh + 2 < trained
    (energy,) = [text for cell in CODE if "drift" in (text := stored(cell, "stdout"))]
    moved, back, drift = map(float, re.findall(r"(\d[\d.e-]*)", energy))
    assert back < 1e-2 * moved
    assert drift < 0.05


def test_what_the_notebook_wrote_loads(printed) -> None:
    folder, _ = printed
    encoder = hjepa_jax.from_pretrained(folder / "runs" / "fine_tuned")
    assert encoder.origin.fine_tuned
    assert (folder / "runs" / "first_hour" / "evaluation" / "metrics.json").is_file()
    # Its evaluation is in the card of the run itself.
    with contextlib.chdir(folder):
        run = hjepa_jax.load("runs/first_hour")
        card = (run.save_pretrained("shared") / "README.md").read_text()
    assert "| trained |" in card
    assert "360 test images" in card


def test_the_script_encodes_a_folder(printed, tmp_path, capsys) -> None:
    folder, _ = printed
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    for name, image in (("a.png", pixels[0]), ("b.png", pixels[1]), ("c.png", pixels[0] // 8 * 8)):
        Image.fromarray(image).save(tmp_path / name)
    main = runpy.run_path(str(EXAMPLES / "encode.py"))["main"]
    main(str(folder / "runs" / "first_hour"), str(tmp_path))
    assert capsys.readouterr().out.splitlines()[::2] == ["a.png -> c.png", "c.png -> a.png"]
    assert len((EXAMPLES / "encode.py").read_text().splitlines()) <= 32


def test_the_script_fine_tunes_a_run(printed, tmp_path, capsys) -> None:
    folder, _ = printed
    main = runpy.run_path(str(EXAMPLES / "fine_tune.py"))["main"]
    main(str(folder / "runs" / "first_hour"), str(tmp_path / "tuned"), steps=1)
    out = capsys.readouterr().out
    assert re.findall(r"100 labels, from (.*): [\d.]+ % of 360 images", out) == [
        "random initialization",
        "the trained encoder",
    ]
    assert hjepa_jax.from_pretrained(tmp_path / "tuned").origin.fine_tuned


@pytest.mark.parametrize("name", ["encode", "fine_tune"])
@pytest.mark.parametrize(
    ("arguments", "end"), [(["nowhere", "out"], "is nowhere a run's workdir?"), ([], "\n")]
)
def test_a_script_without_a_run_says_so(name, arguments, end, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = str(caught.value)
    assert said.endswith(end)
    assert arguments or f"python examples/{name}.py runs/quickstart" in said


def test_fine_tuning_fits_its_labels() -> None:
    """Images that are dark above or below, which no head of zeros tells apart."""
    mesh = sharding.local_mesh()
    encoder = TrainedEncoder(
        Halves(),
        {"params": {"scale": jax.numpy.float32(1)}, "batch_stats": {}},
        Preprocessing(8, 8, (0.5,) * 3, (0.5,) * 3),
        Origin({}, step=0),
        mesh,
        split_qp=True,
        batch_size=4,
    )
    labels = np.arange(16) % 2
    images = np.random.default_rng(1).integers(60, 256, (16, 8, 8, 3), dtype=np.uint8)
    images[labels == 0, :4] //= 3
    images[labels == 1, 4:] //= 3
    assert accuracy(encoder, np.zeros((6, 2)), images, labels) == 0.5
    tuned, head = fine_tune(encoder, images, labels, 20)
    assert head.shape == (6, 2)
    assert accuracy(tuned, head, images, labels) == 1
    assert tuned.variables["params"]["scale"] != 1

"""Every command of the documents is run by CI or by a test, and their links lead somewhere."""

import importlib
import json
import pathlib
import re
import runpy
import shlex
import textwrap

import pytest

from hjepa_jax.config import rows, sections
from hjepa_jax.tools import cli

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md")),
    *(ROOT / name for name in ("benchmarks/RESULTS.md", "third_party/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

# Of files, which look like fields.
ENDINGS = {"json", "md", "py", "safetensors"}
# Program and script of a command -> the file that runs it, and a text found there.
RUN_BY = {
    "--config=folder": ("tests/training/automatic/test_resolved.py", "--config=folder:smoke"),
    "--config=quickstart": (".ci/run", "hjepa train --config=quickstart"),
    "examples.own_method:VICReg": ("tests/test_examples.py", "examples.own_method:VICReg"),
    "examples.own_encoder:PatchMixer": ("tests/test_examples.py", "own_encoder:PatchMixer"),
    "srun": ("tests/runtime/test_distributed.py", "SLURM_PROCID"),
    "--coordinator_address": ("tests/runtime/test_distributed.py", "--coordinator_address="),
    "python -m pytest": (".ci/run", "<!-- test -->"),
    "tests/test_repository.py": (".ci/run", "python -m pytest -n 0 tests/test_repository.py"),
    "pip install -e '.[dev]'": (".ci/run", "pip install -q -e '.[dev]'"),
    ".ci/run": (".github/workflows/ci.yml", "run: .ci/run"),
    "ruff check && ruff format": (".ci/run", "\nruff check\nruff format"),
    "pyright": (".ci/run", "\npyright --warnings\n"),
    "pre-commit install": ("tests/test_repository.py", '"pre-commit", "install"'),
    "pre-commit run": ("tests/test_repository.py", '"pre-commit", "run", "--all-files"'),
    "--config=cifar100": ("tests/training/test_train.py", "cifar100"),
    "--config=imagenet100": ("tests/training/test_train.py", "imagenet100"),
    "examples.own_source": ("tests/test_examples.py", "examples.own_source:Shapes"),
    "hjepa config > docs/configuration.md": (
        "tests/tools/test_config_page.py",
        "hjepa config > docs/",
    ),
    "hjepa eval": ("tests/test_main.py", '("eval", f"{folder}/run"'),
    "--coord=both": ("tests/test_main.py", '"--coord=both", *options'),
    "hjepa checkpoints": (
        "tests/tools/checkpoints/test_checkpoints.py",
        'PROGRAM.parse(["checkpoints"',
    ),
    "hjepa completion": ("tests/tools/test_completion.py", 'main(["completion", shell])'),
    "hjepa show": ("tests/tools/show/test_show.py", 'PROGRAM.parse(["show"'),
    "hjepa doctor": ("tests/test_main.py", "hjepa_jax.tools.doctor"),
    "hjepa views": ("tests/data/test_data_scripts.py", "scripts/show_views.py"),
    "hjepa prepare": (
        "tests/data/sources/test_shard_writer.py",
        "scripts/prepare_dataset.py",
    ),
    "hjepa physics": (
        "tests/evaluation/physics/test_physics_showcase.py",
        "physics_showcase.py",
    ),
    "--runs=": ("tests/evaluation/physics/test_physics_runs.py", "maps_of_runs"),
    "--which=slices,norms,logdet": (
        "tests/evaluation/physics/test_physics_runs.py",
        "--which=slices,norms,logdet",
    ),
    "--system=double_well": (
        "tests/evaluation/physics/test_physics_showcase.py",
        "--system=double_well",
    ),
    "--config=pretrained:resnet50": (
        "tests/interop/test_foreign_weights.py",
        '"--config=pretrained:resnet50-smoke"',
    ),
    "hjepa import-torch": (
        "tests/interop/test_import_torch.py",
        "scripts/import_torch_checkpoint.py",
    ),
    "hjepa features": ("tests/training/test_load.py", "scripts/export_features.py"),
    "hjepa export": (
        "tests/interop/test_export_encoder.py",
        "scripts/export_encoder.py",
    ),
    "hjepa reproduce": ("tests/tools/test_reproduce.py", "scripts/reproduce.py"),
    "examples/encode.py": ("tests/test_first_hour.py", 'EXAMPLES / "encode.py"'),
    "examples/fine_tune.py": ("tests/test_first_hour.py", 'EXAMPLES / "fine_tune.py"'),
    "hjepa sweep": ("tests/tools/test_sweep.py", "scripts/sweep.py"),
    "hjepa ablation": ("tests/tools/ablation/test_ablation.py", "command.PROGRAM.parse(sys.argv)"),
    "hjepa tune": ("tests/tools/tuning/test_trials.py", "command.PROGRAM.parse(sys.argv)"),
    "hjepa compare": ("tests/evaluation/compare/test_compare.py", "scripts/compare.py"),
    "hjepa plan --config=cifar100 --devices": (
        "tests/tools/plan/test_step_cost.py",
        '"hjepa_jax.tools.cli", "plan"',
    ),
    "--topology=h100:8": ("tests/tools/plan/test_compiled_step.py", '"h100:8"'),
    "hjepa kill-test": ("tests/faults/test_kills.py", "scripts/kill_test.py"),
    "benchmarks/run_all.py": ("tests/test_benchmarks.py", "benchmarks/run_all.py"),
    "hjepa_jax.tools.fuzz": ("tests/tools/test_fuzz.py", "harness.main("),
    "benchmarks/gpu.py": ("tests/test_benchmarks.py", "benchmarks/gpu.py"),
    "mkdocs build --strict": ("tests/test_docs.py", '"mkdocs", "build", "--strict"'),
    "pip install -e '.[docs]'": (".ci/run", "pip install -q -e '.[docs]'"),
    "hjepa layout": ("tests/runtime/test_sharding.py", "scripts/layout_check.py"),
}


def commands() -> list[str]:
    """Returns the lines of the bash blocks of all documents."""
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_every_command_is_run_somewhere() -> None:
    assert len(commands()) >= 40
    for command in commands():
        runners = [where for key, where in RUN_BY.items() if key in command]
        assert runners, f"nothing runs the documented command {command!r}"
        for file, text in runners:
            assert text in (ROOT / file).read_text(), f"{file} no longer runs {command!r}"


@pytest.mark.parametrize("command", [line for line in commands() if "hjepa " in line])
def test_hjepa_understands_a_documented_command(command: str) -> None:
    """Its flags exist, their values are of their kind, and so are fields of the configuration."""
    (words,) = re.findall("hjepa ([^>)]+)", command)
    name, *arguments = shlex.split(words)
    # The configuration of an evaluation is that of a run, which is not there.
    arguments += ["--config=quickstart"] * (name == "eval")
    importlib.import_module(cli.COMMANDS[name].module).PROGRAM.parse([name, *arguments])


def test_files_named_by_commands_exist() -> None:
    for command in commands():
        for word in shlex.split(command):
            for path in re.findall(r"(?:configs|scripts|benchmarks)/\w+\.py", word):
                assert (ROOT / path).is_file(), command


def test_files_named_by_the_guide_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    names = re.findall(r"`((?:[\w.-]+/)+[\w.]*|\w+\.(?:md|cfg|toml))`", text)
    assert "hjepa_jax/config/fields.py" in names
    for name in names:
        # Capitals stand for a name of the reader's.
        assert re.search("ROOM|NAME", name) or (ROOT / name).exists(), name


def test_variants_of_the_table_exist() -> None:
    from hjepa_jax.recipes import cifar100, folder, imagenet100, lejepa, pretrained, quickstart

    for module in (cifar100, folder, imagenet100, lejepa, pretrained, quickstart):
        name = module.__name__.split(".")[-1]
        (row,) = re.findall(
            rf"^\| `configs/{name}.py` \| (.*) \|$", (ROOT / "docs/recipes.md").read_text(), re.M
        )
        assert set(re.findall(r"`(\w+)`", row)) == set(module.METHODS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(document: pathlib.Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", document.read_text())
    for path, anchor in links:
        target = document.parent / path if path else document
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{path}#{anchor}"


def test_python_of_the_documents_is_from_files_that_run() -> None:
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    files = [*(ROOT / "hjepa_jax").rglob("*.py"), *(ROOT / "examples").glob("*.py")]
    sources = [textwrap.dedent(f"\n{path.read_text()}") for path in files]
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        indented = textwrap.indent(block, "    ")
        assert any(block in source or indented in source for source in sources), block


def test_shell_blocks_are_marked_as_such() -> None:
    for document in DOCUMENTS:
        for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(), re.M | re.S):
            assert kind in ("bash", "python", ""), document
            # Diagrams have no mark, and no commands.
            assert kind or not re.search(r"^(?:\$ )?(?:hjepa|pip|python|mkdocs) ", block, re.M), (
                block
            )


def evaluation(folder: pathlib.Path, **changes: float) -> pathlib.Path:
    """Writes an evaluation of README.md's own figures and returns its folder."""
    rows = {"trained": [0.975, 0.989, 0.942], "random": [0.925, 0.961, 0.775]}
    for name, value in changes.items():
        rows[name][2] = value
    encoders = {
        name: {"knn": {"k_values": [1, 20], "top1": [b, a]}, "linear_probe": {"top1": c}}
        for name, (a, b, c) in rows.items()
    }
    (folder / "metrics.json").write_text(json.dumps({"encoders": encoders}))
    return folder


def test_figures_of_the_readme_are_compared_with_a_run(tmp_path: pathlib.Path) -> None:
    figures = runpy.run_path(str(ROOT / ".ci/readme_figures.py"))
    ranges = figures["stated"]()
    assert ranges["random"] == [(92.5, 92.5), (96.1, 96.1), (77.5, 77.5)]
    assert all(90 < low < high < 100 for low, high in ranges["trained"])
    assert not [*figures["differences"](evaluation(tmp_path))]
    (low,) = figures["differences"](evaluation(tmp_path, trained=0.9))
    assert low.startswith("trained, linear probe: 90.0 %, but README.md says ")
    (high,) = figures["differences"](evaluation(tmp_path, random=0.8))
    assert "random, linear probe: 80.0 %" in high


def test_the_readme_is_short_and_its_runs_lie_in_its_range() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 120
    (row,) = re.findall(r"^\| trained, .*? \| (.*) \|$", text, re.M)
    ranges = runpy.run_path(str(ROOT / ".ci/readme_figures.py"))["stated"]()["trained"]
    for cell, (low, high) in zip(row.split("|"), ranges, strict=True):
        assert low <= float(cell.strip(" %")) <= high


def test_fields_named_by_the_documents_exist() -> None:
    known, names = rows(), set()
    for document in set(DOCUMENTS) - {ROOT / "CHANGELOG.md"}:
        for name in re.findall(r"(?:`|\bconfig\.)((?:[a-z]\w*\.)+[a-z]\w*)", document.read_text()):
            section = name.rpartition(".")[0]
            if section in sections() and name.rpartition(".")[2] not in ENDINGS:
                assert name in known, f"{document}: {name}"
                names.add(name)
    assert len(names) > 50

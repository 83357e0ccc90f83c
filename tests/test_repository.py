"""CI, pre-commit hooks, packaging and tool settings agree with each other."""

import ast
import configparser
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Modules whose distribution has another name, and distributions that others import for us.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "google": "protobuf",
    "mlflow": "mlflow-skinny",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
IMPORTED_BY_OTHERS = {"flatbuffers", "importlib-resources"}
LINTERS = ["ruff check", "ruff format --check", "pyright --warnings"]


def setup_cfg() -> configparser.ConfigParser:
    """Returns the parsed setup.cfg."""
    parsed = configparser.ConfigParser()
    parsed.read_string((ROOT / "setup.cfg").read_text())
    return parsed


def python_versions() -> list[str]:
    """Returns the Python versions of the classifiers, such as '3.11'."""
    classifiers = setup_cfg()["metadata"]["classifiers"]
    return re.findall(r"^Programming Language :: Python :: (\d+\.\d+)$", classifiers, re.M)


def workflow() -> dict:
    """Returns the parsed CI workflow; YAML 1.1 reads its key `on` as True."""
    return yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())


def shell_commands(job: str) -> list[str]:
    """Returns the `run` lines of a job of the workflow."""
    return [step["run"] for step in workflow()["jobs"][job]["steps"] if "run" in step]


def hooks() -> dict[str, dict]:
    """Returns the pre-commit hooks by id."""
    parsed = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = parsed["repos"]
    assert repository["repo"] == "local"
    return {hook["id"]: hook for hook in repository["hooks"]}


def test_ci_tests_the_python_versions_of_the_classifiers() -> None:
    matrix = workflow()["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    assert matrix == python_versions()
    assert len(matrix) >= 3


def test_documents_name_the_supported_pythons_and_jax() -> None:
    versions = f"Python {python_versions()[0]} to {python_versions()[-1]}"
    for name in ("README.md", "CONTRIBUTING.md"):
        assert versions in (ROOT / name).read_text(), name
    parsed = setup_cfg()
    (bounds,) = re.findall(
        r"^jax>=0\.(\d+),<0\.(\d+)$", parsed["options"]["install_requires"], re.M
    )
    oldest, newest = int(bounds[0]), int(bounds[1]) - 1
    assert f"jax 0.{oldest} to 0.{newest}" in (ROOT / "README.md").read_text()
    assert f"jax[cuda13]>=0.{bounds[0]},<0.{bounds[1]}" in parsed["options.extras_require"]["cuda"]


def test_every_tool_assumes_the_oldest_python() -> None:
    oldest = python_versions()[0]
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert setup_cfg()["options"]["python_requires"] == f">={oldest}"
    assert tools["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert tools["pyright"]["pythonVersion"] == oldest
    (lint_python,) = (
        step["with"]["python-version"]
        for step in workflow()["jobs"]["lint"]["steps"]
        if "setup-python" in step.get("uses", "")
    )
    assert lint_python == oldest


def test_ci_jobs_run_the_repository_s_own_checks() -> None:
    assert shell_commands("test") == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)
    install, *linters = shell_commands("lint")
    assert install == "pip install -e '.[dev]'"
    assert linters == LINTERS
    script = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in script if line.split(" ")[0] in ("ruff", "pyright")] == LINTERS


def test_ci_is_bounded_and_read_only() -> None:
    parsed = workflow()
    assert parsed["permissions"] == {"contents": "read"}
    assert parsed["concurrency"]["cancel-in-progress"] is True
    for name, job in parsed["jobs"].items():
        assert 0 < job["timeout-minutes"] <= 60, name
        for step in job["steps"]:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1")), step
            if "setup-python" in step.get("uses", ""):
                assert step["with"]["cache"] == "pip"
                assert (ROOT / step["with"]["cache-dependency-path"]).is_file()


def test_hooks_use_the_tools_of_the_dev_extra() -> None:
    extra = setup_cfg()["options.extras_require"]["dev"]
    tools = re.findall(r"^([\w-]+)", extra, re.M)
    assert "pre-commit" in tools
    entries = [hook["entry"] for hook in hooks().values()]
    assert [entry.split(" --")[0] for entry in entries] == ["ruff check", "ruff format", "pyright"]
    for hook in hooks().values():
        assert hook["language"] == "system"
        assert hook["entry"].split()[0] in tools


@pytest.mark.skipif(not shutil.which("ruff"), reason="ruff is of the dev extra")
def test_ruff_hooks_mend_a_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text("import os\nimport sys\nprint( sys.argv )\n")
    for name in ("ruff-check", "ruff-format"):
        command = [*shlex.split(hooks()[name]["entry"]), "--isolated", str(file)]
        subprocess.run(command, check=True, capture_output=True)
    assert file.read_text() == "import sys\n\nprint(sys.argv)\n"


@pytest.mark.skipif(not shutil.which("pre-commit"), reason="pre-commit is of the dev extra")
def test_installed_hooks_stop_a_commit_that_fails_them(tmp_path: pathlib.Path) -> None:
    # Without git's own variables, which would name this repository if a hook started the tests.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    for name in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{name}_NAME": "name", f"GIT_{name}_EMAIL": "name@example.com"}
    environment["PRE_COMMIT_HOME"] = str(tmp_path / "pre-commit")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)

    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(ROOT / ".pre-commit-config.yaml", work)
    assert run("git", "init", "-q").returncode == 0
    assert run("pre-commit", "install").returncode == 0
    (work / "sample.py").write_text("import os\n")
    assert run("git", "add", ".").returncode == 0
    refused = run("git", "commit", "-qm", "unused import")
    assert refused.returncode == 1
    assert re.search(r"^ruff check\.+Failed$", refused.stderr, re.M), refused.stderr
    (work / "sample.py").write_text('"""Nothing to mend."""\n')
    assert run("git", "add", ".").returncode == 0
    passed = run("pre-commit", "run", "--all-files")
    assert passed.returncode == 0, passed.stdout
    assert passed.stdout.count("Passed") == len(hooks())


def test_wheel_contains_every_file_of_the_package() -> None:
    package_data = setup_cfg()["options.package_data"]
    packaged = {
        path
        for package, patterns in package_data.items()
        for pattern in patterns.split()
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = {
        path
        for path in (ROOT / "hjepa_jax").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert ROOT / "hjepa_jax/py.typed" in files
    assert files == packaged


def distributions(requirements: str) -> set[str]:
    """Returns the normalized names in a list of requirements."""
    return {name.replace("_", "-") for name in re.findall(r"^([\w-]+)", requirements, re.M)}


def third_party_imports(path: pathlib.Path) -> Iterator[tuple[str, bool]]:
    """Yields the distribution of each import of a file, and whether its absence is handled.

    An import for the type checker alone is never executed.
    """
    tree = ast.parse(path.read_text())

    def handles_absence(node: ast.If | ast.Try) -> bool:
        if isinstance(node, ast.If):
            return ast.unparse(node.test) == "TYPE_CHECKING"
        return any(
            "ImportError" in ast.unparse(h.type) for h in node.handlers if h.type is not None
        )

    guarded = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.If | ast.Try) and handles_absence(node)
        for statement in node.body
        for part in ast.walk(statement)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in {name.split(".")[0] for name in names} - {"hjepa_jax"}:
            if name not in sys.stdlib_module_names:
                yield DISTRIBUTIONS.get(name, name.replace("_", "-")), node in guarded


def test_every_import_is_declared_and_every_requirement_imported() -> None:
    """An import of an extra's distribution must handle its absence."""
    parsed = setup_cfg()
    required = distributions(parsed["options"]["install_requires"])
    optional = {
        name
        for extra, requirements in parsed["options.extras_require"].items()
        if extra not in ("test", "dev", "bench")
        for name in distributions(requirements)
    }
    imported = set()
    for path in sorted((ROOT / "hjepa_jax").rglob("*.py")):
        for name, guarded in third_party_imports(path):
            imported.add(name)
            assert name in required or (guarded and name in optional), f"{path} imports {name}"
    assert required - imported == IMPORTED_BY_OTHERS

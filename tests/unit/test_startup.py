"""The package starts fast, and works from wherever it is installed."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trimtab

ROOT = Path(trimtab.__file__).parent
HEAVY = ("torch", "ray", "openvino", "onnxruntime", "onnx", "optuna", "scipy", "tensorrt", "pandas")
MAX_START_S = 0.3
N_RUNS = 5


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, **options)


def best_extra_s(*arguments: str) -> float:
    """The best of several runs, less the best start of a bare interpreter: the noise of a busy machine adds only."""
    timings = {(): [], arguments: []}
    for _ in range(N_RUNS):
        for command, seconds in timings.items():
            start = time.perf_counter()
            run(*(command or ("-c", "pass")))
            seconds.append(time.perf_counter() - start)
    return min(timings[arguments]) - min(timings[()])


def loaded_by(statement: str) -> list[str]:
    script = f"import sys\n{statement}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    return run("-c", script).stdout.splitlines()[-1].split()


def test_importing_trimtab_loads_nothing_heavy() -> None:
    assert loaded_by("import trimtab") == []


@pytest.mark.alone
def test_importing_trimtab_is_fast() -> None:
    assert best_extra_s("-c", "import trimtab") < MAX_START_S


def test_help_loads_nothing_heavy() -> None:
    statement = (
        "import runpy\nsys.argv = ['trimtab', '--help']\n"
        "try:\n    runpy.run_module('trimtab', run_name='__main__')\nexcept SystemExit:\n    pass"
    )
    assert loaded_by(statement) == []


@pytest.mark.alone
def test_help_is_fast() -> None:
    assert best_extra_s("-m", "trimtab", "--help") < MAX_START_S


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package installed from a copy of the sources, so that no build folder is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "runs", "tests")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    target = folder / "installed"
    run("-m", "pip", "install", "--no-deps", "--no-build-isolation", "--target", str(target), str(folder / "source"))
    return target


@pytest.mark.slow
def test_the_wheel_holds_every_module_recipe_and_table(installed: Path) -> None:
    folders = [path.parent for path in ROOT.glob("*/__init__.py")]
    modules = [
        path
        for folder in folders
        for pattern in ("*.py", "*.yaml", "*.json", "*.jsonl")
        for path in folder.rglob(pattern)
    ]
    expected = {str(path.relative_to(ROOT)) for path in modules} | {"__init__.py", "__main__.py", "py.typed"}
    found = {str(path.relative_to(installed / "trimtab")) for path in (installed / "trimtab").rglob("*")}
    assert sorted(expected - found) == []


@pytest.mark.slow
def test_the_wheel_holds_no_tests(installed: Path) -> None:
    assert not (installed / "trimtab" / "tests").exists()


@pytest.mark.slow
def test_the_installed_package_runs_from_another_folder(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = run("-c", "import trimtab; print(trimtab.__file__)", cwd=tmp_path, env=environment).stdout
    assert Path(where.strip()).parent == installed / "trimtab"
    assert "search" in run("-m", "trimtab", "--help", cwd=tmp_path, env=environment).stdout

"""A workplace as a user would set one up: a folder with a small model, its data, and specs."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from trimtab.evaluators.testing import example_artifact
from trimtab.experiments.cli import app
from typer.testing import CliRunner

TINY = Path(__file__).with_name("tiny.py")
#: enough for integers to pay on the simulated device
N_FEATURES = 1024
SIMULATED = "trimtab.evaluators.testing:SimulatedDevice"


@dataclass(frozen=True)
class Ended:
    """How a call of the command line ended."""

    exit_code: int
    stdout: str
    stderr: str
    #: what was raised beside an exit: a bug
    bug: BaseException | None = None


class Workplace:
    """A folder with ``tiny.py`` and ``tiny.onnx``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def set_up(cls, path: Path) -> "Workplace":
        path.mkdir(parents=True, exist_ok=True)
        shutil.copy(TINY, path / "tiny.py")
        (path / "tiny.onnx").write_bytes(example_artifact(N_FEATURES).model)
        return cls(path)

    def write_spec(self, file: str = "spec.yaml", /, **parts) -> str:
        """Writes a spec for the two linear layers on the simulated device, with parts replaced; returns its name."""
        content = {
            "name": "tiny",
            "model": "tiny.onnx",
            "data": "tiny:vectors",
            "target": {"runtime": SIMULATED},
            "budget": {"accuracy_drop": 0.2},
            "search": {"algorithm": "random", "trials": 40},
            "workers": {"address": "inline"},
        }
        for key, value in parts.items():
            is_merged = isinstance(value, dict) and isinstance(content.get(key), dict)
            content[key] = {**content[key], **value} if is_merged else value
        (self.path / file).write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
        return file

    def call(self, *arguments: object) -> Ended:
        """Calls the command line in this process."""
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        bug = None if isinstance(result.exception, SystemExit) else result.exception
        return Ended(result.exit_code, result.stdout, result.stderr, bug)

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "trimtab", *map(str, arguments)]

    def start(self, *arguments: object) -> "subprocess.Popen[str]":
        """Starts the command line as a process of its own, in this folder and in a session of its own."""
        return subprocess.Popen(
            self.command(*arguments), cwd=self.path, env=quiet_environment(), text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: object) -> Ended:
        """Runs the command line as a process of its own, in this folder."""
        with self.start(*arguments) as process:
            stdout, stderr = process.communicate()
        return Ended(process.returncode, stdout, stderr)


def quiet_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in {"FORCE_COLOR", "NO_COLOR", "COLUMNS"}}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The current folder, from which ``tiny`` can be imported; what it adds to Python's path is taken back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("tiny", "mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    place = Workplace.set_up(tmp_path / "place")
    monkeypatch.chdir(place.path)
    yield place
    for name in ("tiny", "mine"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def make_workplace():
    """Sets up a workplace in a folder."""
    return Workplace.set_up


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The workplace of a search that was run once; to be copied, never to be changed."""
    place = Workplace.set_up(tmp_path_factory.mktemp("finished"))
    ended = place.run("search", place.write_spec(space=[{"layers": "*", "quantize": ["none", "int8"]}]))
    assert ended.exit_code == 0, ended.stderr
    return place

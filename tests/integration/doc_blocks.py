"""The code blocks of the documentation: what each is, and how it is run."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from markdown_it import MarkdownIt
from trimtab.core.errors import MeasurementError
from trimtab.experiments.spec import Spec
from trimtab.experiments.spec_file import load_spec
from trimtab.hw_profiles.boards.board import read_board_name
from trimtab.hw_profiles.boards.fusion_rule import parse_rule

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: stands in an HTML comment above a block that cannot be run here
_NOT_RUN = re.compile(r"<!--\s*not run: (?P<reason>[^>]{8,})-->\s*\Z")
_TITLE = re.compile(r'title="(?P<file>[\w./-]+)"')
_INCLUDED = re.compile(r'^--8<-- "(?P<file>[\w./-]+)"$')
_COMMAND = re.compile(r"^\s*(\$|(trimtab|pip|make|python|sh|ray|docker) )", re.MULTILINE)
#: seconds that the commands of one block may take
_TIMEOUT_S = 200


@dataclass(frozen=True)
class Block:
    """One code block of a page."""

    page: Path
    line: int
    language: str
    code: str
    #: the file that a reader writes it to; None: it is run as it stands
    file: str | None
    #: why it is not run; None: it is
    excuse: str | None

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    """Returns a page's path inside the repository."""
    return str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name


def list_pages() -> list[Path]:
    """Returns every page that has code to be trusted."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def read_blocks(page: Path) -> list[Block]:
    """Returns the code blocks of a page, the indented ones with the language ``indented``."""
    found: list[Block] = []
    excuse = None
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            match = _NOT_RUN.search(token.content)
            excuse = match["reason"].strip() if match else None
        elif token.type in ("fence", "code_block"):
            language = "indented" if token.type == "code_block" else token.info.split(" ")[0]
            title = _TITLE.search(token.info)
            line = token.map[0] + 1
            found.append(Block(page, line, language, _include(token.content), title and title["file"], excuse))
            excuse = None
        elif token.type in ("paragraph_open", "heading_open", "table_open"):
            excuse = None
    return found


def _include(code: str) -> str:
    match = _INCLUDED.match(code.strip())
    return (DOCS / match["file"]).read_text(encoding="utf-8") if match else code


class UnquietError(Exception):
    """The machine was too unquiet for a measurement: what exit code 4 says, so that it is worth another try."""


class PageRun:
    """Runs the blocks of one page in their order, in one folder and one namespace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: dict[str, object] = {"__name__": "page"}

    def run(self, block: Block) -> None:
        """Writes, runs or checks a block; raises what is wrong with it."""
        if block.file is not None:
            target = self.folder / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.code, encoding="utf-8")
        actions = {
            "python": self._run_python, "sh": self._run_shell, "yaml": self._check_yaml, "json": self._check_json,
            "csv": self._check_csv, "toml": self._check_toml, "text": self._check_text,
        }  # fmt: skip
        assert block.language in actions, f"{block.place}: '{block.language}' is no language that is run or checked"
        actions[block.language](block)

    def _run_python(self, block: Block) -> None:
        code = compile(block.code, block.place, "exec")
        if block.file is None:
            try:
                with warnings.catch_warnings():  # libraries that a reader calls; what is ours is tested elsewhere
                    warnings.simplefilter("ignore", DeprecationWarning)
                    exec(code, self._names)  # noqa: S102 - pages of this repository
            except MeasurementError as error:
                raise UnquietError(f"{block.place}: {error}") from error

    def _run_shell(self, block: Block) -> None:
        if block.file is not None:
            return
        command = ["sh", "-euc", block.code]
        done = subprocess.run(
            command, cwd=self.folder, env=_environment(), capture_output=True, text=True, timeout=_TIMEOUT_S
        )
        if done.returncode == 4:
            raise UnquietError(f"{block.place}: {done.stderr}")
        assert done.returncode == 0, f"{block.place} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"

    def _check_yaml(self, block: Block) -> None:
        for content in yaml.safe_load_all(block.code):
            assert isinstance(content, dict), f"{block.place} must be a mapping"
            if set(content) <= set(Spec.model_fields):
                load_spec({"model": "a:b", "data": "a:b", "target": {"runtime": "onnxruntime"}, **content})
            elif "capabilities" in content:
                _check_board(content)

    def _check_json(self, block: Block) -> None:
        json.loads(block.code)

    def _check_toml(self, block: Block) -> None:
        tomllib.loads(block.code)

    def _check_csv(self, block: Block) -> None:
        rows = list(csv.reader(io.StringIO(block.code)))
        assert len({len(row) for row in rows}) == 1, f"{block.place}: every line must have as many cells as the first"

    def _check_text(self, block: Block) -> None:
        assert not _COMMAND.search(block.code), f"{block.place}: commands stand in blocks of the language sh"


def _check_board(content: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "board.yaml"
        path.write_text(yaml.safe_dump(content))
        assert read_board_name(path) == content["name"]
    parse_rule(content["fusion"])


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"FORCE_COLOR", "NO_COLOR"}}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}", "COLUMNS": "110"}


def list_links(page: Path) -> Iterator[str]:
    """Yields the links of a page that lead into the repository, without their anchors."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        for child in token.children or ():
            target = str(child.attrs.get("href", child.attrs.get("src", "")))
            if target and "://" not in target and not target.startswith("#"):
                yield target.partition("#")[0]

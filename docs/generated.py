"""Fills in what the site takes from elsewhere: commands and decisions; a hook of mkdocs, see mkdocs.yml."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SECTION = re.compile(r"^#+ `(?P<command>[^`]+)`\n\n(?P<help>.+)$", re.MULTILINE)
_SHORTENED = re.compile(r"^\* `(?P<name>[\w-]+)`: .*\.\.\.$", re.MULTILINE)
_TITLE = re.compile(r"# (?P<number>\d+)\. (?P<title>.+)")


def on_startup(**_: Any) -> None:
    """Takes the folder of the programs off Python's path: the program ``trimtab`` there is not the package."""
    programs = Path(sys.executable).parent
    sys.path[:] = [folder for folder in sys.path if Path(folder) != programs]


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Returns the page with what is generated in its place; other pages as they are."""
    generators: dict[str, Callable[[], str]] = {
        "reference/cli.md": describe_commands, "decisions.md": list_decisions,
    }  # fmt: skip
    generate = generators.get(page.file.src_uri)
    return markdown if generate is None else markdown.replace("<!-- generated -->", generate())


def describe_commands() -> str:
    """Returns a section for each command, as ``typer utils docs`` writes them, without the first heading."""
    command = [sys.executable, "-m", "typer", "trimtab.experiments.cli", "utils", "docs", "--name", "trimtab"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
    text = text.partition("\n")[2].replace("&#x27;", "'").replace("&quot;", '"').replace("```console", "```text")
    helps = {found["command"].split()[-1]: found["help"] for found in _SECTION.finditer(text)}
    return _SHORTENED.sub(lambda found: f"* `{found['name']}`: {helps[found['name']]}", text)


def list_decisions() -> str:
    """Returns a table of the pages in ``adr/``."""
    lines = ["| | |", "|---|---|"]
    for path in sorted(Path(__file__).with_name("adr").glob("*.md")):
        found = _TITLE.match(path.read_text(encoding="utf-8"))
        if found:
            lines.append(f"| {found['number']} | [{found['title']}](adr/{path.name}) |")
    return "\n".join(lines)

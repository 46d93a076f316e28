"""``trimtab explain`` and ``diff``."""

from pathlib import Path
from typing import Annotated

import typer

from .outcome import JsonFlag, named_errors, open_console, print_json

app = typer.Typer()

#: the policies differ; the same code that ``diff`` of files ends with
EXIT_DIFFERENT = 1

_SOURCE = "A run's folder, an artifact's folder or a policy.json."


@app.command()
def explain(source: Annotated[Path, typer.Argument(help=_SOURCE)], as_json: JsonFlag = False) -> None:
    """Say what a policy does to each layer, what that is worth, and why; a run knows most."""
    with named_errors():
        from ..explain.explain import explain as find
        from ..terminal_explain import print_explanation

        found = find(source)
        if as_json:
            print_json(found.to_json())
        else:
            print_explanation(open_console(), found)


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help=_SOURCE)],
    second: Annotated[Path, typer.Argument(help=_SOURCE)],
    as_json: JsonFlag = False,
) -> None:
    """Show what differs between two policies; exit 0 if nothing does, 1 if something does."""
    with named_errors():
        from ..explain.difference import diff as compare
        from ..terminal_explain import print_difference

        found = compare(first, second)
        if as_json:
            print_json(found.to_json())
        else:
            print_difference(open_console(), found)
        if not found.is_equal:
            raise typer.Exit(EXIT_DIFFERENT)

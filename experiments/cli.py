"""The command line: a thin skin over `trimtab.search`, `resume`, `apply`, `verify` and their kin.

Exit codes: 0 done · 1 a promise is broken, an artifact was altered, or policies differ (`diff`) · 2 bad input ·
3 no policy keeps the budget · 4 workers were lost or the machine is too unquiet, resume later · 130 interrupted,
resume later.
"""

import typer

from .commands import agent, devices, explaining, policies, reporting, searching, serving, store, tables

app = typer.Typer(
    name="trimtab",
    help="Find, layer by layer, how to compress a model so that it meets a budget on your own hardware.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="exit codes: 0 done · 1 promise broken, or policies differ · 2 bad input · 3 no policy keeps the budget · "
    "4 workers lost or machine unquiet, resume later · 130 interrupted",
)

for commands in (searching, policies, explaining, reporting, store, serving, devices, agent):
    app.add_typer(commands.app)
app.add_typer(tables.app, name="table")


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    app()

"""``trimtab report`` and ``watch``."""

from pathlib import Path
from typing import Annotated

import typer

from .outcome import named_errors, open_console

app = typer.Typer()

_RunArgument = Annotated[Path, typer.Argument(help="The run's folder; its search may still be going on.")]


@app.command()
def report(
    run: _RunArgument,
    out: Annotated[Path | None, typer.Option(help="The HTML file; RUN/report.html when omitted.")] = None,
    optuna: Annotated[
        Path | None,
        typer.Option(help="Write the trials as an Optuna study instead: .db is an SQLite database, else a journal."),
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run, or its trials for optuna-dashboard."""
    with named_errors():
        from ..terminal import say

        console = open_console()
        if optuna is not None:
            from ..report.optuna_study import export_study

            study = export_study(run, optuna)
            say(console, f"study {study.name} with {study.n_trials} trials: {study.path}")
            say(console, f"open it: optuna-dashboard {study.storage}")
        if optuna is None or out is not None:
            from ..report.page import write_report

            path = write_report(run, out)
            say(console, f"report: {path} ({path.stat().st_size / 1e6:.1f} MB, works offline)")


@app.command()
def watch(
    run: _RunArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
) -> None:
    """Serve the report of a run on this machine, growing while the search goes on; Ctrl-C ends it."""
    with named_errors():
        from ..report.live import serve
        from ..terminal import say

        console = open_console()

        def announce(address: str) -> None:
            say(console, f"watching {run}: {address}   (this machine only; Ctrl-C ends it)")
            if browser:
                import webbrowser

                webbrowser.open(address)

        try:
            serve(run, port=port, announce=announce)
        except KeyboardInterrupt:
            return

"""How every command ends: named errors, exit codes, a console, JSON."""

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

EXIT_BROKEN = 1
EXIT_BAD_INPUT = 2
EXIT_INFEASIBLE = 3
EXIT_TRANSIENT = 4
EXIT_INTERRUPTED = 130

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


@contextmanager
def named_errors(announced: Sequence[Path] = ()) -> Iterator[None]:
    """Turns Trimtab's own errors into one line on stderr and an exit code; anything else is a bug and shows itself.

    Args:
        announced: the run's folder, once there is one: how to go on with it is said too.
    """
    from ...core.errors import MeasurementError, TransientError, TrimtabError

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        yield
    except (TransientError, MeasurementError) as error:
        complain(error)
        sys.stderr.writelines(f"{_how_to_go_on(run)}\n" for run in announced)
        raise typer.Exit(EXIT_TRANSIENT) from error
    except TrimtabError as error:
        complain(error)
        raise typer.Exit(EXIT_BAD_INPUT) from error
    except KeyboardInterrupt:
        sys.stderr.write("; ".join(["\ninterrupted", *map(_how_to_go_on, announced)]) + "\n")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _how_to_go_on(run: Path) -> str:
    return f"go on with: trimtab resume {shlex.quote(str(run))}"


def complain(error: Exception) -> None:
    """Says an error in one line on stderr."""
    sys.stderr.write(f"trimtab: {type(error).__name__}: {error}\n")


def open_console() -> Any:
    """Returns rich's console; what is piped keeps its lines whole."""
    from rich.console import Console

    # piped output keeps its lines whole: nobody wraps a table in a log file
    return Console(width=None if sys.stdout.isatty() else 200, soft_wrap=False, highlight=False)


def print_json(value: Any) -> None:
    """Prints one JSON value on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")

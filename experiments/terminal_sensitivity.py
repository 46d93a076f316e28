"""What ``trimtab sensitivity`` looks like in a terminal."""

import numpy as np
from rich.console import Console
from rich.table import Table

from .sensitivity import Sensitivity
from .sensitivity_plot import tabulate

#: options that a table shows; there is a column for each
_MAX_COLUMNS = 7
#: reasons that are shown
_MAX_DROPPED = 10


def print_sensitivity(console: Console, sensitivity: Sensitivity) -> None:
    """Prints the influence of the options, a row for each layer, and what was dropped."""
    names, columns, grid = tabulate(sensitivity)
    table = Table(title="influence of each option alone: E|Δz|² / E|z|² of the output", title_justify="left")
    table.add_column("layer", overflow="fold")
    for label in columns[:_MAX_COLUMNS]:
        table.add_column(label, justify="right")
    table.add_column("least … most", justify="right", no_wrap=True)
    for name, row in zip(names, grid, strict=True):
        known = row[~np.isnan(row)]
        table.add_row(name, *map(_write, row[:_MAX_COLUMNS]), f"{_write(known.min())} … {_write(known.max())}")
    console.print(table)
    for line in _notes(sensitivity, len(columns)):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _write(score: float) -> str:
    return "" if np.isnan(score) else "0" if score == 0 else f"{score:.1e}"


def _notes(sensitivity: Sensitivity, n_columns: int) -> list[str]:
    hidden = n_columns - _MAX_COLUMNS
    notes = [f"{hidden} more options, most of them combinations, are not shown"] if hidden > 0 else []
    notes.append(
        f"by {sensitivity.method} on {sensitivity.n_samples} calibration samples · "
        f"{sensitivity.n_measured} options measured now, the others were known · took {sensitivity.seconds:.1f} s"
    )
    dropped = sensitivity.dropped
    notes += [f"dropped: {d.option} of {d.layer}: {d.reason}" for d in dropped[:_MAX_DROPPED]]
    if len(dropped) > _MAX_DROPPED:
        notes.append(f"dropped: {len(dropped) - _MAX_DROPPED} more")
    return notes

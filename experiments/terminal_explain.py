"""What ``trimtab explain`` and ``trimtab diff`` look like in a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .explain.difference import Choice, MeasuredPair, PolicyDifference
from .explain.explanation import Explanation
from .explain.summary import HEADINGS, describe_row, summarise
from .explain.words import UNKNOWN


def print_explanation(console: Console, found: Explanation) -> None:
    """Prints the answer, then a row for each group, then where the numbers come from."""
    for line in summarise(found):
        _say(console, line)
    table = Table(title="layer by layer; saved: of the whole model's latency", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in ("saved", "sensitivity") else "left", overflow="fold")
    for row in found.rows:
        table.add_row(*map(escape, describe_row(row)), style=None if row.is_treated else "dim")
    console.print(table)
    for line in found.notes:
        _say(console, line)


def print_difference(console: Console, found: PolicyDifference) -> None:
    """Prints what differs, part by part, and what was measured of both."""
    if found.is_equal:
        _say(console, "the policies are equal")
    _print_choices(console, "layers", found.layers)
    _print_choices(console, "graph", found.graph)
    _print_choices(console, "recovery", found.recovery)
    _print_choices(console, "target", found.target)
    if not found.measured:
        _say(console, f"measured differences: {UNKNOWN}; compare runs or artifacts, whose promises were measured")
        return
    table = Table(title="measured", title_justify="left")
    for heading in ("", "first", "second", "second − first"):
        table.add_column(heading, justify="right" if heading else "left")
    for pair in found.measured:
        table.add_row(*map(escape, _pair_cells(pair)))
    console.print(table)


def _print_choices(console: Console, title: str, choices: Sequence[Choice]) -> None:
    if not choices:
        return
    table = Table(title=title, title_justify="left")
    for heading in ("", "first", "second"):
        table.add_column(heading, overflow="fold")
    for choice in choices:
        table.add_row(escape(choice.name), escape(choice.first), escape(choice.second))
    console.print(table)


def _pair_cells(pair: MeasuredPair) -> tuple[str, ...]:
    name = f"{pair.name}, {pair.unit}" if pair.unit else pair.name
    spread = "" if pair.error is None else f" ± {pair.error:.2g}"
    return name, f"{pair.first:.5g}", f"{pair.second:.5g}", f"{pair.second - pair.first:+.3g}{spread}"


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)

"""What a notebook shows of a result, a policy and an explanation: small tables without script or style."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from ...evaluators.measurement import Estimate, Measurement
from .words import UNKNOWN, describe_graph, describe_treatment, kilobytes, milliseconds, percent

if TYPE_CHECKING:
    from ..launch import SearchResult
    from ..policy_file import PolicyFile
    from .explanation import Explanation


def show_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table as HTML; every text is escaped.

    >>> show_table(["layer"], [["<fc>"]])
    '<table><thead><tr><th>layer</th></tr></thead><tbody><tr><td>&lt;fc&gt;</td></tr></tbody></table>'
    """
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def show_result(result: "SearchResult") -> str:
    """Returns the final table of a search, and where its files are."""
    table = show_table(
        ("", "latency", "of the original's", "accuracy (test)", "drop (test)", "size", "budget"),
        [
            (row.label, *_describe(row.final, row.test), "kept" if row.is_feasible else "exceeded")
            for row in result.rows
        ],
    )
    answer = "" if result.is_feasible else _show_lines(["no policy keeps the budget"])
    return f"{answer}{table}{_show_lines([f'run: {result.run}'])}"


def _describe(final: Measurement, test: Measurement) -> tuple[str, ...]:
    latency, size = final.latency, final.size_bytes
    return (
        milliseconds(None if latency is None else latency.median_s),
        UNKNOWN if latency is None or latency.ratio is None else f"{latency.ratio:.2f}",
        _say_estimate(test.accuracy),
        _say_estimate(test.accuracy_drop),
        kilobytes(size),
    )


def _say_estimate(value: Estimate | None) -> str:
    return UNKNOWN if value is None else f"{percent(value.mean)} ± {100 * value.standard_error:.2g}"


def show_policy(file: "PolicyFile") -> str:
    """Returns what a policy does to each group that it treats, and to the graph."""
    members = {group.name: group.layers for group in file.groups}
    rows = [(name, ", ".join(members[name]), describe_treatment(treatment)) for name, treatment in file.policy.groups]
    lines = [f"target: {file.target.name}", *describe_graph(file.policy)]
    return show_table(("group", "layers", "treatment"), rows) + _show_lines(lines)


def show_explanation(found: "Explanation") -> str:
    """Returns the answer, a row for each group, and where the numbers come from."""
    from .summary import HEADINGS, describe_row, summarise

    table = show_table(HEADINGS, map(describe_row, found.rows))
    return _show_lines(summarise(found)) + table + _show_lines(found.notes)


def _show_lines(lines: Iterable[str]) -> str:
    return "".join(f"<div>{escape(line.strip())}</div>" for line in lines)

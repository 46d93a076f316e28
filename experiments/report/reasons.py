"""Why each layer got its treatment: what it saves against what it does to the output."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.errors import TrimtabError
from ..explain.explain import explain_run
from ..explain.explanation import LayerRow
from .figures import Cloud, Figure, hover
from .reading import Reading, Stage
from .wording import NOTHING, Column, Line, Table, write_microseconds


@dataclass(frozen=True)
class Reasons:
    """The picture, the table, and where the numbers come from; or why there are none."""

    figure: Figure | None = None
    table: Table | None = None
    notes: tuple[str, ...] = ()


def find_reasons(reading: Reading, *, most_trials: int | None = None) -> Reasons:
    """Explains the policy that the page speaks of.

    While a search goes on nothing is explained: working it out would take time from what is being measured.

    Args:
        reading: the run.
        most_trials: nothing is explained of a run that has more, since it takes a minute for a thousand; None always.
    """
    if most_trials is not None and len(reading.records) > most_trials:
        return Reasons(notes=("Not worked out here: it takes long for so many trials; trimtab report does it.",))
    if reading.stage not in (Stage.ENDED, Stage.STOPPED):
        return Reasons(notes=("The reasons are worked out when the search has ended.",))
    try:
        found = explain_run(reading.folder)
    except TrimtabError as error:
        return Reasons(notes=(f"Not available: {error}",))
    return Reasons(_draw(found.rows), _tabulate(found.rows), found.notes)


def _draw(rows: Sequence[LayerRow]) -> Figure | None:
    treated = Cloud("treated", "--searched", "circle", 11)
    left = Cloud("left as it is", "--muted", "circle-open", 11)
    for row in rows:
        saved_s = row.latency_saved_s
        if row.sensitivity is None or saved_s is None or row.sensitivity <= 0.0:
            continue
        lines = [row.treatment, f"saves {write_microseconds(saved_s)} µs", f"sensitivity {row.sensitivity:.3g}"]
        cloud = treated if row.is_treated else left
        cloud.add(row.sensitivity, 1e6 * saved_s, hover(row.group, lines))
    clouds = [cloud for cloud in (treated, left) if cloud.x]
    if not clouds:
        return None
    layout = {
        "xaxis": {"type": "log", "title": {"text": "sensitivity: change of the output, E|Δz|² / E|z|²"}, "dtick": 1,
                  "exponentformat": "power"},
        "yaxis": {"title": {"text": "time that the treatment saves, µs"}, "zeroline": True},
    }  # fmt: skip
    return Figure(
        id="reasons",
        alt="Scatter plot of the groups of layers: sensitivity of the output against the time that the treatment "
        "saves. The table below lists the same numbers.",
        views={"": {"data": [cloud.to_json() for cloud in clouds], "layout": layout}},
        caption="Upper left pays most: much time for little change. Of a group that was left as it is, the sensitivity "
        "is that of the gentlest treatment on offer.",
        height=380,
    )


def _tabulate(rows: Sequence[LayerRow]) -> Table:
    columns = (Column("group", False), Column("treatment", False), Column("saves µs"), Column("sensitivity"),
               Column("kB before"), Column("after"), Column("why", False))  # fmt: skip
    lines = tuple(
        Line((
            row.group, row.treatment, write_microseconds(row.latency_saved_s),
            NOTHING if row.sensitivity is None else f"{row.sensitivity:.2g}",
            _kilobytes(row.size_before_bytes), _kilobytes(row.size_after_bytes), row.reason,
        ))
        for row in rows
    )  # fmt: skip
    return Table("Each group of layers, and why it is treated so", columns, lines)


def _kilobytes(size_bytes: int | None) -> str:
    return NOTHING if size_bytes is None else f"{size_bytes / 1e3:.1f}"

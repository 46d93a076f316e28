"""What was promised for each trial before it was run, and what was measured then."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np

from ...search.record import Record, Status
from .figures import Cloud, Figure, hover
from .reading import Reading
from .wording import Column, Line, Table, write_origin

_TABLE = "kernel table, without what this search taught it"
_SURROGATE = "what the search believed before its first trial"


@dataclass(frozen=True, slots=True)
class _Pair:
    record: Record
    #: milliseconds, of a machine on which the original takes what it took at the start
    promised: float
    #: None where the source gives none
    promised_error: float | None
    measured: float
    measured_error: float
    source: str


@dataclass(frozen=True)
class Promises:
    """Promised against measured; or why there is nothing to compare."""

    figure: Figure | None = None
    table: Table | None = None
    notes: tuple[str, ...] = ()


def compare_promises(reading: Reading) -> Promises:
    """Compares promises with measurements, trial by trial.

    Both are multiples of the original's latency, timed in turns with the trial, times what the original took first.
    """
    pairs = [pair for record in reading.searched if (pair := _pair(record, reading)) is not None]
    if not pairs:
        return Promises(notes=("Not available: no table knew this device and model before the search, or nothing was "
                               "measured.",))  # fmt: skip
    others = [pair for pair in pairs if not pair.record.policy.is_untouched]
    notes = list(_summarise(others or pairs))
    return Promises(_draw(pairs), _tabulate(pairs), tuple(notes))


def _pair(record: Record, reading: Reading) -> _Pair | None:
    latency, budget = record.measurement.latency, reading.budget
    reference_s = None if budget is None else budget.reference_s
    if record.status is not Status.COMPLETE or latency is None or latency.ratio is None or reference_s is None:
        return None
    if latency.source != "measured" or latency.median_s <= 0.0:
        return None
    promise = ((reading.prices.promises if reading.prices else None) or {}).get(record.id)
    if promise is not None:
        ratio, error, source = promise.ratio, promise.standard_error, _TABLE
    else:
        believed = _believe(record, reading)
        if believed is None:
            return None
        ratio, error, source = believed, None, _SURROGATE
    scale = 1e3 * reference_s
    measured = latency.ratio * scale
    return _Pair(record, ratio * scale, None if error is None else error * scale, measured,
                 measured * latency.error_s / latency.median_s, source)  # fmt: skip


def _believe(record: Record, reading: Reading) -> float | None:
    """Returns the multiple of the original's latency that was believed before the search; None where nothing was."""
    space, knowledge = reading.space, reading.knowledge
    if space is None or knowledge is None or not space.contains(record.policy):
        return None
    vector = space.encode(record.policy)
    cost = knowledge.price(tuple(int(entry) for entry in vector[len(space.groups) :]))
    return None if cost is None else float(cost.value(np.asarray(vector)[None])[0])


def _summarise(pairs: list[_Pair]) -> Iterator[str]:
    errors = [abs(pair.promised / pair.measured - 1.0) for pair in pairs]
    yield (
        f"{len(pairs)} policies: promises are {np.mean(errors):.1%} off on average, {median(errors):.1%} in the median "
        f"and {max(errors):.1%} at most."
    )
    for source in dict.fromkeys(pair.source for pair in pairs):
        n = sum(pair.source == source for pair in pairs)
        yield f"{n} of the promises are those of the {source}." if source == _TABLE else f"{n} of them are {source}."


def _draw(pairs: list[_Pair]) -> Figure:
    clouds = {_TABLE: Cloud("promised by the kernel table", "--searched", "circle"),
              _SURROGATE: Cloud("believed before the search", "--baseline", "diamond-open")}  # fmt: skip
    for pair in pairs:
        lines = [write_origin(pair.record), f"promised {_say(pair.promised, pair.promised_error)} ms",
                 f"measured {_say(pair.measured, pair.measured_error)} ms",
                 f"{pair.promised / pair.measured - 1.0:+.1%} off"]  # fmt: skip
        errors = (pair.promised_error, pair.measured_error)
        clouds[pair.source].add(pair.promised, pair.measured, hover(f"#{pair.record.id}", lines), errors)
    ends = [value for pair in pairs for value in (pair.promised, pair.measured)]
    low, high = 0.93 * min(ends), 1.05 * max(ends)
    identity = {
        "type": "scatter", "mode": "lines", "name": "as promised", "x": [low, high], "y": [low, high],
        "hoverinfo": "skip", "line": {"color": "--muted", "width": 1.5, "dash": "dot"},
    }  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "promised, ms"}, "range": [low, high]},
        "yaxis": {"title": {"text": "measured, ms"}, "range": [low, high]},
    }
    return Figure(
        id="promises",
        alt=f"Scatter plot of {len(pairs)} trials: promised against measured latency, with the line where both are "
        "equal. The table below lists the same numbers.",
        views={"": {"data": [identity, *(cloud.to_json() for cloud in clouds.values() if cloud.x)], "layout": layout}},
        caption="Bars are one standard error. Above the line: slower than promised.",
        height=420,
    )


def _say(value: float, error: float | None) -> str:
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _tabulate(pairs: list[_Pair]) -> Table:
    columns = (Column("trial", False), Column("promised ms"), Column("measured ms"), Column("off"),
               Column("promised by", False))  # fmt: skip
    lines = tuple(
        Line((
            f"#{pair.record.id}", _say(pair.promised, pair.promised_error), _say(pair.measured, pair.measured_error),
            f"{pair.promised / pair.measured - 1.0:+.1%}", pair.source,
        ))
        for pair in pairs
    )  # fmt: skip
    return Table("Promised and measured, trial by trial", columns, lines)

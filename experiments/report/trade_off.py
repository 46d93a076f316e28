"""Every trial in the plane of accuracy and cost, and the front of what no other policy beats."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...search.budget import Budget
from ...search.objectives import BOUND_OF, objective_value
from ...search.pareto import pareto_front
from ...search.record import Record, Status
from .figures import Cloud, Figure, horizontal, hover, vertical
from .reading import Reading
from .wording import (
    NOTHING,
    QUANTITIES,
    Column,
    Line,
    Quantity,
    Table,
    is_baseline,
    write_bound,
    write_brief,
    write_megabytes,
    write_origin,
    write_percent,
)

#: what the horizontal axis may show; the vertical one is the accuracy drop
_COSTS = ("latency", "size", "energy", "peak_memory", "peak_activation")
#: a drop above this many times the bound is drawn at the upper edge; its text has the number
_MOST_DROPS = 4.0


@dataclass(frozen=True, slots=True)
class _Point:
    record: Record
    x: float
    y: float
    errors: tuple[float | None, float | None]


def draw_trade_off(reading: Reading) -> Figure | None:
    """Draws all trials, one view for each cost that was measured; None before there is a trial."""
    budget = reading.budget
    if budget is None or not reading.records:
        return None
    views = {}
    first = reading.spec.objective if reading.spec.objective in _COSTS else "latency"
    for objective in dict.fromkeys((first, *_COSTS)):
        quantity = QUANTITIES[objective]
        points = _place(reading.records, quantity, budget)
        if points:
            views[quantity.label] = _draw(reading, quantity, points)
    if not views:
        return None
    return Figure(
        id="trade-off",
        alt=f"Scatter plot of {len(reading.records)} trials: cost against accuracy drop, with the bounds of the "
        "budget. The table below lists the same numbers.",
        views=views,
        caption="Lower left is better. The shaded corner keeps the bounds that are drawn. A drop is compared with its "
        "bound with a margin for its standard error, so a point just below the line may still exceed it; latencies are "
        "brought to the speed that the machine had when the original was first timed.",
        height=480,
    )


def _place(records: Sequence[Record], quantity: Quantity, budget: Budget) -> list[_Point]:
    """Returns the trials that have both numbers."""
    points = []
    for record in records:
        x, drop = objective_value(quantity.objective, record.measurement, budget), record.measurement.accuracy_drop
        if x is None or drop is None:
            continue
        pair = budget.normalised_latency(record.measurement) if quantity.objective == "latency" else None
        x_error = None if pair is None else pair[1] * quantity.factor
        points.append(_Point(record, x * quantity.factor, 100 * drop.mean, (x_error, 100 * drop.standard_error)))
    return points


def _draw(reading: Reading, quantity: Quantity, points: Sequence[_Point]) -> dict[str, Any]:
    budget = reading.budget or Budget()
    top = _find_top(points, budget)
    bound = getattr(budget, BOUND_OF[quantity.objective])
    limit = None if bound is None else bound * quantity.factor
    clouds = _sort_into_clouds(reading, points, top)
    placed = {point.record.id for point in points}
    lost = [record for record in reading.records if record.id not in placed]
    traces = [_front_line(points, top), *(cloud.to_json() for cloud in clouds if cloud.x)]
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": f"{quantity.label}, {quantity.unit}"}, "range": _x_range(points, limit)},
        "yaxis": {
            "title": {"text": "accuracy drop on validation, points"},
            "range": _y_range(points, top, budget.accuracy_drop),
        },
        "shapes": _bounds(budget, quantity, points),
    }
    if lost:
        traces.append(_draw_lost(lost, reading))
        layout["yaxis"]["domain"] = [0.0, 0.86]
        layout["xaxis2"] = {"overlaying": "x", "range": [-0.6, max(len(lost), 12) - 0.4], "visible": False,
                            "anchor": "y2", "fixedrange": True}  # fmt: skip
        layout["yaxis2"] = {"domain": [0.9, 1.0], "range": [-1, 1], "tickvals": [0], "ticktext": ["none"],
                            "showgrid": False, "zeroline": False, "fixedrange": True}  # fmt: skip
    return {"data": traces, "layout": layout}


def _find_top(points: Sequence[_Point], budget: Budget) -> float:
    """Returns the drop above which points are drawn at the edge: one ruined policy must not flatten all others."""
    bound = 2.0 if budget.accuracy_drop is None else max(100 * budget.accuracy_drop, 0.5)
    return min(max(point.y for point in points), _MOST_DROPS * bound)


def _y_range(points: Sequence[_Point], top: float, bound: float | None) -> list[float]:
    low = min(0.0, *(point.y - (point.errors[1] or 0.0) for point in points))
    high = max(top, 0.1, *([] if bound is None else [100 * bound]))
    margin = 0.08 * (high - low)
    return [low - margin, high + margin]


def _x_range(points: Sequence[_Point], bound: float | None) -> list[float]:
    values = [point.x for point in points] + ([] if bound is None else [bound])
    margin = 0.08 * (max(values) - min(values)) or 0.08 * max(values) or 1.0
    return [min(values) - margin, max(values) + margin]


def _sort_into_clouds(reading: Reading, points: Sequence[_Point], top: float) -> list[Cloud]:
    chosen = reading.chosen
    original = next((p.record.id for p in points if p.record.policy.is_untouched), None)
    names = {
        "searched": Cloud("searched, kept", "--searched", "circle"),
        "baseline": Cloud("baseline, kept", "--baseline", "square"),
        "searched over": Cloud("searched, exceeded", "--searched", "circle-open"),
        "baseline over": Cloud("baseline, exceeded", "--baseline", "square-open"),
        "pruned": Cloud("stopped early", "--muted", "x-thin-open"),
        "original": Cloud("original", "--ink", "diamond", 11),
        "winner": Cloud("winner" if reading.winner else "best so far", "--winner", "star", 16),
    }
    for point in points:
        record = point.record
        key = "baseline" if is_baseline(record) else "searched"
        if record.status is Status.PRUNED:
            key = "pruned"
        elif reading.budget is not None and reading.budget.violation(record.measurement) > 0.0:
            key += " over"
        if record.id == original:
            key = "original"
        if chosen is not None and record.id == chosen.id:
            key = "winner"
        errors = point.errors if point.y <= top else (point.errors[0], None)
        names[key].add(point.x, min(point.y, top), describe_trial(record, reading, over=point.y > top), errors)
    return list(names.values())


def describe_trial(record: Record, reading: Reading, *, over: bool = False) -> str:
    """Returns the hover text of a trial: id, policy, origin, numbers with errors, and whether it keeps the budget."""
    budget = reading.budget
    lines = [f"policy {record.policy.id} · {write_origin(record)}"]
    if budget is not None:
        lines += write_brief(record.measurement, budget).split(" · ")
        latency = record.measurement.latency
        if latency is not None and latency.ratio:
            lines.append(f"{latency.ratio:.3f} of the original's latency")
        lines.append(_verdict(record, reading))
    if over:
        lines.append("above the edge of the picture")
    return hover(f"#{record.id}", lines)


def _verdict(record: Record, reading: Reading) -> str:
    budget = reading.budget or Budget()
    if record.status is Status.PRUNED:
        return f"stopped early: {record.error}" if record.error else "stopped early"
    if record.status is not Status.COMPLETE:
        return f"{record.status.value.lower()}: {record.error}"
    exceeded = [name for name, excess in budget.excesses(record.measurement) if excess > 0.0]
    verdict = "keeps the budget" if not exceeded else f"exceeds {', '.join(BOUND_NAMES[name] for name in exceeded)}"
    score = record.measurement.accuracy
    is_partly_scored = score is not None and score.n < reading.n_samples
    return f"{verdict}; scored on {score.n} samples only" if score is not None and is_partly_scored else verdict


BOUND_NAMES = {bound: QUANTITIES[objective].label for objective, bound in BOUND_OF.items()}


def _front_line(points: Sequence[_Point], top: float) -> dict[str, Any]:
    complete = [point for point in points if point.record.status is Status.COMPLETE and point.y <= top]
    front = sorted((complete[i] for i in pareto_front([(p.x, p.y) for p in complete])), key=lambda point: point.x)
    return {
        "type": "scatter", "mode": "lines", "name": "front", "hoverinfo": "skip",
        "x": [point.x for point in front], "y": [point.y for point in front],
        "line": {"shape": "hv", "width": 1.5, "color": "--muted", "dash": "dot"},
    }  # fmt: skip


def _bounds(budget: Budget, quantity: Quantity, points: Sequence[_Point]) -> list[dict[str, Any]]:
    """Returns a line for each bound of the plane, and the corner that keeps both."""
    name = BOUND_OF[quantity.objective]
    limit, drop = getattr(budget, name), budget.accuracy_drop
    shapes: list[dict[str, Any]] = []
    if limit is not None:
        shapes.append(vertical(limit * quantity.factor, f"≤ {write_bound(name, limit)}", "--bound"))
    if drop is not None:
        shapes.append(horizontal(100 * drop, f"≤ {write_bound('accuracy_drop', drop)}", "--bound"))
    if not shapes:
        return []
    far = 10 * max(abs(point.x) for point in points) + 1.0
    corner = {
        "type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": "--allowed",
        "x0": -far, "x1": far if limit is None else limit * quantity.factor,
        "y0": -100, "y1": 100 if drop is None else 100 * drop,
    }  # fmt: skip
    return [corner, *shapes]


def _draw_lost(lost: Sequence[Record], reading: Reading) -> dict[str, Any]:
    """Draws the trials without these numbers in a strip of their own."""
    cloud = Cloud("failed", "--bad", "x")
    for position, record in enumerate(lost):
        cloud.add(float(position), 0.0, describe_trial(record, reading))
    return cloud.to_json(xaxis="x2", yaxis="y2")


def list_front(reading: Reading) -> Table | None:
    """Lists the front of latency, drop and size."""
    found = reading.answer
    if found is None or not found.pareto:
        return None
    lines = [_line(record, reading) for record in found.pareto]
    return Table("The front: no other policy is better in latency, drop and size at once", _COLUMNS, tuple(lines))


def list_trials(reading: Reading) -> Table:
    """Lists every trial."""
    return Table("Every trial", _COLUMNS, tuple(_line(record, reading) for record in reading.records))


_COLUMNS = (
    Column("trial", False), Column("latency ms"), Column("drop, points"), Column("size MB"), Column("origin", False),
    Column("policy", False), Column("verdict", False),
)  # fmt: skip


def _line(record: Record, reading: Reading) -> Line:
    budget, measurement = reading.budget, record.measurement
    pair = None if budget is None else budget.normalised_latency(measurement)
    chosen = reading.chosen
    is_lost = record.status in (Status.FAILED, Status.INFEASIBLE)
    tone = "winner" if chosen is not None and record.id == chosen.id else "bad" if is_lost else ""
    return Line(
        (
            f"#{record.id}",
            NOTHING if pair is None else f"{pair[0] * 1e3:.3f} ± {pair[1] * 1e3:.3f}",
            write_percent(measurement.accuracy_drop, sign="+"),
            write_megabytes(measurement.size_bytes),
            write_origin(record),
            record.policy.id,
            "" if budget is None else _verdict(record, reading),
        ),
        tone,
    )


def best_objective(records: Sequence[Record], budget: Budget, objective: str) -> float:
    """Returns the least value of the objective among those that keep the budget; infinity where none does."""
    values = [
        value
        for record in records
        if record.status is Status.COMPLETE and budget.violation(record.measurement) == 0.0
        and (value := objective_value(objective, record.measurement, budget)) is not None
    ]  # fmt: skip
    return min(values, default=math.inf)

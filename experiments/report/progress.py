"""How the search went: each trial's objective and the best so far, over trials and over seconds; and what is left."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...search.budget import Budget
from ...search.objectives import objective_value
from ...search.record import Status
from ..quantities import parse_duration
from .figures import Cloud, Figure
from .reading import Reading, Stage
from .trade_off import best_objective, describe_trial
from .wording import QUANTITIES, Quantity, is_baseline, write_duration

#: the last trials say how long the next will take
_N_LAST = 10


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the search is."""

    n_done: int
    n_planned: int
    #: by status, those that are not COMPLETE
    counts: tuple[tuple[str, int], ...]
    #: seconds of work, on all workers together
    worked_s: float
    #: one line: what is left, and what ends it
    outlook: str

    @property
    def share(self) -> float:
        """What is done, 0 to 1."""
        return min(1.0, self.n_done / max(1, self.n_planned))


def measure_progress(reading: Reading) -> Progress:
    """Counts trials and estimates what is left."""
    records, spec = reading.searched, reading.spec
    counts = {status: sum(record.status is status for record in records) for status in Status}
    others = tuple((status.value.lower(), n) for status, n in counts.items() if n and status is not Status.COMPLETE)
    return Progress(
        n_done=len(records),
        n_planned=max(spec.search.trials, len(records)),
        counts=others,
        worked_s=sum(record.cost_s for record in records),
        outlook=_outlook(reading),
    )


def _outlook(reading: Reading) -> str:
    search, n_left = reading.spec.search, reading.spec.search.trials - len(reading.searched)
    if reading.stage is not Stage.SEARCHING or n_left <= 0:
        return ""
    parts = ["1 trial left" if n_left == 1 else f"{n_left} trials left"]
    last = reading.searched[-_N_LAST:]
    if reading.pace_s is not None:
        parts.append(f"about {write_duration(n_left * reading.pace_s)} at the pace so far")
    elif last:
        # one device measures them one after the other, whatever the number of workers
        seconds = n_left * sum(record.cost_s for record in last) / len(last)
        parts.append(f"about {write_duration(seconds)} of work, by the last {len(last)}")
    if search.time_limit is not None:
        parts.append(f"ends after {write_duration(parse_duration(search.time_limit))} at the latest")
    if search.patience is not None:
        parts.append(f"or after {search.patience} trials without improvement")
    return ", ".join(parts)


def draw_progress(reading: Reading) -> Figure | None:
    """Draws the objective over trials and over seconds of work; None before there is a trial."""
    budget, objective = reading.budget, reading.spec.objective
    if budget is None or not reading.searched:
        return None
    quantity = QUANTITIES[objective]
    seconds, elapsed = [], 0.0
    for record in reading.searched:
        elapsed += record.cost_s
        seconds.append(elapsed)
    trials = [float(record.id) for record in reading.searched]
    views = {
        "by trial": _draw(reading, quantity, trials, "trial"),
        "by time": _draw(reading, quantity, seconds, "seconds of work, all workers together"),
    }
    return Figure(
        id="progress",
        alt=f"The {quantity.label} of each trial and the best within the budget so far, over trials and over seconds, "
        "with the original and the best uniform policy as lines.",
        views=views,
        caption="As the search measured them; the finalists are timed once more, together, for the final table.",
        height=380,
    )


def _draw(reading: Reading, quantity: Quantity, positions: Sequence[float], title: str) -> dict[str, Any]:
    budget, records = reading.budget or Budget(), reading.searched
    kept = Cloud("kept", "--searched", "circle", 7)
    over = Cloud("exceeded", "--muted", "circle-open", 7)
    line: tuple[list[float], list[float]] = ([], [])
    best = math.inf
    for position, record in zip(positions, records, strict=True):
        value = objective_value(quantity.objective, record.measurement, budget)
        if record.status is Status.COMPLETE and value is not None:
            is_kept = budget.violation(record.measurement) == 0.0
            best = min(best, value) if is_kept else best
            (kept if is_kept else over).add(position, value * quantity.factor, describe_trial(record, reading))
        if math.isfinite(best):
            line[0].append(position)
            line[1].append(best * quantity.factor)
    steps = {
        "type": "scatter", "mode": "lines", "name": "best so far", "x": line[0], "y": line[1],
        "hoverinfo": "skip", "line": {"shape": "hv", "width": 2.5, "color": "--winner"},
    }  # fmt: skip
    axis: dict[str, Any] = {"title": {"text": f"{quantity.label}, {quantity.unit}"}, "rangemode": "tozero"}
    if quantity.objective == "accuracy":
        axis["rangemode"] = "normal"
    return {
        "data": [*_marks(reading, quantity, positions), steps, *(cloud.to_json() for cloud in (kept, over) if cloud.x)],
        "layout": {"xaxis": {"title": {"text": title}}, "yaxis": axis},
    }


def _marks(reading: Reading, quantity: Quantity, positions: Sequence[float]) -> list[dict[str, Any]]:
    """Returns a line for the original and one for the best uniform policy."""
    budget, records = reading.budget or Budget(), reading.searched
    found = []
    original = None if reading.original is None else objective_value(quantity.objective, reading.original, budget)
    if original is not None and quantity.objective != "accuracy":
        found.append(_line("original", "--ink", original * quantity.factor, positions))
    uniform = [record for record in records if is_baseline(record) and record.policy.groups]
    best = best_objective(uniform, budget, quantity.objective)
    if math.isfinite(best):
        found.append(_line("best uniform", "--baseline", best * quantity.factor, positions))
    return found


def _line(name: str, color: str, y: float, positions: Sequence[float]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "name": name, "x": [min(positions), max(positions)], "y": [y, y],
        "hoverinfo": "skip", "line": {"width": 1.5, "dash": "dash", "color": color},
    }  # fmt: skip

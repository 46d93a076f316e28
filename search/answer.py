"""What a search answers: the best policy within the budget, or how far the budget is out of reach."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import SpecError
from .budget import BOUNDS, Budget
from .objectives import TRADE_OFF, check_objective, objective_value
from .pareto import pareto_records
from .record import Record, Status


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a search over its records."""

    #: the best record that keeps the budget; None when none does
    best: Record | None
    #: trade-off of latency, accuracy drop and size over all COMPLETE records, fastest first
    pareto: tuple[Record, ...]
    #: when none keeps the budget: the record with the smallest violation
    nearest: Record | None
    #: when none keeps the budget: bound → the value to which raising this bound alone would make a known
    #: record feasible (in the unit of `Budget`); None where raising it alone does not help
    relaxations: dict[str, float | None]


def merit(record: Record, budget: Budget, objective: str) -> tuple[float, ...] | None:
    """Returns a sort key, smaller is better; None when the record says nothing about the objective.

    Order: the violation of the budget, the objective, then, between equals, latency, accuracy drop and size
    (a missing one counts as worst), at last the id: the earlier trial wins.
    """
    value = objective_value(objective, record.measurement, budget)
    if record.status is not Status.COMPLETE or value is None:
        return None
    others = [objective_value(name, record.measurement, budget) for name in TRADE_OFF]
    ties = [math.inf if other is None else other for other in others]
    return (budget.violation(record.measurement), value, *ties, float(record.id))


def rank_records(records: Sequence[Record], budget: Budget, objective: str) -> list[Record]:
    """Returns the records that say something about the objective, the best by `merit` first."""
    keyed = [(key, record) for record in records if (key := merit(record, budget, objective)) is not None]
    return [record for _, record in sorted(keyed, key=lambda pair: pair[0])]


def find_best(records: Sequence[Record], budget: Budget, objective: str) -> Record | None:
    """Returns the best COMPLETE record that keeps the budget, by `merit`."""
    ranked = rank_records(records, budget, objective)
    return ranked[0] if ranked and budget.violation(ranked[0].measurement) == 0.0 else None


def answer(records: Sequence[Record], budget: Budget, objective: str) -> Answer:
    """Draws the conclusion from the records of a search.

    Raises:
        SpecError: the objective is unknown.
    """
    check_objective(objective)
    front = pareto_records(records, budget)
    best = find_best(records, budget, objective)
    if best is not None:
        return Answer(best, front, None, {})
    ranked = rank_records(records, budget, objective)
    nearest = ranked[0] if ranked and math.isfinite(budget.violation(ranked[0].measurement)) else None
    return Answer(None, front, nearest, _relaxations(records, budget))


def describe_relaxation(name: str, value: float) -> str:
    """Returns a bound and a value as a person says them, for example ``latency 3.1 ms``.

    Raises:
        SpecError: there is no such bound.
    """
    for bound, label, factor, unit in BOUNDS:
        if bound == name:
            return f"{label} {value * factor:.4g} {unit}".rstrip()
    raise SpecError(f"no bound is called {name}; known: {', '.join(bound for bound, *_ in BOUNDS)}")


def _relaxations(records: Sequence[Record], budget: Budget) -> dict[str, float | None]:
    complete = [record.measurement for record in records if record.status is Status.COMPLETE]
    excesses = [(measurement, dict(budget.excesses(measurement))) for measurement in complete]
    found: dict[str, float | None] = {}
    for name, *_ in BOUNDS:
        if getattr(budget, name) is None:
            continue
        helped = [m for m, excess in excesses if all(e == 0.0 for other, e in excess.items() if other != name)]
        values = [value for m in helped if (value := budget.value_of(name, m)) is not None]
        found[name] = min(values, default=None)
    return found

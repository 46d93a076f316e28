"""What a person sees of a run's trade-off, and of an answer to another budget."""

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..evaluators.measurement import Measurement
from ..search.answer import describe_relaxation
from ..search.budget import BOUNDS, Budget
from ..search.objectives import BOUND_OF
from ..search.record import Record
from ..spaces.policy import Policy
from .pareto import BudgetAnswer, Tried, Untried

#: rows of the trade-off that are shown
_N_ROWS = 12


def print_budget_answer(console: Console, found: BudgetAnswer) -> None:
    """Prints the best measured policy, what is believed to be better, or how far the budget is out of reach."""
    console.print(f"budget: {_describe_budget(found.budget)} · least {found.objective}", markup=False, soft_wrap=True)
    if found.best is not None:
        _print_best(console, found.best, found.budget)
    elif found.answer.nearest is not None:
        nearest = found.answer.nearest
        console.print(f"no measured policy keeps it; nearest: {_describe(nearest, found.budget)}", markup=False,
                      soft_wrap=True)  # fmt: skip
        for name, value in found.answer.relaxations.items():
            if value is not None:
                console.print(f"  kept with {describe_relaxation(name, value)}", markup=False)
    else:
        console.print("no measured policy keeps it")
    if found.reachable:
        text = _describe_expected({name: (value, 0.0) for name, value in found.reachable.items()})
        console.print(f"believed to be reachable, each within the other bounds: {text}", markup=False, soft_wrap=True)
    for untried in found.untried:
        _print_untried(console, untried)
    if not found.untried:
        console.print("nothing untried is believed to be better")


def print_front(console: Console, found: BudgetAnswer) -> None:
    """Prints the trade-off of latency, drop and size."""
    table = Table(title="trade-off, measured", title_justify="left")
    for heading in ("trial", "latency ms", "drop", "size MB", "origin"):
        table.add_column(heading, justify="left" if heading == "origin" else "right")
    for record in found.answer.pareto[:_N_ROWS]:
        latency, drop, size = _columns(record.measurement, found.budget)
        table.add_row(f"#{record.id}", latency, drop, size, escape(record.origin))
    console.print(table)
    if len(found.answer.pareto) > _N_ROWS:
        console.print(f"and {len(found.answer.pareto) - _N_ROWS} more; --json gives all")


def _print_best(console: Console, best: Tried, budget: Budget) -> None:
    console.print(
        f"best measured: {_describe(best.record, budget)}; keeps the budget with {best.sureness:.0%}",
        markup=False,
        soft_wrap=True,
    )


def _print_untried(console: Console, untried: Untried) -> None:
    gain = "" if untried.ratio is None else f", {untried.ratio:.3f} of the best measured"
    console.print(
        f"untried: {_describe_expected(untried.expected)}{gain}; "
        f"believed to keep the budget with {untried.sureness:.0%}: {describe_counts(untried.policy)}",
        markup=False,
        soft_wrap=True,
    )


def _describe(record: Record, budget: Budget) -> str:
    latency, drop, size = _columns(record.measurement, budget)
    return f"#{record.id} {record.origin}: {latency} ms, drop {drop}, {size} MB"


def _columns(measurement: Measurement, budget: Budget) -> tuple[str, str, str]:
    seconds, drop = budget.normalised_latency_s(measurement), measurement.accuracy_drop
    return (
        "–" if seconds is None else f"{seconds * 1e3:.4g}",
        "–" if drop is None else f"{100 * drop.mean:+.2f} ± {100 * drop.standard_error:.2f} %",
        "–" if measurement.size_bytes is None else f"{measurement.size_bytes / 1e6:.4g}",
    )


def _describe_budget(budget: Budget) -> str:
    parts = [
        f"{label} ≤ {getattr(budget, name) * factor:.4g} {unit}".rstrip()
        for name, label, factor, unit in BOUNDS
        if getattr(budget, name) is not None
    ]
    return ", ".join(parts) or "none"


def _describe_expected(expected: Mapping[str, tuple[float, float]]) -> str:
    units = {name: (label, factor, unit) for name, label, factor, unit in BOUNDS}
    parts = []
    for name, (mean, deviation) in expected.items():
        label, factor, unit = units[BOUND_OF.get(name, name)]
        error = f" ± {deviation * factor:.2g}" if deviation else ""
        parts.append(f"{label} {mean * factor:.4g}{error} {unit}".rstrip())
    return ", ".join(parts)


def describe_counts(policy: Policy) -> str:
    """Returns how many groups have which treatment."""
    counts: dict[str, int] = {}
    for _, treatment in policy.groups:
        counts[treatment.label] = counts.get(treatment.label, 0) + 1
    parts = [f"{label} on {n}" for label, n in sorted(counts.items(), key=lambda pair: -pair[1])]
    return ", ".join(parts) or "untouched"

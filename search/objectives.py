"""The quantities that a search can optimise, as numbers to be minimised."""

from ..core.errors import SpecError
from ..core.names import describe_unknown
from ..evaluators.measurement import Measurement
from .budget import Budget

#: what ``objective:`` of a spec may name; all are minimised, accuracy through its drop
OBJECTIVES = ("latency", "accuracy", "size", "peak_memory", "peak_activation", "energy")

#: objective → the bound of a budget on the same quantity
BOUND_OF = {
    "latency": "latency_s",
    "accuracy": "accuracy_drop",
    "size": "size_bytes",
    "peak_memory": "peak_memory_bytes",
    "peak_activation": "peak_activation_bytes",
    "energy": "energy_j",
}

#: the axes of the trade-off that every search shows
TRADE_OFF = ("latency", "accuracy", "size")


def check_objective(objective: str) -> None:
    """Refuses what is not one of `OBJECTIVES`.

    Raises:
        SpecError: the name is unknown.
    """
    if objective not in OBJECTIVES:
        raise SpecError(describe_unknown("objective", objective, OBJECTIVES))


def objective_value(objective: str, measurement: Measurement, budget: Budget) -> float | None:
    """Returns what is minimised: normalised seconds, drop, bytes or joules; None where it was not measured."""
    if objective == "latency":
        return budget.normalised_latency_s(measurement)
    if objective == "size":
        return None if measurement.size_bytes is None else float(measurement.size_bytes)
    if objective == "peak_memory":
        return None if measurement.peak_memory_bytes is None else float(measurement.peak_memory_bytes)
    if objective == "peak_activation":
        return None if measurement.peak_activation_bytes is None else float(measurement.peak_activation_bytes)
    if objective == "energy":
        return budget.comparable_energy_j(measurement)
    if measurement.accuracy_drop is not None:
        return measurement.accuracy_drop.mean
    return None if measurement.accuracy is None else -measurement.accuracy.mean


def objective_vector(objective: str, measurement: Measurement, budget: Budget) -> tuple[float, ...] | None:
    """Returns the objective first, then the other axes of the trade-off; None when one of them is missing.

    The units differ from axis to axis: the searchers compare ranks or standardise, so no scale is imposed.
    """
    names = dict.fromkeys((objective, *TRADE_OFF))
    values = [objective_value(name, measurement, budget) for name in names]
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else None

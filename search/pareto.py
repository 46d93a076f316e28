"""The policies that no other policy beats on every axis."""

from collections.abc import Sequence

import numpy as np

from .budget import Budget
from .objectives import TRADE_OFF, objective_value
from .record import Record, Status


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Returns the indices, in ascending order, of the points that no other point dominates.

    A point dominates another when it is nowhere larger and somewhere smaller; equal points stay together.

    Args:
        points: (n_points, n_axes) float, all axes minimised, no NaN.

    >>> pareto_front([(1, 3), (2, 2), (3, 3)])
    [0, 1]
    """
    if not len(points):
        return []
    table = np.asarray(points, dtype=float)  # (n_points, n_axes)
    front = []
    for index, point in enumerate(table):
        is_dominated = np.any(np.all(table <= point, axis=1) & np.any(table < point, axis=1))
        if not is_dominated:
            front.append(index)
    return front


def pareto_records(records: Sequence[Record], budget: Budget) -> tuple[Record, ...]:
    """Returns the COMPLETE records on the front of latency, accuracy drop and size, fastest first.

    Feasible or not: the front shows what a different budget would buy. Records in which one of the three was
    not measured are left out; of equal points the earliest stays.
    """
    placed: dict[tuple[float, ...], Record] = {}
    for record in sorted(records, key=lambda record: record.id):
        values = [objective_value(name, record.measurement, budget) for name in TRADE_OFF]
        point = tuple(value for value in values if value is not None)
        if record.status is Status.COMPLETE and len(point) == len(TRADE_OFF):
            placed.setdefault(point, record)
    points = sorted(placed)
    return tuple(placed[points[index]] for index in pareto_front(points))

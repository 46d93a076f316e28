"""The quantities of a problem: how each is observed, what bounds it, and what is known of it before any trial."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...evaluators.measurement import Measurement
from ...spaces.treatment import Treatment
from ..budget import BOUNDS
from ..objectives import BOUND_OF, objective_value
from ..problem import Problem
from ..solver.additive_cost import AdditiveCost, scaled, zero_cost
from .additive_process import Effects

#: standard deviation of the error of a known price, as a share of each option's effect
_PRICE_ERROR = 0.3
#: an option whose effect is known to be 0 may still have one: this share of the mean effect
_LEAST_EFFECT = 0.1
#: a group's effect on a quantity of which nothing is known, as a share of the original's value
_UNKNOWN_EFFECT = 0.5
#: a drop is never taken for more than this share of what can be lost
_MOST_LOST = 0.98
#: powers of the influence that the drop may follow: what is tried
_INFLUENCE_POWERS = (0.5, 1.0)


@dataclass(frozen=True)
class Prior:
    """What is known of a quantity before any trial."""

    #: entries of the graph-wide choices → the expected value over the groups: the largest of these, usually one; a peak
    #: has one for each moment
    mean: Callable[[tuple[int, ...]], tuple[AdditiveCost, ...]]
    #: alternatives of how large the effects are; the likelihood chooses
    effects: tuple[Effects, ...]


@dataclass(frozen=True)
class Quantity:
    """One thing that is measured in every trial, in a unit in which the effects of layers add up."""

    name: str
    #: measurement → value, smaller is better; None where it was not measured
    observe: Callable[[Measurement], float | None]
    prior: Prior
    #: upper bound in the same unit; infinity where it is free
    limit: float = math.inf
    #: value → standard deviation of what no effect explains, relative to that of a value near the bound
    noise: Callable[[float], float] = lambda _: 1.0
    #: (value, standard deviation) → the same in seconds, bytes, joules, or as a drop
    readable: Callable[[float, float], tuple[float, float]] = lambda value, deviation: (value, deviation)


def objective_quantity(problem: Problem, measurements: Sequence[Measurement]) -> Quantity:
    """Returns what is minimised; bounded, too, where the budget bounds the same thing in the same way.

    Args:
        problem: objective, budget and knowledge.
        measurements: what was measured so far: it sets scales.
    """
    name, budget = problem.objective, problem.budget
    bound = BOUND_OF[name]
    scale = _scale_of(problem, bound, measurements)
    if name == "accuracy":
        link = _DropLink.of(measurements)
        return Quantity(
            name,
            lambda m: _linked(link, objective_value(name, m, budget)),
            _prior_of_drop(problem),
            readable=link.undo,
        )

    def observe(measurement: Measurement) -> float | None:
        value = objective_value(name, measurement, budget)
        return None if value is None else value / scale

    limit = getattr(budget, bound)
    is_same = limit is not None and not (name == "latency" and budget.latency_confidence != 0.5)
    return Quantity(
        name,
        observe,
        _prior_of(problem, bound, scale),
        limit / scale if is_same else math.inf,
        readable=_times(scale),
    )


def bounded_quantities(problem: Problem, measurements: Sequence[Measurement]) -> list[Quantity]:
    """Returns the quantities that the budget bounds, without the one that the objective covers."""
    budget, found = problem.budget, []
    for bound, *_ in BOUNDS:
        limit = getattr(budget, bound)
        covered = BOUND_OF[problem.objective] == bound and problem.objective != "accuracy"
        if limit is None or (covered and not (bound == "latency_s" and budget.latency_confidence != 0.5)):
            continue
        if bound == "accuracy_drop":
            link = _DropLink.of(measurements)
            floor = abs(link(max(limit, 0.01)))
            found.append(
                Quantity(
                    bound,
                    lambda m, link=link: _linked(link, budget.value_of("accuracy_drop", m)),  # type: ignore[misc]
                    _prior_of_drop(problem),
                    link(limit),
                    lambda value, floor=floor: math.hypot(1.0, value / floor),  # type: ignore[misc]
                    link.undo,
                )
            )
            continue
        scale = _scale_of(problem, bound, measurements)
        found.append(
            Quantity(
                bound,
                _relative(budget.value_of, bound, scale),
                _prior_of(problem, bound, scale),
                limit / scale,
                readable=_times(scale),
            )
        )
    return found


def failure_quantity(problem: Problem) -> Quantity:
    """Returns whether a policy fails (1.0) or not (0.0): what cannot be built is not to be proposed again and again."""
    return Quantity("failure", lambda _: 0.0, Prior(_nothing(problem), (_equal_effects(problem, 0.3),)), 0.5)


@dataclass(frozen=True)
class _DropLink:
    """drop → -log(1 - drop / most): small drops stay as they are, up to the scale, and what layers lose adds up.

    If every layer leaves a share of what can be lost, the shares multiply and their logarithms add up.
    """

    most: float

    @classmethod
    def of(cls, measurements: Sequence[Measurement]) -> "_DropLink":
        known = [(m.accuracy, m.accuracy_drop) for m in measurements]
        pairs = [(a.mean + d.mean, d.mean) for a, d in known if a is not None and d is not None]
        original = max((abs(own) for own, _ in pairs), default=1.0)
        return cls(max(original, 1.05 * max((drop for _, drop in pairs), default=0.0), 1e-6))

    def __call__(self, drop: float) -> float:
        return -math.log1p(-min(drop / self.most, _MOST_LOST))

    def undo(self, value: float, deviation: float) -> tuple[float, float]:
        """Returns the drop, and its standard deviation to first order."""
        left = self.most * math.exp(-value)
        return self.most - left, left * deviation


def _times(scale: float) -> Callable[[float, float], tuple[float, float]]:
    return lambda value, deviation: (value * scale, deviation * scale)


def _linked(link: _DropLink, drop: float | None) -> float | None:
    return None if drop is None or not math.isfinite(drop) else link(drop)


def _relative(
    value_of: Callable[[str, Measurement], float | None], bound: str, scale: float
) -> Callable[[Measurement], float | None]:
    def observe(measurement: Measurement) -> float | None:
        value = value_of(bound, measurement)
        return None if value is None or not math.isfinite(value) else value / scale

    return observe


def _scale_of(problem: Problem, bound: str, measurements: Sequence[Measurement]) -> float:
    """Returns the unit: the original's latency, else the largest value seen, so that effects are shares."""
    if bound == "latency_s" and problem.budget.reference_s is not None:
        return problem.budget.reference_s
    if bound == "size_bytes" and problem.knowledge.size_bytes is not None:
        return problem.knowledge.size_bytes.constant or 1.0
    values = [problem.budget.value_of(bound, m) for m in measurements if bound != "accuracy_drop"]
    seen = [abs(value) for value in values if value is not None and math.isfinite(value)]
    return max(seen, default=0.0) or 1.0


def _prior_of(problem: Problem, bound: str, scale: float) -> Prior:
    knowledge, nothing = problem.knowledge, _no_cost(problem)
    if bound == "latency_s" and knowledge.latency:
        return Prior(lambda graph: _or_nothing(knowledge.price(graph), nothing), (_price_effects(problem),))
    if bound == "size_bytes" and knowledge.size_bytes is not None:
        size = (scaled(knowledge.size_bytes, 1.0 / scale),)
        return Prior(lambda _: size, (_effects_like(problem, size[0].unary, 0.05),))
    if bound == "peak_activation_bytes" and knowledge.activation_bytes:
        moments = tuple(scaled(cost, 1.0 / scale) for cost in knowledge.activation_bytes)
        largest = [np.max([np.abs(cost.unary[g] - cost.unary[g][0]) for cost in moments], axis=0)
                   for g in range(len(problem.space.groups))]  # fmt: skip
        return Prior(lambda _: moments, (_effects_like(problem, largest, _PRICE_ERROR),))
    constant = (AdditiveCost(1.0, nothing.unary),)
    return Prior(lambda _: constant, (_equal_effects(problem, _UNKNOWN_EFFECT),))


def _or_nothing(cost: AdditiveCost | None, nothing: AdditiveCost) -> tuple[AdditiveCost, ...]:
    return (nothing if cost is None else cost,)


def _prior_of_drop(problem: Problem) -> Prior:
    influence = problem.knowledge.influence
    if not influence:
        return Prior(_nothing(problem), (_equal_effects(problem, 0.1),))
    found = tuple(
        _effects_like(problem, [np.minimum(scores, 1.0) ** power for scores in influence], 1.0, weight=0.5)
        for power in _INFLUENCE_POWERS
    )
    return Prior(_nothing(problem), found)


def _price_effects(problem: Problem) -> Effects:
    """What prices may be wrong by follows what they say an option saves or costs."""
    costs = list(problem.knowledge.latency.values())
    sizes = [
        np.max([np.abs(cost.unary[g] - cost.unary[g][0]) for cost in costs], axis=0) for g in range(len(costs[0].unary))
    ]
    return _effects_like(problem, sizes, _PRICE_ERROR)


def _effects_like(problem: Problem, sizes: Sequence[np.ndarray], scale: float, *, weight: float = 2.0) -> Effects:
    relative = [np.abs(size - size[0]) for size in sizes]
    values = np.concatenate([size[1:] for size in relative]) if relative else np.zeros(0)
    mean = float(values.mean()) if len(values) else 0.0
    least = _LEAST_EFFECT * (mean or 1.0)
    floored = tuple(np.concatenate([[0.0], np.maximum(size[1:], least)]) for size in relative)
    return Effects(floored, _neighbours_of(problem), _kinds_of(problem), scale, weight)


def _equal_effects(problem: Problem, total: float) -> Effects:
    options = problem.space.options
    share = total / max(1, sum(len(offered) > 1 for offered in options))
    sizes = tuple(np.concatenate([[0.0], np.full(len(offered) - 1, share)]) for offered in options)
    return Effects(sizes, _neighbours_of(problem), _kinds_of(problem))


def _neighbours_of(problem: Problem) -> tuple[tuple[int, int], ...]:
    """Returns the pairs of groups that share kernels, as the known prices tell; without prices, those in a row."""
    edges = dict.fromkeys(edge for cost in problem.knowledge.latency.values() for edge in cost.edges)
    if problem.knowledge.latency:
        return tuple((edge[0], edge[1]) for edge in edges if len(edge) == 2)
    return tuple((g, g + 1) for g in range(len(problem.space.groups) - 1))


def _kinds_of(problem: Problem) -> tuple[np.ndarray, ...]:
    """Returns, per group, a number for each option: equal treatments have equal numbers."""
    numbers: dict[Treatment, int] = {}
    return tuple(
        np.array([numbers.setdefault(option, len(numbers)) for option in offered]) for offered in problem.space.options
    )


def _no_cost(problem: Problem) -> AdditiveCost:
    return zero_cost([len(offered) for offered in problem.space.options])


def _nothing(problem: Problem) -> Callable[[tuple[int, ...]], tuple[AdditiveCost, ...]]:
    nothing = (_no_cost(problem),)
    return lambda _: nothing

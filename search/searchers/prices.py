"""What policies will cost, as sums over their groups: from what is known beforehand, else from what was tried."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..budget import BOUNDS
from ..objectives import BOUND_OF
from ..problem import Problem
from ..solver.additive_cost import AdditiveCost, scaled
from ..solver.program import largest
from .tried import Result

#: of several sums the largest counts: the bytes alive at each moment
Peak = tuple[AdditiveCost, ...]

#: bounds below this count as this where something is made relative to them
_MIN_UNIT = 1e-6
#: weight of the ridge on effects that are learned from results, in units of one observation
_RIDGE = 1.0


@dataclass(frozen=True)
class PricedBound:
    """A bound of the budget on something that has a price."""

    #: as `Budget` calls it
    name: str
    costs: Peak
    limit: float

    @property
    def unit(self) -> float:
        """What an excess is relative to; a bound of 0 stays usable."""
        return max(self.limit, _MIN_UNIT)


@dataclass(frozen=True)
class Prices:
    """What is priced for one setting of the graph-wide choices, in the units of each quantity.

    >>> import numpy as np
    >>> prices = Prices((), (PricedBound("latency_s", (AdditiveCost(0.0, (np.array([2.0, 1.0]),)),), 1.5),))
    >>> prices.excess(np.array([[0], [1]])).round(2).tolist()
    [0.33, 0.0]
    """

    #: empty where the objective has no price
    objective: Peak
    bounds: tuple[PricedBound, ...]

    def value(self, vectors: np.ndarray) -> np.ndarray:
        """Returns the (n,) float64 objectives of (n, n_dimensions) vectors; zeros where it has no price."""
        return _peak(self.objective, vectors)

    def excess(self, vectors: np.ndarray) -> np.ndarray:
        """Returns the (n,) float64 sums of relative excesses over the bounds that have a price."""
        total = np.zeros(len(vectors))
        for bound in self.bounds:
            total += np.maximum(0.0, _peak(bound.costs, vectors) - bound.limit) / bound.unit
        return total

    def load(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n,) float64: how much of the bounds is used up, summed; 1 for each that is reached exactly."""
        total = np.zeros(len(vectors))
        for bound in self.bounds:
            total += _peak(bound.costs, vectors) / bound.unit
        return total


def known_prices(problem: Problem, graph: Sequence[int], results: Sequence[Result]) -> Prices:
    """Returns what knowledge prices; influences and latencies are brought to scale by the results.

    Args:
        problem: what is searched.
        graph: the entries of the graph-wide choices.
        results: what was tried; without a measured drop, the bound on accuracy has no price.
    """
    found = {name: _known(problem, name, tuple(graph), results) for name in _quantities(problem)}
    return _assemble(problem, found)


def all_prices(problem: Problem, graph: Sequence[int], results: Sequence[Result]) -> Prices:
    """Returns what knowledge prices, and for the rest what the results tell of each option (ridge regression)."""
    known = {name: _known(problem, name, tuple(graph), results) for name in _quantities(problem)}
    missing = [name for name, costs in known.items() if not costs]
    return _assemble(problem, {**known, **_learned(problem, missing, results)})


def influence_costs(problem: Problem, results: Sequence[Result]) -> AdditiveCost | None:
    """Returns what policies do to the output, up to a factor: known, else learned from drops; None without either."""
    if problem.knowledge.influence:
        return AdditiveCost(0.0, problem.knowledge.influence)
    learned = _learned(problem, ["accuracy_drop"], results)["accuracy_drop"]
    return learned[0] if learned else None


def _quantities(problem: Problem) -> list[str]:
    bounded = [name for name, *_ in BOUNDS if getattr(problem.budget, name) is not None]
    return list(dict.fromkeys([BOUND_OF[problem.objective], *bounded]))


def _assemble(problem: Problem, found: dict[str, Peak]) -> Prices:
    bounds = []
    for name, *_ in BOUNDS:
        bound = getattr(problem.budget, name)
        if bound is not None and found[name]:
            bounds.append(PricedBound(name, found[name], float(bound)))
    objective = found[BOUND_OF[problem.objective]]
    if problem.objective == "accuracy" and not objective and problem.knowledge.influence:
        objective = (AdditiveCost(0.0, problem.knowledge.influence),)
    return Prices(objective, tuple(bounds))


def _known(problem: Problem, name: str, graph: tuple[int, ...], results: Sequence[Result]) -> Peak:
    knowledge, reference_s = problem.knowledge, problem.budget.reference_s
    if name == "latency_s" and reference_s is not None and graph in knowledge.latency:
        cost = scaled(knowledge.latency[graph], reference_s)
        same = [result for result in results if tuple(result.vector[len(problem.space.groups) :].tolist()) == graph]
        return (scaled(cost, _scale(problem, name, cost, same) or 1.0),)
    if name == "accuracy_drop" and knowledge.influence:
        cost = AdditiveCost(0.0, knowledge.influence)
        scale = _scale(problem, name, cost, results)
        return () if scale is None else (scaled(cost, scale),)
    if name == "size_bytes" and knowledge.size_bytes is not None:
        return (knowledge.size_bytes,)
    return knowledge.activation_bytes if name == "peak_activation_bytes" else ()


def _scale(problem: Problem, name: str, cost: AdditiveCost, results: Sequence[Result]) -> float | None:
    """Returns measured over priced, a mean in which results near the bound weigh most; None without results."""
    vectors, values = _observations(problem, name, results)
    if not len(values):
        return None
    priced = cost.value(vectors)
    bound = getattr(problem.budget, name) or float(np.abs(values).mean()) or 1.0
    weights = 1.0 / (bound + np.abs(values - bound))
    weights[priced <= 0.0] = 0.0
    scale = float(weights @ values) / float(weights @ priced) if weights.any() else 0.0
    return scale if scale > 0.0 else None


def _learned(problem: Problem, names: Sequence[str], results: Sequence[Result]) -> dict[str, Peak]:
    """Fits constant + one effect for each alternative of each choice to what was measured."""
    sizes = list(problem.space.dimensions.values())
    starts = np.concatenate([[0], np.cumsum(sizes)])
    found: dict[str, Peak] = {}
    for name in names:
        vectors, values = _observations(problem, name, results)
        if len(values) < 2:
            found[name] = ()
            continue
        columns = vectors + starts[:-1]
        # the effects by the dual form of ridge regression: a row of the design has a 1 for each choice
        likeness = (vectors[:, None, :] == vectors[None, :, :]).sum(axis=2)
        weights = np.linalg.solve(likeness + _RIDGE * np.eye(len(values)), values - values.mean())
        effects = np.zeros(starts[-1])
        np.add.at(effects, columns, weights[:, None])
        found[name] = (AdditiveCost(float(values.mean()), tuple(np.split(effects, starts[1:-1]))),)
    return found


def _observations(problem: Problem, name: str, results: Sequence[Result]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (n, n_dimensions) vectors and (n,) values of the results in which the quantity was measured."""
    vectors, values = [], []
    for result in results:
        value = None if result.verdict is None else problem.budget.value_of(name, result.verdict.measurement)
        if value is None and result.is_known and name == BOUND_OF[problem.objective]:
            value = result.merit[1]
        if value is not None and np.isfinite(value):
            vectors.append(result.vector)
            values.append(value)
    return np.array(vectors, int).reshape(len(vectors), len(problem.space.dimensions)), np.array(values, float)


def _peak(costs: Peak, vectors: np.ndarray) -> np.ndarray:
    return largest(costs, vectors) if costs else np.zeros(len(vectors))


#: (vector, position) → (n_options,) float64
Row = Callable[[np.ndarray, int], np.ndarray]


def row_of(cost: AdditiveCost) -> Row:
    """Returns what gives the part of a cost that one entry decides, for each of its options, all others held.

    >>> import numpy as np
    >>> cost = AdditiveCost(1.0, (np.array([0.0, 2.0]), np.zeros(2)), {(0, 1): np.array([[0.0, 1.0], [0.0, 5.0]])})
    >>> row_of(cost)(np.array([0, 1]), 0).tolist()
    [1.0, 7.0]
    """
    touching: list[list[tuple[tuple[int, ...], np.ndarray]]] = [[] for _ in cost.unary]
    for edge, table in cost.edges.items():
        for position in edge:
            touching[position].append((edge, table))

    def row(vector: np.ndarray, position: int) -> np.ndarray:
        values: np.ndarray = cost.unary[position].copy()
        for edge, table in touching[position]:
            values += table[tuple(slice(None) if group == position else vector[group] for group in edge)]
        return values

    return row

"""Greedy descent that watches the accuracy: an order of moves, a bisection along it, then repairs.

In the manner of AIMET's automatic mixed precision and of NNCF's ``quantize_with_accuracy_control``: all moves (an
option of a group) stand in one order, by what each saves for what it does to the output (`descend`); a bisection
finds how far down that list the accuracy still holds; then the best policy is repaired and refined: the worst
offenders are taken back, the next moves tried, alone and against each other, and graph-wide choices among them.
Batches bisect speculatively.

What a move saves and does comes from `Knowledge`. Where either is missing, every move is first tried alone (of many
layers, every option for a whole role), and a linear model of those trials tells it. When the objective is accuracy,
the bisection looks for the first policy that keeps all other bounds instead.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ...core.seeds import derive_rng
from ...spaces.policy import Policy
from ..problem import Problem
from ..solver.additive_cost import AdditiveCost, weighted_sum
from .descent import descend
from .prices import all_prices, influence_costs, known_prices
from .replaying_searcher import ReplayingSearcher
from .roles import find_roles, single_changes
from .tried import Result, Tried

#: with more moves than this, roles are tried alone instead of layers
_MAX_SINGLES = 48
#: the most promising moves in either direction that are tried against each other
_N_SWAPPED = 40
#: moves of layers for each graph-wide alternative that is tried between them
_N_BETWEEN = 3


def build_greedy(problem: Problem, *, seed: int) -> ReplayingSearcher:
    """Makes a greedy descent; the seed decides only the order in which moves are tried alone.

    >>> from trimtab.search.testing import small_problem
    >>> len(build_greedy(small_problem(), seed=0).ask(3))
    3
    """
    return ReplayingSearcher(problem, seed=seed, propose=_propose)


def _propose(problem: Problem, tried: Tried, seed: int) -> Iterator[Policy]:
    probes = [] if _is_informed(problem) else list(_singles(problem))
    order = derive_rng(seed, "order").permutation(len(probes))
    candidates = _candidates(problem, tried, [probes[i] for i in order])
    return (policy for policy in candidates if policy not in tried)


def _candidates(problem: Problem, tried: Tried, probes: list[Policy]) -> Iterator[Policy]:
    yield from probes
    # the order of moves stays as the probes made it, or the bisection would not come to an end
    alone = set(probes)
    basis = [result for result in tried.known() if result.number is None or result.policy in alone]
    path = _find_path(problem, basis)
    yield from _bisect(problem, tried, path)
    for result in tried.ranked():
        yield from _refine(problem, tried, result)


def _is_informed(problem: Problem) -> bool:
    return bool(problem.knowledge.influence) and _saved(problem, _start_graph(problem), ()) is not None


def _singles(problem: Problem) -> Iterator[Policy]:
    """Yields the untouched policy and each move alone, of layers or of roles."""
    space = problem.space
    blocks = [[g] for g, options in enumerate(space.options) if len(options) > 1]
    if sum(len(space.options[g]) - 1 for (g,) in blocks) > _MAX_SINGLES:
        blocks = [role for role in find_roles(space) if role[0] < len(space.groups)]
    graph = _start_graph(problem)
    start = np.array([*([0] * len(space.groups)), *graph], int)
    yield space.decode(start)
    for block in blocks:
        for option in range(1, len(space.options[block[0]])):
            vector = start.copy()
            vector[block] = option
            yield space.decode(vector)


def _start_graph(problem: Problem) -> tuple[int, ...]:
    """Returns the graph-wide choices with the cheapest policy by what is known; else the first of each."""
    n_graph = len(problem.space.dimensions) - len(problem.space.groups)
    latency = problem.knowledge.latency
    if not latency:
        return (0,) * n_graph
    return min(sorted(latency), key=lambda graph: latency[graph].constant + sum(c.min() for c in latency[graph].unary))


def _saved(problem: Problem, graph: tuple[int, ...], results: Sequence[Result]) -> AdditiveCost | None:
    """Returns the cost that the descent brings down; None where nothing tells it."""
    prices = all_prices(problem, graph, results) if results else known_prices(problem, graph, ())
    if problem.objective != "accuracy" and prices.objective:
        return weighted_sum([(cost, 1.0) for cost in prices.objective])
    bounds = [bound for bound in prices.bounds if bound.name != "accuracy_drop"]
    terms = [(cost, 1.0 / bound.unit) for bound in bounds for cost in bound.costs]
    return weighted_sum(terms) if terms else None


def _find_path(problem: Problem, basis: Sequence[Result]) -> list[np.ndarray]:
    graph = _start_graph(problem)
    cost, influence = _saved(problem, graph, basis), influence_costs(problem, basis)
    if cost is None or influence is None:
        return []
    n_groups = len(problem.space.groups)
    return descend(_of_groups(cost, n_groups), _of_groups(influence, n_groups), graph)


def _of_groups(cost: AdditiveCost, n_groups: int) -> AdditiveCost:
    """Leaves the graph-wide choices out of a cost that was learned of all choices."""
    return AdditiveCost(cost.constant, cost.unary[:n_groups], cost.edges)


def _bisect(problem: Problem, tried: Tried, path: list[np.ndarray]) -> Iterator[Policy]:
    """Yields the points at which to look next, the most telling first, until the border is between two neighbours."""
    policies = [problem.space.decode(vector) for vector in path]
    answers = {k: _is_beyond(problem, tried.results.get(policy)) for k, policy in enumerate(policies)}
    low = max((k for k, beyond in answers.items() if beyond is False), default=-1)
    high = min((k for k, beyond in answers.items() if beyond and k > low), default=len(path))
    inside = range(low + 1, high)
    if not inside:
        return
    guess = _guess(problem, tried, path)
    for k in (guess, guess + 1, guess - 1):
        if k in inside:
            yield policies[k]
    spans = [(low, high)]
    while spans:
        first, last = spans.pop(0)
        middle = (first + last) // 2
        if first < middle:
            yield policies[middle]
            spans += [(first, middle), (middle, last)]


def _is_beyond(problem: Problem, result: Result | None) -> bool | None:
    """Whether the answer stands before this point of the descent; None where there is no result."""
    if result is None or result.verdict is None:
        return None
    if result.is_hopeless:
        return True
    if not result.is_known:
        return None
    excesses = dict(problem.budget.excesses(result.verdict.measurement))
    drop = excesses.pop("accuracy_drop", 0.0)
    if problem.objective == "accuracy":
        return sum(excesses.values()) == 0.0
    return result.verdict.violation > 0.0 if np.isinf(drop) else drop > 0.0


def _guess(problem: Problem, tried: Tried, path: list[np.ndarray]) -> int:
    """Returns where the border is by the prices."""
    graph = tuple(path[0][len(problem.space.groups) :].tolist())
    prices = known_prices(problem, graph, tried.known())
    excess = prices.excess(np.array(path))
    if problem.objective == "accuracy":
        return int(np.argmax(excess <= excess.min()))
    if problem.budget.accuracy_drop is None:
        return len(path) - 1
    for bound in prices.bounds:
        if bound.name == "accuracy_drop":
            kept = np.flatnonzero(bound.costs[0].value(np.array(path)) <= bound.limit)
            return int(kept[-1]) if len(kept) else 0
    return len(path) // 2


def _refine(problem: Problem, tried: Tried, result: Result) -> Iterator[Policy]:
    """Yields what differs from a result by a move or by two against each other, the most promising first."""
    space, start = problem.space, result.vector
    prices = all_prices(problem, tuple(start[len(space.groups) :].tolist()), tried.known())
    singles = single_changes(space, start)
    moves = np.concatenate([singles, _swaps(singles, start, prices.load(singles), prices.value(singles))])
    order = np.lexsort((prices.value(moves), prices.excess(moves)))
    graph_wide = iter(single_changes(space, start, range(len(space.groups), len(start))))
    for n, k in enumerate(order):
        if n % _N_BETWEEN == _N_BETWEEN - 1:
            yield from (space.decode(vector) for vector in [next(graph_wide, None)] if vector is not None)
        yield space.decode(moves[k])
    yield from map(space.decode, graph_wide)


def _swaps(singles: np.ndarray, start: np.ndarray, load: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Returns (n, n_dimensions) pairs of a move that makes room in the budget and one that uses it."""
    if not len(singles):
        return singles
    roomy = singles[np.argsort(load, kind="stable")[:_N_SWAPPED]]
    better = singles[np.argsort(value, kind="stable")[:_N_SWAPPED]]
    first = np.repeat(roomy, len(better), axis=0)
    second = np.tile(better, (len(roomy), 1))
    swapped = np.where(second != start, second, first)
    pairs: np.ndarray = swapped[(swapped != start).sum(axis=1) == 2]
    return pairs

"""Questions around a program: what a bound costs, and how far an unreachable one is out of reach."""

from dataclasses import dataclass, replace

import numpy as np

from ...core.errors import SpecError
from .program import Bound, Program
from .solution import Limits, Outcome, Solution
from .solve import solve


@dataclass(frozen=True)
class Relaxations:
    """How far the limits of a program have to move; what is not found within the solver's limits is missing.

    >>> Relaxations({"size": 12.0, "drop": None}, 0.5, {"size": 10.0, "drop": 0.0}).limits["size"]
    12.0
    """

    #: bound → the smallest limit that, raised alone, lets a vector in; None where raising it alone does not help
    limits: dict[str, float | None]
    #: the smallest objective without any bound
    least_objective: float | None
    #: bound → its smallest value without any other bound
    least_values: dict[str, float]


def relaxations(program: Program, limits: Limits | None = None) -> Relaxations:
    """Returns for each bound how far it has to be raised, and what could be reached without the others.

    Forbidden options and excluded vectors stay so throughout. With a gap left, a limit is one that suffices, and may
    be larger than the smallest by that gap.
    """
    raised: dict[str, float | None] = {}
    least: dict[str, float] = {}
    for bound in program.bounds:
        solution = solve(_minimise(program, bound), limits)
        if solution.value is not None:
            raised[bound.name] = solution.value
        elif solution.outcome is Outcome.INFEASIBLE:
            raised[bound.name] = None
        alone = solve(replace(program, objective=bound.costs, bounds=()), limits)
        if alone.value is not None:
            least[bound.name] = alone.value
    free = solve(replace(program, bounds=()), limits)
    return Relaxations(raised, free.value, least)


def sweep(program: Program, name: str, n: int, limits: Limits | None = None) -> tuple[Solution, ...]:
    """Returns solutions on the front of one bound's value and the objective, by ascending value of the bound.

    The limit goes from the least that the other bounds allow to where it no longer costs anything, in ``n`` equal
    steps; its own limit in the program is ignored. None of the solutions is dominated by, or equal to, another. A
    limit that the solution of a higher one already keeps is not solved again.

    Args:
        program: what is minimised, and the other bounds.
        name: the bound that moves.
        n: how many limits are tried, at least 2.
        limits: of each solve.

    Raises:
        SpecError: no such bound, or fewer than two limits.
    """
    moved = _find(program, name)
    if n < 2:
        raise SpecError(f"a sweep must try at least 2 limits, got {n}")
    lowest = solve(_minimise(program, moved), limits).value
    highest = solve(_limit(program, name, np.inf), limits)
    if lowest is None or highest.vector is None:
        return ()
    found = [highest]
    for limit in np.linspace(lowest, highest.bound_values[name], n)[-2::-1].tolist():
        if found[-1].bound_values[name] <= limit:
            continue
        solution = solve(_limit(program, name, limit), limits)
        if solution.vector is not None:
            found.append(solution)
    return _front(found, name)


def _find(program: Program, name: str) -> Bound:
    for bound in program.bounds:
        if bound.name == name:
            return bound
    raise SpecError(f"no bound is called {name}; known: {', '.join(bound.name for bound in program.bounds)}")


def _minimise(program: Program, bound: Bound) -> Program:
    """Returns the program that minimises a bound's costs under the others."""
    others = tuple(other for other in program.bounds if other.name != bound.name)
    return replace(program, objective=bound.costs, bounds=others)


def _limit(program: Program, name: str, limit: float) -> Program:
    bounds = tuple(replace(bound, limit=limit) if bound.name == name else bound for bound in program.bounds)
    return replace(program, bounds=bounds)


def _front(found: list[Solution], name: str) -> tuple[Solution, ...]:
    points = {(solution.bound_values[name], solution.value or 0.0): solution for solution in reversed(found)}
    front: list[Solution] = []
    for _, solution in sorted(points.items(), key=lambda item: item[0]):
        if not front or (solution.value or 0.0) < (front[-1].value or 0.0):
            front.append(solution)
    return tuple(front)

"""The solver's optima under what is believed: cautious, as expected, and daring about the budget."""

from collections.abc import Set
from dataclasses import replace

import numpy as np

from ...spaces.space import Space
from ..beliefs.beliefs import Beliefs
from ..solver.additive_cost import AdditiveCost
from ..solver.front import relaxations
from ..solver.program import Bound, Program
from ..solver.solution import Limits
from ..solver.solve import solve
from .candidates import Vector, settings_of

#: settings of the graph-wide choices in which a program is solved: those in which some policy promises most
_N_SETTINGS = 3
#: standard deviations that are kept from each bound
_MARGINS = (0.0, 1.0, -1.0)
#: a node limit stops at the same answer on every machine, which a time limit would not
_LIMITS = Limits(relative_gap=1e-3, node_limit=64)
#: costs are rounded to so many digits behind the point (the unit is the original's value), so that the last bits of a
#: sum, which differ from machine to machine, do not decide between equals
_DIGITS = 9


def solve_believed(space: Space, beliefs: Beliefs, starts: np.ndarray, tried: Set[Vector]) -> np.ndarray:
    """Returns (n, n_dimensions) int64: policies that are best under what is believed, in canonical form.

    Args:
        space: of the policies.
        beliefs: of every quantity.
        starts: (n, n_dimensions) integers: the best policies so far; their settings of the graph-wide choices count.
        tried: vectors that may not be the answer.
    """
    found = []
    for setting in _settings(space, beliefs, starts):
        n_groups = len(space.groups)
        excluded = tuple(vector[:n_groups] for vector in sorted(tried) if vector[n_groups:] == setting)
        untouched = np.zeros((1, len(space.dimensions)), np.int64)
        typical = _in_setting(starts if len(starts) else untouched, setting, n_groups)
        program = replace(_program(beliefs, setting), excluded=excluded)
        deviations = [float(np.median(believed.predict(typical)[1])) for believed in beliefs.bounded]
        for margin in _MARGINS if beliefs.bounded else _MARGINS[:1]:
            pairs = zip(program.bounds, deviations, strict=True)
            bounds = tuple(replace(bound, limit=bound.limit - margin * deviation) for bound, deviation in pairs)
            solution = solve(replace(program, bounds=bounds), _LIMITS)
            if solution.vector is not None:
                found.append((*solution.vector, *setting))
    return space.canonical(np.array(found, np.int64).reshape(len(found), len(space.dimensions)))


def believed_reach(space: Space, beliefs: Beliefs, starts: np.ndarray) -> dict[str, float]:
    """Returns bound → the least value that is believed to be reachable within the other bounds, in seconds, bytes ….

    A bound that no policy is believed to keep the others with is left out.

    Args:
        space: of the policies.
        beliefs: of every quantity.
        starts: (n, n_dimensions) integers: the best policies so far; their settings of the graph-wide choices count.
    """
    readable = {believed.quantity.name: believed.quantity.readable for believed in beliefs.bounded}
    found: dict[str, float] = {}
    for setting in _settings(space, beliefs, starts):
        for name, limit in relaxations(_program(beliefs, setting), _LIMITS).limits.items():
            if limit is not None and name != "failure":
                value = readable[name](limit, 0.0)[0]
                found[name] = min(value, found.get(name, value))
    return found


def _program(beliefs: Beliefs, setting: tuple[int, ...]) -> Program:
    """Returns what is expected in one setting: the objective, and the bounds at their limits."""
    return Program(
        _rounded(beliefs.objective.mean_costs(setting)),
        tuple(
            Bound(believed.quantity.name, _rounded(believed.mean_costs(setting)), believed.quantity.limit)
            for believed in beliefs.bounded
        ),
    )


def _settings(space: Space, beliefs: Beliefs, starts: np.ndarray) -> list[tuple[int, ...]]:
    """Returns the settings in which one of the best policies, or one close to them, promises most."""
    n_groups = len(space.groups)
    if not len(starts):
        return [(0,) * (len(space.dimensions) - n_groups)]
    settings = settings_of(space, list(starts))
    if len(settings) <= _N_SETTINGS:
        return settings
    scores = [float(beliefs.score(_in_setting(starts, setting, n_groups)).max()) for setting in settings]
    order = sorted(range(len(settings)), key=lambda i: (-round(scores[i], _DIGITS), settings[i]))
    return [settings[i] for i in order[:_N_SETTINGS]]


def _in_setting(starts: np.ndarray, setting: tuple[int, ...], n_groups: int) -> np.ndarray:
    moved = starts.copy()
    moved[:, n_groups:] = setting
    return moved


def _rounded(costs: tuple[AdditiveCost, ...]) -> tuple[AdditiveCost, ...]:
    return tuple(
        AdditiveCost(
            round(cost.constant, _DIGITS),
            tuple(np.round(unary, _DIGITS) for unary in cost.unary),
            {edge: np.round(table, _DIGITS) for edge, table in cost.edges.items()},
        )
        for cost in costs
    )

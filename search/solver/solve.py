"""The best vector of a program, with a proof of how good it is."""

import math
import time
from dataclasses import replace

import numpy as np

from .branch import TOLERANCE, Found, branch, is_proven
from .program import Program
from .reduction import reduce_program, stranded_vectors
from .solution import Limits, Outcome, Solution

#: vectors just above a limit, within HiGHS's tolerance, that are excluded one by one; then the limits are tightened
_N_SINGLE_REPAIRS = 8
_N_REPAIRS = 20


def solve(program: Program, limits: Limits | None = None) -> Solution:
    """Returns the best permitted vector that is found within the limits, with a proof of how good it is.

    The vector keeps every limit exactly, as float64 adds its costs up; the same program has the same answer unless
    a time limit strikes.
    """
    limits = limits or Limits()
    reduction = reduce_program(program)
    if reduction is None:
        return Solution(Outcome.INFEASIBLE)
    found = _search(reduction.program, limits)
    vector = None if found.vector is None else reduction.restore(found.vector)
    stranded = stranded_vectors(program, reduction).tolist()
    candidates = ([] if vector is None else [vector]) + [tuple(other) for other in stranded]
    if not candidates:
        return _without_vector(found)
    vector = min(candidates, key=program.value)
    value = program.value(vector)
    lower = min(found.lower, value)
    return Solution(
        Outcome.OPTIMAL if is_proven(value, lower, found.unsure, limits) else Outcome.GAP,
        vector,
        value,
        {bound.name: bound.value(vector) for bound in program.bounds},
        lower if math.isfinite(lower) else None,
        found.n_nodes,
    )


def _without_vector(found: Found) -> Solution:
    if found.lower == math.inf:
        return Solution(Outcome.INFEASIBLE, n_nodes=found.n_nodes)
    lower = found.lower if math.isfinite(found.lower) else None
    return Solution(Outcome.NO_ANSWER, lower_bound=lower, n_nodes=found.n_nodes)


def _search(program: Program, limits: Limits) -> Found:
    """Solves until the vector keeps the limits exactly: HiGHS takes what is above by a millionth for within.

    Such a vector is excluded by itself, which costs no other; where many of them lie there, the limits are tightened.
    The lower bound is then that of the limits as they were.
    """
    deadline_s = math.inf if limits.time_limit_s is None else time.monotonic() + limits.time_limit_s
    asked, lower, n_nodes, unsure = program, -math.inf, 0, 0.0
    for attempt in range(_N_REPAIRS):
        found = branch(asked, limits, deadline_s)
        n_nodes, unsure = n_nodes + found.n_nodes, max(unsure, found.unsure)
        if attempt <= _N_SINGLE_REPAIRS:
            lower = max(lower, found.lower)
        if found.vector is None or program.permits(np.array([found.vector]))[0]:
            return Found(found.vector, lower, unsure, n_nodes)
        asked = replace(asked, excluded=(*asked.excluded, found.vector))
        if attempt >= _N_SINGLE_REPAIRS:
            asked = _tighten(asked, program, found.vector)
    return Found(None, lower, unsure, n_nodes)


def _tighten(asked: Program, program: Program, vector: tuple[int, ...]) -> Program:
    """Lowers the limits that a vector breaks by more than HiGHS tolerates, and by more each time."""
    bounds = []
    for bound, original in zip(asked.bounds, program.bounds, strict=True):
        if original.value(vector) <= original.limit:
            bounds.append(bound)
            continue
        step = 2.0 * TOLERANCE * max(cost.magnitude for cost in bound.costs)
        bounds.append(replace(bound, limit=bound.limit - max(step, original.limit - bound.limit)))
    return replace(asked, bounds=tuple(bounds))

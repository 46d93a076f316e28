"""The best vector of a program, by HiGHS (Huangfu and Hall 2018, doi:10.1007/s12532-017-0130-5)."""

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from .linear_form import SPAN, LinearForm, linearise
from .program import Program
from .reduction import reduce_program, stranded_vectors
from .solution import Limits, Outcome, Solution

#: vectors just above a limit, within HiGHS's tolerance, that are excluded one by one; then the limits are tightened
_N_SINGLE_REPAIRS = 8
_N_REPAIRS = 20
#: relative to the largest coefficient of a row: what HiGHS cannot tell apart
_TOLERANCE = 1e-6
#: relative to the magnitude of the objective: what float64 sums in another order cannot tell apart
_ROUNDING = 1e-13


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
    unsure = _TOLERANCE * found.span + _ROUNDING * max(cost.magnitude for cost in program.objective)
    slack = max(limits.relative_gap * abs(value), unsure)
    return Solution(
        Outcome.OPTIMAL if value - lower <= slack else Outcome.GAP,
        vector,
        value,
        {bound.name: bound.value(vector) for bound in program.bounds},
        lower if math.isfinite(lower) else None,
        found.n_nodes,
    )


@dataclass(frozen=True)
class _Found:
    """What branch and bound came to."""

    vector: tuple[int, ...] | None
    #: -∞ when nothing is proven, ∞ when there is no permitted vector
    lower: float
    #: largest coefficient of the objective
    span: float
    n_nodes: int


def _without_vector(found: _Found) -> Solution:
    if found.lower == math.inf:
        return Solution(Outcome.INFEASIBLE, n_nodes=found.n_nodes)
    lower = found.lower if math.isfinite(found.lower) else None
    return Solution(Outcome.NO_ANSWER, lower_bound=lower, n_nodes=found.n_nodes)


def _search(program: Program, limits: Limits) -> _Found:
    """Solves until the vector keeps the limits exactly: HiGHS takes what is above by a millionth for within.

    Such a vector is excluded by itself, which costs no other; where many of them lie there, the limits are tightened.
    The lower bound is then that of the limits as they were.
    """
    deadline_s = math.inf if limits.time_limit_s is None else time.monotonic() + limits.time_limit_s
    asked, lower, n_nodes, span = program, -math.inf, 0, 0.0
    for attempt in range(_N_REPAIRS):
        found = _run(linearise(asked), limits, deadline_s)
        n_nodes, span = n_nodes + found.n_nodes, max(span, found.span)
        if attempt <= _N_SINGLE_REPAIRS:
            lower = max(lower, found.lower)
        if found.vector is None or program.permits(np.array([found.vector]))[0]:
            return _Found(found.vector, lower, span, n_nodes)
        asked = replace(asked, excluded=(*asked.excluded, found.vector))
        if attempt >= _N_SINGLE_REPAIRS:
            asked = _tighten(asked, program, found.vector)
    return _Found(None, lower, span, n_nodes)


def _tighten(asked: Program, program: Program, vector: tuple[int, ...]) -> Program:
    """Lowers the limits that a vector breaks by more than HiGHS tolerates, and by more each time."""
    bounds = []
    for bound, original in zip(asked.bounds, program.bounds, strict=True):
        if original.value(vector) <= original.limit:
            bounds.append(bound)
            continue
        step = 2.0 * _TOLERANCE * max(cost.magnitude for cost in bound.costs)
        bounds.append(replace(bound, limit=bound.limit - max(step, original.limit - bound.limit)))
    return replace(asked, bounds=tuple(bounds))


def _run(form: LinearForm, limits: Limits, deadline_s: float) -> _Found:
    options: dict[str, Any] = {"mip_rel_gap": limits.relative_gap}
    if limits.node_limit is not None:
        options["node_limit"] = limits.node_limit
    answer = _call(form, options, deadline_s)
    if answer.status == 4 and answer.x is None:  # a limit on nodes, or trouble that presolve has made
        answer = _call(form, {**options, "presolve": False}, deadline_s)
    span = SPAN * form.scale
    n_nodes = answer.mip_node_count or 0
    if answer.status == 2:
        return _Found(None, math.inf, span, n_nodes)
    if answer.x is None:
        return _Found(None, -math.inf, span, n_nodes)
    bound = answer.fun if answer.mip_dual_bound is None else answer.mip_dual_bound
    return _Found(form.read(answer.x), form.scale * bound, span, n_nodes)


def _call(form: LinearForm, options: dict[str, Any], deadline_s: float) -> Any:
    if deadline_s < math.inf:
        options = {**options, "time_limit": max(0.0, deadline_s - time.monotonic())}
    return milp(
        form.objective,
        integrality=form.is_integer,
        bounds=Bounds(form.lower, form.upper),
        constraints=LinearConstraint(form.rows, form.row_lower, form.row_upper),
        options=dict(options),
    )

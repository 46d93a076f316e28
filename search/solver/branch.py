"""Branch and bound by HiGHS (Huangfu and Hall 2018, doi:10.1007/s12532-017-0130-5), first over the likely options."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from .linear_form import SPAN, LinearForm, linearise
from .program import Program
from .reduction import restrict_program
from .solution import Limits

#: relative to the largest coefficient of a row: what HiGHS cannot tell apart
TOLERANCE = 1e-6
#: relative to the magnitude of the objective: what float64 sums in another order cannot tell apart
_ROUNDING = 1e-13
#: options a group that the core has on average
_N_LIKELY = 2


@dataclass(frozen=True)
class Found:
    """What branch and bound came to.

    >>> Found((0, 1), lower=1.0, unsure=1e-9, n_nodes=1).vector
    (0, 1)
    """

    #: within the limits up to HiGHS's tolerance; None when none was found
    vector: tuple[int, ...] | None
    #: -∞ when nothing is proven, ∞ when there is no permitted vector
    lower: float
    #: differences of the objective that HiGHS cannot tell apart
    unsure: float
    n_nodes: int


def branch(program: Program, limits: Limits, deadline_s: float) -> Found:
    """Looks for the best vector until the limits or, on the monotonic clock, the deadline.

    First among the core (as for knapsacks: Balas and Zemel 1980, doi:10.1287/opre.28.5.1130): the options whose reduced
    cost in the relaxation is small. A vector with any other option costs at least the relaxation's value and that
    reduced cost. Where the best of the core does not cost more, it is the best of all; otherwise all options follow.
    """
    form = linearise(program)
    unsure = TOLERANCE * SPAN * form.scale + _ROUNDING * max(cost.magnitude for cost in program.objective)
    relaxed = _relax(form, deadline_s)
    if relaxed.status == 2:
        return Found(None, math.inf, unsure, 0)
    core = Found(None, -math.inf, unsure, 0)
    least = form.scale * relaxed.fun if relaxed.status == 0 else -math.inf
    if relaxed.status == 0:
        core = _branch_core(program, _Relaxation.read(form, relaxed), limits, deadline_s)
        if core.vector is not None and is_proven(program.value(core.vector), core.lower, unsure, limits):
            return Found(core.vector, core.lower, unsure, core.n_nodes)
    found = _run(form, limits, deadline_s, unsure)
    vectors = [vector for vector in (found.vector, core.vector) if vector is not None]
    lower = core.lower if vectors and found.lower == math.inf else max(least, core.lower, found.lower)
    return Found(min(vectors, key=program.value, default=None), lower, unsure, core.n_nodes + found.n_nodes)


def is_proven(value: float, lower: float, unsure: float, limits: Limits) -> bool:
    """Returns whether a value is as close to a lower bound as was asked for."""
    return value - lower <= max(limits.relative_gap * abs(value), unsure)


@dataclass(frozen=True)
class _Relaxation:
    """What the linear relaxation says of the options."""

    #: per group, (n_core,) int: the options that may be part of a vector below `edge`
    core: tuple[np.ndarray, ...]
    #: every vector with an option outside the core costs at least this
    edge: float

    @classmethod
    def read(cls, form: LinearForm, relaxed: Any) -> "_Relaxation":
        """Draws the line so that the core has the likeliest options."""
        excess = _excess(form, form.scale * np.maximum(relaxed.lower.marginals, 0.0))
        n_likely = min(_N_LIKELY * len(form.sizes), len(excess))
        reach = float(np.sort(excess)[n_likely - 1]) if n_likely else 0.0
        groups = np.split(excess, form.starts[1:-1]) if n_likely else []
        core = tuple(np.flatnonzero(costs <= max(reach, costs.min())) for costs in groups)
        return cls(core, form.scale * relaxed.fun + reach)


def _excess(form: LinearForm, reduced: np.ndarray) -> np.ndarray:
    """Returns (n_options of all groups,) float64: what a vector with the option costs above the relaxation, at least.

    That is the reduced cost of the option, and on each edge the least of the columns that go with it.
    """
    excess = reduced[: form.starts[-1]].copy()
    for interaction, start in form.blocks:
        block = reduced[start : start + math.prod(interaction.shape)].reshape(interaction.shape)
        for axis, (group, classes) in enumerate(zip(interaction.edge, interaction.classes, strict=True)):
            others = tuple(other for other in range(block.ndim) if other != axis)
            excess[form.starts[group] : form.starts[group + 1]] += block.min(axis=others)[classes]
    return excess


def _branch_core(program: Program, relaxation: _Relaxation, limits: Limits, deadline_s: float) -> Found:
    is_whole = sum(map(len, relaxation.core)) == sum(program.sizes)
    if is_whole:
        return Found(None, -math.inf, 0.0, 0)
    found = _run(linearise(restrict_program(program, relaxation.core)), limits, deadline_s, 0.0)
    vector = None if found.vector is None else _restore(found.vector, relaxation.core)
    return Found(vector, min(found.lower, relaxation.edge), 0.0, found.n_nodes)


def _restore(vector: Sequence[int], kept: Sequence[np.ndarray]) -> tuple[int, ...]:
    return tuple(int(options[choice]) for options, choice in zip(kept, vector, strict=True))


def _run(form: LinearForm, limits: Limits, deadline_s: float, unsure: float) -> Found:
    options: dict[str, Any] = {"mip_rel_gap": limits.relative_gap}
    if limits.node_limit is not None:
        options["node_limit"] = limits.node_limit
    answer = _call(form, options, deadline_s)
    if answer.status == 4 and answer.x is None:  # a limit on nodes, or trouble that presolve has made
        answer = _call(form, {**options, "presolve": False}, deadline_s)
    n_nodes = answer.mip_node_count or 0
    if answer.status == 2:
        return Found(None, math.inf, unsure, n_nodes)
    if answer.x is None:
        return Found(None, -math.inf, unsure, n_nodes)
    bound = answer.fun if answer.mip_dual_bound is None else answer.mip_dual_bound
    return Found(form.read(answer.x), form.scale * bound, unsure, n_nodes)


def _call(form: LinearForm, options: dict[str, Any], deadline_s: float) -> Any:
    return milp(
        form.objective,
        integrality=form.is_integer,
        bounds=Bounds(form.lower, form.upper),
        constraints=LinearConstraint(form.rows, form.row_lower, form.row_upper),
        options={**options, **_time_limit(deadline_s)},
    )


def _relax(form: LinearForm, deadline_s: float) -> Any:
    is_equal = form.row_lower == form.row_upper
    rows = form.rows.tocsr()
    return linprog(
        form.objective,
        A_ub=rows[~is_equal],
        b_ub=form.row_upper[~is_equal],
        A_eq=rows[is_equal],
        b_eq=form.row_upper[is_equal],
        bounds=np.stack([form.lower, form.upper], axis=1),
        method="highs",
        options=_time_limit(deadline_s),
    )


def _time_limit(deadline_s: float) -> dict[str, float]:
    return {"time_limit": max(0.0, deadline_s - time.monotonic())} if deadline_s < math.inf else {}

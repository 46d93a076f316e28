"""``make bench-solver``: how long the solver takes to prove a policy of 200 groups × 8 treatments within 0.1 %.

The costs are random, of the sign and size that nets show: layers differ by a factor of ten and more, what saves much
costs accuracy, and a boundary between two dtypes takes up to a third of what the layers beside it take, while equal
dtypes may save some of it. Size and accuracy drop are bounded where both bind. Seconds are of one core (CPU time).
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from ...core.seeds import derive_rng
from ...search.solver.additive_cost import AdditiveCost
from ...search.solver.linear_form import linearise
from ...search.solver.program import Bound, Program
from ...search.solver.reduction import reduce_program
from ...search.solver.solution import Limits, Solution
from ...search.solver.solve import solve

_N_GROUPS = 200
_N_OPTIONS = 8
_N_DTYPES = 3
_N_SEEDS = 5
_RELATIVE_GAP = 1e-3
#: boundaries cost up to this share of the layers beside them
_EDGE_SHARE = 0.3
#: of 10 ms, 40 MB and 20 points, over all groups
_TOTALS = {"latency": 10e-3, "size": 40e6, "drop": 0.2}

Edge = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    #: how far skips reach, one from every third group; empty: none
    reach: tuple[int, ...] = ()
    #: every option has its own boundary costs, or the options of a dtype share them
    by_dtype: bool = True
    #: edges run over three neighbouring groups
    triples: bool = False
    #: the peak over as many moments as groups is bounded too
    peak: bool = False
    n_excluded: int = 0


_CASES = (
    Case("chain, costs by dtype"),
    Case("chain, 8 × 8 costs", by_dtype=False),
    Case("skips of 3, costs by dtype", reach=(3,)),
    Case("skips of 3, 8 × 8 costs", reach=(3,), by_dtype=False),
    Case("skips of 2 to 30, costs by dtype", reach=tuple(range(2, 31))),
    Case("skips of 2 to 30, 8 × 8 costs", reach=tuple(range(2, 31)), by_dtype=False),
    Case("chain of triples, costs by dtype", triples=True),
    Case("skips of 3, by dtype, peak of 200 moments", reach=(3,), peak=True),
    Case("skips of 3, by dtype, 100 vectors excluded", reach=(3,), n_excluded=100),
)


def main() -> None:
    """Prints the table."""
    title = f"{_N_GROUPS} groups × {_N_OPTIONS} treatments, {_N_SEEDS} random programs a row, one core, median (max)"
    table = Table(title=title, title_justify="left")
    for heading in ("edges", "number", "bounds", "variables", "rows", "seconds", "proven gap", "target"):
        table.add_column(heading, justify="left" if heading == "edges" else "right")
    for case in _CASES:
        table.add_row(*_measure(case))
    Console(width=140).print(table)


def _measure(case: Case) -> list[str]:
    seconds, gaps, shapes, n_edges, n_bounds = [], [], [], 0, 0
    for seed in range(_N_SEEDS):
        program = draw_program(case, seed)
        n_edges = len(program.objective[0].edges)
        n_bounds = sum(len(bound.costs) for bound in program.bounds)
        reduction = reduce_program(program)
        if reduction is None:
            raise RuntimeError("the benchmark's programs must have an answer")
        shapes.append(linearise(reduction.program).rows.shape)
        start_s = time.process_time()
        solution = solve(program, Limits(_RELATIVE_GAP))
        seconds.append(time.process_time() - start_s)
        gaps.append(_check(program, solution) * 100)
    rows, columns = (int(statistics.median(counts)) for counts in zip(*shapes, strict=True))
    return [
        case.name,
        str(n_edges),
        str(n_bounds),
        f"{columns:,}",
        f"{rows:,}",
        f"{statistics.median(seconds):.2f} ({max(seconds):.2f})",
        f"{statistics.median(gaps):.3f} % ({max(gaps):.3f} %)",
        "≤ 5 s, ≤ 0.1 %",
    ]


def _check(program: Program, solution: Solution) -> float:
    if solution.vector is None or not program.permits(np.array([solution.vector]))[0]:
        raise RuntimeError(f"the solver must answer within the bounds, got {solution}")
    gap = solution.relative_gap
    return float("inf") if gap is None else gap


def draw_program(case: Case, seed: int) -> Program:
    """Returns a random program: latency minimised, size and accuracy drop bounded."""
    rng = derive_rng("bench-solver", seed)
    latency, size, drop = _draw_unary(rng)
    seconds = AdditiveCost(0.0, tuple(latency), _draw_edges(rng, case, latency[:, 0]))
    bounds = [
        Bound("size", (AdditiveCost(0.0, tuple(size)),), 0.5 * _TOTALS["size"]),
        Bound("drop", (AdditiveCost(0.0, tuple(drop)),), 0.06 * _TOTALS["drop"]),
    ]
    if case.peak:
        bounds.append(_draw_peak(rng, size))
    program = Program((seconds,), tuple(bounds))
    if not case.n_excluded:
        return program
    best = solve(program, Limits(_RELATIVE_GAP)).vector or ()
    return Program((seconds,), tuple(bounds), _changed(rng, best, case.n_excluded))


def _draw_unary(rng: np.random.Generator) -> list[np.ndarray]:
    """Returns latency, size and drop, each (n_groups, n_options); option 0 is the untouched layer."""
    shape = (_N_GROUPS, _N_OPTIONS - 1)
    scales = [rng.lognormal(0.0, spread, _N_GROUPS) for spread in (0.8, 1.0, 1.2)]
    speed = np.sort(rng.uniform(0.25, 1.05, shape))[:, ::-1]
    size = np.clip(np.sort(rng.uniform(0.1, 0.9, shape))[:, ::-1] * rng.uniform(0.8, 1.25, shape), 0.05, 1.0)
    drop = (1.0 - 0.6 * speed - 0.4 * size) ** 2 * rng.uniform(0.3, 1.8, shape)
    relative = [np.insert(speed, 0, 1.0, axis=1), np.insert(size, 0, 1.0, axis=1), np.insert(drop, 0, 0.0, axis=1)]
    totals = [total * scale / scale.sum() for total, scale in zip(_TOTALS.values(), scales, strict=True)]
    return [total[:, None] * part for total, part in zip(totals, relative, strict=True)]


def _draw_edges(rng: np.random.Generator, case: Case, latency: np.ndarray) -> dict[Edge, np.ndarray]:
    width = 3 if case.triples else 2
    edges: set[Edge] = {tuple(range(group, group + width)) for group in range(_N_GROUPS - width + 1)}
    if case.reach:
        edges |= {(group, group + int(rng.choice(case.reach))) for group in range(0, _N_GROUPS - max(case.reach), 3)}
    dtypes = rng.integers(0, _N_DTYPES, (_N_GROUPS, _N_OPTIONS))
    dtypes[:, 0] = 0
    if not case.by_dtype:
        dtypes = np.tile(np.arange(_N_OPTIONS), (_N_GROUPS, 1))
    return {
        edge: _EDGE_SHARE * latency[list(edge)].mean() * _draw_table(rng, dtypes[list(edge)]) for edge in sorted(edges)
    }


def _draw_table(rng: np.random.Generator, dtypes: np.ndarray) -> np.ndarray:
    """Returns shares of the boundary's cost, by option: different dtypes cost, equal ones may save."""
    n_dtypes = int(dtypes.max()) + 1
    indices = np.indices((n_dtypes,) * len(dtypes))
    is_same = (indices == indices[0]).all(axis=0)
    shares = np.where(is_same, -rng.uniform(0.0, 0.3, is_same.shape), rng.uniform(0.1, 1.0, is_same.shape))
    shares[(0,) * len(dtypes)] = 0.0
    table: np.ndarray = shares[np.ix_(*dtypes)]
    return table


def _draw_peak(rng: np.random.Generator, size: np.ndarray) -> Bound:
    """What is alive at a moment: the outputs of the last three groups and of one long before."""
    outputs = rng.lognormal(0.0, 0.5, _N_GROUPS)[:, None] * np.sqrt(size / size[:, :1])
    moments = []
    for moment in range(_N_GROUPS):
        alive = {*range(max(0, moment - 2), moment + 1), int(rng.integers(0, moment + 1))}
        moments.append(tuple(outputs[group] if group in alive else np.zeros(_N_OPTIONS) for group in range(_N_GROUPS)))
    untouched = max(sum(float(costs[0]) for costs in moment) for moment in moments)
    return Bound("peak", tuple(AdditiveCost(0.0, moment) for moment in moments), 0.75 * untouched)


def _changed(rng: np.random.Generator, vector: Sequence[int], n: int) -> tuple[tuple[int, ...], ...]:
    """Returns the vector and others that differ from it in up to three groups."""
    vectors = {tuple(vector)}
    while len(vectors) < n:
        other = np.array(vector)
        other[rng.integers(0, _N_GROUPS, 3)] = rng.integers(0, _N_OPTIONS, 3)
        vectors.add(tuple(other.tolist()))
    return tuple(sorted(vectors))


if __name__ == "__main__":
    main()

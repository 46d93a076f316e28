"""The solver against plain enumeration, on spaces small enough to write down."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.search.pareto import pareto_front
from trimtab.search.solver.additive_cost import AdditiveCost
from trimtab.search.solver.front import relaxations, sweep
from trimtab.search.solver.program import Bound, Program
from trimtab.search.solver.solution import Limits, Outcome
from trimtab.search.solver.solve import solve

EXACT = Limits(relative_gap=0.0)
#: seconds, bytes and accuracy: the sizes of numbers that meet in one program
UNITS = (1.0, 1e-3, 1e6, 3e-7)


def draw_cost(rng, sizes, edges, unit):
    """Mostly whole numbers of units, so that ties are frequent; some tables are additive, or pairs in disguise."""
    noise = rng.choice([0.0, 0.0, 1.0])
    unary = tuple(unit * (rng.integers(-4, 9, size) + noise * rng.normal(size=size)) for size in sizes)
    tables = {edge: unit * draw_table(rng, [sizes[group] for group in edge]) for edge in edges if rng.random() < 0.8}
    return AdditiveCost(unit * float(rng.integers(-5, 20)), unary, tables)


def draw_table(rng, shape):
    table = rng.integers(-5, 6, shape).astype(float)
    if rng.random() < 0.3:  # additive
        lines = np.ix_(*(rng.integers(-5, 6, size) for size in shape))
        table = np.broadcast_to(sum(lines), shape).astype(float)
    elif rng.random() < 0.3:  # classes of options, as of the dtypes of layers
        labels = [rng.integers(0, 2, size) for size in shape]
        table = rng.integers(-5, 6, [2] * len(shape))[np.ix_(*labels)].astype(float)
    elif len(shape) == 3 and rng.random() < 0.5:  # pairs in the guise of a triple
        table = table[:, :, :1] + table[:1, :, :]
    return table


def draw_program(seed):
    """A program over at most 4⁵ vectors, with everything that a program may have."""
    rng = np.random.default_rng(seed)
    sizes = tuple(rng.integers(1, 5, rng.integers(1, 6)).tolist())
    combinations = [*itertools.combinations(range(len(sizes)), 2), *itertools.combinations(range(len(sizes)), 3)]
    edges = [edge for edge in combinations if rng.random() < 0.35]
    vectors = np.array(list(itertools.product(*map(range, sizes))))

    def quantity(n_costs):
        unit = rng.choice(UNITS)
        return tuple(draw_cost(rng, sizes, edges, unit) for _ in range(n_costs))

    objective = quantity(rng.choice([1, 1, 2, 3]))
    bounds = []
    for index in range(rng.integers(0, 4)):
        costs = quantity(rng.choice([1, 1, 3]))
        bounds.append(Bound(f"b{index}", costs, float(np.quantile(brute_values(costs, vectors), rng.random()))))
    by_value = vectors[np.argsort(brute_values(objective, vectors), kind="stable")]
    n_excluded = int(rng.choice([0, 0, 3, 10]))
    permitted = by_value[keeps(bounds, by_value)]
    excluded = [*permitted[:n_excluded], *by_value[:n_excluded]] if rng.random() < 0.7 else by_value[::3]
    allowed = tuple(rng.random(size) < 0.8 for size in sizes) if rng.random() < 0.3 else None
    if allowed is not None and not all(mask.any() for mask in allowed):
        allowed = None
    return Program(objective, tuple(bounds), tuple(map(tuple, np.array(excluded, int).tolist())), allowed), vectors


def brute_cost(cost, vector):
    """The definition, written out."""
    parts = [cost.constant, *(costs[option] for costs, option in zip(cost.unary, vector, strict=True))]
    parts += [table[tuple(vector[group] for group in edge)] for edge, table in cost.edges.items()]
    return sum(parts)


def brute_values(costs, vectors):
    return np.array([max(brute_cost(cost, vector) for cost in costs) for vector in vectors])


def keeps(bounds, vectors):
    kept = np.ones(len(vectors), bool)
    for bound in bounds:
        kept &= brute_values(bound.costs, vectors) <= bound.limit
    return kept


def brute_permitted(program, vectors, *, without=()):
    kept = keeps([bound for bound in program.bounds if bound.name not in without], vectors)
    excluded = set(program.excluded)
    for index, vector in enumerate(vectors.tolist()):
        is_allowed = program.allowed is None or all(
            mask[option] for mask, option in zip(program.allowed, vector, strict=True)
        )
        kept[index] &= is_allowed and tuple(vector) not in excluded
    return vectors[kept]


def close(a, b, costs, tolerance=1e-9):
    scale = max(np.abs(part).max() for cost in costs for part in (*cost.unary, *cost.edges.values()))
    return abs(a - b) <= tolerance * (scale + abs(b))


@settings(max_examples=300)
@given(st.integers(0, 2**32 - 1))
def test_the_answer_is_the_best_vector_of_all(seed):
    program, vectors = draw_program(seed)
    solution = solve(program, EXACT)
    permitted = brute_permitted(program, vectors)
    if not len(permitted):
        assert solution.outcome is Outcome.INFEASIBLE
        return
    assert solution.outcome is Outcome.OPTIMAL
    assert solution.vector in set(map(tuple, permitted.tolist()))
    best = brute_values(program.objective, permitted).min()
    assert close(solution.value, best, program.objective)
    assert solution.lower_bound <= solution.value
    # HiGHS may break rows by 1e-6 of their largest coefficient
    assert close(solution.lower_bound, best, program.objective, tolerance=1e-6)
    own = {bound.name: brute_values(bound.costs, [solution.vector])[0] for bound in program.bounds}
    assert solution.bound_values == own


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_limits_are_relaxed_as_far_as_enumeration_says(seed):
    program, vectors = draw_program(seed)
    found = relaxations(program, EXACT)
    for bound in program.bounds:
        others = brute_values(bound.costs, brute_permitted(program, vectors, without=(bound.name,)))
        assert (found.limits[bound.name] is None) == (len(others) == 0)
        if len(others):
            assert close(found.limits[bound.name], others.min(), bound.costs)
    free = brute_permitted(program, vectors, without=[bound.name for bound in program.bounds])
    if not len(free):
        assert found.least_objective is None
        return
    assert close(found.least_objective, brute_values(program.objective, free).min(), program.objective)
    for bound in program.bounds:
        assert close(found.least_values[bound.name], brute_values(bound.costs, free).min(), bound.costs)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_a_sweep_lies_on_the_front_and_reaches_both_ends(seed):
    program, vectors = draw_program(seed)
    if not program.bounds:
        return
    moved = program.bounds[0]
    permitted = brute_permitted(program, vectors, without=(moved.name,))
    found = sweep(program, moved.name, 5, EXACT)
    if not len(permitted):
        assert found == ()
        return
    values, objectives = brute_values(moved.costs, permitted), brute_values(program.objective, permitted)
    assert close(found[0].bound_values[moved.name], values.min(), moved.costs)
    assert close(found[-1].value, objectives.min(), program.objective)
    points = [(solution.bound_values[moved.name], solution.value) for solution in found]
    assert pareto_front(points) == list(range(len(points))) and len(set(points)) == len(points)
    for value, objective in points:
        assert close(objective, objectives[values <= value].min(), program.objective)

"""What the solver does beyond finding the best vector: limits, removed options, the size of what HiGHS sees, errors."""

import itertools
import time

import numpy as np
import pytest
from trimtab.core.errors import SpecError
from trimtab.core.seeds import derive_rng
from trimtab.experiments.benchmarks.solver import Case, draw_program
from trimtab.search.solver.additive_cost import AdditiveCost, zero_cost
from trimtab.search.solver.front import relaxations, sweep
from trimtab.search.solver.linear_form import linearise
from trimtab.search.solver.program import Bound, Program
from trimtab.search.solver.reduction import reduce_program, stranded_vectors
from trimtab.search.solver.solution import Limits, Outcome, Solution
from trimtab.search.solver.solve import solve

EXACT = Limits(relative_gap=0.0)


def cost(*unary, edges=None, constant=0.0):
    return AdditiveCost(constant, tuple(np.array(costs, float) for costs in unary), edges or {})


def random_chain(n_groups, n_options, seed):
    rng = derive_rng("chain", seed)
    edges = {(g, g + 1): rng.normal(size=(n_options, n_options)) for g in range(n_groups - 1)}
    return AdditiveCost(1.0, tuple(rng.normal(size=(n_groups, n_options))), edges)


def bounded_chain(n_groups, n_options, seed):
    """A chain with a bound that binds, so that the relaxation is not tight."""
    chain = random_chain(n_groups, n_options, seed)
    size = AdditiveCost(0.0, tuple(derive_rng("size", seed).uniform(size=(n_groups, n_options))))
    return Program((chain,), (Bound("size", (size,), 0.3 * n_groups),))


def viterbi(chain):
    """The least cost of a chain, by dynamic programming."""
    best = chain.unary[0]
    for group in range(1, len(chain.unary)):
        best = (best[:, None] + chain.edges[group - 1, group]).min(axis=0) + chain.unary[group]
    return chain.constant + best.min()


@pytest.mark.parametrize("seed", range(3))
def test_a_long_chain_costs_what_dynamic_programming_finds(seed):
    chain = random_chain(80, 5, seed)
    solution = solve(Program((chain,)), EXACT)
    assert solution.value == pytest.approx(viterbi(chain), abs=1e-9)
    assert solution.outcome is Outcome.OPTIMAL
    assert solution.n_nodes <= 1  # the relaxation is tight on trees


def test_a_vector_a_trillionth_above_the_limit_is_not_the_answer():
    seconds = cost([0.003, 0.001], [0.003, 0.002], [0.003, 0.0015])
    size = cost([0.0, 1e6 + 1e-6], [0.0, 1e6], [0.0, 1e6])
    solution = solve(Program((seconds,), (Bound("size", (size,), 2e6),)), EXACT)
    # the first group saves most, but with it and any other the size is 2,000,000.000001
    assert solution.vector == (0, 1, 1)
    assert solution.outcome is Outcome.OPTIMAL
    assert solution.bound_values == {"size": 2e6}


def test_many_vectors_just_above_the_limit_leave_a_gap_and_an_answer_within_it():
    gains = 1.0 + np.arange(12) / 100
    seconds = cost(*([0.0, -gain] for gain in gains))
    size = cost(*[[0.0, 1e6]] * 12)
    solution = solve(Program((seconds,), (Bound("size", (size,), 6e6 - 1e-3),)), EXACT)
    assert solution.vector == (0,) * 7 + (1,) * 5
    # HiGHS holds the six best for possible
    assert solution.outcome is Outcome.GAP
    assert -gains[6:].sum() <= solution.lower_bound < solution.value == -gains[7:].sum()


def test_an_option_that_is_never_better_goes_and_the_lowest_of_equals_stays():
    seconds = cost([3.0, 1.0, 1.0, 2.0], [0.0, 0.0])
    size = cost([5.0, 4.0, 4.0, 1.0], [0.0, 1.0], edges={(0, 1): np.zeros((4, 2))})
    reduction = reduce_program(Program((seconds,), (Bound("size", (size,), 100.0),)))
    assert [kept.tolist() for kept in reduction.kept] == [[1, 3], [0]]
    assert reduction.restore((1, 0)) == (3, 0)


def test_an_option_stays_that_a_neighbour_can_make_the_better_one():
    edges = {(0, 1): np.array([[0.0, 3.0], [0.0, 0.0]])}
    program = Program((cost([0.0, 2.0], [2.5, 0.0], edges=edges),))
    assert [kept.tolist() for kept in reduce_program(program).kept] == [[0, 1], [0, 1]]
    assert solve(program, EXACT).vector == (1, 1)  # 2.0; (0, 0) costs 2.5 and (0, 1) costs 3.0


def test_removed_options_come_back_where_their_better_ones_are_excluded():
    program = Program((cost([1.0, 2.0, 3.0], [1.0, 1.5]),), excluded=((0, 0), (0, 1)))
    reduction = reduce_program(program)
    assert [kept.tolist() for kept in reduction.kept] == [[0], [0]]
    # both vectors with option 0 are excluded; of the others (1, 0) is best, and the reduced program has none
    assert solve(reduction.program, EXACT).outcome is Outcome.INFEASIBLE
    assert (1, 0) in set(map(tuple, stranded_vectors(program, reduction).tolist()))
    assert solve(program, EXACT).vector == (1, 0)


def test_excluding_each_answer_lists_all_vectors_from_the_best_to_the_worst():
    chain = random_chain(4, 3, seed=7)
    vectors = np.array(list(itertools.product(range(3), repeat=4)))
    found = []
    for _ in range(20):
        found.append(solve(Program((chain,), excluded=tuple(found)), EXACT).vector)
    by_cost = vectors[np.argsort(chain.value(vectors))][:20]
    assert found == list(map(tuple, by_cost.tolist()))


def test_options_out_of_reach_of_a_bound_go():
    size = cost([0.0, 1e12], [1.0, 2.0])
    reduction = reduce_program(Program((cost([1.0, 0.0], [1.0, 0.0]),), (Bound("size", (size,), 1.5),)))
    assert [kept.tolist() for kept in reduction.kept] == [[0], [0]]


def test_an_additive_table_takes_no_variables():
    rng = derive_rng("additive")
    table = rng.normal(size=(8, 1)) + rng.normal(size=(1, 8))
    program = Program((AdditiveCost(0.0, tuple(np.zeros((2, 8))), {(0, 1): table}),))
    assert linearise(program).rows.shape[1] == 8 + 8 + 2


def test_options_that_interact_alike_share_variables():
    dtypes = np.array([0, 0, 1, 1, 2, 2, 2, 0])
    table = derive_rng("dtypes").normal(size=(3, 3))[np.ix_(dtypes, dtypes)]
    program = Program((AdditiveCost(0.0, tuple(derive_rng("unary").normal(size=(2, 8))), {(0, 1): table}),))
    assert linearise(program).rows.shape[1] == 8 + 8 + 3 * 3 + 2


def test_a_triple_without_an_interaction_of_three_becomes_pairs():
    rng = derive_rng("triple")
    pair, other = rng.normal(size=(4, 4)), rng.normal(size=(4, 4))
    table = pair[:, :, None] + other[None, :, :]
    program = Program((AdditiveCost(0.0, tuple(np.zeros((3, 4))), {(0, 1, 2): table}),))
    assert linearise(program).rows.shape[1] == 3 * 4 + 2 * 16 + 2


def test_the_order_of_edges_does_not_change_the_answer():
    program = bounded_chain(40, 4, seed=1)
    seconds = program.objective[0]
    turned = AdditiveCost(seconds.constant, seconds.unary, dict(reversed(seconds.edges.items())))
    answers = [solve(Program((each,), program.bounds)).vector for each in (seconds, turned)]
    assert answers[0] == answers[1]


@pytest.mark.alone
def test_two_hundred_groups_with_edges_are_solved_to_a_thousandth_in_five_seconds():
    program = draw_program(Case("", reach=(3,), by_dtype=False), seed=0)
    start_s = time.process_time()
    solution = solve(program, Limits(1e-3))
    assert time.process_time() - start_s <= 5.0
    assert solution.outcome is Outcome.OPTIMAL
    assert solution.relative_gap <= 1e-3
    assert program.permits(np.array([solution.vector]))[0]


def test_no_time_leaves_no_answer():
    assert solve(bounded_chain(60, 6, seed=0), Limits(time_limit_s=0.0)) == Solution(Outcome.NO_ANSWER)


def test_no_nodes_leave_the_bound_of_the_relaxation():
    program = bounded_chain(20, 6, seed=0)
    solution = solve(program, Limits(node_limit=0))
    assert (solution.outcome, solution.vector) == (Outcome.NO_ANSWER, None)
    assert solution.lower_bound == pytest.approx(solve(program, EXACT).value, rel=0.05)
    assert solution.lower_bound <= solve(program, EXACT).value


def test_a_node_limit_leaves_a_proven_gap_and_the_same_vector_each_time():
    program = bounded_chain(20, 6, seed=0)
    first, second = (solve(program, Limits(0.0, node_limit=1)) for _ in range(2))
    assert first == second
    assert first.outcome is Outcome.GAP
    assert first.lower_bound <= solve(program, EXACT).value <= first.value


def test_a_gap_counts_the_constant():
    program = bounded_chain(30, 4, seed=3)
    chain = program.objective[0]
    solution = solve(Program((AdditiveCost(1e6, chain.unary, chain.edges),), program.bounds), Limits(1e-3))
    assert solution.outcome is Outcome.OPTIMAL
    assert solution.n_nodes <= 1  # every vector is within a thousandth of a million


def test_only_allowed_options_are_taken():
    allowed = (np.array([False, True]), np.array([True, True]))
    assert solve(Program((cost([0.0, 5.0], [1.0, 0.0]),), allowed=allowed)).vector == (1, 1)


def test_a_program_without_groups_costs_its_constant():
    solution = solve(Program((cost(constant=3.0),), (Bound("size", (cost(constant=1.0),), 2.0),)))
    assert (solution.vector, solution.value, solution.outcome) == ((), 3.0, Outcome.OPTIMAL)
    assert solve(Program((cost(constant=3.0),), excluded=((),))).outcome is Outcome.INFEASIBLE


def test_bounds_that_cannot_be_kept_together_say_how_far_each_has_to_move():
    seconds = cost([4.0, 1.0], [4.0, 2.0])
    drop = cost([0.0, 0.3], [0.0, 0.2])
    size = cost([5.0, 5.0], [5.0, 4.0])
    program = Program((seconds,), (Bound("drop", (drop,), 0.1), Bound("size", (size,), 9.5), Bound("n", (drop,), 9.0)))
    assert solve(program).outcome is Outcome.INFEASIBLE
    found = relaxations(program)
    # size ≤ 9.5 needs option 1 of the second group, whose drop is 0.2; without drop nothing saves size
    assert found.limits == {"drop": 0.2, "size": 10.0, "n": None}
    assert found.least_objective == 3.0
    assert found.least_values == {"drop": 0.0, "size": 9.0, "n": 0.0}


def test_a_sweep_of_a_small_front_finds_all_of_it():
    seconds = cost([4.0, 3.0, 1.0])
    size = cost([1.0, 2.0, 3.0])
    found = sweep(Program((seconds,), (Bound("size", (size,), 1.0),)), "size", 3)
    assert [(solution.value, solution.bound_values["size"]) for solution in found] == [
        (4.0, 1.0),
        (3.0, 2.0),
        (1.0, 3.0),
    ]


def test_a_sweep_says_which_bounds_it_knows():
    program = Program((zero_cost((2,)),), (Bound("size", (zero_cost((2,)),), 1.0),))
    with pytest.raises(SpecError, match="known: size"):
        sweep(program, "latency", 3)
    with pytest.raises(SpecError, match="at least 2"):
        sweep(program, "size", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": ()}, "objective"),
        ({"bounds": (Bound("size", (zero_cost((2,)),), 1.0),)}, "same groups"),
        ({"bounds": (Bound("size", (zero_cost((2, 3)),), 1.0),) * 2}, "name of its own"),
        ({"excluded": ((0, 3),)}, "excluded"),
        ({"excluded": ((0,),)}, "excluded"),
        ({"allowed": (np.array([True, True]), np.zeros(3, bool))}, "group 1"),
        ({"allowed": (np.array([True]), np.ones(3, bool))}, "every option"),
        ({"allowed": (np.array([True, True]),)}, "every option"),
    ],
)
def test_a_program_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(SpecError, match=message):
        Program(**{"objective": (zero_cost((2, 3)),), **arguments})


def test_a_limit_that_is_no_number_is_refused():
    with pytest.raises(SpecError, match="size"):
        Bound("size", (zero_cost((2,)),), float("nan"))

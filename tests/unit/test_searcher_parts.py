import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from trimtab.evaluators.measurement import Estimate, Measurement
from trimtab.search.budget import Budget
from trimtab.search.knowledge import Knowledge
from trimtab.search.problem import Problem
from trimtab.search.searcher import Suggestion, Verdict
from trimtab.search.searcher_contract import judge
from trimtab.search.searchers.cmaes_searcher import option_orders
from trimtab.search.searchers.descent import descend
from trimtab.search.searchers.evolution_searcher import build_evolution
from trimtab.search.searchers.fence import Fence
from trimtab.search.searchers.greedy_searcher import build_greedy
from trimtab.search.searchers.policy_gradient_searcher import build_policy_gradient
from trimtab.search.searchers.prices import PricedBound, Prices, all_prices, known_prices, row_of
from trimtab.search.searchers.roles import find_roles
from trimtab.search.searchers.tried import Tried
from trimtab.search.solver.additive_cost import AdditiveCost, weighted_sum
from trimtab.search.testing import fake_measurement, informed_problem, policy_of, small_problem, small_space
from trimtab.spaces.layer import Group
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import GraphOptions, Space
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

GRAPH = (0,) * 8


def random_cost(rng, n_groups=4, n_options=3):
    unary = tuple(rng.uniform(-1.0, 1.0, n_options) for _ in range(n_groups))
    pairs = {(0, 1): rng.uniform(-1.0, 1.0, (3, 3)), (1, 3): rng.uniform(-1.0, 1.0, (3, 3))}
    return AdditiveCost(float(rng.uniform()), unary, {**pairs, (0, 2, 3): rng.uniform(-1.0, 1.0, (3, 3, 3))})


def every_vector(n_groups=4, n_options=3, n_graph=8):
    choices = itertools.product(range(n_options), repeat=n_groups)
    return np.array([[*choice, *[0] * n_graph] for choice in choices])


def tried_with(problem, vectors):
    tried = Tried(problem.space)
    for vector in vectors:
        policy = policy_of(problem.space, vector)
        tried.inject(policy, judge(problem.space, Suggestion(0, policy)))
    return tried


def test_row_is_how_the_cost_changes_with_one_entry():
    rng = np.random.default_rng(0)
    cost = random_cost(rng)
    row, vector = row_of(cost), np.array([2, 0, 1, 1])
    for position in range(4):
        changed = np.repeat(vector[None], 3, axis=0)
        changed[:, position] = range(3)
        expected = cost.value(changed)
        assert row(vector, position) - row(vector, position)[0] == pytest.approx(expected - expected[0])


def test_weighted_sum_has_the_sum_of_the_values():
    rng = np.random.default_rng(1)
    first, second, vectors = random_cost(rng), random_cost(rng), every_vector()
    total = weighted_sum([(first, 2.0), (second, -0.5)])
    assert total.value(vectors) == pytest.approx(2.0 * first.value(vectors) - 0.5 * second.value(vectors))


@pytest.mark.parametrize("seed", range(20))
def test_walks_behind_a_fence_end_within_the_bounds(seed):
    rng = np.random.default_rng(seed)
    problem = small_problem(n_groups=4, n_options=3)
    costs = (random_cost(rng), random_cost(rng))
    vectors = every_vector()
    # a limit that three tenths of all policies keep
    peaks = np.max([cost.value(vectors) for cost in costs], axis=0)
    limit = float(np.quantile(peaks - peaks.min() + 1.0, 0.3))
    lifted = tuple(replace(cost, constant=cost.constant - peaks.min() + 1.0) for cost in costs)
    prices = Prices((), (PricedBound("peak_activation_bytes", lifted, limit),))
    fence = Fence(problem, prices, GRAPH, [])
    assert fence.bounds  # else nothing would be fenced in
    for _ in range(20):
        walk, vector = fence.open(), np.zeros(12, int)
        for group in range(4):
            allowed = np.flatnonzero(walk.allowed(group))
            vector[group] = rng.choice(allowed)
            walk.take(group, int(vector[group]))
        assert max(cost.value(vector[None])[0] for cost in lifted) <= limit * (1.0 + 1e-6)


def test_descent_without_edges_passes_the_policies_of_the_relaxed_knapsack():
    rng = np.random.default_rng(2)
    cost = AdditiveCost(0.0, tuple(np.array([0.0, *-rng.uniform(0, 1, 2)]) for _ in range(4)))
    influence = AdditiveCost(0.0, tuple(np.array([0.0, *rng.uniform(0, 1, 2)]) for _ in range(4)))
    vectors = every_vector(n_graph=0)
    costs, influences = cost.value(vectors), influence.value(vectors)
    path = np.array(descend(cost, influence, []))
    assert path[0].tolist() == [0] * 4
    assert cost.value(path)[-1] == pytest.approx(costs.min())
    # on the lower convex hull no policy has less cost + λ influence than the best of the path, for any λ
    for weight in np.geomspace(0.01, 100.0, 50):
        on_path = (cost.value(path) + weight * influence.value(path)).min()
        assert on_path == pytest.approx((costs + weight * influences).min())


def test_descent_takes_back_together_what_saves_only_together():
    # each of two neighbours alone costs more than none; another saves a little by itself
    pair = np.array([[0.0, 1.0], [1.0, -4.0]])
    cost = AdditiveCost(0.0, (np.zeros(2), np.zeros(2), np.array([0.0, -0.1])), {(0, 1): pair})
    influence = AdditiveCost(0.0, tuple(np.array([0.0, 1.0]) for _ in range(3)))
    path = [vector.tolist() for vector in descend(cost, influence, [])]
    assert path in ([[0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1]], [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]])


def test_influences_are_scaled_to_the_drops_that_were_measured():
    problem = informed_problem()
    scaled = replace(problem, knowledge=Knowledge(influence=tuple(50.0 * i for i in problem.knowledge.influence)))
    tried = tried_with(scaled, [[1, 0, 2, 0], [0, 3, 0, 1]])
    prices = known_prices(scaled, GRAPH, tried.known())
    (bound,) = prices.bounds
    vectors = every_vector(n_options=4)[::17]
    expected = [fake_measurement(problem.space, problem.space.decode(v)).accuracy_drop.mean for v in vectors]
    assert bound.costs[0].value(vectors) == pytest.approx(expected)


def test_without_results_the_bound_on_accuracy_has_no_price():
    assert known_prices(informed_problem(), GRAPH, []).bounds == ()


def test_learned_prices_tell_what_each_option_does():
    problem = small_problem()
    rng = np.random.default_rng(3)
    tried = tried_with(problem, rng.integers(0, 4, (60, 4)))
    prices = all_prices(problem, GRAPH, tried.known())
    vectors = every_vector(n_options=4)[::3]
    measured = [fake_measurement(problem.space, problem.space.decode(v)).latency.median_s for v in vectors]
    assert np.corrcoef(prices.value(vectors), measured)[0, 1] > 0.99


def test_roles_are_layers_whose_names_differ_in_numbers_only():
    names = ("block0.conv1", "block1.conv1", "block0.fc", "block1.fc")
    options = (tuple(QUANTIZE_OPTIONS.values())[:2],) * 3 + ((QUANTIZE_OPTIONS["none"],),)
    space = Space(tuple(Group(name, (name,)) for name in names), options, GraphOptions())
    # a layer without a choice belongs to no role
    assert find_roles(space) == [[0, 1], [2]]


def test_coordinates_of_cmaes_go_from_the_dearest_option_to_the_cheapest():
    problem = informed_problem(n_groups=1, n_options=4)
    latency = problem.knowledge.latency[GRAPH].unary[0]
    assert np.all(np.diff(latency[option_orders(problem)[0]]) <= 0.0)
    # without knowledge by bits of weight and input: none 32 + 32, float16 16 + 32, then the two kinds of int8
    assert option_orders(small_problem(n_groups=1, n_options=4))[0].tolist() == [0, 1, 2, 3]


def test_tried_policies_keep_their_order_and_verdicts_as_json():
    space = small_space()
    tried = Tried(space)
    verdicts = [Verdict(0, (math.nan,), 0.0), Verdict(1, None, math.inf), Verdict(2, (1.0, 2.0), math.inf)]
    for i in range(4):
        tried.suggest(policy_of(space, [i]))
    tried.tell([replace(v, measurement=Measurement(accuracy_drop=Estimate(0.1, 0.01, 9))) for v in verdicts[::-1]])
    tried.inject(policy_of(space, [0, 1]), Verdict(9, (3.0,), 0.5))
    restored = Tried(space)
    restored.load_state_dict(json.loads(json.dumps(tried.state_dict(), allow_nan=False)))
    assert list(restored.results) == list(tried.results)
    assert [result.merit for result in restored.results.values()] == [result.merit for result in tried.results.values()]
    assert [result.is_hopeless for result in restored.results.values()] == [False, True, False, False, False]
    assert (restored.pending, restored.n_suggested) == ({3: policy_of(space, [3])}, 4)


def test_population_of_evolution_forgets_what_is_old():
    space = small_space(n_groups=12)
    searcher = build_evolution(Problem(space, Budget()), seed=0)
    best = policy_of(space, [1] * 12)
    searcher.inject(best, Verdict(0, (0.0,), 0.0))
    young = [policy_of(space, [2] * 12), *itertools.islice(space.neighbours(policy_of(space, [2] * 12)), 30)]
    for policy in young:
        searcher.inject(policy, Verdict(0, (1.0,), 0.0))
    shared = [sum(best[group.name] == s.policy[group.name] for group in space.groups) for s in searcher.ask(8)]
    assert max(shared) <= 3  # only by mutation: a child of the best would share nine or more


def test_walks_of_an_informed_controller_keep_the_budget_from_the_first_batch():
    problem = informed_problem(n_groups=8, n_options=5)
    searcher = build_policy_gradient(problem, seed=0)
    given = policy_of(problem.space, [1] * 8)
    searcher.inject(given, judge(problem.space, Suggestion(0, given)))
    verdicts = [judge(problem.space, suggestion) for suggestion in searcher.ask(32)]
    assert [verdict.violation for verdict in verdicts] == [0.0] * 32


def test_greedy_bisects_the_order_of_moves():
    problem = informed_problem(n_groups=30, n_options=5)
    # influences that mislead in size, but not in order: the border cannot be guessed
    wrong = tuple(influence**1.5 for influence in problem.knowledge.influence)
    problem = replace(problem, knowledge=replace(problem.knowledge, influence=wrong))
    path = descend(problem.knowledge.latency[GRAPH], AdditiveCost(0.0, wrong), GRAPH)
    kept = [judge(problem.space, Suggestion(0, problem.space.decode(v))).violation == 0.0 for v in path]
    border = max(k for k, is_kept in enumerate(kept) if is_kept)
    searcher, seen = build_greedy(problem, seed=0), set()
    for _ in range(2 + math.ceil(math.log2(len(path)))):
        (suggestion,) = searcher.ask(1)
        seen.add(suggestion.policy)
        searcher.tell([judge(problem.space, suggestion)])
    assert {problem.space.decode(path[k]) for k in (border, border + 1)} <= seen


def test_greedy_for_accuracy_looks_for_the_first_policy_that_is_fast_enough():
    problem = replace(informed_problem(), budget=Budget(latency_s=0.0065, reference_s=0.010), objective="accuracy")
    searcher, best = build_greedy(problem, seed=0), math.inf
    for _ in range(12):
        (suggestion,) = searcher.ask(1)
        measurement = fake_measurement(problem.space, suggestion.policy)
        violation, drop = problem.budget.violation(measurement), measurement.accuracy_drop.mean
        searcher.tell([Verdict(suggestion.id, (drop,), violation, measurement)])
        best = min(best, drop) if violation == 0.0 else best
    every = [fake_measurement(problem.space, problem.space.decode(v)) for v in every_vector(n_options=4)]
    assert best == pytest.approx(min(m.accuracy_drop.mean for m in every if problem.budget.violation(m) == 0.0))


@pytest.mark.parametrize("build", [build_evolution, build_greedy, build_policy_gradient])
def test_space_without_a_choice_gives_its_only_policy(build):
    problem = small_problem(n_groups=2, n_options=1)
    assert [s.policy for s in build(problem, seed=0).ask(3)] == [Policy({})]

"""What a search believes, against formulas worked out another way."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats
from trimtab.evaluators.measurement import Estimate, Measurement
from trimtab.hw_profiles.latency import Latency
from trimtab.search.beliefs.additive_process import AdditiveProcess, Effects, Observations, Shape, fit_process
from trimtab.search.beliefs.beliefs import Trial, fit_beliefs
from trimtab.search.beliefs.quantity import bounded_quantities, objective_quantity
from trimtab.search.budget import Budget
from trimtab.search.knowledge import Knowledge
from trimtab.search.problem import Problem
from trimtab.search.solver.additive_cost import AdditiveCost
from trimtab.search.testing import fake_measurement, small_problem

EFFECTS = Effects(
    sizes=(np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.5]), np.array([0.0, 1.5, 1.0])),
    neighbours=((0, 1),),
    kinds=(np.array([0, 1, 2]), np.array([0, 1]), np.array([0, 1, 2])),
)
SHAPE = Shape(own=0.4, pair=0.3, likeness=0.6, misfit=0.01)
FAR = 0.3


def features(vectors):
    """The process as a linear model: one column for each effect, scaled by its standard deviation; no graph choices."""
    unit = sum(float(sizes.max()) ** 2 for sizes in EFFECTS.sizes)
    rows = []
    for vector in vectors:
        row = [np.sqrt(unit)]
        for group, sizes in enumerate(EFFECTS.sizes):
            row += [np.sqrt(SHAPE.own) * sizes[o] * (vector[group] == o) for o in range(1, len(sizes))]
        for kind in (1, 2):
            load = sum(s[vector[g]] for g, s in enumerate(EFFECTS.sizes) if EFFECTS.kinds[g][vector[g]] == kind)
            row.append(np.sqrt(1 - SHAPE.own) * load)
        for g in range(3):
            for h in range(g + 1, 3):
                scale = SHAPE.pair * (1.0 if (g, h) in EFFECTS.neighbours else FAR)
                for o in range(1, len(EFFECTS.sizes[g])):
                    for p in range(1, len(EFFECTS.sizes[h])):
                        both = vector[g] == o and vector[h] == p
                        # the deviation of a pair's effect is the geometric mean of the two groups'
                        row.append(scale * np.sqrt(EFFECTS.sizes[g][o] * EFFECTS.sizes[h][p]) * both)
        rows.append(row)
    return np.array(rows), unit


def every_vector():
    return np.array([[a, b, c] for a in range(3) for b in range(2) for c in range(3)])


def fitted(n_seen=7, variance=0.7):
    rng = np.random.default_rng(0)
    vectors = every_vector()[rng.permutation(18)[:n_seen]]
    seen = Observations(vectors, rng.normal(size=n_seen), rng.uniform(0.5, 2.0, n_seen))
    return AdditiveProcess(EFFECTS, seen, SHAPE, variance)


def test_the_posterior_is_that_of_a_linear_model_with_one_weight_for_each_effect():
    process = fitted()
    seen, unit = features(process.seen.vectors)
    noise = SHAPE.misfit * unit * process.seen.noises**2 + 1e-10 * unit
    precision = np.eye(seen.shape[1]) + seen.T @ (seen / noise[:, None])
    mean = np.linalg.solve(precision, seen.T @ (process.seen.residuals / noise))
    asked, _ = features(every_vector())
    variance = process.variance * (
        np.einsum("ij,ij->i", asked, np.linalg.solve(precision, asked.T).T) + SHAPE.misfit * unit
    )
    found_mean, found_deviation = process.predict(every_vector())
    assert found_mean == pytest.approx(asked @ mean, abs=1e-6)
    assert found_deviation == pytest.approx(np.sqrt(variance), rel=1e-5)


def test_the_mean_as_an_additive_cost_is_the_predicted_mean():
    process = fitted()
    cost = process.mean_cost((), max_pairs=3)
    assert cost.value(every_vector()) == pytest.approx(process.predict(every_vector())[0], abs=1e-9)


def test_pairs_that_are_no_neighbours_are_given_only_where_they_matter_most():
    process = fitted()
    every, none = process.mean_cost((), max_pairs=3), process.mean_cost((), max_pairs=0)
    one = process.mean_cost((), max_pairs=1)
    assert set(none.edges) == {(0, 1)}
    (kept,) = set(one.edges) - {(0, 1)}
    strengths = {edge: np.abs(table).max() for edge, table in every.edges.items() if edge != (0, 1)}
    assert kept == max(strengths, key=strengths.get)


def test_effects_in_another_setting_of_the_graph_count_less_the_more_choices_differ():
    effects = replace(EFFECTS, kinds=(), neighbours=())
    seen = Observations(np.array([[1, 0, 0, 0, 0]]), np.array([1.0]), np.ones(1))
    process = AdditiveProcess(effects, seen, replace(SHAPE, own=1.0, pair=0.0), 1.0)
    here, one, two = process.predict(np.array([[1, 0, 0, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 1, 2]]))[0]
    assert (one / here, two / one) == pytest.approx((0.6, 0.6))
    unary = [
        process.mean_cost(graph, max_pairs=0).value(np.array([[1, 0, 0]]))[0] for graph in ((0, 0), (1, 0), (1, 2))
    ]
    assert unary == pytest.approx([here, one, two])


def test_fitting_recovers_an_additive_truth_from_half_of_the_policies():
    truth = AdditiveCost(0.0, (np.array([0.0, -1.0, 2.0]), np.array([0.0, 0.4]), np.array([0.0, 1.0, -2.0])))
    vectors = every_vector()[np.random.default_rng(1).permutation(18)]
    process = fit_process(EFFECTS, Observations(vectors[:9], truth.value(vectors[:9]), np.ones(9)))
    mean, deviation = process.predict(vectors[9:])
    error = mean - truth.value(vectors[9:])
    assert np.abs(error).mean() < 0.25  # the values themselves spread over 5
    assert (np.abs(error) < 4 * deviation).all()


PROBLEM = small_problem()


def trials(n=12, seed=0):
    space = PROBLEM.space
    policies = list(dict.fromkeys(space.sample(np.random.default_rng(seed + i)) for i in range(n)))
    return [Trial(space.encode(policy), fake_measurement(space, policy)) for policy in policies]


def test_the_score_is_expected_improvement_times_the_probability_of_keeping_the_budget():
    beliefs = fit_beliefs(PROBLEM, trials())
    space = PROBLEM.space
    vectors = np.array([space.encode(space.sample(np.random.default_rng(100 + i))) for i in range(8)])
    means, deviations = beliefs.objective.predict(vectors)
    drop = beliefs.bounds[0]
    drops, drop_deviations = drop.predict(vectors)
    expected = []
    for mean, deviation, d, e in zip(means, deviations, drops, drop_deviations, strict=True):

        def gain(x, mean=mean, deviation=deviation):
            return max(beliefs.best - x, 0.0) * stats.norm.pdf(x, mean, deviation)

        # up to the best: beyond it there is nothing to gain
        improvement = integrate.quad(gain, mean - 12 * deviation, beliefs.best, limit=200)[0]
        expected.append(np.log(improvement) + stats.norm.logcdf(drop.quantity.limit, d, e))
    assert beliefs.score(vectors) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_score_stays_finite_far_from_anything_to_gain():
    beliefs = replace(fit_beliefs(PROBLEM, trials()), best=-1e3)
    scores = beliefs.score(np.array([PROBLEM.space.encode(PROBLEM.space.sample(np.random.default_rng(5)))]))
    assert np.isfinite(scores).all()
    assert scores[0] < -1e4


def test_the_best_is_the_smallest_objective_that_was_measured_within_the_budget():
    found = trials(20)
    kept = [t.measurement for t in found if PROBLEM.budget.violation(t.measurement) == 0.0]
    least_s = min(PROBLEM.budget.normalised_latency_s(m) for m in kept)
    assert fit_beliefs(PROBLEM, found).best == pytest.approx(least_s / PROBLEM.budget.reference_s)


def test_expecting_a_result_makes_it_certain_and_moves_no_mean():
    beliefs = fit_beliefs(PROBLEM, trials())
    vector = PROBLEM.space.encode(PROBLEM.space.sample(np.random.default_rng(50)))
    after = beliefs.conditioned(vector)
    for one, other in zip((beliefs.objective, *beliefs.bounds), (after.objective, *after.bounds), strict=True):
        (mean,), (deviation,) = one.predict(vector[None])
        (mean_after,), (deviation_after,) = other.predict(vector[None])
        assert mean_after == pytest.approx(mean, abs=1e-6)
        assert deviation_after < deviation


def test_policies_that_fail_are_believed_to_fail_again():
    space = PROBLEM.space
    failing = [Trial(space.encode(space.decode([1, i, j, 0, *[0] * 8])), None) for i in range(3) for j in range(3)]
    beliefs = fit_beliefs(PROBLEM, [*trials(), *failing])
    assert [b.quantity.name for b in beliefs.bounds] == ["accuracy_drop", "failure"]
    # option 1 in the first group always failed; without it nothing did
    often, never = np.array([[1, 3, 3, 0, *[0] * 8], [2, 3, 3, 0, *[0] * 8]])
    failure = beliefs.bounds[1]
    assert failure.predict(often[None])[0][0] > failure.predict(never[None])[0][0] + 0.2


def measured(latency_s=0.01, drop=0.0, size=1000):
    return Measurement(
        accuracy=Estimate(0.9 - drop, 0.001, 1000), accuracy_drop=Estimate(drop, 0.0, 1000),
        latency=Latency(latency_s, 0.0, 50, reference_s=0.01), size_bytes=size,
    )  # fmt: skip


@pytest.mark.parametrize("drop", [-0.02, 0.0, 0.001, 0.05, 0.6])
def test_drops_are_logarithms_of_what_is_left_and_can_be_read_back(drop):
    problem = Problem(PROBLEM.space, Budget(accuracy_drop=0.01, reference_s=0.01))
    (quantity,) = bounded_quantities(problem, [measured()])
    value = quantity.observe(measured(drop=drop))
    assert value == pytest.approx(-np.log(1 - drop / 0.9))
    assert quantity.readable(value, 0.0)[0] == pytest.approx(drop)
    # two layers that each lose a share of what is left: their logarithms add up
    assert quantity.readable(2 * value, 0.0)[0] == pytest.approx(0.9 * (1 - (1 - drop / 0.9) ** 2))


def test_a_bound_on_the_objective_itself_is_part_of_the_objective():
    bounded = Problem(PROBLEM.space, Budget(latency_s=0.004, reference_s=0.01))
    assert objective_quantity(bounded, [measured()]).limit == pytest.approx(0.4)
    assert bounded_quantities(bounded, [measured()]) == []
    sure = Problem(PROBLEM.space, Budget(latency_s=0.004, latency_confidence=0.95, reference_s=0.01))
    assert objective_quantity(sure, [measured()]).limit == np.inf
    assert [quantity.name for quantity in bounded_quantities(sure, [measured()])] == ["latency_s"]


def test_known_prices_are_the_mean_before_any_trial():
    sizes = tuple(np.array([0.0, -0.1, -0.2, -0.3]) for _ in range(4))
    knowledge = Knowledge(latency={(0,) * 8: AdditiveCost(1.0, sizes)})
    problem = Problem(PROBLEM.space, Budget(reference_s=0.01), knowledge=knowledge)
    untouched = Trial(np.zeros(12, np.int64), measured())
    (mean,), (deviation,) = fit_beliefs(problem, [untouched]).objective.predict(np.array([[3, 2, 1, 0, *[0] * 8]]))
    assert mean == pytest.approx(0.4, abs=0.02)
    assert 0.01 < deviation < 0.2

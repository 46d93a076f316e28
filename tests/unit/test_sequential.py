"""An artifact is stopped early only when it is clearly too bad: exact on tiny splits, by simulation on large ones."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from trimtab.evaluators.metrics import find_metric
from trimtab.evaluators.sequential import FALSE_STOP_RATE, ceiling_of, find_first, list_looks, log_wealth

N = 1000


def make_scores(n, *, wrong=0, regressed=0, improved=0):
    """0/1 scores of an original that is wrong on the first samples, and of an artifact that differs from it."""
    original = np.ones(n)
    original[:wrong] = 0.0
    artifact = original.copy()
    artifact[:improved] = 1.0
    artifact[n - regressed :] = 0.0
    return original, artifact


def wealth_after(original, artifact, order, k, max_drop):
    order = np.asarray(order)
    return math.exp(log_wealth(original[order], artifact[order][:k], max_drop=max_drop, ceiling=1.0))


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("changes", [{"regressed": 2}, {"wrong": 2, "regressed": 3, "improved": 1}])
def test_whoever_bets_against_an_artifact_on_its_bound_wins_nothing_on_average(changes, k):
    # over all orders of six samples, weighted equally: the very definition of the sampling, no formula
    original, artifact = make_scores(6, **changes)
    max_drop = float(np.mean(original - artifact))
    wealths = [wealth_after(original, artifact, order, k, max_drop) for order in itertools.permutations(range(6))]
    assert np.mean(wealths) == pytest.approx(1.0)


def test_whoever_bets_against_an_artifact_within_its_bound_loses_on_average():
    original, artifact = make_scores(6, wrong=2, regressed=1)
    wealths = [wealth_after(original, artifact, order, 4, 2 / 6) for order in itertools.permutations(range(6))]
    assert np.mean(wealths) < 1.0


@pytest.mark.parametrize("k", [1, 4, 9])
def test_a_stake_on_a_perfect_original_is_the_product_of_its_odds(k):
    # original always right, the first k of ten all regressed, bound 0.5: with i regressions seen, 5 - i of 10 - i are
    # left, so the i-th pays (10 - i) / (5 - i) for one
    stakes = (0.02, 0.1, 0.35, 0.8)
    original, artifact = make_scores(10, regressed=10)
    expected = [math.prod(1 + s * ((10 - i) / (5 - i) - 1) for i in range(min(k, 5))) for s in stakes]
    wealth = wealth_after(original, artifact, range(10), k, 0.5)
    assert wealth == (pytest.approx(np.mean(expected)) if k <= 5 else math.inf)


def test_what_cannot_be_made_up_for_is_certain_and_not_before():
    # 5 regressions of 300 are allowed; the original is wrong on 3, so with 8 of them they can just be made up for
    original, artifact = make_scores(300, wrong=3, regressed=9)
    order = np.arange(300)[::-1]  # regressions first, and all that could be improved last
    assert wealth_after(original, artifact, order, 8, 5 / 300) < math.inf
    assert wealth_after(original, artifact, order, 10, 5 / 300) == math.inf


@pytest.mark.parametrize(
    "changes",
    [{"regressed": 10}, {"wrong": 20, "regressed": 10}, {"wrong": 100, "regressed": 40, "improved": 30}],
)
def test_an_artifact_on_its_bound_is_stopped_no_more_often_than_stated(changes):
    original, artifact = make_scores(N, **changes)
    rng, n_runs, rate = np.random.default_rng(0), 400, 0.1
    looks = list_looks(N, batch_size=1)[:-1]
    stopped = 0
    for _ in range(n_runs):
        order = rng.permutation(N)
        stopped += any(wealth_after(original, artifact, order, k, 0.01) >= 1 / rate for k in looks)
    # were the true rate 0.1, so many stops would be seen once in a thousand times
    assert stopped <= scipy.stats.binom(n_runs, rate).ppf(0.999)
    assert stopped > 0  # the test has power: it is not met by never stopping


def rate_of_stops(look, **changes):
    original, artifact = make_scores(N, **changes)
    rng = np.random.default_rng(1)
    orders = [rng.permutation(N) for _ in range(60)]
    return np.mean([wealth_after(original, artifact, order, look, 0.01) >= 1 / FALSE_STOP_RATE for order in orders])


def test_a_clear_loser_is_stopped_at_the_first_look_and_a_plain_one_soon():
    first, second, third, fourth, _ = list_looks(N, batch_size=1)
    # half of the answers lost, a fifth, a tenth, a twentieth; the original is wrong on one in fifty, or one in ten
    assert rate_of_stops(first, wrong=100, regressed=500) == 1.0
    assert rate_of_stops(second, wrong=100, regressed=220, improved=20) > 0.9
    assert rate_of_stops(third, wrong=20, regressed=110, improved=10) > 0.9
    assert rate_of_stops(fourth, wrong=20, regressed=60, improved=10) > 0.9


def test_scores_without_a_lower_end_are_stopped_no_more_often_than_stated():
    # divergences with a heavy tail, whose mean over the split is the bound
    rng, n_runs, rate = np.random.default_rng(2), 300, 0.1
    original, artifact = np.zeros(N), -rng.pareto(1.5, N)
    max_drop = float(np.mean(original - artifact))
    stopped = 0
    for _ in range(n_runs):
        scores = artifact[rng.permutation(N)]
        stopped += any(
            log_wealth(original, scores[:k], max_drop=max_drop, ceiling=0.0) >= math.log(1 / rate)
            for k in (63, 250, 500)
        )
    assert stopped <= scipy.stats.binom(n_runs, rate).ppf(0.999)
    assert log_wealth(original, 5 * artifact[:500], max_drop=max_drop, ceiling=0.0) > math.log(1 / FALSE_STOP_RATE)


@pytest.mark.parametrize(
    ("n_samples", "batch_size", "expected"),
    [
        (256, 1, (256,)),
        (257, 1, (65, 129, 257)),
        (1000, 1, (63, 125, 250, 500, 1000)),
        (1000, 32, (64, 128, 256, 512, 1000)),
        (1000, 400, (400, 800, 1000)),
        (1000, 2000, (1000,)),
    ],
)
def test_looks_halve_the_split_in_whole_batches(n_samples, batch_size, expected):
    assert list_looks(n_samples, batch_size=batch_size) == expected


@pytest.mark.parametrize(("n_samples", "expected"), [(200, 200), (257, 129), (1000, 125), (10_000, 1250)])
def test_every_trial_is_scored_on_an_eighth_or_on_enough(n_samples, expected):
    assert find_first(list_looks(n_samples, batch_size=1)) == expected


def test_only_known_metrics_have_a_largest_score():
    ceilings = {name: ceiling_of(find_metric(name)) for name in ("accuracy", "top5", "agreement", "kl", "nll")}
    assert ceilings == {"accuracy": 1.0, "top5": 1.0, "agreement": 1.0, "kl": 0.0, "nll": 0.0}

    def accuracy(outputs, labels):
        return 100.0 * (outputs[0].argmax(1) == labels)

    assert ceiling_of(find_metric(accuracy)) is None

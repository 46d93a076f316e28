"""Every search algorithm keeps the contract; a new one is one line in FACTORIES."""

import itertools
import sys

import numpy as np
import pytest
from trimtab.core.errors import SpecError
from trimtab.search.searcher import Verdict
from trimtab.search.searcher_contract import (
    SEARCHER_CHECKS,
    check_goes_on_from_given_starts,
    check_is_deterministic,
    check_learns_from_what_was_injected,
    check_uses_knowledge,
    run_synthetic,
)
from trimtab.search.searchers.cmaes_searcher import build_cmaes
from trimtab.search.searchers.evolution_searcher import build_evolution
from trimtab.search.searchers.greedy_searcher import build_greedy
from trimtab.search.searchers.optuna_searcher import build_gp, build_nsga2, build_nsga3, build_tpe
from trimtab.search.searchers.policy_gradient_searcher import build_policy_gradient
from trimtab.search.searchers.random_searcher import build_random
from trimtab.search.testing import fake_measurement, informed_problem, small_problem, with_truth

#: these know what to do with knowledge
INFORMED = {"evolution": build_evolution, "policy_gradient": build_policy_gradient, "greedy": build_greedy}
MODEL_BASED = {
    "tpe": build_tpe,
    "nsga2": build_nsga2,
    "nsga3": build_nsga3,
    "gp": build_gp,
    "cmaes": build_cmaes,
    **INFORMED,
}
FACTORIES = {"random": build_random, **MODEL_BASED}


@pytest.mark.parametrize("check", SEARCHER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", FACTORIES)
def test_searcher_keeps_the_contract(name, check):
    if name == "gp":
        pytest.importorskip("torch")
    check(FACTORIES[name])


@pytest.mark.parametrize("name", MODEL_BASED)
def test_model_based_searcher_learns_from_injected_results(name):
    if name == "gp":
        pytest.importorskip("torch")
    check_learns_from_what_was_injected(MODEL_BASED[name])


@pytest.mark.parametrize("name", ["nsga2", "nsga3", "cmaes", "evolution"])
def test_searcher_goes_on_from_given_starts(name):
    check_goes_on_from_given_starts(FACTORIES[name])


@pytest.mark.parametrize("check", SEARCHER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["cmaes", *INFORMED])
def test_informed_searcher_keeps_the_contract(name, check):
    if name == "greedy" and check is check_is_deterministic:
        pytest.skip("with knowledge nothing is left to the seed")
    check(lambda problem, *, seed: FACTORIES[name](with_truth(problem), seed=seed))


@pytest.mark.parametrize("name", INFORMED)
def test_searcher_uses_knowledge(name):
    check_uses_knowledge(INFORMED[name])


def test_informed_greedy_finds_the_optimum_in_a_dozen_trials():
    problem = informed_problem(n_groups=5, n_options=4)
    # every one of the 1,024 policies
    vectors = itertools.product(range(4), repeat=5)
    measured = [fake_measurement(problem.space, problem.space.decode([*v, *[0] * 8])) for v in vectors]
    kept = [m.latency.median_s for m in measured if problem.budget.violation(m) == 0.0]
    found_s = run_synthetic(build_greedy(problem, seed=0), problem.space, n_trials=12)
    assert found_s == pytest.approx(min(kept))


# The lowest latency within the budget, 8 groups of 5 options (390,625 policies; the best has 3.28 ms), medians over
# seeds 0…9 measured when this was written: after 80 trials random 4.86 ms, TPE 4.20 ms, NSGA-II and NSGA-III 4.58 ms,
# CMA-ES 4.10 ms, policy gradient 4.31 ms, evolution 3.42 ms, greedy 3.28 ms (after 30 trials 8.9 ms: the first 32 go
# into single moves); after 30 trials random 5.18 ms, GP 4.39 ms (2 seeds). With knowledge of the truth: after 30 trials
# policy gradient 3.74 ms, evolution 3.67 ms, greedy 3.28 ms; CMA-ES 4.51 ms instead of 4.47 ms, it only orders by it.
# The search is deterministic, so 3 % is room for other versions of Optuna, not for luck.
@pytest.mark.parametrize(
    ("name", "n_trials", "n_seeds"),
    [
        ("tpe", 80, 10),
        ("nsga2", 80, 10),
        ("nsga3", 80, 6),
        ("gp", 30, 1),
        ("cmaes", 80, 5),
        ("evolution", 80, 5),
        ("policy_gradient", 80, 3),
        ("greedy", 80, 1),
    ],
)
def test_model_based_searcher_beats_random_search(name, n_trials, n_seeds):
    if name == "gp":
        pytest.importorskip("torch")
    problem = small_problem(n_groups=8, n_options=5)
    medians_s = {
        algorithm: np.median(
            [
                run_synthetic(FACTORIES[algorithm](problem, seed=s), problem.space, n_trials=n_trials)
                for s in range(n_seeds)
            ]
        )
        for algorithm in ("random", name)
    }
    assert medians_s[name] < 0.97 * medians_s["random"]


def test_gp_without_torch_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SpecError, match=r"pip install 'trimtab\[gp\]'"):
        build_gp(small_problem(), seed=0)


def test_searcher_makes_no_sound(capfd, recwarn):
    searcher = build_tpe(small_problem(), seed=0)
    searcher.tell([Verdict(suggestion.id, (1.0,), 0.0) for suggestion in searcher.ask(12)])
    searcher.ask(2)
    assert (capfd.readouterr(), list(recwarn)) == (("", ""), [])

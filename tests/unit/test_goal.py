"""What can still be made of a trial, by what was measured of it."""

from dataclasses import replace

import pytest
from trimtab.evaluators.measurement import Estimate, Measurement
from trimtab.hw_profiles.energy.energy import Energy
from trimtab.hw_profiles.latency import Latency
from trimtab.search.answer import find_best
from trimtab.search.budget import Budget
from trimtab.search.controller import SearchPlan, SilentObserver, run_search
from trimtab.search.goal import Goal
from trimtab.search.inline_pool import InlinePool
from trimtab.search.journal import Journal
from trimtab.search.problem import Problem
from trimtab.search.record import Status
from trimtab.search.testing import N_SAMPLES, REFERENCE_S, FakeBenchFactory, small_space
from trimtab.search.worker_pool import Limits

SPACE = small_space()
BUDGET = Budget(accuracy_drop=0.02, reference_s=REFERENCE_S)

MEASURED = Measurement(
    accuracy=Estimate(0.9, 0.01, 100),
    accuracy_drop=Estimate(0.05, 0.01, 100),
    latency=Latency(0.003, 0.0001, 30, reference_s=0.006),
    size_bytes=3_000_000,
    energy=Energy(0.002, 0.0, 1, "rapl"),
)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Budget(latency_s=0.004), ""),
        (Budget(latency_s=0.002), "its latency of 3 ms is above 2 ms"),
        # in a minute in which the original takes 4 ms, this would take 2
        (Budget(latency_s=0.0025, reference_s=0.004), ""),
        (Budget(size_bytes=2e6), "its size of 3 MB is above 2 MB"),
        (Budget(energy_j=0.001), "its energy of 2 mJ is above 1 mJ"),
        (Budget(energy_j=0.001, energy_source="nvml"), "its energy is not known"),
        (Budget(peak_memory_bytes=1e6), "its peak_memory is not known"),
        # whether the accuracy is good enough is for the test of its samples to say
        (Budget(accuracy_drop=0.01), ""),
    ],
)
def test_a_bound_that_is_exceeded_rules_out(budget, expected):
    assert Goal("latency", budget).rules_out(MEASURED) == expected


@pytest.mark.parametrize(
    ("objective", "best", "expected"),
    [
        ("latency", 0.002, "its latency is worse than that of the best so far"),
        ("latency", 0.003, ""),
        ("latency", None, ""),
        ("size", 2e6, "its size is worse than that of the best so far"),
        ("size", 3e6, ""),
        ("energy", 0.001, "its energy is worse than that of the best so far"),
        ("peak_memory", 1e6, "its peak_memory is not known"),
        ("accuracy", 0.0, ""),
    ],
)
def test_what_is_worse_than_the_best_is_ruled_out_and_its_equal_is_not(objective, best, expected):
    assert Goal(objective, Budget(), best).rules_out(MEASURED) == expected


def test_an_accuracy_stands_on_all_samples_or_on_a_part():
    assert MEASURED.is_scored_on(100)
    assert not MEASURED.is_scored_on(101)
    assert not Measurement().is_scored_on(1)


class GoalPool(InlinePool):
    """Gives every job the same goal, and may be interrupted after some outcomes."""

    def __init__(self, n_outcomes=1000):
        super().__init__(FakeBenchFactory(SPACE), Limits())
        self._n_left = n_outcomes

    def run(self, jobs):
        goal = Goal("latency", BUDGET, best=0.6 * REFERENCE_S)
        for outcome in super().run([replace(job, goal=goal) for job in jobs]):
            if not self._n_left:
                raise KeyboardInterrupt
            self._n_left -= 1
            yield outcome


def test_a_search_with_goals_goes_on_from_its_journal_as_if_it_had_not_stopped(tmp_path):
    plan = SearchPlan(Problem(SPACE, BUDGET), algorithm="tpe", n_trials=40, batch_size=8)
    with Journal.create(tmp_path / "whole", {}) as journal:
        expected = [replace(r, cost_s=0.0) for r in run_search(plan, GoalPool(), journal, SilentObserver())]
    kinds = {(r.status, r.measurement.is_scored_on(N_SAMPLES)) for r in expected}
    assert kinds == {(Status.PRUNED, False), (Status.COMPLETE, False), (Status.COMPLETE, True)}

    with Journal.create(tmp_path / "cut", {}) as journal, pytest.raises(KeyboardInterrupt):
        run_search(plan, GoalPool(21), journal, SilentObserver())
    with Journal.open(tmp_path / "cut") as journal:
        assert len(journal.records) == 21
        records = run_search(plan, GoalPool(), journal, SilentObserver())
    assert [replace(r, cost_s=0.0) for r in records] == expected
    with Journal.open(tmp_path / "cut") as journal:
        assert journal.records == records


def test_the_answer_of_a_search_was_scored_in_full(tmp_path):
    plan = SearchPlan(Problem(SPACE, BUDGET), algorithm="tpe", n_trials=60, batch_size=8)
    with Journal.create(tmp_path / "journal", {}) as journal:
        records = run_search(plan, GoalPool(), journal, SilentObserver())
    best = find_best(records, BUDGET, "latency")
    assert best.measurement.latency.median_s <= 0.6 * REFERENCE_S
    assert best.measurement.is_scored_on(N_SAMPLES)

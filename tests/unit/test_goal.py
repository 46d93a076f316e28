"""What can still be made of a trial, by what was measured of it."""

import pytest
from trimtab.evaluators.measurement import Estimate, Measurement
from trimtab.hw_profiles.energy.energy import Energy
from trimtab.hw_profiles.latency import Latency
from trimtab.search.budget import Budget
from trimtab.search.goal import Goal

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

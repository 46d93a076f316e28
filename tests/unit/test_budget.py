import math

import pytest
from trimtab.evaluators.measurement import Estimate, Measurement
from trimtab.hw_profiles.energy.energy import Energy
from trimtab.hw_profiles.latency import Latency
from trimtab.search.budget import Budget, pessimistic


def test_violation_is_zero_without_bounds():
    assert Budget().violation(Measurement()) == 0.0


def test_violation_adds_up_relative_excesses():
    budget = Budget(size_bytes=100, peak_memory_bytes=200)
    assert budget.violation(Measurement(size_bytes=150, peak_memory_bytes=300)) == 1.0


def test_bound_is_kept_by_its_own_value():
    assert Budget(size_bytes=100).violation(Measurement(size_bytes=100)) == 0.0


def test_missing_number_violates_its_bound_infinitely():
    assert Budget(latency_s=1.0).violation(Measurement()) == math.inf


def test_accuracy_drop_of_zero_is_a_usable_bound():
    budget = Budget(accuracy_drop=0.0)
    assert budget.violation(Measurement(accuracy_drop=Estimate(0.01, 0.0, 100))) == pytest.approx(1.0)


def test_accuracy_drop_is_judged_with_its_uncertainty():
    # 0.8416 is the 80 % quantile of the normal distribution, from a printed table
    assert pessimistic(Estimate(0.01, 0.01, 100), 0.8) == pytest.approx(0.01 + 0.8416 * 0.01, abs=1e-6)


def test_latency_is_normalised_by_the_reference_of_its_own_minutes():
    slow_minute = Latency(0.010, 0.0, 30, reference_s=0.020)
    assert Budget(reference_s=0.008).normalised_latency_s(Measurement(latency=slow_minute)) == pytest.approx(0.004)


def test_latency_without_reference_is_taken_as_it_is():
    assert Budget(reference_s=0.008).normalised_latency_s(Measurement(latency=Latency(0.01, 0.0, 30))) == 0.01


def test_energy_is_bounded_whatever_its_source():
    assert Budget(energy_j=2.0).violation(Measurement(energy=Energy(3.0, 0.0, 1, "rapl"))) == 0.5


def test_missing_energy_violates_its_bound_infinitely():
    assert Budget(energy_j=2.0).violation(Measurement()) == math.inf


def test_energy_of_another_source_than_the_originals_is_as_good_as_missing():
    budget = Budget(energy_j=2.0, energy_source="rapl")
    assert budget.violation(Measurement(energy=Energy(1.0, 0.0, 0, "table: x"))) == math.inf
    assert budget.violation(Measurement(energy=Energy(1.0, 0.0, 9, "rapl"))) == 0.0


def test_excesses_name_only_the_bounds_that_are_set():
    assert Budget(size_bytes=100).excesses(Measurement(size_bytes=200)) == [("size_bytes", 1.0)]


def test_latency_can_be_asked_to_keep_its_bound_with_95_percent_confidence():
    # the standard error of a normal median: 1.2533 σ / √n with σ = IQR / 1.349; 1.6449 is the 95 % quantile
    latency = Latency(0.010, 0.001349, 100)
    upper_s = 0.010 + 1.6449 * 1.2533 * 0.001 / 10
    assert Budget(latency_s=upper_s + 1e-6, latency_confidence=0.95).violation(Measurement(latency=latency)) == 0.0
    assert Budget(latency_s=upper_s - 1e-6, latency_confidence=0.95).violation(Measurement(latency=latency)) > 0.0
    assert Budget(latency_s=0.010).violation(Measurement(latency=latency)) == 0.0


def test_a_price_states_its_own_error():
    priced = Latency(0.010, 0.0, 0, source="table", standard_error_s=0.002)
    budget = Budget(latency_s=0.012, latency_confidence=0.95)
    assert budget.violation(Measurement(latency=priced)) == pytest.approx(
        (0.010 + 1.6449 * 0.002) / 0.012 - 1, abs=1e-4
    )

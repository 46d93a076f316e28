import pytest
from trimtab.core.errors import SpecError
from trimtab.evaluators.measurement import Estimate, Measurement
from trimtab.hw_profiles.energy.energy import Energy
from trimtab.hw_profiles.latency import Latency
from trimtab.search.answer import answer, describe_relaxation, find_best
from trimtab.search.budget import Budget
from trimtab.search.record import Record, Status
from trimtab.spaces.policy import Policy


def make_record(record_id, latency_s=1.0, drop=0.0, size_bytes=100, *, status=Status.COMPLETE, peak=50, joules=1.0):
    measurement = Measurement(
        accuracy_drop=Estimate(drop, 0.0, 100),
        latency=Latency(latency_s, 0.0, 30),
        size_bytes=size_bytes,
        peak_memory_bytes=peak,
        energy=Energy(joules, 0.0, 1, "rapl"),
    )
    return Record(record_id, Policy({}), status, measurement, 1.0, 0, "test")


@pytest.mark.parametrize(
    ("objective", "best_id"), [("latency", 0), ("accuracy", 1), ("size", 2), ("peak_memory", 3), ("energy", 4)]
)
def test_best_follows_the_objective(objective, best_id):
    records = [
        make_record(0, latency_s=0.5, drop=0.1, size_bytes=90, peak=60),
        make_record(1, latency_s=0.9, drop=0.0, size_bytes=90, peak=60),
        make_record(2, latency_s=0.9, drop=0.1, size_bytes=10, peak=60),
        make_record(3, latency_s=0.9, drop=0.1, size_bytes=90, peak=10),
        make_record(4, latency_s=0.9, drop=0.1, size_bytes=90, peak=60, joules=0.5),
    ]
    assert answer(records, Budget(), objective).best.id == best_id


def test_best_keeps_the_budget_even_when_others_are_better():
    records = [make_record(0, latency_s=0.1, drop=0.5), make_record(1, latency_s=0.9)]
    assert answer(records, Budget(accuracy_drop=0.01), "latency").best.id == 1


def test_best_is_complete():
    records = [make_record(0, latency_s=0.1, status=Status.FAILED), make_record(1)]
    assert answer(records, Budget(), "latency").best.id == 1


def test_ties_go_to_the_smaller_drop_then_size_then_to_the_earlier_trial():
    records = [make_record(3, drop=0.1), make_record(2, size_bytes=50), make_record(1), make_record(0)]
    assert find_best(records, Budget(), "latency").id == 2
    assert find_best(records[2:], Budget(), "latency").id == 0


def test_reachable_budget_needs_no_relaxation():
    found = answer([make_record(0)], Budget(latency_s=2.0), "latency")
    assert (found.nearest, found.relaxations) == (None, {})


def test_unreachable_budget_gets_the_nearest_point_and_what_each_bound_would_have_to_be():
    records = [
        make_record(0, latency_s=1.0, size_bytes=100),
        make_record(1, latency_s=3.0, size_bytes=40),
        make_record(2, latency_s=2.5, size_bytes=50),
    ]
    found = answer(records, Budget(latency_s=2.0, size_bytes=50, accuracy_drop=0.0), "latency")
    assert found.best is None
    assert found.nearest.id == 2  # excess 0.25, against 1.0 and 0.5
    assert found.relaxations == {"latency_s": 2.5, "size_bytes": 100, "accuracy_drop": None}


def test_relaxed_bound_makes_a_record_feasible():
    records = [make_record(0, latency_s=3.0), make_record(1, latency_s=2.5)]
    relaxed = answer(records, Budget(latency_s=2.0), "latency").relaxations["latency_s"]
    assert find_best(records, Budget(latency_s=relaxed), "latency").id == 1


def test_no_records_give_an_empty_answer():
    found = answer([], Budget(latency_s=1.0), "latency")
    assert (found.best, found.pareto, found.nearest, found.relaxations) == (None, (), None, {"latency_s": None})


def test_unknown_objective_is_refused_with_the_nearest_name():
    with pytest.raises(SpecError, match="did you mean 'latency'"):
        answer([], Budget(), "latncy")


def test_relaxation_is_described_in_a_persons_units():
    assert describe_relaxation("latency_s", 0.0031) == "latency 3.1 ms"
    with pytest.raises(SpecError, match="no bound is called speed"):
        describe_relaxation("speed", 1.0)

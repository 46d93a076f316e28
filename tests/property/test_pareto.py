from hypothesis import given
from hypothesis import strategies as st
from trimtab.evaluators.measurement import Estimate, Measurement
from trimtab.hw_profiles.latency import Latency
from trimtab.search.budget import Budget
from trimtab.search.pareto import pareto_front, pareto_records
from trimtab.search.record import Record, Status
from trimtab.spaces.policy import Policy

axes = st.integers(min_value=-3, max_value=3).map(float)
points_3d = st.lists(st.tuples(axes, axes, axes), max_size=30)


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@given(points_3d)
def test_front_equals_the_brute_force_front(points):
    expected = [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]
    assert pareto_front(points) == expected


@given(points_3d)
def test_every_point_off_the_front_is_dominated_by_one_on_it(points):
    front = pareto_front(points)
    off = [point for i, point in enumerate(points) if i not in front]
    assert all(any(dominates(points[i], point) for i in front) for point in off)


def make_record(record_id, latency_s, drop, size_bytes, status=Status.COMPLETE):
    measurement = Measurement(
        accuracy_drop=Estimate(drop, 0.0, 10), latency=Latency(latency_s, 0.0, 30), size_bytes=size_bytes
    )
    return Record(record_id, Policy({}), status, measurement, 1.0, 0, "test")


def test_front_of_records_leaves_out_failures_and_repetitions_and_begins_with_the_fastest():
    records = [
        make_record(0, 3.0, 0.0, 10),
        make_record(1, 1.0, 0.1, 5),
        make_record(2, 1.0, 0.1, 5),
        make_record(3, 0.5, 0.0, 1, status=Status.FAILED),
        make_record(4, 2.0, 0.2, 6),
    ]
    assert [record.id for record in pareto_records(records, Budget())] == [1, 0]

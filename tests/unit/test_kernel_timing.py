"""Times that are brought to one speed of the machine."""

from collections import Counter

import numpy as np
import pytest
from trimtab.evaluators.device import build_device
from trimtab.evaluators.kernel_timing import SteadyTimer, find_usual_s
from trimtab.evaluators.testing import example_artifact
from trimtab.hw_profiles.kernels.kernel_table import GraphObservation, KernelTable
from trimtab.hw_profiles.kernels.table_identity import TableIdentity
from trimtab.hw_profiles.latency import Latency
from trimtab.hw_profiles.target import Target

BATCH = {"x": np.ones((1, 8), np.float32)}


@pytest.fixture
def device():
    return build_device(Target("onnxruntime"))


@pytest.fixture
def timer(device):
    return SteadyTimer(device, device.load(example_artifact()), BATCH)


def test_latencies_of_slow_minutes_become_those_of_the_first(timer):
    first = timer.steady(Latency(0.004, 0.0002, 30, reference_s=0.008))
    later = timer.steady(Latency(0.006, 0.0003, 30, reference_s=0.012))
    assert first.median_s == 0.004
    assert (later.median_s, later.iqr_s, later.reference_s) == pytest.approx((0.004, 0.0002, 0.008))


def test_a_given_speed_rules_from_the_start(device, timer):
    timer.usual_s = 0.002
    assert timer.steady(Latency(0.004, 0.0, 30, reference_s=0.008)).median_s == pytest.approx(0.001)


def test_kernels_are_scaled_like_the_whole(device, timer):
    plain = timer.time_kernels(example_artifact(), runs=5)
    # the original takes a second at this speed, and in truth some ten microseconds
    slow = SteadyTimer(device, timer.original, BATCH, usual_s=1.0).time_kernels(example_artifact(), runs=5)
    assert sum(t.median_s for t in slow) > 1000 * sum(t.median_s for t in plain)


def test_the_speed_of_a_table_is_what_the_original_took_in_it(device):
    table = KernelTable(TableIdentity.of(device.identify()))
    assert find_usual_s(device, example_artifact(), table, model="m") is None
    timings = device.time_kernels(example_artifact(), BATCH, runs=5)
    table.add(timings, "here")
    counts = Counter(timing.kernel for timing in timings)
    # ten times as long as its kernels by themselves: another day, another speed
    whole_s = 10 * sum(timing.median_s for timing in timings)
    for number in range(8):
        latency = Latency(whole_s, 0.0, 30)
        table.add_graph(GraphObservation.of(counts, latency, model="m", source=f"here {number}"), counts)
    assert find_usual_s(device, example_artifact(), table, model="m") == pytest.approx(whole_s, rel=0.05)

"""The null test, with a clock that follows a script."""

import numpy as np
import pytest
from trimtab.core.errors import MeasurementError
from trimtab.evaluators.latency import TimingSettings
from trimtab.evaluators.quietness import NullTest, Quietness, require_quiet, run_null_test
from trimtab.evaluators.testing import SimulatedDevice, example_artifact
from trimtab.hw_profiles.target import Target

INPUTS = {"x": np.zeros((1, 1))}
BRIEF = TimingSettings(min_runs=10, min_time_s=0.0, warm_up_runs=1)


class Stage:
    """A device whose copies take scripted times, and the clock that shows them."""

    def __init__(self, *durations_s):
        self.now_ns = 0
        self._durations_s = list(durations_s)

    def load(self, artifact):
        return Actor(self, self._durations_s.pop(0))

    def clock(self):
        return self.now_ns


class Actor:
    """One copy; ``duration_s`` maps the seconds that have passed to those of the next run."""

    def __init__(self, stage, duration_s):
        self.stage, self.duration_s = stage, duration_s

    def run(self, inputs):
        duration_s = self.duration_s(self.stage.now_ns / 1e9)
        self.stage.now_ns += round(duration_s * 1e9)
        return []


def _run(*durations_s):
    stage = Stage(*durations_s)
    return run_null_test(stage, None, INPUTS, BRIEF, clock=stage.clock)


@pytest.mark.alone
def test_two_equal_copies_do_not_differ():
    test = _run(lambda _: 0.01, lambda _: 0.01)
    assert (test.deviation, test.low, test.high) == (0, 0, 0)
    assert require_quiet(test) == 0.0


def test_what_slows_both_copies_alike_does_no_harm():
    def slower(now_s):
        return 0.01 if now_s < 0.6 else 0.013

    test = _run(slower, slower)
    assert test.verdict() == "quiet"


def test_a_copy_that_is_always_slower_is_seen():
    test = _run(lambda _: 0.01, lambda _: 0.0105)
    assert (test.deviation, test.low, test.high) == pytest.approx((0.05, 0.05, 0.05))


def test_the_interval_spans_the_blocks():
    def slower_later(now_s):
        return 0.01 if now_s < 0.5 else 0.0104

    test = _run(lambda _: 0.01, slower_later)
    assert test.low == pytest.approx(0.0)
    assert test.high == pytest.approx(0.04)
    assert test.worst == pytest.approx(0.04)


def test_a_noisy_machine_widens_errors_by_the_worst_that_the_interval_allows():
    test = NullTest(0.01, -0.06, 0.03)
    assert test.verdict() == "noisy"
    assert require_quiet(test) == 0.06


def test_an_unquiet_machine_is_refused_with_the_figures():
    with pytest.raises(MeasurementError, match=r"by \+9\.0% \(from \+1\.0% to \+22\.0%\); close what"):
        require_quiet(NullTest(0.09, 0.01, 0.22))


def test_the_limits_are_the_callers():
    strict = Quietness(quiet=0.001, refused=0.01)
    assert require_quiet(NullTest(0.0, 0.0, 0.005), strict) == 0.005
    with pytest.raises(MeasurementError, match="less than 1%"):
        require_quiet(NullTest(0.0, 0.0, 0.02), strict)


def test_a_simulated_device_is_quiet():
    device = SimulatedDevice(Target("simulated"))
    test = run_null_test(device, example_artifact(), INPUTS)
    assert test == NullTest(0.0, 0.0, 0.0)

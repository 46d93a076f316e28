"""Timing with executables and a clock that follow a script."""

import gc
import os

import numpy as np
import pytest
import scipy.stats
from filelock import FileLock
from trimtab.core.errors import MeasurementError, SpecError
from trimtab.evaluators.latency import TimingSettings, measure_latency, measure_together, median_interval, pin_cores
from trimtab.evaluators.timing_lock import timing_lock_path

INPUTS = {"x": np.zeros((1, 1))}


class Stage:
    """A clock that moves only while an executable runs, and a log of who ran."""

    def __init__(self):
        self.now_ns = 0
        self.log = []

    def clock(self):
        return self.now_ns

    def executable(self, name, duration_s):
        """Makes an executable; ``duration_s`` maps how often it has run to seconds."""
        return Actor(self, name, duration_s)


class Actor:
    def __init__(self, stage, name, duration_s):
        self.stage, self.name, self.duration_s, self.runs = stage, name, duration_s, 0

    def run(self, inputs):
        self.stage.log.append(self.name)
        self.stage.now_ns += round(self.duration_s(self.runs) * 1e9)
        self.runs += 1
        return []


class SelfTimed:
    def __init__(self, simulated_latency_s):
        self.simulated_latency_s = simulated_latency_s

    def run(self, inputs):
        raise RuntimeError("a self-timing executable is not run")


@pytest.fixture(autouse=True)
def own_lock(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def stage():
    return Stage()


def constant(seconds):
    return lambda _: seconds


def noisy(seconds, spread, seed=0):
    rng = np.random.default_rng(seed)
    return lambda _: seconds * (1 + spread * rng.uniform(-1, 1))


def test_median_iqr_and_reference_are_those_of_the_script(stage):
    steps = np.random.default_rng(0).permutation(np.linspace(0.001, 0.0014, 30))
    candidate = stage.executable("c", lambda run: steps[(run - 6) % 30])
    latency = measure_latency(
        candidate,
        stage.executable("r", constant(0.002)),
        INPUTS,
        TimingSettings(min_time_s=0.0),
        clock=stage.clock,
    )
    low, median, high = np.percentile(steps, [25, 50, 75])
    assert (median, high - low, 30, 0.002) == pytest.approx(
        (latency.median_s, latency.iqr_s, latency.runs, latency.reference_s), abs=1e-8
    )
    assert latency.source == "measured"


def test_runs_alternate_and_so_does_who_goes_first(stage):
    measure_latency(
        stage.executable("c", constant(0.001)),
        stage.executable("r", constant(0.002)),
        INPUTS,
        TimingSettings(min_time_s=0.0),
        clock=stage.clock,
    )
    timed = "".join(stage.log[-60:])
    assert timed == "rccr" * 15


def test_three_executables_take_turns(stage):
    actors = [stage.executable(name, constant(0.001)) for name in "abc"]
    latencies = measure_together(actors, INPUTS, TimingSettings(min_time_s=0.0), clock=stage.clock)
    assert "".join(stage.log[-90:]) == "abcbcacab" * 10
    assert [latency.runs for latency in latencies] == [30, 30, 30]


def test_every_latency_refers_to_the_first_executable(stage):
    actors = [stage.executable("a", constant(0.004)), stage.executable("b", constant(0.001))]
    latencies = measure_together(actors, INPUTS, TimingSettings(), clock=stage.clock)
    assert [latency.ratio for latency in latencies] == [1.0, 0.25]


def test_short_runs_are_repeated_until_the_minimum_time_is_filled(stage):
    actors = [stage.executable(name, constant(0.001)) for name in "ab"]
    (latency, _) = measure_together(actors, INPUTS, TimingSettings(min_time_s=0.3), clock=stage.clock)
    assert latency.runs == 150


def test_there_are_never_more_runs_than_the_maximum(stage):
    actors = [stage.executable(name, constant(1e-6)) for name in "ab"]
    (latency, _) = measure_together(actors, INPUTS, TimingSettings(max_runs=200), clock=stage.clock)
    assert latency.runs == 200


def test_slow_models_stop_at_the_time_limit_and_tell_how_often_they_ran(stage):
    actors = [stage.executable(name, constant(1.0)) for name in "ab"]
    (latency, _) = measure_together(actors, INPUTS, TimingSettings(max_time_s=20.0), clock=stage.clock)
    assert latency.runs == 10


def test_slow_first_runs_belong_to_the_warm_up(stage):
    def cold(run):
        return 0.1 if run < 5 else 0.001

    latency = measure_latency(
        stage.executable("c", cold), stage.executable("r", cold), INPUTS, TimingSettings(), clock=stage.clock
    )
    assert pytest.approx((latency.median_s, latency.iqr_s)) == (0.001, 0.0)


def test_a_single_long_interruption_is_tolerated(stage):
    candidate = stage.executable("c", lambda run: 5.0 if run == 20 else 0.001)
    latency = measure_latency(
        candidate, stage.executable("r", constant(0.001)), INPUTS, TimingSettings(), clock=stage.clock
    )
    assert latency.median_s == pytest.approx(0.001)


def test_the_noise_of_a_shared_machine_is_tolerated(stage):
    latency = measure_latency(
        stage.executable("c", noisy(0.001, 0.3, seed=1)),
        stage.executable("r", noisy(0.002, 0.3, seed=2)),
        INPUTS,
        TimingSettings(),
        clock=stage.clock,
    )
    assert latency.ratio == pytest.approx(0.5, rel=0.1)


def test_a_machine_that_slows_down_for_both_is_tolerated(stage):
    def slowing(seconds):
        return lambda run: seconds * (1.0 if run < 60 else 1.4)

    latency = measure_latency(
        stage.executable("c", slowing(0.001)),
        stage.executable("r", slowing(0.002)),
        INPUTS,
        TimingSettings(),
        clock=stage.clock,
    )
    assert latency.ratio == pytest.approx(0.5)


def test_times_that_spread_too_far_are_refused_with_the_spread(stage):
    candidate = stage.executable("c", lambda run: 0.01 if run % 10 in (0, 3, 6) else 0.002)
    with pytest.raises(MeasurementError, match=r"in 5 attempts the spread \(interquartile range over median\) was"):
        measure_latency(candidate, stage.executable("r", constant(0.001)), INPUTS, TimingSettings(), clock=stage.clock)


def test_times_that_jump_between_two_levels_are_refused(stage):
    candidate = stage.executable("c", lambda run: 0.001 if run % 4 < 2 else 0.0015)
    with pytest.raises(MeasurementError, match="the median was known to"):
        measure_latency(candidate, stage.executable("r", constant(0.001)), INPUTS, TimingSettings(), clock=stage.clock)


def test_a_wide_spread_is_tolerated_when_there_are_enough_runs(stage):
    latency = measure_latency(
        stage.executable("c", noisy(0.001, 0.5, seed=1)),
        stage.executable("r", noisy(0.002, 0.5, seed=2)),
        INPUTS,
        TimingSettings(min_time_s=0.9),
        clock=stage.clock,
    )
    assert latency.ratio == pytest.approx(0.5, rel=0.1)


def test_a_ratio_that_moves_is_refused(stage):
    candidate = stage.executable("c", lambda run: 0.001 * 1.02**run)
    settings = TimingSettings(min_time_s=0.0, attempts=1)
    with pytest.raises(MeasurementError, match="ratio to the original moved by"):
        measure_latency(candidate, stage.executable("r", constant(0.001)), INPUTS, settings, clock=stage.clock)


def test_an_unquiet_spell_is_timed_again(stage):
    candidate = stage.executable("c", lambda run: 0.001 if run > 60 or run % 4 < 2 else 0.004)
    settings = TimingSettings(min_time_s=0.0)
    latency = measure_latency(candidate, stage.executable("r", constant(0.001)), INPUTS, settings, clock=stage.clock)
    assert latency.median_s == pytest.approx(0.001)


@pytest.mark.parametrize(("attempts", "seconds"), [(1, 1), (2, 1 + 2), (3, 1 + 2 + 4), (4, 1 + 2 + 4 + 4)])
def test_each_attempt_takes_twice_as_long_as_the_one_before_up_to_the_longest(stage, attempts, seconds):
    candidate = stage.executable("c", lambda run: 0.01 if run % 10 in (0, 3, 6) else 0.002)
    settings = TimingSettings(warm_up_runs=0, min_time_s=1.0, max_time_s=4.0, max_runs=300, attempts=attempts)
    with pytest.raises(MeasurementError, match=f"in {attempts} attempts"):
        measure_together([candidate], INPUTS, settings, clock=stage.clock)
    assert stage.now_ns / 1e9 == pytest.approx(seconds, abs=0.05)


def test_runs_too_short_for_the_clock_are_refused(stage):
    actors = [stage.executable(name, constant(0.0)) for name in "ab"]
    with pytest.raises(MeasurementError, match="less than the clock can tell"):
        measure_together(actors, INPUTS, TimingSettings(), clock=stage.clock)


def test_garbage_is_not_collected_while_timing_but_afterwards_again(stage):
    seen = []
    actor = stage.executable("a", lambda run: seen.append(gc.isenabled()) or 0.001)
    measure_together([actor], INPUTS, TimingSettings(), clock=stage.clock)
    assert ({False}, True) == (set(seen), gc.isenabled())


def test_executables_that_state_their_latency_are_not_run():
    latency = measure_latency(SelfTimed(0.001), SelfTimed(0.004), INPUTS, TimingSettings())
    assert (latency.median_s, latency.iqr_s, latency.source, latency.reference_s) == (0.001, 0.0, "model", 0.004)


def test_a_lock_held_elsewhere_is_named(stage):
    actor = stage.executable("a", constant(0.001))
    with FileLock(timing_lock_path()), pytest.raises(MeasurementError, match=r"holds .*trimtab-timing-.*\.lock"):
        measure_together([actor], INPUTS, TimingSettings(lock_timeout_s=0.05), clock=stage.clock)
    assert measure_together([actor], INPUTS, TimingSettings(), clock=stage.clock)


def test_the_lock_is_free_again_after_a_failure(stage):
    actor = stage.executable("a", constant(0.0))
    with pytest.raises(MeasurementError):
        measure_together([actor], INPUTS, TimingSettings(), clock=stage.clock)
    with FileLock(timing_lock_path(), timeout=0):
        pass


@pytest.mark.parametrize("wrong", [{"min_runs": 4}, {"max_runs": 29}, {"attempts": 0}, {"min_time_s": -1.0}])
def test_settings_that_cannot_hold_are_refused(wrong):
    with pytest.raises(SpecError, match="must hold, got"):
        TimingSettings(**wrong)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no such call")
def test_pinning_keeps_the_last_cores():
    before = os.sched_getaffinity(0)
    try:
        assert pin_cores(1) == (max(before),)
        assert os.sched_getaffinity(0) == {max(before)}
    finally:
        os.sched_setaffinity(0, before)


def test_pinning_to_no_core_is_refused():
    with pytest.raises(SpecError, match="n_cores >= 1 must hold, got 0"):
        pin_cores(0)


@pytest.mark.parametrize("n_runs", [30, 101])
def test_the_median_interval_is_as_wide_as_that_of_the_binomial_distribution(n_runs):
    ranked = np.arange(n_runs, dtype=np.float64)
    low, high = scipy.stats.binom.interval(0.95, n_runs, 0.5)
    assert abs(median_interval(ranked[:, None])[0] - (high - low)) <= 1

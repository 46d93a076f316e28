"""The load decides the policy: simulated calls of one server, with a clock of their own."""

import threading
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.core.errors import OverloadedError, TransientError
from trimtab.experiments.serving.call_queue import CallQueue
from trimtab.experiments.serving.level_chooser import LevelChooser, LoadBounds

SERVICES_S = (0.020, 0.012, 0.006)
BOUNDS = LoadBounds(p99_s=0.15)
PHASE_S = 20.0


@dataclass
class Outcome:
    chooser: LevelChooser
    arrived_s: list[float] = field(default_factory=list)
    answers_s: list[float] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    n_shed: int = 0

    @property
    def p99_s(self):
        return float(np.quantile(self.answers_s, 0.99))

    def levels_in(self, phase):
        chosen = (np.array(self.arrived_s) // PHASE_S) == phase
        return np.array(self.levels)[chosen]


def arrivals(rates_per_s, rng, phase_s=PHASE_S):
    """Poisson arrivals, one rate a phase."""
    times = []
    for phase, rate in enumerate(rates_per_s):
        n_calls = rng.poisson(rate * phase_s)
        times += list(phase * phase_s + np.sort(rng.random(n_calls)) * phase_s)
    return times


def simulate(services_s, bounds, times, rng):
    """First come, first served; service times scatter upwards by some per cent."""
    outcome = Outcome(LevelChooser(services_s, bounds))
    waiting, running, coming = deque(), None, deque(times)

    def start(now_s, arrived_s):
        level = outcome.chooser.level
        service_s = services_s[level] * (1.0 + 0.05 * abs(rng.standard_normal()))
        return now_s + service_s, level, service_s, arrived_s

    while coming or running:
        if running and (not coming or running[0] <= coming[0]):
            ended_s, level, service_s, arrived_s = running
            outcome.chooser.note_service(level, service_s)
            outcome.arrived_s.append(arrived_s)
            outcome.answers_s.append(ended_s - arrived_s)
            outcome.levels.append(level)
            running = start(ended_s, waiting.popleft()) if waiting else None
            continue
        now_s = coming.popleft()
        if not outcome.chooser.admit(now_s, len(waiting) + (running is not None)):
            outcome.n_shed += 1
        elif running is None:
            running = start(now_s, now_s)
        else:
            waiting.append(now_s)
    return outcome


@pytest.mark.parametrize("seed", range(3))
def test_a_set_keeps_the_bound_through_a_load_step_that_its_slower_policies_fail(seed):
    rng = np.random.default_rng(seed)
    times = arrivals([15, 80, 15], rng)
    without = LoadBounds(p99_s=1e9)
    assert [simulate((one,), without, times, rng).p99_s > BOUNDS.p99_s for one in SERVICES_S] == [True, True, False]
    outcome = simulate(SERVICES_S, BOUNDS, times, rng)
    assert outcome.p99_s <= BOUNDS.p99_s
    assert outcome.n_shed == 0
    assert outcome.levels_in(0).max() == 0  # the most faithful policy while there is time for it …
    assert outcome.levels_in(1).mean() > 1.8  # … the fastest under load …
    assert outcome.levels[-1] == 0  # … and back
    assert outcome.chooser.n_changes == 4


@pytest.mark.parametrize("seed", range(3))
def test_what_no_policy_can_serve_is_turned_away_and_the_rest_keeps_the_bound(seed):
    rng = np.random.default_rng(seed)
    times = arrivals([15, 300, 15], rng)
    outcome = simulate(SERVICES_S, BOUNDS, times, rng)
    assert outcome.p99_s <= BOUNDS.p99_s
    can_serve = PHASE_S / (SERVICES_S[-1] * 1.04)  # services scatter by 4 % on average
    assert outcome.n_shed == pytest.approx(300 * PHASE_S - can_serve, rel=0.1)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.integers(0, 2**16), st.floats(0.05, 1.0))
def test_whatever_the_load_is_admitted_calls_keep_the_bound(rates_per_s, seed, p99_s):
    rng = np.random.default_rng(seed)
    times = arrivals(rates_per_s, rng, phase_s=3.0)
    if not times:
        return
    outcome = simulate(SERVICES_S, LoadBounds(p99_s=p99_s), times, rng)
    assert len(outcome.answers_s) + outcome.n_shed == len(times)
    assert set(outcome.levels) <= {0, 1, 2}
    assert outcome.p99_s <= p99_s or len(times) < 100


@pytest.mark.parametrize("rate", [10.0, 25.0, 40.0])
def test_the_predicted_p99_is_not_below_that_of_a_simulated_queue(rate):
    """Service times hardly vary, so waiting is shorter than the exponential law says, and never longer."""
    outcome = simulate((0.02,), LoadBounds(p99_s=1e9), arrivals([rate], np.random.default_rng(3), 400.0),
                       np.random.default_rng(4))  # fmt: skip
    chooser = LevelChooser((0.02,), BOUNDS)
    for index in range(2000):
        chooser.note_service(0, 0.02 * 1.04)
        chooser.admit(index / rate, 0)
    assert outcome.p99_s <= chooser.predict_p99_s(0) <= 2.5 * outcome.p99_s


def test_a_load_at_which_the_slower_policy_would_do_badly_keeps_the_faster_one():
    """At 40 calls a second the slowest policy would be four fifths busy: its p99 is predicted above the bound."""
    rng = np.random.default_rng(0)
    outcome = simulate((0.020, 0.006), LoadBounds(p99_s=0.1), arrivals([80, 40], rng), rng)
    assert outcome.levels_in(1).min() == 1
    assert outcome.chooser.n_changes == 1


def test_a_load_that_swings_does_not_make_the_policy_swing():
    rng = np.random.default_rng(0)
    swings = [float(rate) for _ in range(20) for rate in (10, 120)]
    outcome = simulate((0.020, 0.006), LoadBounds(p99_s=0.15, dwell_s=2.0), arrivals(swings, rng, phase_s=3.0), rng)
    assert outcome.p99_s <= 0.15
    assert outcome.chooser.n_changes < 20  # half of what following every swing would take


def test_a_machine_that_stood_still_once_changes_no_estimate_by_much():
    chooser = LevelChooser(SERVICES_S, BOUNDS)
    for _ in range(50):
        chooser.note_service(0, 0.020)
    chooser.note_service(0, 60.0)
    assert chooser.mean_s(0) < 0.030


def test_a_policy_that_did_not_run_yet_is_expected_to_keep_its_promise_as_the_others_do():
    chooser = LevelChooser(SERVICES_S, BOUNDS)
    for _ in range(100):
        chooser.note_service(0, 0.040)
    assert chooser.mean_s(2) == pytest.approx(0.012, rel=0.05)


def test_an_idle_model_serves_though_it_is_slower_than_the_bound():
    assert LevelChooser((1.0,), LoadBounds(p99_s=0.1)).admit(0.0, 0)


def test_threads_are_served_in_the_order_in_which_they_came_one_at_a_time():
    queue = CallQueue(LevelChooser((0.001,), LoadBounds(p99_s=60.0)), max_waiting=100)
    served, running = [], []
    first = queue.enter()

    def call(number):
        level = queue.enter()
        running.append(number)
        served.append((number, len(running)))
        running.remove(number)
        queue.leave(level, service_s=0.001)

    threads = []
    for number in range(20):
        thread = threading.Thread(target=call, args=(number,))
        thread.start()
        threads.append(thread)
        while queue.n_waiting <= number:  # each waits before the next comes
            assert thread.is_alive()
    queue.leave(first, service_s=None)
    for thread in threads:
        thread.join(10)
    assert served == [(number, 1) for number in range(20)]
    assert queue.n_waiting == 0


def test_two_calls_run_at_once_where_two_may():
    queue = CallQueue(LevelChooser((0.001,), LoadBounds(p99_s=60.0, n_slots=2)), max_waiting=0)
    for _ in range(3):
        levels = [queue.enter(), queue.enter()]
        with pytest.raises(OverloadedError, match="0 calls wait already"):
            queue.enter()
        for level in levels:
            queue.leave(level, service_s=0.001)
    assert queue.n_shed == 3


def test_who_is_turned_away_may_try_again():
    assert issubclass(OverloadedError, TransientError)

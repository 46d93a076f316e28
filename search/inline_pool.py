"""Runs jobs in this process, one after the other: for debugging, and where nothing can be started."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import TypeVar

from ..compressors.artifact import Artifact
from ..hw_profiles.latency import Latency
from .attempt import Attempt, Phases, Scored, measure_artifact, run_rounds, score_job, score_rest, transient_failure
from .worker_pool import BenchFactory, DeviceBench, Job, Limits, Outcome, Workbench

T = TypeVar("T")


class InlinePool:
    """The pool without processes.

    `Limits.timeout_s` interrupts Python code, and only in the main thread of a POSIX system; `Limits.memory_bytes`
    cannot be enforced here. A crash of a runtime is a crash of the search; the journal keeps what was finished.
    """

    def __init__(self, factory: BenchFactory, limits: Limits) -> None:
        self._factory = factory
        self._limits = limits
        self._workbench: Workbench | None = None
        self._device_bench: DeviceBench | None = None

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Yields an outcome per job; see `WorkerPool.run`."""
        yield from run_rounds(jobs, Phases(self._score, self._measure, self._score_rest))

    def compare(self, artifacts: Sequence[Artifact]) -> list[Latency]:
        """Times artifacts together; see `WorkerPool.compare`."""
        self._device_bench = bench = self._device_bench or self._factory.device_bench()
        return bench.compare(artifacts)

    def close(self) -> None:
        """Forgets the benches; may be called twice."""
        self._workbench = self._device_bench = None

    def _score(self, jobs: Sequence[Job]) -> Iterator[Scored[Artifact]]:
        self._workbench = bench = self._workbench or self._factory.workbench()
        for job in jobs:
            attempt, artifact = self._limited(partial(score_job, bench, job)) or (self._overtime(), None)
            yield Scored(job, attempt, artifact)

    def _measure(self, built: Sequence[Scored[Artifact]]) -> Iterator[tuple[Job, Attempt]]:
        self._device_bench = bench = self._device_bench or self._factory.device_bench()
        for scored in built:
            yield scored.job, self._limited(partial(_measure_one, bench, scored)) or self._overtime()

    def _score_rest(self, measured: Sequence[Scored[Artifact]]) -> Iterator[tuple[Job, Attempt]]:
        self._workbench = bench = self._workbench or self._factory.workbench()
        for scored in measured:
            yield scored.job, self._limited(partial(_score_one, bench, scored)) or self._overtime()

    def _limited(self, work: Callable[[], T]) -> T | None:
        """Returns what ``work`` returns; None when it took too long."""
        timeout_s = self._limits.timeout_s
        if timeout_s is None or threading.current_thread() is not threading.main_thread():
            return work()
        try:
            before = signal.signal(signal.SIGALRM, _raise_overtime)
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            try:
                return work()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                signal.signal(signal.SIGALRM, before)
        except _OvertimeError:
            return None

    def _overtime(self) -> Attempt:
        limit_s = self._limits.timeout_s or 0.0
        return transient_failure(f"time limit: not finished after {limit_s:g} s", limit_s)


def _measure_one(bench: DeviceBench, scored: Scored[Artifact]) -> Attempt:
    if scored.artifact is None:
        return scored.attempt
    return measure_artifact(bench, scored.job, scored.artifact, scored.attempt.measurement)


class _OvertimeError(BaseException):
    """Passes through every ``except Exception`` of the code that it interrupts."""


def _raise_overtime(_signal_number: int, _frame: FrameType | None) -> None:
    raise _OvertimeError


def _score_one(bench: Workbench, scored: Scored[Artifact]) -> Attempt:
    if scored.artifact is None:
        return scored.attempt
    return score_rest(bench, scored.job, scored.artifact, scored.attempt)

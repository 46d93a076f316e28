"""One try of a job, and the rounds of tries that every pool makes.

A pool only says how a phase runs; which errors end a job, and which cost a retry, is decided here for all.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np

from ..compressors.artifact import Artifact
from ..core.errors import DeviceLostError, MeasurementError, PolicyError, TransientError
from ..evaluators.measurement import Measurement
from ..hw_profiles.latency import Latency
from .record import Status
from .worker_pool import DeviceBench, Job, Outcome, Progress, Workbench

_log = logging.getLogger(__name__)

#: tries per job: the first and one retry (see `WorkerPool.run`)
N_ATTEMPTS = 2

#: how a pool hands an artifact from one phase to the next: the artifact itself, or a reference to it
Handle = TypeVar("Handle")


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one phase of a job."""

    status: Status
    measurement: Measurement
    cost_s: float
    error: str = ""
    #: FAILED for a reason outside the policy, so that a retry may help
    is_transient: bool = False
    #: the device is gone: the job is not to blame, and no other would fare better
    is_device_lost: bool = False
    #: what the scoring of the rest goes on from; None where nothing is left to score
    scores: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Scored(Generic[Handle]):
    """A job after one of its phases."""

    job: Job
    attempt: Attempt
    #: None unless the attempt is COMPLETE
    artifact: Handle | None


@dataclass(frozen=True, slots=True)
class Phases(Generic[Handle]):
    """How a pool runs each phase; none begins before the one before it has ended."""

    #: jobs → scored jobs, as they finish
    score: Callable[[Sequence[Job]], Iterable[Scored[Handle]]]
    #: scored jobs → (job, attempt with the whole measurement), one at a time
    measure: Callable[[Sequence[Scored[Handle]]], Iterable[tuple[Job, Attempt]]]
    #: measured jobs → (job, attempt with the score of all samples), as they finish
    score_rest: Callable[[Sequence[Scored[Handle]]], Iterable[tuple[Job, Attempt]]]


def run_rounds(jobs: Sequence[Job], phases: Phases[Handle]) -> Iterator[Outcome]:
    """Yields an outcome per job, phase by phase for all of them; transient failures go round again.

    Raises:
        DeviceLostError: the device is gone; what has no outcome yet is left for the search that resumes this one.
    """
    costs_s = dict.fromkeys((job.id for job in jobs), 0.0)
    todo = list(jobs)
    for round_number in range(1, N_ATTEMPTS + 1):
        is_last = round_number == N_ATTEMPTS
        again: list[Job] = []
        for job, attempt in _one_round(todo, phases):
            require_device(attempt)
            costs_s[job.id] += attempt.cost_s
            if attempt.is_transient and not is_last:
                _log.info("trial %d is retried: %s", job.id, attempt.error)
                again.append(job)
                continue
            prefix = f"given up after {N_ATTEMPTS} attempts: " if attempt.is_transient else ""
            yield Outcome(job.id, attempt.status, attempt.measurement, costs_s[job.id], prefix + attempt.error)
        todo = again


def score_job(workbench: Workbench, job: Job) -> tuple[Attempt, Artifact | None]:
    """Runs the first phase; whatever goes wrong becomes part of the attempt."""
    start_s = time.perf_counter()
    try:
        artifact, progress = workbench.compress_and_score(job.policy, seed=job.seed, goal=job.goal)
    except Exception as error:
        return failed_attempt(job.id, error, time.perf_counter() - start_s), None
    attempt = _take_stock(progress, Measurement(), time.perf_counter() - start_s)
    return attempt, artifact if attempt.status is Status.COMPLETE else None


def measure_artifact(bench: DeviceBench, job: Job, artifact: Artifact, measurement: Measurement) -> Attempt:
    """Runs the second phase; whatever goes wrong becomes part of the attempt."""
    start_s = time.perf_counter()
    try:
        found = bench.measure(artifact)
    except Exception as error:
        return replace(failed_attempt(job.id, error, time.perf_counter() - start_s), measurement=measurement)
    return Attempt(Status.COMPLETE, measurement.joined(found), time.perf_counter() - start_s)


def score_rest(workbench: Workbench, job: Job, artifact: Artifact, before: Attempt) -> Attempt:
    """Runs the third phase on what the others came to; whatever goes wrong becomes part of the attempt."""
    if before.scores is None or job.goal is None:
        return replace(before, cost_s=0.0)
    start_s = time.perf_counter()
    try:
        progress = workbench.score_rest(artifact, before.scores, goal=job.goal)
    except Exception as error:
        return replace(failed_attempt(job.id, error, time.perf_counter() - start_s), measurement=before.measurement)
    return _take_stock(progress, before.measurement, time.perf_counter() - start_s)


def compare_artifacts(bench: DeviceBench, artifacts: Sequence[Artifact]) -> tuple[Attempt, list[Latency]]:
    """Times artifacts together; whatever goes wrong becomes part of the attempt."""
    start_s = time.perf_counter()
    try:
        latencies = bench.compare(artifacts)
    except Exception as error:
        return failed_attempt(-1, error, time.perf_counter() - start_s), []
    return Attempt(Status.COMPLETE, Measurement(), time.perf_counter() - start_s), latencies


def failed_attempt(job_id: int, error: Exception, cost_s: float) -> Attempt:
    """Returns the attempt of a job on which an error was raised."""
    if isinstance(error, PolicyError):
        return Attempt(Status.INFEASIBLE, Measurement(), cost_s, str(error))
    if isinstance(error, DeviceLostError):
        return replace(transient_failure(str(error), cost_s), is_device_lost=True)
    if isinstance(error, TransientError):
        return transient_failure(str(error), cost_s)
    if isinstance(error, MeasurementError):
        return Attempt(Status.FAILED, Measurement(), cost_s, str(error))
    _log.warning("trial %d failed on an unexpected error", job_id, exc_info=error)
    return Attempt(Status.FAILED, Measurement(), cost_s, f"{type(error).__name__}: {error}")


def require_device(attempt: Attempt) -> None:
    """Ends the search where the device is gone.

    Raises:
        DeviceLostError: it is.
    """
    if attempt.is_device_lost:
        raise DeviceLostError(attempt.error)


def transient_failure(error: str, cost_s: float) -> Attempt:
    """Returns the attempt of a job whose worker died, hung or was stopped."""
    return Attempt(Status.FAILED, Measurement(), cost_s, error, is_transient=True)


def _take_stock(progress: Progress, known: Measurement, cost_s: float) -> Attempt:
    status = Status.PRUNED if progress.stopped else Status.COMPLETE
    measurement = known.joined(progress.measurement)
    return Attempt(status, measurement, cost_s, progress.stopped, scores=progress.scores)


def _one_round(jobs: Sequence[Job], phases: Phases[Handle]) -> Iterator[tuple[Job, Attempt]]:
    built: list[Scored[Handle]] = []
    for scored in phases.score(jobs) if jobs else ():
        if scored.attempt.status is Status.COMPLETE:
            built.append(scored)
        else:
            yield scored.job, scored.attempt
    built = _by_id(built)
    hopeful: list[Scored[Handle]] = []
    for before, attempt in _pair(built, phases.measure(built) if built else ()):
        measured = replace(before, attempt=replace(attempt, scores=before.attempt.scores))
        if _is_worth_the_rest(measured):
            hopeful.append(measured)
        else:
            yield measured.job, measured.attempt
    hopeful = _by_id(hopeful)
    for before, attempt in _pair(hopeful, phases.score_rest(hopeful) if hopeful else ()):
        yield before.job, attempt


def _by_id(scored: list[Scored[Handle]]) -> list[Scored[Handle]]:
    """Sorts, so that the next phase sees one order whatever the workers' order was."""
    return sorted(scored, key=lambda one: one.job.id)


def _pair(
    before: Sequence[Scored[Handle]], after: Iterable[tuple[Job, Attempt]]
) -> Iterator[tuple[Scored[Handle], Attempt]]:
    """Yields each job as it was before a phase with its attempt after it, whose cost covers both."""
    by_id = {scored.job.id: scored for scored in before}
    for job, attempt in after:
        scored = by_id[job.id]
        yield scored, replace(attempt, cost_s=scored.attempt.cost_s + attempt.cost_s)


def _is_worth_the_rest(measured: Scored[Handle]) -> bool:
    job, attempt = measured.job, measured.attempt
    if attempt.status is not Status.COMPLETE or attempt.scores is None or job.goal is None:
        return False
    reason = job.goal.rules_out(attempt.measurement)
    if reason:
        _log.info("trial %d is scored on a part of the samples only: %s", job.id, reason)
    return not reason

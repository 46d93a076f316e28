"""One try of a job, and the rounds of tries that every pool makes.

A pool only says how a phase runs; which errors end a job, and which cost a retry, is decided here for all.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from ..compressors.artifact import Artifact
from ..core.errors import MeasurementError, PolicyError, TransientError
from ..evaluators.measurement import Measurement
from ..hw_profiles.latency import Latency
from .record import Status
from .worker_pool import DeviceBench, Job, Outcome, Workbench

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


@dataclass(frozen=True, slots=True)
class Scored(Generic[Handle]):
    """A job after its first phase."""

    job: Job
    attempt: Attempt
    #: None unless the attempt is COMPLETE
    artifact: Handle | None


#: phase 1: jobs → scored jobs, as they finish
ScorePhase = Callable[[Sequence[Job]], Iterable[Scored[Handle]]]
#: phase 2: scored jobs → (job, attempt with the whole measurement), one at a time
MeasurePhase = Callable[[Sequence[Scored[Handle]]], Iterable[tuple[Job, Attempt]]]


def run_rounds(jobs: Sequence[Job], score: ScorePhase[Handle], measure: MeasurePhase[Handle]) -> Iterator[Outcome]:
    """Yields an outcome per job: all are scored, then all are measured; transient failures go round again."""
    costs_s = dict.fromkeys((job.id for job in jobs), 0.0)
    todo = list(jobs)
    for round_number in range(1, N_ATTEMPTS + 1):
        is_last = round_number == N_ATTEMPTS
        again: list[Job] = []
        for job, attempt in _one_round(todo, score, measure):
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
        artifact, measurement = workbench.compress_and_score(job.policy, seed=job.seed)
    except Exception as error:
        return failed_attempt(job.id, error, time.perf_counter() - start_s), None
    return Attempt(Status.COMPLETE, measurement, time.perf_counter() - start_s), artifact


def measure_artifact(bench: DeviceBench, job: Job, artifact: Artifact, measurement: Measurement) -> Attempt:
    """Runs the second phase; whatever goes wrong becomes part of the attempt."""
    start_s = time.perf_counter()
    try:
        found = bench.measure(artifact)
    except Exception as error:
        return replace(failed_attempt(job.id, error, time.perf_counter() - start_s), measurement=measurement)
    return Attempt(Status.COMPLETE, measurement.joined(found), time.perf_counter() - start_s)


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
    if isinstance(error, TransientError):
        return transient_failure(str(error), cost_s)
    if isinstance(error, MeasurementError):
        return Attempt(Status.FAILED, Measurement(), cost_s, str(error))
    _log.warning("trial %d failed on an unexpected error", job_id, exc_info=error)
    return Attempt(Status.FAILED, Measurement(), cost_s, f"{type(error).__name__}: {error}")


def transient_failure(error: str, cost_s: float) -> Attempt:
    """Returns the attempt of a job whose worker died, hung or was stopped."""
    return Attempt(Status.FAILED, Measurement(), cost_s, error, is_transient=True)


def _one_round(
    jobs: Sequence[Job], score: ScorePhase[Handle], measure: MeasurePhase[Handle]
) -> Iterator[tuple[Job, Attempt]]:
    built: list[Scored[Handle]] = []
    for scored in score(jobs) if jobs else ():
        if scored.attempt.status is Status.COMPLETE:
            built.append(scored)
        else:
            yield scored.job, scored.attempt
    # by id, so that the device sees one order whatever the workers' order was
    built.sort(key=lambda scored: scored.job.id)
    first_costs_s = {scored.job.id: scored.attempt.cost_s for scored in built}
    for job, attempt in measure(built) if built else ():
        yield job, replace(attempt, cost_s=attempt.cost_s + first_costs_s[job.id])

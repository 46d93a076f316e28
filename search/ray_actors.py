"""What runs inside the Ray processes; Ray itself is not imported here, so that the classes stay plain."""

import os
from collections.abc import Sequence

import psutil

from ..compressors.artifact import Artifact
from ..core.errors import SpecError, TransientError
from ..evaluators.measurement import Measurement
from ..hw_profiles.latency import Latency
from .attempt import Attempt, compare_artifacts, measure_artifact, score_job, score_rest
from .worker_pool import BenchFactory, DeviceBench, Job, Workbench

#: the concurrency group in which an actor answers for its health while it works
HEALTH_GROUP = "health"


class WorkerActor:
    """Compresses and scores; keeps one workbench from job to job."""

    def __init__(self, factory: BenchFactory) -> None:
        self._factory = factory
        self._bench: Workbench | None = None

    def prepare(self) -> tuple[str, str] | None:
        """Sets up the bench; returns (kind, message) of what went wrong, or None."""
        try:
            self._bench = self._factory.workbench()
        except Exception as error:
            return setup_failure(error)
        return None

    def work(self, job: Job) -> tuple[Attempt, Artifact | None]:
        """Runs a job's first phase."""
        if self._bench is None:
            raise RuntimeError("work was called before prepare")
        return score_job(self._bench, job)

    def score_rest(self, job: Job, artifact: Artifact, before: Attempt) -> tuple[Attempt, None]:
        """Runs a job's third phase, whichever worker ran the first."""
        if self._bench is None:
            raise RuntimeError("score_rest was called before prepare")
        return score_rest(self._bench, job, artifact, before), None

    def rss_bytes(self) -> int:
        """Returns the resident memory of this process."""
        return resident_bytes()


class DeviceActor:
    """Measures, alone with the device."""

    def __init__(self, factory: BenchFactory) -> None:
        self._factory = factory
        self._bench: DeviceBench | None = None

    def prepare(self) -> tuple[str, str] | None:
        """Sets up the bench; returns (kind, message) of what went wrong, or None."""
        try:
            self._bench = self._factory.device_bench()
        except Exception as error:
            return setup_failure(error)
        return None

    def work(self, job: Job, artifact: Artifact, measurement: Measurement) -> tuple[Attempt, None]:
        """Runs a job's second phase."""
        if self._bench is None:
            raise RuntimeError("work was called before prepare")
        return measure_artifact(self._bench, job, artifact, measurement), None

    def compare(self, artifacts: Sequence[Artifact]) -> tuple[Attempt, list[Latency]]:
        """Times artifacts together; see `DeviceBench.compare`."""
        if self._bench is None:
            raise RuntimeError("compare was called before prepare")
        return compare_artifacts(self._bench, artifacts)

    def rss_bytes(self) -> int:
        """Returns the resident memory of this process."""
        return resident_bytes()


def setup_failure(error: Exception) -> tuple[str, str]:
    """Returns (``spec`` or ``transient``, message); anything unforeseen cannot be cured by a retry either."""
    if isinstance(error, TransientError):
        return "transient", str(error)
    message = str(error) if isinstance(error, SpecError) else f"{type(error).__name__}: {error}"
    return "spec", message


def resident_bytes() -> int:
    """Returns the resident memory of the calling process."""
    return int(psutil.Process(os.getpid()).memory_info().rss)

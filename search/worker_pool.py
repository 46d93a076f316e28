"""The one protocol behind which trials run: in this process or on Ray."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..compressors.artifact import Artifact
from ..evaluators.measurement import Measurement
from ..hw_profiles.latency import Latency
from ..spaces.policy import Policy
from .goal import Goal
from .record import Status


@dataclass(frozen=True, slots=True)
class Job:
    """One policy to evaluate."""

    id: int
    policy: Policy
    seed: int
    #: what makes it worth its whole cost; None: it is scored on all samples whatever comes out
    goal: Goal | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job."""

    id: int
    status: Status
    measurement: Measurement = field(default_factory=Measurement)
    cost_s: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one trial may use before it is stopped; None means unlimited."""

    timeout_s: float | None = 600.0
    memory_bytes: int | None = None

    def excess(self, elapsed_s: float, used_bytes: int) -> str | None:
        """Returns what is exceeded, in words; None where nothing is."""
        if self.timeout_s is not None and elapsed_s >= self.timeout_s:
            return f"time limit: not finished after {self.timeout_s:g} s"
        if self.memory_bytes is not None and used_bytes > self.memory_bytes:
            return f"memory limit: used {used_bytes / 1e6:.0f} MB of {self.memory_bytes / 1e6:.0f} MB"
        return None


class TrialTraining(Protocol):
    """The training of one policy's model, which can be stopped, scored and gone on with at any moment.

    A training that was interrupted, its process killed too, goes on from the last state that was kept.
    """

    @property
    def n_steps(self) -> int:
        """All steps of the training."""
        ...

    @property
    def n_done(self) -> int:
        """Steps that have been made."""
        ...

    def advance(self, n_steps: int) -> None:
        """Makes so many steps, or those that are left.

        Raises:
            PolicyError: the training diverged.
        """
        ...

    def score(self) -> float:
        """Returns how good the model is by now; greater is better, and better than the budget asks counts as equal.

        Raises:
            PolicyError: the model as it is now cannot be built.
            MeasurementError: it cannot be scored.
        """
        ...

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns name → array of everything that going on needs."""
        ...

    def load_state_dict(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from what `state_dict` gave."""
        ...

    def finish(self) -> None:
        """Keeps the trained model where `Workbench.compress_and_score` finds it; all steps must have been made."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the scoring of an artifact has come."""

    #: everything but latency, memory and energy, from the samples that were scored
    measurement: Measurement
    #: (k,) float64 scores of the first samples, where some are left; None where nothing is left, or nothing will be
    scores: np.ndarray | None = field(default=None, compare=False)
    #: why the trial ends here, in words; empty when it does not
    stopped: str = ""


class Workbench(Protocol):
    """Compresses and scores; lives in a worker and keeps model, data and caches between jobs."""

    def compress_and_score(self, policy: Policy, *, seed: int, goal: Goal | None = None) -> tuple[Artifact, Progress]:
        """Builds the policy's artifact and scores it.

        Without a goal it is scored on all samples; with one on a first part of them, the same for every policy, and it
        may be stopped.

        Raises:
            PolicyError: the policy cannot be built.
            TransientError: the same job may succeed when retried.
            MeasurementError: no trustworthy number could be had.
        """
        ...

    def score_rest(self, artifact: Artifact, scores: np.ndarray, *, goal: Goal) -> Progress:
        """Scores the samples that are left, unless the artifact is stopped on the way.

        Args:
            artifact: what `compress_and_score` built, perhaps in another process.
            scores: (k,) what it scored.
            goal: what it was given.

        Raises:
            TransientError: the same job may succeed when retried.
            MeasurementError: no trustworthy number could be had.
        """
        ...

    def open_training(self, policy: Policy) -> TrialTraining | None:
        """Returns the training that `compress_and_score` would begin with; None where nothing is to train (any more).

        Raises:
            PolicyError: the policy cannot be built.
        """
        ...


class DeviceBench(Protocol):
    """Times artifacts; lives in the one process that has the device to itself."""

    def measure(self, artifact: Artifact) -> Measurement:
        """Returns the latency, timed in turns with the original, and what is wanted of memory and energy.

        Raises:
            MeasurementError: the numbers stayed unstable or the runtime refused the artifact.
        """
        ...

    def compare(self, artifacts: Sequence[Artifact]) -> list[Latency]:
        """Times artifacts together in one rotation; returns the original's latency, theirs, then the yardstick's.

        The yardstick is a fixed piece of work that tells how fast the machine is just now.

        Raises:
            MeasurementError: the numbers stayed unstable or the runtime refused an artifact.
        """
        ...


class BenchFactory(Protocol):
    """What a pool needs to set up its workers; picklable, carried to every node once."""

    def workbench(self) -> Workbench:
        """Makes a workbench in the calling process."""
        ...

    def device_bench(self) -> DeviceBench:
        """Makes the device bench in the calling process."""
        ...


class WorkerPool(Protocol):
    """Runs jobs; every job ends in exactly one outcome, whatever happens to the workers."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Yields an outcome per job, in the order in which they finish.

        Nothing is compressed or scored on the device's machine while something is measured there. A job with a goal is
        measured after its first score, and scored on the rest of the samples only if it can still reach the goal: one
        that clearly breaks the bound on accuracy is PRUNED, with what was measured until then; one that is ruled out by
        its other numbers is COMPLETE with an accuracy of fewer samples.
        A job whose worker dies, hangs or exceeds its `Limits` is retried once, then FAILED with the cause.

        Raises:
            TransientError: no worker, or no device, can be had any more; the search should stop and resume later.
        """
        ...

    def compare(self, artifacts: Sequence[Artifact]) -> list[Latency]:
        """Times artifacts together on the device; see `DeviceBench.compare`.

        Raises:
            MeasurementError: it failed, also when tried again.
            TransientError: no device can be had any more.
        """
        ...

    def close(self) -> None:
        """Gives back every process and resource; may be called twice."""
        ...

"""The benches that a search's workers hold: real compression, real accuracy, real latency."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..compressors.artifact import Artifact
from ..compressors.pipeline import Pipeline
from ..compressors.prepared import PreparedModel
from ..compressors.training import Training
from ..evaluators.accuracy import AccuracyEvaluator
from ..evaluators.device import KernelDevice, build_device
from ..evaluators.kernel_timing import SteadyTimer
from ..evaluators.latency import SelfTiming, TimingSettings, measure_latency, measure_together, pin_cores
from ..evaluators.measurement import Measurement
from ..evaluators.resources import ResourceMeter, WantedResources
from ..evaluators.yardstick import Yardstick
from ..hw_profiles.latency import Latency
from ..hw_profiles.target import Capabilities, Target
from ..search.goal import Goal
from ..search.worker_pool import Progress
from ..spaces.policy import GraphTreatment, Policy
from ..spaces.space import Space
from .profiling.table_feed import TableFeed
from .trial_training import Scoring, SnapshotTraining


@dataclass(frozen=True)
class SearchBenches:
    """Makes the benches; picklable, so that it is carried to every worker once."""

    prepared: PreparedModel
    space: Space
    target: Target
    capabilities: Capabilities
    evaluator: AccuracyEvaluator
    #: one batch at the target's batch size, input name → (batch, …) array
    batch: Mapping[str, np.ndarray]
    timing: TimingSettings
    #: what is measured beside the latency
    wanted: WantedResources = field(default_factory=WantedResources)
    #: (model, search) as kernel tables name them; None: the table learns nothing
    feeds_table: tuple[str, str] | None = None
    #: data and teachers of recovery; None where nothing trains
    training: Training | None = None
    #: of a training on the way, a drop of accuracy up to here is as good as none; None: every bit counts
    enough_drop: float | None = None
    #: pin the measuring process to as many cores as the target has threads
    pins_cores: bool = True

    def workbench(self) -> "CompressingBench":
        """Makes a workbench in the calling process."""
        return CompressingBench(self)

    def device_bench(self) -> "TimingBench":
        """Makes the device bench in the calling process."""
        return TimingBench(self)


class CompressingBench:
    """Builds artifacts and scores them on the target's runtime."""

    def __init__(self, benches: SearchBenches) -> None:
        self._benches = benches
        self._device = build_device(benches.target)
        self._evaluator = benches.evaluator
        self.pipeline = Pipeline(benches.prepared, benches.capabilities, benches.training)

    def build(self, policy: Policy) -> Artifact:
        """Builds the policy's artifact; see `Pipeline.build`."""
        treatments = self._benches.space.layer_treatments(policy)
        return self.pipeline.build(treatments, policy.graph, policy.recovery)

    def compress_and_score(
        self,
        policy: Policy,
        *,
        seed: int,  # noqa: ARG002
        goal: Goal | None = None,
    ) -> tuple[Artifact, Progress]:
        """Builds and scores; see `Workbench`.

        Training is seeded by the policy and not by the trial, so that the answer can be built again from its policy.
        """
        artifact = self.build(policy)
        if policy == Policy({}):  # the evaluator has run it
            scores = self._evaluator.reference_scores[self._evaluator.order]
            return artifact, self._take_stock(artifact, scores)
        n_samples = len(self._evaluator.split) if goal is None else self._evaluator.n_first
        return artifact, self._go_on(artifact, np.empty(0), n_samples, goal)

    def score_rest(self, artifact: Artifact, scores: np.ndarray, *, goal: Goal) -> Progress:
        """Scores the samples that are left; see `Workbench`."""
        return self._go_on(artifact, scores, len(self._evaluator.split), goal)

    def open_training(self, policy: Policy) -> SnapshotTraining | None:
        """Returns the training of the policy's model; see `Workbench`."""
        training = self._benches.training
        if not policy.recovery.trains or training is None or training.folder is None:
            return None  # nothing to train, nothing to train on, or no place in which it would be found again
        shape = self.pipeline.shape_of(self._benches.space.layer_treatments(policy), policy.recovery)
        session = self.pipeline.shaper.open_training(shape)
        if session is None:
            return None
        scoring = Scoring(self._evaluator, self._device.load, self._benches.enough_drop)
        return SnapshotTraining(self.pipeline, session, shape, policy.graph, scoring)

    def _go_on(self, artifact: Artifact, scores: np.ndarray, n_samples: int, goal: Goal | None) -> Progress:
        evaluator, executable = self._evaluator, self._device.load(artifact)
        max_drop = None if goal is None else goal.budget.accuracy_drop
        scores, stopped = evaluator.go_on(executable, scores, n_samples=n_samples, max_drop=max_drop)
        return self._take_stock(artifact, scores, stopped)

    def _take_stock(self, artifact: Artifact, scores: np.ndarray, stopped: str = "") -> Progress:
        score = self._evaluator.summarise(scores)
        measurement = Measurement(score.accuracy, score.accuracy_drop, size_bytes=artifact.size_bytes)
        is_done = stopped or len(scores) == len(self._evaluator.split)
        return Progress(measurement, None if is_done else scores, stopped)


class TimingBench:
    """Times artifacts in turns with the original in float32, alone on its cores."""

    def __init__(self, benches: SearchBenches) -> None:
        if benches.pins_cores:
            pin_cores(benches.target.threads)
        self._benches = benches
        self._device = build_device(benches.target)
        original = Pipeline(benches.prepared, benches.capabilities).build({}, GraphTreatment())
        self._original = self._device.load(original)
        self._meter = ResourceMeter(self._device, benches.batch, benches.wanted)
        self._feed: TableFeed | None = None
        if benches.feeds_table is not None and isinstance(self._device, KernelDevice):
            timer = SteadyTimer(self._device, self._original, benches.batch)
            self._feed = TableFeed(timer, original, *benches.feeds_table)

    def measure(self, artifact: Artifact) -> Measurement:
        """Times one artifact; see `DeviceBench`."""
        benches = self._benches
        executable = self._device.load(artifact)
        latency = measure_latency(executable, self._original, benches.batch, benches.timing)
        if self._feed is not None and latency.source == "measured":
            self._feed.add(artifact, latency)
        return replace(self._meter.measure(artifact, executable), latency=latency)

    def compare(self, artifacts: Sequence[Artifact]) -> list[Latency]:
        """Times the original, the artifacts and a `Yardstick` in one rotation; see `DeviceBench.compare`.

        A device that states its own times has no yardstick; the last entry then repeats the original's.
        """
        if self._feed is not None:
            self._feed.write()
        return compare_with_yardstick(
            [self._original, *(self._device.load(artifact) for artifact in artifacts)],
            self._benches.batch,
            self._benches.timing,
        )


def compare_with_yardstick(
    executables: Sequence[object], batch: Mapping[str, np.ndarray], timing: TimingSettings
) -> list[Latency]:
    """Times executables together, the first being the reference; appends the yardstick's latency."""
    if isinstance(executables[0], SelfTiming):
        stated = measure_together(list(executables), batch, timing)  # type: ignore[arg-type]
        return [*stated, stated[0]]
    return measure_together([*executables, Yardstick()], batch, timing)  # type: ignore[list-item]

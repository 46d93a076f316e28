"""The training of a trial, which can be scored on the way: what a scheduler of trials needs to know early."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..compressors.artifact import Artifact
from ..compressors.kept_session import KeptSession
from ..compressors.onnx_stage import OnnxStage
from ..compressors.pipeline import Pipeline
from ..compressors.prepared import prepare_model
from ..compressors.shaping import Shape
from ..evaluators.accuracy import AccuracyEvaluator
from ..evaluators.device import Executable
from ..spaces.policy import GraphTreatment

#: samples of the validation split that score a training on the way
_MAX_SAMPLES = 2000


@dataclass(frozen=True)
class Scoring:
    """How a model that is not finished is judged."""

    evaluator: AccuracyEvaluator
    #: the artifact on the target's runtime
    load: Callable[[Artifact], Executable]
    #: a drop of accuracy up to here is as good as none; None: every bit counts
    enough_drop: float | None = None

    def score(self, artifact: Artifact) -> float:
        """Returns the mean accuracy on a fixed part of the split, cut where it is as good as the budget asks."""
        n_samples = len(self.evaluator.split)
        indices = np.linspace(0, n_samples - 1, min(n_samples, _MAX_SAMPLES)).astype(int)
        score = float(self.evaluator.score_samples(self.load(artifact), indices=indices).mean())
        if self.enough_drop is None:
            return score
        return min(score, float(self.evaluator.reference_scores[indices].mean()) - self.enough_drop)


class SnapshotTraining:
    """Trains the model of one policy, and scores it by the artifact that it would become now; see `TrialTraining`."""

    def __init__(
        self, pipeline: Pipeline, session: KeptSession, shape: Shape, graph: GraphTreatment, scoring: Scoring
    ) -> None:
        """Takes over a session.

        Args:
            pipeline: builds, and keeps the trained model.
            session: the training of ``shape``.
            shape: what the policy does to shapes and weights.
            graph: what it does to the graph as a whole.
            scoring: how artifacts are judged.
        """
        self._pipeline = pipeline
        self._session = session
        self._shape = shape
        self._graph = graph
        self._scoring = scoring

    @property
    def n_steps(self) -> int:
        """All steps of the training."""
        return self._session.n_steps

    @property
    def n_done(self) -> int:
        """Steps that have been made."""
        return self._session.n_done

    def advance(self, n_steps: int) -> None:
        """Makes so many steps, or those that are left.

        Raises:
            PolicyError: the training diverged.
        """
        self._session.advance(n_steps)

    def score(self) -> float:
        """Returns how good the model is by now, as `Scoring.score` says, after keeping the state on disk.

        Raises:
            PolicyError: the artifact cannot be built.
            MeasurementError: the runtime refuses it.
        """
        self._session.save()
        return self._scoring.score(self._build())

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns name → array of everything that going on needs."""
        return self._session.state_dict()

    def load_state_dict(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from what `state_dict` gave.

        Raises:
            RunError: the state is that of another training.
        """
        self._session.load_state_dict(arrays)

    def finish(self) -> None:
        """Puts the trained model where `Pipeline.build` finds it.

        Raises:
            RunError: steps are left.
        """
        self._pipeline.shaper.adopt(self._shape, self._session.finish())

    def _build(self) -> Artifact:
        source = self._pipeline.shaper.export(self._session.snapshot())
        calibration = self._pipeline.prepared.calibration
        fusions = tuple(dict.fromkeys(("none", self._graph.fusion)))
        stage = OnnxStage(prepare_model(source, calibration, fusions=fusions), self._pipeline.scheme)
        return stage.write(self._shape.remaining(stage.prepared.layers), self._graph)

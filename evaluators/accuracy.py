"""Accuracy on the real runtime, paired sample by sample with the original."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..core.errors import DataError, MeasurementError
from .dataset import Split
from .device import Executable
from .measurement import Estimate
from .metrics import estimate, find_metric, paired_drop


@dataclass(frozen=True, slots=True)
class Score:
    """How well an artifact does, and how much worse than the original."""

    #: the metric itself, higher is better
    accuracy: Estimate
    #: original minus artifact, paired sample by sample
    accuracy_drop: Estimate


class AccuracyEvaluator:
    """Scores artifacts on one split; the original runs once, when the evaluator is made.

    >>> class Doubling:
    ...     def run(self, inputs):
    ...         return [2 * inputs["x"]]
    >>> split = Split({"x": np.eye(3, dtype=np.float32)}, np.arange(3))
    >>> evaluator = AccuracyEvaluator(Doubling(), split, metric="accuracy", batch_size=2)
    >>> evaluator.score(Doubling()).accuracy_drop
    Estimate(mean=0.0, standard_error=0.0, n=3)
    """

    def __init__(self, original: Executable, split: Split, *, metric: object, batch_size: int) -> None:
        """Runs the original over the split.

        Raises:
            SpecError: the metric is not known.
            DataError: the split or the outputs do not fit the metric.
            MeasurementError: the original gives values that are not finite.
        """
        self.split = split
        self.metric = find_metric(metric)
        self.batch_size = batch_size
        #: per model output an (n, …) array
        self.reference = run_split(original, split, batch_size=batch_size)
        #: (n,) float64 scores of the original
        self.reference_scores = self.metric(self.reference, split.labels, self.reference)

    @property
    def original(self) -> Estimate:
        """The original's own score on the whole split."""
        return estimate(self.reference_scores)

    def score(self, executable: Executable, *, indices: np.ndarray | None = None) -> Score:
        """Scores an artifact on the whole split, or on a paired subset of it.

        Args:
            executable: the artifact on its runtime.
            indices: (k,) int positions in the split, k at least 2; None means all.

        Raises:
            DataError: the outputs do not fit the metric, or the subset is too small.
            MeasurementError: the runtime fails or gives values that are not finite.
        """
        scores = self.score_samples(executable, indices=indices)
        original = self.reference_scores if indices is None else self.reference_scores[indices]
        return Score(estimate(scores), paired_drop(original, scores))

    def score_samples(self, executable: Executable, *, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns (n,) or (k,) float64 scores; see `score`, whose estimates are made of them."""
        split = self.split if indices is None else self.split.take(indices)
        reference = self.reference if indices is None else [array[indices] for array in self.reference]
        outputs = run_split(executable, split, batch_size=self.batch_size)
        return self.metric(outputs, split.labels, reference)


def run_split(executable: Executable, split: Split, *, batch_size: int) -> list[np.ndarray]:
    """Runs all samples in batches of one size.

    The last batch is filled up with its last sample and cut afterwards, so that models of a fixed batch work.

    Returns:
        Per model output an (n, …) array.

    Raises:
        MeasurementError: the runtime fails, an output is not (batch, …), or holds values that are not finite.
    """
    pieces = [_run_batch(executable, split, start, batch_size) for start in range(0, len(split), batch_size)]
    outputs = [_join(parts, position) for position, parts in enumerate(zip(*pieces, strict=True))]
    for position, array in enumerate(outputs):
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            n_bad = int((~np.isfinite(array)).sum())
            raise MeasurementError(
                f"outputs must be finite, got {n_bad} of {array.size} values that are not in output {position}"
            )
    return outputs


def take_batch(split: Split, start: int, batch_size: int) -> Mapping[str, np.ndarray]:
    """Returns samples from ``start`` on, as one full batch: input name → (batch_size, …) array.

    What is missing at the end is filled up with the last sample.

    Raises:
        DataError: no sample is left at ``start``.
    """
    if start >= len(split):
        raise DataError(f"a batch must start before sample {len(split)}, got {start}")
    indices = np.minimum(np.arange(start, start + batch_size), len(split) - 1)
    return split.take(indices).inputs


def _run_batch(executable: Executable, split: Split, start: int, batch_size: int) -> list[np.ndarray]:
    outputs = executable.run(take_batch(split, start, batch_size))
    for position, array in enumerate(outputs):
        if array.ndim == 0 or len(array) != batch_size:
            raise MeasurementError(
                f"output {position} must have the batch of {batch_size} as its first dimension, got shape {array.shape}"
            )
    return [array[: len(split) - start] for array in outputs]


def _join(parts: tuple[np.ndarray, ...], position: int) -> np.ndarray:
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) != 1:
        raise MeasurementError(f"output {position} must have one shape in all batches, got {sorted(shapes)}")
    return np.concatenate(parts)

"""Accuracy on the real runtime, paired sample by sample with the original."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..core.errors import DataError, MeasurementError
from ..core.seeds import derive_rng
from .dataset import Split
from .device import BatchedExecutable, Executable
from .measurement import Estimate
from .metrics import estimate, find_metric, paired_drop
from .sequential import FALSE_STOP_RATE, ceiling_of, find_first, list_looks, log_wealth


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
        #: (n,) int: random, and the same for all artifacts, so that any first part of it is a paired subset
        self.order = derive_rng("order of samples", len(split)).permutation(len(split))
        #: samples of `order` after which `go_on` looks whether it is worth while to go on; the last has all
        self.looks = list_looks(len(split), batch_size=batch_size)
        #: samples of `order` that every artifact is worth
        self.n_first = find_first(self.looks)
        #: per model output an (n, …) array
        self.reference = self._run_all(original)
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
        if indices is None:
            return self.metric(self._run_all(executable), self.split.labels, self.reference)
        outputs = run_split(executable, self.split, batch_size=self.batch_size, indices=indices)
        labels = None if self.split.labels is None else self.split.labels[indices]
        return self.metric(outputs, labels, [array[indices] for array in self.reference])

    def go_on(
        self, executable: Executable, scores: np.ndarray, *, n_samples: int, max_drop: float | None = None
    ) -> tuple[np.ndarray, str]:
        """Scores further samples in `order`, look by look; ends early where the drop is clearly too large.

        Scoring in pieces runs the same batches as scoring at once, so it gives the same scores to the last bit.

        Args:
            executable: the artifact on its runtime.
            scores: (k,) float64 scores of the first samples, k being 0 or what this method returned.
            n_samples: one of `looks`.
            max_drop: a drop on the whole split up to here is good enough; None: whatever it is, nothing ends early.
                An artifact whose drop on the whole split is not above it is stopped with a probability of at most
                `FALSE_STOP_RATE`. A metric whose largest score is not known stops nothing.

        Returns:
            The (m,) scores of the first m samples, and why there are not n_samples of them, in words; or "".

        Raises:
            DataError: the outputs do not fit the metric.
            MeasurementError: the runtime fails or gives values that are not finite.
        """
        for look in self.looks:
            if not len(scores) < look <= n_samples:
                continue
            piece = self.score_samples(executable, indices=self.order[len(scores) : look])
            scores = np.concatenate([scores, piece])
            if max_drop is not None and look < len(self.split) and self._is_above(scores, max_drop):
                drop = self.summarise(scores).accuracy_drop
                return scores, (
                    f"stopped after {look} of {len(self.split)} samples: an accuracy drop of {drop.mean:.4g} "
                    f"± {drop.standard_error:.2g} is clearly above {max_drop:g}"
                )
        return scores, ""

    def summarise(self, scores: np.ndarray) -> Score:
        """Returns the estimates from (k,) scores of the first samples in `order`; with all, those of `score`.

        Raises:
            DataError: there are fewer than two.
        """
        indices = self.order[: len(scores)]
        ascending = np.argsort(indices)  # a sum depends on the order of its terms
        sorted_scores = scores[ascending]
        return Score(estimate(sorted_scores), paired_drop(self.reference_scores[indices[ascending]], sorted_scores))

    def _is_above(self, scores: np.ndarray, max_drop: float) -> bool:
        ceiling = ceiling_of(self.metric)
        if ceiling is None:
            return False
        wealth = log_wealth(self.reference_scores[self.order], scores, max_drop=max_drop, ceiling=ceiling)
        return bool(wealth >= -np.log(FALSE_STOP_RATE))

    def _run_all(self, executable: Executable) -> list[np.ndarray]:
        """Runs the split in batches along `order`; returns the outputs in the order of the split."""
        outputs = run_split(executable, self.split, batch_size=self.batch_size, indices=self.order)
        places = np.argsort(self.order)
        return [array[places] for array in outputs]


def run_split(
    executable: Executable, split: Split, *, batch_size: int, indices: np.ndarray | None = None
) -> list[np.ndarray]:
    """Runs samples in batches of one size.

    The last batch is filled up with its last sample and cut afterwards, so that models of a fixed batch work.

    Args:
        executable: what runs.
        split: n samples.
        batch_size: samples at a time.
        indices: (k,) int positions in the split, in the order in which they run; None means all, as they stand.

    Returns:
        Per model output an (n, …) or (k, …) array.

    Raises:
        MeasurementError: the runtime fails, an output is not (batch, …), or holds values that are not finite.
    """
    chosen = np.arange(len(split)) if indices is None else indices
    parts_of_split = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    batches = (_take_filled(split, indices, batch_size) for indices in parts_of_split)
    pieces = [
        _cut(batch, len(indices), batch_size)
        for batch, indices in zip(_run(executable, batches), parts_of_split, strict=True)
    ]
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
    return _take_filled(split, np.arange(start, min(start + batch_size, len(split))), batch_size)


def _take_filled(split: Split, indices: np.ndarray, batch_size: int) -> Mapping[str, np.ndarray]:
    """Returns up to a batch of samples, filled up with the last of them."""
    filled = indices[np.minimum(np.arange(batch_size), len(indices) - 1)]
    return split.take(filled).inputs


def _run(executable: Executable, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[list[np.ndarray]]:
    if isinstance(executable, BatchedExecutable):
        return executable.run_batches(batches)
    return (executable.run(batch) for batch in batches)


def _cut(outputs: list[np.ndarray], n_samples: int, batch_size: int) -> list[np.ndarray]:
    """Checks the outputs of one batch and cuts off what it was filled up with."""
    for position, array in enumerate(outputs):
        if array.ndim == 0 or len(array) != batch_size:
            raise MeasurementError(
                f"output {position} must have the batch of {batch_size} as its first dimension, got shape {array.shape}"
            )
    return [array[:n_samples] for array in outputs]


def _join(parts: tuple[np.ndarray, ...], position: int) -> np.ndarray:
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) != 1:
        raise MeasurementError(f"output {position} must have one shape in all batches, got {sorted(shapes)}")
    return np.concatenate(parts)

"""Metrics: one score per sample, higher is better, so that a drop is a paired difference."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from ..core.errors import DataError
from ..core.registry import Registry
from .measurement import Estimate

#: Positions with this label are not scored, as in torch.nn.CrossEntropyLoss(ignore_index=-100).
IGNORED_LABEL = -100

#: Elements of logits that are widened to float64 at a time: 32 MiB.
_PIECE_ELEMENTS = 4 * 1024 * 1024


class Metric(Protocol):
    """Scores every sample."""

    def __call__(self, outputs: list[np.ndarray], labels: np.ndarray | None, reference: list[np.ndarray]) -> np.ndarray:
        """Returns (n,) float64, higher is better.

        Args:
            outputs: per model output an (n, …) array, from the artifact.
            labels: (n, …) array of the split, or None where it has none.
            reference: per model output an (n, …) array, from the original.

        Raises:
            DataError: the arrays do not fit the metric.
        """
        ...


#: metric name → the metric itself
METRICS: Registry[np.ndarray] = Registry(
    "metric",
    "trimtab.metrics",
    {name: f"{__name__}:{name}" for name in ("accuracy", "top5", "agreement", "kl", "nll")},
)


#: those of `METRICS` that compare with the original
_COMPARING = frozenset({"agreement", "kl"})


@dataclass(frozen=True, slots=True)
class CheckedMetric:
    """A metric under its name, which refuses scores of a wrong shape and scores that are not finite.

    >>> scores = find_metric("accuracy")([np.array([[0.1, 0.9], [0.8, 0.2]])], np.array([1, 1]), [])
    >>> scores.tolist()
    [1.0, 0.0]
    """

    name: str
    function: Callable[..., np.ndarray]
    takes_reference: bool = True

    @property
    def needs_original(self) -> bool:
        """Whether scores mean nothing without the original's outputs."""
        return self.name in _COMPARING if self.name in METRICS else self.takes_reference

    def __call__(self, outputs: list[np.ndarray], labels: np.ndarray | None, reference: list[np.ndarray]) -> np.ndarray:
        """Returns (n,) float64 scores; see `Metric`.

        Raises:
            DataError: the metric does not fit the data, or its scores are not (n,) finite numbers.
        """
        arguments = (outputs, labels, reference) if self.takes_reference else (outputs, labels)
        try:
            values = np.asarray(self.function(*arguments), dtype=np.float64)
        except DataError as error:
            raise DataError(f"metric '{self.name}': {error}") from error
        except Exception as error:
            raise DataError(f"metric '{self.name}' failed: {error!r}") from error
        expected = (len(outputs[0]),)
        if values.shape != expected:
            raise DataError(
                f"metric '{self.name}' must return one score per sample, shape {expected}, got shape {values.shape}"
            )
        if not np.isfinite(values).all():
            where = int(np.flatnonzero(~np.isfinite(values))[0])
            raise DataError(f"metric '{self.name}' must return finite scores, got {values[where]} for sample {where}")
        return values


def find_metric(metric: object) -> CheckedMetric:
    """Finds a metric by name, by ``module:callable``, or takes the callable itself.

    Args:
        metric: a known name, ``module:callable``, or a callable that takes (outputs, labels) or
            (outputs, labels, reference).

    Raises:
        SpecError: the name is not known or does not import.
        DataError: it is neither a name nor a callable, or takes other arguments.
    """
    if isinstance(metric, CheckedMetric):
        return metric
    if isinstance(metric, str):
        return _check_signature(metric, METRICS.get(metric))
    if callable(metric):
        name = str(getattr(metric, "__name__", type(metric).__name__))
        return _check_signature(name, cast("Callable[..., np.ndarray]", metric))
    raise DataError(f"a metric must be a name, module:callable or a callable, got {metric!r}")


def estimate(values: np.ndarray) -> Estimate:
    """Returns the mean of scores and its standard error, std(ddof=1) / sqrt(n).

    Args:
        values: (n,) float, n at least 2.

    Raises:
        DataError: there are fewer than two values, whose spread is unknown.
    """
    if values.ndim != 1 or len(values) < 2:
        raise DataError(f"an estimate needs (n,) scores of at least 2 samples, got shape {values.shape}")
    error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return Estimate(float(np.mean(values)), error, len(values))


def paired_drop(original: np.ndarray, artifact: np.ndarray) -> Estimate:
    """Returns the mean of original minus artifact, sample by sample, with the standard error of that difference.

    Args:
        original: (n,) float scores.
        artifact: (n,) float scores of the same samples in the same order.

    Raises:
        DataError: the shapes differ, or there are fewer than two samples.
    """
    if original.shape != artifact.shape:
        raise DataError(f"paired scores must have one shape, got {original.shape} and {artifact.shape}")
    return estimate(original - artifact)


def accuracy(outputs: list[np.ndarray], labels: np.ndarray | None, _reference: list[np.ndarray]) -> np.ndarray:
    """Top-1: 1 where the largest logit of output 0 is the label's; for sequences the share of such positions.

    Args:
        outputs: output 0 is (n, classes) or (n, seq, classes) logits.
        labels: (n,) or (n, seq) int; positions with -100 are not scored.
    """
    logits = _take_logits(outputs)
    known = _take_labels(labels, logits)
    return _mean_scored(logits.argmax(axis=-1) == known, known != IGNORED_LABEL)


def top5(outputs: list[np.ndarray], labels: np.ndarray | None, _reference: list[np.ndarray]) -> np.ndarray:
    """Top-5: 1 where the label's logit is among the five largest; ties go to the lower class, as in argmax.

    Args:
        outputs: output 0 is (n, classes) or (n, seq, classes) logits, more than five classes.
        labels: (n,) or (n, seq) int; positions with -100 are not scored.
    """
    logits = _take_logits(outputs)
    known = _take_labels(labels, logits)
    n_classes = logits.shape[-1]
    if n_classes <= 5:
        raise DataError(f"needs more than 5 classes, got {n_classes}; use accuracy")
    index = np.where(known == IGNORED_LABEL, 0, known)[..., None]
    own = np.take_along_axis(logits, index, axis=-1)
    ahead = (logits > own) | ((logits == own) & (np.arange(n_classes) < index))
    return _mean_scored(ahead.sum(axis=-1) < 5, known != IGNORED_LABEL)


def agreement(outputs: list[np.ndarray], labels: np.ndarray | None, reference: list[np.ndarray]) -> np.ndarray:
    """1 where the artifact decides as the original does; needs no labels, but skips positions labelled -100.

    Args:
        outputs: output 0 is (n, classes) or (n, seq, classes) logits.
        labels: None, or any (n, …) array.
        reference: output 0 is the original's logits, of the same shape.
    """
    logits, original = _take_pair(outputs, reference)
    return _mean_scored(logits.argmax(axis=-1) == original.argmax(axis=-1), _find_scored(labels, logits))


def kl(outputs: list[np.ndarray], labels: np.ndarray | None, reference: list[np.ndarray]) -> np.ndarray:
    """Minus the Kullback-Leibler divergence KL(original || artifact) in nats, from logits.

    Kullback and Leibler, On Information and Sufficiency (1951), eq. 2.4; the mean over the positions of a sequence.

    Args:
        outputs: output 0 is (n, classes) or (n, seq, classes) logits.
        labels: None, or any (n, …) array; positions labelled -100 are skipped.
        reference: output 0 is the original's logits, of the same shape.
    """
    logits, original = _take_pair(outputs, reference)
    divergence = np.empty(logits.shape[:-1])
    for piece in _pieces(logits):
        log_p, log_q = _log_softmax(original[piece]), _log_softmax(logits[piece])
        divergence[piece] = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    return _mean_scored(-divergence, _find_scored(labels, logits))


def nll(outputs: list[np.ndarray], labels: np.ndarray | None, _reference: list[np.ndarray]) -> np.ndarray:
    """Mean log-likelihood of the labels in nats, that is minus the mean negative log-likelihood per sample.

    The perplexity is exp(-mean) when all samples score equally many positions. Labels of a language model have
    to be shifted already: the label of a position is the token that its logits predict.

    Args:
        outputs: output 0 is (n, classes) or (n, seq, classes) logits.
        labels: (n,) or (n, seq) int; positions with -100 are not scored.
    """
    logits = _take_logits(outputs)
    known = _take_labels(labels, logits)
    index = np.where(known == IGNORED_LABEL, 0, known)[..., None]
    likelihood = np.empty(logits.shape[:-1])
    for piece in _pieces(logits):
        likelihood[piece] = np.take_along_axis(_log_softmax(logits[piece]), index[piece], axis=-1)[..., 0]
    return _mean_scored(likelihood, known != IGNORED_LABEL)


def _check_signature(name: str, function: Callable[..., np.ndarray]) -> CheckedMetric:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return CheckedMetric(name, function, takes_reference=False)
    for takes_reference, arguments in ((True, (None, None, None)), (False, (None, None))):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return CheckedMetric(name, function, takes_reference)
    raise DataError(f"metric '{name}' must take (outputs, labels) or (outputs, labels, reference), got {signature}")


def _take_logits(outputs: list[np.ndarray]) -> np.ndarray:
    logits = outputs[0]
    if logits.ndim < 2 or logits.shape[-1] < 2:
        raise DataError(f"output 0 must be (n, …, classes) logits of at least 2 classes, got shape {logits.shape}")
    return logits


def _take_pair(outputs: list[np.ndarray], reference: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    logits, original = _take_logits(outputs), _take_logits(reference)
    if logits.shape != original.shape:
        raise DataError(f"output 0 must have the original's shape {original.shape}, got {logits.shape}")
    return logits, original


def _take_labels(labels: np.ndarray | None, logits: np.ndarray) -> np.ndarray:
    if labels is None:
        raise DataError("needs labels, but the split has none")
    if labels.shape != logits.shape[:-1] or not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool):
        raise DataError(
            f"labels must be integers of shape {logits.shape[:-1]} for logits of shape {logits.shape}, "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    known = labels.astype(np.int64)
    wrong = known[(known != IGNORED_LABEL) & ((known < 0) | (known >= logits.shape[-1]))]
    if wrong.size:
        raise DataError(f"labels must lie in 0 … {logits.shape[-1] - 1} or be {IGNORED_LABEL}, got {wrong[0]}")
    return known


def _find_scored(labels: np.ndarray | None, logits: np.ndarray) -> np.ndarray:
    if labels is None or labels.shape != logits.shape[:-1]:
        return np.ones(logits.shape[:-1], dtype=bool)
    scored: np.ndarray = labels != IGNORED_LABEL
    return scored


def _mean_scored(values: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Returns per sample the mean of the values (n, …) at the scored positions (n, …)."""
    axes = tuple(range(1, values.ndim))
    counts = scored.sum(axis=axes)
    if not counts.all():
        raise DataError(f"sample {int(np.flatnonzero(counts == 0)[0])} has no label to score")
    means: np.ndarray = np.where(scored, values, 0.0).sum(axis=axes) / counts
    return means


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    normalised: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def _pieces(logits: np.ndarray) -> Iterator[slice]:
    step = max(1, _PIECE_ELEMENTS * len(logits) // max(1, logits.size))
    for start in range(0, len(logits), step):
        yield slice(start, start + step)

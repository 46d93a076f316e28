"""Activation ranges: statistics once per model, ranges per method from the same statistics."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...core.errors import ModelError
from ..graph import iterate_outputs

_N_BINS = 2048
#: share of the values that the percentile method keeps (the default of onnxruntime.quantization)
_PERCENTILE = 99.999


@dataclass(frozen=True)
class Histogram:
    """How often the values of one tensor fell where, over the whole calibration set."""

    #: (n_bins,) int64
    counts: np.ndarray
    #: (n_bins + 1,) float64, ascending
    edges: np.ndarray
    minimum: float
    maximum: float
    #: method → range, once it was chosen: by entropy it takes a tenth of a second, and many stages share a histogram
    _ranges: dict[str, "Range"] = field(default_factory=dict, init=False, repr=False, compare=False)

    def range_by(self, method: str) -> "Range":
        """Returns the range that a method keeps; see `choose_range`."""
        if method not in self._ranges:
            self._ranges[method] = choose_range(self, method)
        return self._ranges[method]


@dataclass(frozen=True, slots=True)
class Range:
    """The interval that int8 has to cover."""

    low: float
    high: float


def collect_histograms(
    model: ir.Model, names: Iterable[str], samples: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, Histogram]:
    """Runs the calibration samples once through the float model.

    Args:
        model: the float graph.
        names: values to watch.
        samples: feeds of the model, input name → (batch, …) array.

    Raises:
        ModelError: a value is not finite on the calibration data; the message names it.
        DataError: the model cannot run on a sample.
    """
    watched = list(dict.fromkeys(names))
    found: dict[str, Histogram] = {}
    for arrays in iterate_outputs(model, watched, samples):
        for name, array in zip(watched, arrays, strict=True):
            flat = np.asarray(array, dtype=np.float32).ravel()
            if not np.isfinite(flat).all():
                raise ModelError(f"the value '{name}' is not finite on the calibration data")
            found[name] = _extend(found.get(name), flat)
    return found


def _extend(histogram: Histogram | None, values: np.ndarray) -> Histogram:
    """Counts values: (n,) float32; widens the bins by whole bin widths when the range grows."""
    low, high = float(values.min()), float(values.max())
    if histogram is None:
        margin = max(high - low, 1e-6 * max(1.0, abs(low), abs(high))) * 0.25  # never below what float64 resolves
        edges = np.linspace(low - margin, high + margin, _N_BINS + 1)
        return Histogram(_count(values, edges), edges, low, high)
    edges, counts = histogram.edges, histogram.counts
    width = edges[1] - edges[0]
    before = max(0, int(np.ceil((edges[0] - low) / width)))
    after = max(0, int(np.ceil((high - edges[-1]) / width)) + 1) if high >= edges[-1] else 0
    if before + after > 15 * _N_BINS:  # a range that explodes: start again with coarser bins
        edges = np.linspace(min(low, edges[0]), max(high, edges[-1]) + width, _N_BINS + 1)
        middles = (histogram.edges[:-1] + histogram.edges[1:]) / 2
        counts = np.histogram(middles, edges, weights=counts)[0].astype(np.int64)
    elif before or after:
        edges = edges[0] - before * width + width * np.arange(len(counts) + before + after + 1)
        counts = np.pad(counts, (before, after))
    return Histogram(counts + _count(values, edges), edges, min(low, histogram.minimum), max(high, histogram.maximum))


def _count(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Counts values per bin of equal width: bincount of the computed index is several times np.histogram's speed."""
    n_bins = len(edges) - 1
    index = ((values - edges[0]) * (n_bins / (edges[-1] - edges[0]))).astype(np.int64)
    return np.bincount(np.clip(index, 0, n_bins - 1), minlength=n_bins)


class LazyRanges(Mapping[str, Range]):
    """The ranges of one method, each chosen when it is first asked for: most policies need few of them."""

    def __init__(self, histograms: Mapping[str, Histogram], method: str) -> None:
        self._histograms = histograms
        self._method = method

    def __getitem__(self, name: str) -> Range:
        return self._histograms[name].range_by(self._method)

    def __iter__(self) -> Iterator[str]:
        return iter(self._histograms)

    def __len__(self) -> int:
        return len(self._histograms)


def choose_range(histogram: Histogram, method: str) -> Range:
    """Returns the range that the method keeps, always with 0 inside.

    Args:
        histogram: the statistics of one value.
        method: ``minmax``; ``percentile`` (99.999 % of the values, equal tails); ``entropy`` (smallest
            KL divergence between the clipped and the quantised histogram, as onnxruntime.quantization
            does it); ``mse`` (smallest squared error of 8-bit rounding and clipping).
    """
    if method == "percentile":
        low, high = _percentile_range(histogram)
    elif method == "entropy":
        low, high = _entropy_range(histogram)
    elif method == "mse":
        low, high = _mse_range(histogram)
    else:
        low, high = histogram.minimum, histogram.maximum
    low, high = max(low, histogram.minimum), min(high, histogram.maximum)
    return Range(min(low, 0.0), max(high, 0.0))


def _percentile_range(histogram: Histogram) -> tuple[float, float]:
    tail = (1.0 - _PERCENTILE / 100.0) / 2.0
    cumulative = np.cumsum(histogram.counts) / histogram.counts.sum()
    first = int(np.searchsorted(cumulative, tail, side="right"))
    last = int(np.searchsorted(cumulative, 1.0 - tail, side="left"))
    return float(histogram.edges[first]), float(histogram.edges[min(last + 1, len(histogram.edges) - 1)])


def _entropy_range(histogram: Histogram) -> tuple[float, float]:
    """Uses onnxruntime's own search on a symmetric histogram of 128 quantised bins.

    Source: S. Migacz, 8-bit inference with TensorRT (GTC 2017), as implemented in
    onnxruntime.quantization.calibrate.HistogramCollector.get_entropy_threshold.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    bound = max(abs(histogram.minimum), abs(histogram.maximum), 1e-12)
    edges = np.linspace(-bound, bound, 1025 + 1)
    middles = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    counts = np.histogram(np.clip(middles, -bound, bound), edges, weights=histogram.counts)[0].astype(np.int64)
    collector = HistogramCollector("entropy", True, 1025, 128, _PERCENTILE, "same")
    low, high = collector.get_entropy_threshold((counts, edges, -bound, bound, bound), 128)[:2]
    return float(np.squeeze(low)), float(np.squeeze(high))


def _mse_range(histogram: Histogram) -> tuple[float, float]:
    """Tries 100 shrunken ranges; the expected error of rounding is step² / 12 (uniform within a step)."""
    middles = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    weights = histogram.counts.astype(np.float64)
    low0, high0 = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    best, best_error = (low0, high0), np.inf
    for share in np.linspace(1.0, 0.1, 100):
        low, high = low0 * share, high0 * share
        clipped = np.maximum(low - middles, 0) + np.maximum(middles - high, 0)
        step = (high - low) / 255
        error = float((weights * np.where(clipped > 0, clipped**2, step**2 / 12)).sum())
        if error < best_error:
            best, best_error = (low, high), error
    return best

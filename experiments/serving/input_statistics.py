"""What a model's inputs look like: binned features of samples, recorded beside the artifact and compared in service."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ...core.seeds import derive_rng

#: elements of a sample that are looked at; of larger ones every second, third … is taken, starting anywhere
MAX_ELEMENTS = 1024
#: samples that the statistics are made of, at most
_MAX_SAMPLES = 4096
_N_BINS = 10
#: samples that a bin must hold on average; with fewer samples there are fewer bins
_PER_BIN = 8
#: more features or bins than this in a manifest are refused
_MAX_FEATURES, _MAX_EDGES = 256, 64


@dataclass(frozen=True, slots=True)
class Bins:
    """How often a feature lay in each bin; bins end where the recorded samples have their quantiles.

    >>> Bins((0.0, 1.0), (5, 5, 5)).count(np.array([-1.0, 0.0, 0.5, 7.0, np.nan])).tolist()
    [2, 1, 2]
    """

    #: ascending upper bounds of all bins but the last, each inside its bin; what is not a number counts in the last
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def count(self, values: np.ndarray) -> np.ndarray:
        """Returns (n_bins,) int64: how many of (n,) float64 values lie in each bin."""
        found = np.searchsorted(np.array(self.edges), values, side="left")
        return np.bincount(found, minlength=len(self.counts))

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {"edges": list(self.edges), "counts": list(self.counts)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Bins":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: the edges do not ascend, or there is not one count for each bin.
        """
        edges = tuple(float(edge) for edge in value["edges"])
        counts = tuple(int(count) for count in value["counts"])
        ascends = all(low < high for low, high in pairwise(edges))
        if not ascends or not all(map(math.isfinite, edges)) or len(edges) > _MAX_EDGES:
            raise ValueError(f"edges of bins must be at most {_MAX_EDGES} ascending numbers, got {edges!r:.80}")
        if len(counts) != len(edges) + 1 or min(counts) < 0 or not 0 < sum(counts) < 2**53:
            raise ValueError(f"{len(edges)} edges need {len(edges) + 1} counts, 0 or more, got {counts!r:.80}")
        return cls(edges, counts)


#: input name → feature → its bins
InputStatistics = Mapping[str, Mapping[str, Bins]]


def record_inputs(inputs: Mapping[str, np.ndarray]) -> InputStatistics:
    """Returns the statistics of samples; those inputs and features that never change are left out.

    Args:
        inputs: input name → (n_samples, …) array; fewer than 16 samples tell nothing.
    """
    n_samples = len(next(iter(inputs.values())))
    rng = derive_rng("input statistics", n_samples)
    chosen = rng.permutation(n_samples)[:_MAX_SAMPLES]
    found = {}
    for name, array in inputs.items():
        if not is_watchable(array):
            continue
        rows = [measure_row(take_elements(array, int(row), rng.random()), rng.random()) for row in chosen]
        bins = {feature: _make_bins(np.array([row[feature] for row in rows])) for feature in rows[0]}
        known = {feature: found for feature, found in bins.items() if found is not None}
        if known:
            found[name] = known
    return found


def is_watchable(array: np.ndarray) -> bool:
    """Whether an input consists of numbers, a sample per row."""
    return array.dtype.kind in "biuf" and array.ndim > 0 and array.size > 0


def take_elements(array: np.ndarray, row: int, offset: float) -> np.ndarray:
    """Returns a copy of up to `MAX_ELEMENTS` elements of one sample, evenly spaced.

    Args:
        array: (batch, …) numbers.
        row: which sample.
        offset: 0 to 1: where to start, so that over many samples every element is looked at.
    """
    flat = array[row].reshape(-1)
    stride = -(-flat.size // MAX_ELEMENTS)
    taken: np.ndarray = flat[int(offset * stride) :: stride].copy()
    return taken


def measure_row(elements: np.ndarray, position: float) -> dict[str, float]:
    """Returns a sample's features: mean, spread, share of zeros, and one element drawn from it.

    The drawn one shows the distribution of elements though those of one sample depend on each other: over the samples
    it is one independent draw each. Of token ids the share of zeros is the padding.

    Args:
        elements: (n,) numbers, see `take_elements`.
        position: 0 to 1: which element is drawn.
    """
    values = elements.astype(np.float64)
    mean = float(values.mean())
    return {
        "mean": mean,
        "spread": math.sqrt(max(0.0, float(np.dot(values, values)) / len(values) - mean * mean)),
        "zeros": 1.0 - np.count_nonzero(values) / len(values),
        "element": float(values[int(position * len(values))]),
    }


def statistics_to_json(statistics: InputStatistics) -> dict[str, Any]:
    """Returns the statistics as JSON values."""
    return {
        name: {feature: bins.to_json() for feature, bins in features.items()} for name, features in statistics.items()
    }


def statistics_from_json(content: Any) -> InputStatistics:
    """Reads what `statistics_to_json` wrote.

    Raises:
        ValueError: they are damaged, or too many.
    """
    if not isinstance(content, Mapping) or not all(isinstance(features, Mapping) for features in content.values()):
        raise ValueError(f"input_statistics must be a mapping of inputs, got {content!r:.80}")
    if sum(map(len, content.values())) > _MAX_FEATURES:
        raise ValueError(f"input_statistics may hold {_MAX_FEATURES} features at most")
    return {
        str(name): {str(feature): Bins.from_json(bins) for feature, bins in features.items()}
        for name, features in content.items()
    }


def list_features(statistics: InputStatistics) -> Iterator[tuple[str, str, Bins]]:
    """Yields input, feature and bins."""
    for name, features in statistics.items():
        yield from ((name, feature, bins) for feature, bins in features.items())


def _make_bins(values: np.ndarray) -> Bins | None:
    """Returns bins that hold about as many of (n,) float64 values each; None where one bin would hold all.

    A value that many samples share, such as the zeros of padding, has a bin of its own.
    """
    finite = values[np.isfinite(values)]
    n_bins = min(_N_BINS, len(finite) // _PER_BIN)
    if n_bins < 2:
        return None
    shares = np.arange(1, n_bins) / n_bins
    edges = np.unique(np.quantile(finite, shares, method="inverted_cdf"))
    edges = edges[edges < finite.max()]  # a last bin that holds nothing says nothing
    if not len(edges):
        return None
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
    return Bins(tuple(map(float, edges)), tuple(map(int, counts)))

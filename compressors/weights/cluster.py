"""Weight sharing: a codebook of few values for a tensor, or for each group of output channels, by k-means."""

from dataclasses import dataclass

import numpy as np

from ...spaces.treatment import Treatment
from ..layer_inputs import LayerInputs
from .sparsify import choose_kept
from .treated_weight import TreatedWeight, as_rows, from_rows, input_energy

#: output channels that share a codebook where the scope is ``group``
GROUP_CHANNELS = 16
#: values closer than this, relatively, are one: merging a batch norm and taking it out again moves a few last bits
_SAME = 1e-6
#: bins in which the best codebook is sought; what differs then is settled on the weights themselves
_N_BINS = 512
_MAX_ROUNDS = 300


def cluster_weight(
    weight: np.ndarray,
    treatment: Treatment,
    *,
    axis: int,
    inputs: LayerInputs | None = None,
    output_scale: np.ndarray | None = None,
) -> TreatedWeight:
    """Returns the weight with ``treatment.clusters`` values; one that has no more comes back as it is.

    Han et al., Deep Compression (2016), section 3. Weighted by sensitivity, the error of weight (i, j) counts
    E[x_j²] times the square of the output's scale, its part of the expected squared error of the output.

    Args:
        weight: any shape, float32.
        treatment: its ``clusters``, ``cluster_scope`` and ``cluster_weighting`` count. With sparsity one value
            is 0, and the others are chosen for the weights that stay.
        axis: the axis of the outputs.
        inputs: what enters the layer; None counts every input alike.
        output_scale: (n_outputs,) float; what a batch norm multiplied each output by when it was merged. The codebook
            is that of the weight before the merge.

    Raises:
        PolicyError: the statistics do not fit the weight.
    """
    rows, scale = _take_out(as_rows(weight, axis), output_scale)
    importance = _weigh(weight, treatment, axis, inputs, scale)
    step = len(rows) if treatment.cluster_scope == "tensor" else GROUP_CHANNELS
    values = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        used = slice(None) if scale is None else scale[part] != 0
        codebook = find_codebook(
            rows[part][used],
            treatment.clusters,
            importance=None if importance is None else importance[part][used],
            with_zero=treatment.sparsity > 0,
        )
        values[part] = assign(rows[part], codebook)
    return TreatedWeight(from_rows(values, weight.shape, axis), scale, axis, "coded")


def _weigh(
    weight: np.ndarray, treatment: Treatment, axis: int, inputs: LayerInputs | None, scale: np.ndarray | None
) -> np.ndarray | None:
    """Returns what the squared error of each weight counts: (n_outputs, K) float64; None: all alike."""
    importance = None
    if treatment.cluster_weighting == "sensitivity":
        n_outputs = weight.shape[axis]
        importance = input_energy(inputs, n_outputs, weight.size // n_outputs)
        if scale is not None:
            importance = importance * scale.astype(np.float64)[:, None] ** 2
    if treatment.sparsity > 0:  # what becomes 0 afterwards takes no part in the codebook
        kept = as_rows(choose_kept(weight, treatment, axis=axis, inputs=inputs), axis).astype(np.float64)
        importance = kept if importance is None else importance * kept
    return importance


def _take_out(rows: np.ndarray, output_scale: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Divides by the scale of each output; one that is 0 without zeroing its weights stands for 1."""
    if output_scale is None:
        return rows, None
    scale = np.where((output_scale == 0) & rows.any(1), 1.0, output_scale).astype(np.float32)
    return (rows / np.where(scale == 0, np.float32(1), scale)[:, None]).astype(np.float32), scale


def assign(values: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Returns the nearest value of the codebook for each value: float32, same shape.

    Args:
        values: any shape, float32.
        codebook: (k,) float32, ascending.
    """
    chosen: np.ndarray = codebook[np.searchsorted(_middles(codebook), values)]
    return chosen


def find_codebook(
    values: np.ndarray, n_values: int, *, importance: np.ndarray | None = None, with_zero: bool = False
) -> np.ndarray:
    """Returns at most ``n_values`` values, ascending: (k,) float32, near the smallest weighted squared error.

    Values that are no more than that already are returned themselves. Otherwise it is the best codebook of a fine
    histogram, brought to rest by Lloyd's rounds on the values themselves.

    Args:
        values: any shape, float32.
        n_values: 2 or more.
        importance: the shape of ``values``, float64 ≥ 0; what the squared error of each counts. None: all alike.
        with_zero: whether one of the values must be 0.
    """
    if values.size == 0:
        return np.zeros(1, np.float32)
    flat = values.ravel()
    few = _few_values(flat, n_values, with_zero=with_zero)
    if few is not None:
        return few
    if importance is None:
        points = _Points.of(np.sort(flat), None)
    else:
        order = np.argsort(flat, kind="stable")
        points = _Points.of(flat[order], importance.ravel()[order])
    codebook = _start(points, n_values)
    zero = None
    if with_zero:
        zero = int(np.abs(codebook).argmin())
        codebook[zero] = 0.0
    return np.unique(_settle(points, codebook, zero=zero).astype(np.float32))


def _few_values(flat: np.ndarray, n_values: int, *, with_zero: bool) -> np.ndarray | None:
    """Returns the values that there are, or None where they are more than ``n_values``."""
    sample = np.unique(flat[: 8 * n_values])
    if len(_clumps(sample)) > n_values:
        return None
    distinct, counts = np.unique(flat, return_counts=True)
    starts = _clumps(distinct)
    if len(starts) + (with_zero and not (distinct == 0).any()) > n_values:
        return None
    ends = np.append(starts[1:], distinct.size)
    if (np.abs(distinct[ends - 1] - distinct[starts]) > 4 * _SAME * np.abs(distinct[starts])).any():
        return None  # many close neighbours, not copies of one value
    common = [start + int(counts[start:end].argmax()) for start, end in zip(starts, ends, strict=True)]
    return np.unique(np.append(distinct[common], np.float32(0))) if with_zero else distinct[common]


def _clumps(distinct: np.ndarray) -> np.ndarray:
    """Returns where groups of nearly equal values start: distinct is (n,) float32, ascending."""
    gaps = np.diff(distinct) > _SAME * np.maximum(np.abs(distinct[1:]), np.abs(distinct[:-1]))
    return np.concatenate([[0], np.flatnonzero(gaps) + 1])


@dataclass(frozen=True)
class _Points:
    """Different values in ascending order, with what each counts; sums up to each of them."""

    #: (n,) float64
    values: np.ndarray
    #: (n + 1,) float64, from 0 on: sums of the weights, and of weight × value
    weight_sums: np.ndarray
    moment_sums: np.ndarray

    @classmethod
    def of(cls, ordered: np.ndarray, weights: np.ndarray | None) -> "_Points":
        """Counts equal neighbours once: (n,) float32, ascending; weights: (n,) float64, None: all 1."""
        starts = np.flatnonzero(np.append(True, np.diff(ordered) > 0))
        values = ordered[starts].astype(np.float64)
        largest = 0.0 if weights is None else weights.max()
        if weights is None or largest == 0:
            together = np.diff(np.append(starts, len(ordered))).astype(np.float64)
        else:
            together = np.add.reduceat(np.maximum(weights / largest, 1e-9), starts)
        return cls(values, np.append(0.0, np.cumsum(together)), np.append(0.0, np.cumsum(together * values)))

    def means(self, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns weight and weighted mean of the cells between cuts: (n_cells + 1,) positions, ascending."""
        weights = np.diff(self.weight_sums[cuts])
        return weights, np.diff(self.moment_sums[cuts]) / np.where(weights > 0, weights, 1.0)


def _start(points: _Points, n_values: int) -> np.ndarray:
    """Returns (n_values,) float64, ascending: the best codebook for the histogram.

    Dynamic programming over contiguous cells, exact in one dimension: Wang and Song, Ckmeans.1d.dp (2011), eq. 1.
    """
    cuts = _bins(points.values, max(_N_BINS, 4 * n_values))
    weights, means = points.means(cuts)
    sums = [np.append(0.0, np.cumsum(weights * means**power)) for power in (0, 1, 2)]
    weight, moment, square = (np.subtract.outer(each, each).T for each in sums)  # [m, i]: bins m … i - 1
    is_cell = np.tri(len(cuts), k=-1, dtype=bool).T
    error = np.where(is_cell, square - moment**2 / np.where(is_cell, weight, 1.0), np.inf)
    least, chosen = error[0], []
    for _ in range(n_values - 1):
        total = least[:, None] + error
        chosen.append(total.argmin(0))
        least = total.min(0)
    ends = [len(weights)]
    for starts in reversed(chosen):
        ends.append(int(starts[ends[-1]]))
    return points.means(cuts[[0, *reversed(ends)]])[1]


def _bins(values: np.ndarray, n_bins: int) -> np.ndarray:
    """Returns positions that cut the values into bins of equal width and of equal count, both at once."""
    n = len(values)
    if n <= n_bins:
        return np.arange(n + 1)
    by_width = np.searchsorted(values, np.linspace(values[0], values[-1], n_bins // 2 + 1)[1:-1])
    by_count = np.linspace(0, n, n_bins // 2 + 1).astype(np.int64)
    return np.unique(np.concatenate([by_width, by_count]))


def _settle(points: _Points, codebook: np.ndarray, *, zero: int | None) -> np.ndarray:
    """Runs Lloyd's rounds until no value changes its cell; the value at ``zero`` stays where it is."""
    before = None
    for _ in range(_MAX_ROUNDS):
        inner = np.searchsorted(points.values, _middles(codebook), side="right")
        cuts = np.concatenate([[0], inner, [len(points.values)]])
        if before is not None and np.array_equal(cuts, before):
            break
        before = cuts
        weights, means = points.means(cuts)
        fixed = codebook if zero is None else np.where(np.arange(len(codebook)) == zero, 0.0, codebook)
        moves = (weights > 0) & (np.arange(len(codebook)) != (-1 if zero is None else zero))
        codebook = np.where(moves, means, fixed)
    return codebook


def _middles(codebook: np.ndarray) -> np.ndarray:
    middles: np.ndarray = (codebook[1:] + codebook[:-1]) / 2
    return middles

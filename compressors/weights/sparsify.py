"""Sparse weights: which ones stay, by magnitude or by what they do to the output; unstructured or N of every M."""

import math

import numpy as np

from ...spaces.treatment import Treatment
from ..layer_inputs import LayerInputs
from .treated_weight import TreatedWeight, as_rows, from_rows, input_energy


def sparsify_weight(
    weight: np.ndarray, treatment: Treatment, *, axis: int, inputs: LayerInputs | None = None
) -> TreatedWeight:
    """Returns the weight with zeros where `choose_kept` says; one that has enough zeros comes back as it is.

    Args:
        weight: any shape, float32.
        treatment: its ``sparsity``, ``pattern`` and ``saliency`` count.
        axis: the axis of the outputs.
        inputs: what enters the layer; None counts every input alike.

    Raises:
        PolicyError: the statistics do not fit the weight.
    """
    kept = choose_kept(weight, treatment, axis=axis, inputs=inputs)
    return TreatedWeight(np.where(kept, weight, np.float32(0)), None, axis, "masked")


def choose_kept(
    weight: np.ndarray,
    treatment: Treatment,
    *,
    axis: int,
    inputs: LayerInputs | None = None,
    ties: np.ndarray | None = None,
) -> np.ndarray:
    """Returns which weights stay: bool, the shape of the weight.

    Zeros go first, so that a sparse weight keeps its zeros, then the least salient: by |w|, or by
    |w| · sqrt(E[x²]) (Sun et al., A Simple and Effective Pruning Approach for LLMs (2023), eq. 1).
    Unstructured: the share of the whole tensor by magnitude, of each output's row by Wanda (their section 3).
    N:M: the N most salient of M consecutive inputs of one output. A convolution's inputs are its channels, for each
    kernel element by itself, as sparse hardware reads them; those of a depthwise one are its kernel elements. A
    remainder of r < M inputs keeps ceil(r · N / M).

    Args:
        weight: any shape, float32.
        treatment: its ``sparsity``, ``pattern`` and ``saliency`` count.
        axis: the axis of the outputs.
        inputs: what enters the layer; None counts every input alike.
        ties: the shape of the weight; of equally salient weights those stay where this is larger in magnitude.

    Raises:
        PolicyError: the statistics do not fit the weight.
    """
    rows = np.abs(as_rows(weight, axis).astype(np.float64))
    saliency = rows
    if treatment.saliency == "wanda":
        saliency = rows * np.sqrt(input_energy(inputs, *rows.shape))
    second = rows if ties is None else np.abs(as_rows(ties, axis))
    ranks = _rank(saliency, second, is_zero=rows == 0)
    if treatment.pattern != "unstructured":
        n, m = (int(part) for part in treatment.pattern.split(":"))
        kept = _keep_pattern(ranks, n, m, n_channels=weight.shape[1] if axis == 0 and weight.ndim > 2 else 1)
    elif treatment.saliency == "wanda":
        kept = _keep_largest(ranks, treatment.sparsity)
    else:
        kept = _keep_largest(ranks.reshape(1, -1), treatment.sparsity).reshape(rows.shape)
    return from_rows(kept, weight.shape, axis)


def n_zeros(n_weights: int, sparsity: float) -> int:
    """Returns how many of the weights become zero; halves round to even, as in torch.nn.utils.prune."""
    return round(sparsity * n_weights)


def count_kept(shape: tuple[int, ...], treatment: Treatment, *, axis: int) -> int:
    """Returns how many weights stay of a weight without zeros.

    Args:
        shape: of the weight.
        treatment: its ``sparsity``, ``pattern`` and ``saliency`` count.
        axis: the axis of the outputs.
    """
    n_weights, n_outputs = math.prod(shape), shape[axis]
    if treatment.pattern != "unstructured":
        n, m = (int(part) for part in treatment.pattern.split(":"))
        is_split = axis == 0 and len(shape) > 2 and shape[1] > 1
        length = shape[1] if is_split else n_weights // n_outputs
        whole, rest = divmod(length, m)
        return n_weights // length * (whole * n - (-rest * n // m))
    if treatment.saliency == "wanda":
        return n_weights - n_outputs * n_zeros(n_weights // n_outputs, treatment.sparsity)
    return n_weights - n_zeros(n_weights, treatment.sparsity)


def _rank(saliency: np.ndarray, second: np.ndarray, *, is_zero: np.ndarray) -> np.ndarray:
    """Returns 0 … n - 1 in order of rising saliency, all different: zeros first, then by ``second`` and position."""
    key = np.where(is_zero, -1.0, saliency).ravel()
    order = np.argsort(key, kind="stable") if second is saliency else np.lexsort((second.ravel(), key))
    ranks = np.empty(key.size, np.int64)
    ranks[order] = np.arange(key.size)
    return ranks.reshape(saliency.shape)


def _keep_largest(ranks: np.ndarray, sparsity: float) -> np.ndarray:
    """Keeps all but a share of each row."""
    order = np.argsort(ranks, axis=1)
    kept = np.ones(ranks.shape, bool)
    np.put_along_axis(kept, order[:, : n_zeros(ranks.shape[1], sparsity)], False, axis=1)
    return kept


def _keep_pattern(ranks: np.ndarray, n: int, m: int, *, n_channels: int) -> np.ndarray:
    """Keeps n of m consecutive columns: channels, where there are several, with their kernel elements apart."""
    n_outputs, n_inputs = ranks.shape
    lines = ranks
    if n_channels > 1:
        lines = ranks.reshape(n_outputs, n_channels, -1).swapaxes(1, 2).reshape(-1, n_channels)
    kept = np.concatenate(
        [_keep_top(lines[:, start : start + m], n, m) for start in range(0, lines.shape[1], m)], axis=1
    )
    if n_channels > 1:
        kept = kept.reshape(n_outputs, -1, n_channels).swapaxes(1, 2).reshape(n_outputs, n_inputs)
    return kept


def _keep_top(ranks: np.ndarray, n: int, m: int) -> np.ndarray:
    n_kept = -(-ranks.shape[1] * n // m)
    order = np.argsort(ranks, axis=1)[:, ::-1]
    kept = np.zeros(ranks.shape, bool)
    np.put_along_axis(kept, order[:, :n_kept], True, axis=1)
    return kept

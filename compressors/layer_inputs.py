"""What enters each layer on the calibration data: the second moments that decide which errors reach the output."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx_ir as ir

from ..core.errors import DataError, ModelError
from .graph import input_of, iterate_outputs, weight_of
from .patches import Window, cut_patches, spread, window_of

#: samples that are looked at unless the caller says otherwise
MAX_SAMPLES = 64
#: rows or patches of one sample that are looked at; neighbours in an image repeat each other
_MAX_ROWS = 1024

#: a value and how a layer reads it: in patches of a window, or (None) in rows
_Reading = tuple[str, Window | None]


@dataclass(frozen=True)
class LayerInputs:
    """Statistics of the inputs of one layer, as the rows that its weight matrix multiplies.

    A linear layer sees rows of K inputs. A convolution sees patches: K = channels of one group × kernel elements, in
    the order of its weight (in / group, *kernel).
    """

    #: (n_groups, K, K) float64: the mean of x · xᵀ over samples and positions
    moments: np.ndarray
    #: (n_groups, K) float64: the mean of x
    mean: np.ndarray
    #: (n_groups, K) float64: the largest |x| that was seen
    peak: np.ndarray


def collect_layer_inputs(
    model: ir.Model,
    layers: Collection[str],
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    limit: int = MAX_SAMPLES,
) -> dict[str, LayerInputs]:
    """Runs the float graph on calibration samples and returns layer name → what enters it.

    A layer that is used several times counts all its uses. Layers that read one value in one way share one
    `LayerInputs`. Embeddings have no inputs of this kind and are left out.

    Args:
        model: a float graph whose layer weights are called ``<layer>.weight``, as in a base graph.
        layers: names of the layers to look at.
        samples: feeds of the model, input name → (batch, …) array.
        limit: samples to run at most.

    Raises:
        ModelError: the model lacks a layer, or what enters it is not finite on the samples.
        DataError: the model cannot run on a sample, or no sample holds a row.
    """
    readings = _find_readings(model.graph, layers)
    wanted = list(dict.fromkeys(reading for of_layer in readings.values() for reading in of_layer))
    names = list(dict.fromkeys(name for name, _ in wanted))
    sums = {reading: _Sums() for reading in wanted}
    for arrays in iterate_outputs(model, names, islice(samples, limit)):
        seen = dict(zip(names, arrays, strict=True))
        for name, window in wanted:
            sums[name, window].add(*_rows(seen[name], window))
    made: dict[tuple[_Reading, ...], LayerInputs] = {}
    for name, of_layer in readings.items():
        if of_layer not in made:
            made[of_layer] = _mean_of(name, [sums[reading] for reading in of_layer])
    return {name: made[of_layer] for name, of_layer in readings.items()}


def _find_readings(graph: ir.Graph, layers: Collection[str]) -> dict[str, tuple[_Reading, ...]]:
    """Returns layer → how each of its nodes reads its input."""
    found: dict[str, list[_Reading]] = {}
    known = set()
    for node in graph:
        weight = weight_of(node)
        if weight is None:
            continue
        name = str(weight.name).removesuffix(".weight")
        known.add(name)
        if name in layers and node.op_type != "Gather":
            window = window_of(node) if node.op_type == "Conv" else None
            found.setdefault(name, []).append((str(input_of(node, 0).name), window))
    missing = sorted(set(layers) - known)
    if missing:
        raise ModelError(f"the model has no layer {', '.join(missing)}; it has {', '.join(sorted(known))}")
    return {name: tuple(of_layer) for name, of_layer in found.items()}


def _rows(array: np.ndarray, window: Window | None) -> tuple[np.ndarray, int]:
    """Returns (n_groups, n_rows, K) float32 and the number of rows of which these are a part."""
    array = np.asarray(array, np.float32)
    if window is not None:
        return cut_patches(array, window, limit=_MAX_ROWS)
    rows = array.reshape(-1, array.shape[-1])
    n_samples = len(array) if array.ndim > 1 else 1
    return rows[None, spread(len(rows), _MAX_ROWS * n_samples)], len(rows)


class _Sums:
    """What has been added up over the samples; products are float32, sums float64."""

    def __init__(self) -> None:
        self.n_rows = 0
        self.moments = self.total = self.peak = np.zeros(())

    def add(self, rows: np.ndarray, n_rows: int) -> None:
        """Adds rows that stand for ``n_rows`` of them."""
        if not rows.shape[1]:
            return
        share = n_rows / rows.shape[1]
        self.n_rows += n_rows
        # a matrix times its own transpose: NumPy computes only one half
        with np.errstate(all="ignore"):  # what is not finite is refused at the end
            products = np.matmul(rows.transpose(0, 2, 1), rows)
        if not self.moments.ndim:
            self.moments = np.zeros(products.shape)
        self.moments += products if share == 1.0 else share * products
        self.total = self.total + share * rows.sum(1, dtype=np.float64)
        self.peak = np.maximum(self.peak, np.abs(rows).max(1))


def _mean_of(name: str, sums: Sequence[_Sums]) -> LayerInputs:
    n_rows = sum(part.n_rows for part in sums)
    if not n_rows:
        raise DataError(f"nothing enters layer {name}: at least one calibration sample must hold rows, got none")
    moments = np.asarray(sum(part.moments for part in sums) / n_rows)
    if not np.isfinite(moments).all():
        raise ModelError(f"what enters layer {name} is not finite on the calibration data")
    total = sum(part.total for part in sums)
    peak = np.max([part.peak for part in sums], axis=0)
    return LayerInputs(moments, np.asarray(total / n_rows), peak.astype(np.float64))


def weight_matrix(weight: np.ndarray, *, n_groups: int, kind: str) -> np.ndarray:
    """Returns the weight as the matrix that multiplies what `LayerInputs` describes.

    Args:
        weight: (K, n_outputs) of a linear layer, (n_outputs, in / group, *kernel) of a convolution, or
            (n_rows, n_columns) of an embedding, whose rows then are the outputs.
        n_groups: groups of the convolution; 1 for other kinds.
        kind: one of ``spaces.layer.LAYER_KINDS``.

    Returns:
        (n_groups, n_outputs / n_groups, K), a view where that is possible.
    """
    rows = weight.T if kind == "linear" else weight
    return rows.reshape(n_groups, len(rows) // n_groups, -1)


def weight_of_matrix(matrix: np.ndarray, shape: Sequence[int], *, kind: str) -> np.ndarray:
    """Undoes `weight_matrix`.

    Args:
        matrix: (n_groups, n_outputs / n_groups, K).
        shape: the weight's.
        kind: one of ``spaces.layer.LAYER_KINDS``.
    """
    if kind == "linear":
        return matrix.reshape(tuple(shape)[::-1]).T
    return matrix.reshape(tuple(shape))

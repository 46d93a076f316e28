"""What treated weights take in the file, from their shapes and treatments alone."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from ...spaces.layer import Layer
from ...spaces.treatment import Treatment
from .cluster import GROUP_CHANNELS
from .packing import MAX_VALUES, Content
from .sparsify import count_kept

_NO_SCALES: Mapping[str, np.ndarray] = {}


def account_weights(
    layers: Iterable[Layer],
    treatments: Mapping[str, Treatment],
    *,
    output_scales: Mapping[str, np.ndarray] = _NO_SCALES,
) -> int:
    """Returns the bytes of all weights: codes, codebooks, masks, scales and zero points.

    Biases, scales of activations and what unpacks the codes are not among them. An upper bound: a codebook whose values
    round to one, or a kept weight that rounds to 0, takes less.

    Args:
        layers: of the model whose shapes are settled.
        treatments: layer name → treatment; layers that are missing are float32.
        output_scales: layer name → (n_outputs,) by which a merged batch norm multiplied its weight.
    """
    return sum(
        account_layer(layer, treatments.get(layer.name, Treatment()), output_scale=output_scales.get(layer.name))
        for layer in layers
    )


def account_layer(layer: Layer, treatment: Treatment, *, output_scale: np.ndarray | None = None) -> int:
    """Returns the bytes of one weight.

    Args:
        layer: its kind and the shape of its weight count.
        treatment: how it is stored.
        output_scale: (n_outputs,) by which a merged batch norm multiplied it; None: none did.
    """
    n_weights, axis = math.prod(layer.weight_shape), 1 if layer.kind == "linear" else 0
    n_outputs = layer.weight_shape[axis]
    if treatment.granularity.startswith("block"):
        block_size = int(treatment.granularity.removeprefix("block"))
        n_blocks = n_outputs * -(-layer.weight_shape[0] // block_size)
        return n_blocks * (block_size * (4 if treatment.weight_dtype == "int4" else 8) // 8 + 4)
    if treatment.weight_dtype == "float8":
        return n_weights + n_outputs * (4 + 1)
    content = _content(layer.weight_shape, axis, treatment, output_scale)
    if treatment.weight_dtype == "int8":
        n_scales = n_outputs if _has_scale_per_output(layer, treatment, output_scale) else 1
        return content.size_bytes + n_scales * (4 if layer.kind == "embedding" else 4 + 1)
    has_scale = treatment.binary != "none" or (treatment.clusters > 0 and output_scale is not None)
    return content.size_bytes + (4 * n_outputs if has_scale and content.form != "dense" else 0)


def _has_scale_per_output(layer: Layer, treatment: Treatment, output_scale: np.ndarray | None) -> bool:
    is_shared = treatment.granularity == "tensor" or (layer.kind == "embedding" and treatment.clusters > 0)
    if not is_shared:
        return True
    n_books = _n_books(layer.weight_shape[1 if layer.kind == "linear" else 0], treatment)
    has_own = treatment.clusters > 0 and (output_scale is not None or n_books > 1)
    return has_own or treatment.binary != "none"


def _n_books(n_outputs: int, treatment: Treatment) -> int:
    return -(-n_outputs // GROUP_CHANNELS) if treatment.cluster_scope == "group" else 1


def _content(shape: tuple[int, ...], axis: int, treatment: Treatment, output_scale: np.ndarray | None) -> Content:
    n_weights, n_outputs = math.prod(shape), shape[axis]
    itemsize = {"float32": 4, "float16": 2, "int8": 1}[treatment.weight_dtype]
    n_kept = count_kept(shape, treatment, axis=axis) if treatment.sparsity else n_weights
    if not treatment.clusters:
        n_values = {"binary": 2, "ternary": 3}.get(treatment.binary, MAX_VALUES + 1)
        return Content(n_weights, itemsize, n_values, n_kept)
    n_groups = _n_books(n_outputs, treatment)
    if treatment.weight_dtype == "int8" and output_scale is not None:  # signs are turned in the codes
        signs = np.sign(output_scale) < 0
        n_groups = len(
            np.unique(2 * (np.arange(n_outputs) // (n_outputs if n_groups == 1 else GROUP_CHANNELS)) + signs)
        )
    n_values = min(treatment.clusters, n_weights)
    if n_groups == 1:
        return Content(n_weights, itemsize, n_values, n_kept)
    return Content(n_weights, itemsize, n_values * n_groups, n_kept, n_values, n_groups, n_outputs)

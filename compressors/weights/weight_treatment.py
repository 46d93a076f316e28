"""What a treatment makes of one weight before it is quantised: clustered, binarised, sparsified, in this order."""

from dataclasses import replace

import numpy as np

from ...spaces.treatment import Treatment
from ..layer_inputs import LayerInputs
from .binarize import binarize_weight
from .cluster import cluster_weight
from .sparsify import choose_kept, sparsify_weight
from .treated_weight import TreatedWeight


def treat_weight(
    weight: np.ndarray,
    treatment: Treatment,
    *,
    axis: int,
    inputs: LayerInputs | None = None,
    output_scale: np.ndarray | None = None,
) -> TreatedWeight:
    """Returns the weight as its treatment leaves it before quantisation; treated weights come back as they are.

    Args:
        weight: any shape, float32.
        treatment: what happens to the layer; pruning, low rank and quantisation are left to others.
        axis: the axis of the outputs: 0 of a convolution (out, in / group, *kernel) and of an embedding
            (rows, width), 1 of a linear layer (in, out).
        inputs: what enters the layer; None counts every input alike.
        output_scale: (n_outputs,) float; what a batch norm multiplied each output by when it was merged.

    Raises:
        PolicyError: the statistics do not fit the weight.
    """
    treated = TreatedWeight(weight, None, axis)
    if treatment.clusters:
        treated = cluster_weight(weight, treatment, axis=axis, inputs=inputs, output_scale=output_scale)
    elif treatment.binary != "none":
        return binarize_weight(weight, treatment.binary, axis=axis)
    if treatment.sparsity == 0.0:
        return treated
    if not treatment.clusters:
        return sparsify_weight(weight, treatment, axis=axis, inputs=inputs)
    # weights that share a value are equally salient: what they were before decides between them
    kept = choose_kept(treated.array, treatment, axis=axis, inputs=inputs, ties=weight)
    return replace(treated, values=np.where(kept, treated.values, np.float32(0)))

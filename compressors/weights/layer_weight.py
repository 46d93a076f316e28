"""The weight of one layer in a graph, and all that decides how it is stored."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...core.errors import PolicyError
from ...spaces.treatment import Treatment
from ..graph import array_of
from ..layer_inputs import LayerInputs
from ..quantization.compensate import compensate
from .cluster import GROUP_CHANNELS
from .quantized_weights import Rounding, round_nearest

if TYPE_CHECKING:
    from ..quantization.quantize import QuantizationPlan

#: fields of a treatment that decide what `treat_weight` makes
_TREATING = ("clusters", "cluster_scope", "cluster_weighting", "binary", "sparsity", "pattern", "saliency")


@dataclass(frozen=True)
class LayerWeight:
    """The weight of one layer, and all that decides how it is stored."""

    name: str
    #: float32
    array: np.ndarray
    #: the axis of its outputs
    axis: int
    treatment: Treatment
    #: what enters the layer; None where that does not matter
    inputs: LayerInputs | None = None
    #: (n_outputs,) by which a merged batch norm multiplied it
    output_scale: np.ndarray | None = None
    #: (n_outputs,) int8 steps as learned in training, before that batch norm
    learned_step: np.ndarray | None = None
    rounding: Rounding = round_nearest
    #: tells roundings apart
    rounding_name: str = "nearest"
    #: rows are looked up, and nothing is multiplied
    is_table: bool = False

    @property
    def is_treated(self) -> bool:
        """Whether the weight has few values or many zeros, so that it can be packed."""
        return self.treatment.clusters > 0 or self.treatment.binary != "none" or self.treatment.sparsity > 0

    @property
    def scale_axis(self) -> int | None:
        """The axis along which an int8 weight has scales; None: one, as a codebook without outputs to scale needs."""
        has_one = self.treatment.granularity == "tensor" or (self.is_table and self.treatment.clusters > 0)
        return None if has_one else self.axis

    @property
    def groups(self) -> np.ndarray | None:
        """(n_outputs,) which outputs share a codebook; None: all of them."""
        if self.treatment.cluster_scope != "group":
            return None
        return np.arange(self.array.shape[self.axis]) // GROUP_CHANNELS

    @property
    def key(self) -> tuple[object, ...]:
        """What `treat_weight` looks at, beside the model."""
        return (self.name, *(getattr(self.treatment, field) for field in _TREATING))


def read_layer(node: ir.Node, weight: ir.Value, plan: "QuantizationPlan") -> LayerWeight:
    """Returns the weight of a layer, which a node of the graph uses, with what the plan says of it.

    Raises:
        PolicyError: its treatment goes by what enters the layer, and the plan does not know that.
    """
    name = str(weight.name).removesuffix(".weight")
    treatment = plan.treatments.get(name, Treatment())
    is_table = node.op_type == "Gather"
    is_compensated = plan.rounding == "compensated" and treatment.is_quantized and not is_table
    inputs = None
    if not is_table and (is_compensated or treatment.goes_by_inputs):
        inputs = plan.inputs.get(name)
        if inputs is None:
            raise PolicyError(f"layer {name}: there are no statistics of what enters it, by which to treat its weight")
    return LayerWeight(
        name,
        array_of(weight),
        axis=1 if node.op_type == "MatMul" else 0,
        treatment=treatment,
        inputs=inputs,
        output_scale=plan.output_scales.get(name),
        learned_step=plan.learned_steps.get(name),
        rounding=partial(_round_compensated, inputs) if is_compensated and inputs is not None else round_nearest,
        rounding_name="compensated" if is_compensated else "nearest",
        is_table=is_table,
    )


def _round_compensated(
    inputs: LayerInputs, rows: np.ndarray, scales: np.ndarray, limits: tuple[int, int]
) -> np.ndarray:
    """Rounds each group of outputs by what enters it; rows, scales and limits are those of `Rounding`."""
    n_groups = len(inputs.moments)
    steps = np.broadcast_to(scales, rows.shape)
    parts = zip(np.split(rows, n_groups), np.split(steps, n_groups), inputs.moments, strict=True)
    return np.concatenate(
        [compensate(part, step, moments, limit=limits, block_size=1) for part, step, moments in parts]
    )

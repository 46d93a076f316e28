"""Activation ranges by their place in the graph: names of values change with those of modules, their order stays."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ...compressors.onnx_stage import OnnxStage
from ...compressors.quantization.activations import watched_values
from ...compressors.quantization.calibration import Range
from ...core.errors import PolicyError
from ...spaces.policy import GraphTreatment

if TYPE_CHECKING:
    from ..policy_file import PolicyFile

_NO_RANGES = "give data to calibrate anew (--data)"


def order_ranges(stage: OnnxStage, graph: GraphTreatment) -> tuple[tuple[str, str], ...]:
    """Returns (name, operator that makes it) of every value that may be quantised, in the order of the graph."""
    model = stage.equalized(graph.equalization, graph.fusion)
    makers = {str(value.name): node.op_type for node in model.graph for value in node.outputs}
    return tuple((name, makers.get(name, "input")) for name in watched_values(model.graph))


def move_ranges(file: "PolicyFile", stage: OnnxStage) -> "PolicyFile":
    """Returns the policy with its ranges under the names that the values have in this model.

    Raises:
        PolicyError: the graphs are not alike, step by step, or the file does not hold the order of its ranges.
    """
    if not file.ranges:
        return file
    if not file.range_order:
        raise PolicyError(f"the policy does not hold the order of its activation ranges, for an earlier version wrote "
                          f"it; {_NO_RANGES}")  # fmt: skip
    here = order_ranges(stage, file.policy.graph)
    if [op for _, op in here] != [op for _, op in file.range_order]:
        raise PolicyError(f"the model computes other steps than the one that the policy was found for, so its "
                          f"activation ranges do not fit; {_NO_RANGES}")  # fmt: skip
    pairs = zip(file.range_order, here, strict=True)
    ranges: Mapping[str, Range] = {new: file.ranges[old] for (old, _), (new, _) in pairs if old in file.ranges}
    return replace(file, ranges=ranges, range_order=here)

"""One layer treated as the pipeline treats it, alone: from a segment to the segment that the artifact would hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from ...spaces.policy import GraphTreatment
from ...spaces.recovery import Recovery
from ...spaces.treatment import Treatment
from ..graph import BaseGraph
from ..layer_inputs import LayerInputs, collect_layer_inputs
from ..low_rank.graph_factors import factorise_graph
from ..onnx_stage import OnnxStage
from ..quantization.activations import watched_values
from ..quantization.calibration import Histogram, LazyRanges, Range, collect_histograms
from ..quantization.quantize import QuantizationPlan, quantize_graph
from ..shaping import Shape
from ..weights.weight_bank import WeightBank
from .segment import Segment, cut_segment

#: of treated weights; layers come one after the other, so few are needed at a time
_MAX_BANK_BYTES = 256 * 1024**2

#: feeds of a segment, sample by sample: value name → array
Feeds = Sequence[Mapping[str, np.ndarray]]


@dataclass
class SegmentWriter:
    """Writes treatments into segments with the pipeline's own code; keeps treated weights between calls."""

    stage: OnnxStage
    #: of its fields count ``calibration`` and ``rounding``; fusion and equalisation change other layers too
    graph: GraphTreatment
    _bank: WeightBank = field(default_factory=lambda: WeightBank(max_bytes=_MAX_BANK_BYTES))

    @cached_property
    def base(self) -> BaseGraph:
        """The float graph that the segments are cut from."""
        return self.stage.prepared.base

    def write(self, segment: Segment, treatment: Treatment, feeds: Feeds) -> ir.Model:
        """Returns the treated segment.

        Args:
            segment: of `base`.
            treatment: of its layer.
            feeds: what enters the segment; calibrates what is between the factors of a low rank.

        Raises:
            PolicyError: the treatment cannot be had for this layer.
        """
        prepared = self.stage.prepared
        layer = next(layer for layer in prepared.layers if layer.name == segment.layer)
        model = cut_segment(segment, feeds[0], self.base.model)
        base = BaseGraph(model, (layer,), prepared.shapes)
        shape = Shape.of({layer.name: treatment}, Recovery())
        inputs: Mapping[str, LayerInputs] = self.stage.inputs()
        statistics, between = prepared.statistics["none"], dict[str, Histogram]()
        if shape.ranks:
            base = factorise_graph(base, shape.ranks, inputs if treatment.rank_error == "output" else {})
            inputs = _inputs_of(base, treatment, feeds)
            between = _statistics_between(base, treatment, known=statistics, feeds=feeds)
        plan = QuantizationPlan(
            treatments=shape.remaining(base.layers),
            quantized_ops=(),
            ranges=self._ranges(between),
            # dynamic ranges stand in the graph here, also where the runtime finds them by itself
            scheme=replace(self.stage.scheme, dynamic_form="operators"),
            # factors of other ranks bear the same names
            bank=WeightBank() if shape.ranks else self._bank,
            row_layers=frozenset(layer.name for layer in base.layers if len(layer.output_shape) == 2),
            inputs=inputs,
            statistics={**statistics, **between},
            output_scales=prepared.output_scales,
            learned_steps=prepared.learned_steps,
            learned_levels=prepared.learned_levels,
            rounding=self.graph.rounding,
        )
        quantize_graph(base.model.graph, plan)
        return base.model

    def _ranges(self, between: Mapping[str, Histogram]) -> Mapping[str, Range]:
        known = self.stage.ranges(self.graph)
        return {**known, **LazyRanges(between, self.graph.calibration)} if between else known


def _inputs_of(base: BaseGraph, treatment: Treatment, feeds: Feeds) -> Mapping[str, LayerInputs]:
    """Returns what enters the factors of a layer, where their weights are chosen by it."""
    if not treatment.goes_by_inputs:
        return {}
    return collect_layer_inputs(base.model, [layer.name for layer in base.layers], feeds)


def _statistics_between(
    base: BaseGraph, treatment: Treatment, *, known: Mapping[str, Histogram], feeds: Feeds
) -> dict[str, Histogram]:
    """Returns the statistics of the values between the factors, where they are quantised."""
    if treatment.activation_dtype == "float32":
        return {}
    missing = [name for name in watched_values(base.model.graph) if name not in known]
    return collect_histograms(base.model, missing, feeds) if missing else {}

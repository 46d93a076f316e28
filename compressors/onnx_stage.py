"""The ONNX stage: storage and quantisation of a model whose shapes are settled, written into its graph."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from ..core.errors import PolicyError
from ..hw_profiles.target import Capabilities
from ..spaces.policy import GraphTreatment
from ..spaces.treatment import Treatment
from .artifact import Artifact
from .graph import input_of, weight_of
from .lazy_inputs import LazyInputs
from .prepared import PreparedModel, attach_constants, one_by_one
from .quantization.activations import watched_values
from .quantization.bias_correction import correct_graph
from .quantization.calibration import Histogram, LazyRanges, Range, collect_histograms
from .quantization.equalize import equalize_layers, smooth
from .quantization.quantize import QuantizationPlan, quantize_graph, rounded_weights
from .short_names import shorten_names
from .weights.weight_bank import WeightBank


@dataclass
class OnnxStage:
    """Writes policies into the graph; keeps parsed graphs, ranges, statistics and treated weights between calls."""

    prepared: PreparedModel
    scheme: Capabilities
    _graphs: dict[tuple[str, str], ir.Model] = field(default_factory=dict)
    _ranges: dict[tuple[str, str, str], Mapping[str, Range]] = field(default_factory=dict)
    _banks: dict[str, WeightBank] = field(default_factory=dict)
    _inputs: dict[str, LazyInputs] = field(default_factory=dict)
    _equalized_statistics: dict[tuple[str, str], Mapping[str, Histogram]] = field(default_factory=dict)
    _float_names: dict[str, frozenset[str]] = field(default_factory=dict)

    def write(self, treatments: Mapping[str, Treatment], graph: GraphTreatment) -> Artifact:
        """Builds the artifact; structure and recovery are behind us.

        Args:
            treatments: layer name → treatment; layers that are missing stay as they are.
            graph: what happens to the graph as a whole.

        Raises:
            PolicyError: the fusion is not available, or a treatment cannot be written for its layer.
        """
        model = self._parsed(graph).clone()
        plan = self._plan(treatments, graph)
        if graph.correction == "bias":
            rounded = rounded_weights(model.graph, plan)
            integers = {name: array for name, array in rounded.items() if treatments[name].is_quantized}
            correct_graph(model.graph, integers, plan.inputs)
        quantize_graph(model.graph, plan)
        is_dynamic = any(treatment.activation_range == "dynamic" for treatment in treatments.values())
        pinned = sorted(name for name, treatment in treatments.items() if treatment.compute_dtype == "float32")
        return Artifact(
            model=self._serialise(model, graph.fusion),
            precision=graph.precision,
            dynamic_activations=is_dynamic and self.scheme.dynamic_form == "weights",
            full_precision=() if graph.precision == "float32" else tuple(pinned),
        )

    def _serialise(self, model: ir.Model, fusion: str) -> bytes:
        proto = ir.to_proto(model)
        if fusion not in self._float_names:
            self._float_names[fusion] = _names_of(self._parsed(GraphTreatment(fusion=fusion)).graph)
        shorten_names(proto, self._float_names[fusion])
        content: bytes = proto.SerializeToString()
        return content

    def _plan(self, treatments: Mapping[str, Treatment], graph: GraphTreatment) -> QuantizationPlan:
        is_static = any(treatment.is_static for treatment in treatments.values())
        needs_statistics = any(treatment.activation_dtype == "binary" for treatment in treatments.values())
        # what was learned of a weight is true of that weight, not of one that equalisation has scaled
        is_as_trained = graph.equalization == "none"
        return QuantizationPlan(
            treatments=treatments,
            quantized_ops=graph.quantized_ops,
            ranges=self.ranges(graph) if is_static else {},
            scheme=self.scheme,
            bank=self._banks.setdefault(graph.equalization, WeightBank()),
            row_layers=frozenset(layer.name for layer in self.prepared.layers if len(layer.output_shape) == 2),
            inputs=self.inputs(graph.equalization),
            statistics=self._statistics(graph) if needs_statistics else {},
            output_scales=self.prepared.output_scales if is_as_trained else {},
            learned_steps=self.prepared.learned_steps if is_as_trained else {},
            learned_levels=self.prepared.learned_levels if is_as_trained else {},
            rounding=graph.rounding,
        )

    def ranges(self, graph: GraphTreatment) -> Mapping[str, Range]:
        """Returns value name → calibrated range for the policy's fusion, equalisation and calibration; made once."""
        key = (graph.fusion, graph.equalization, graph.calibration)
        if key not in self._ranges:
            self._ranges[key] = self._choose_ranges(graph)
        return self._ranges[key]

    def adopt_ranges(self, graph: GraphTreatment, ranges: Mapping[str, Range]) -> None:
        """Uses ranges that were calibrated elsewhere for this fusion, equalisation and calibration."""
        self._ranges[(graph.fusion, graph.equalization, graph.calibration)] = dict(ranges)

    def inputs(self, equalization: str = "none") -> LazyInputs:
        """Returns layer → what enters it on the calibration data; collected for all layers when first asked for."""
        if equalization not in self._inputs:
            self._inputs[equalization] = LazyInputs(self.prepared, lambda: self.equalized(equalization))
        return self._inputs[equalization]

    def equalized(self, equalization: str, fusion: str = "none") -> ir.Model:
        """Returns the float graph of a fusion with scales moved between its layers; read only.

        Raises:
            PolicyError: the fusion is not available, or there is nothing to equalise.
        """
        return self._parsed(GraphTreatment(fusion=fusion, equalization=equalization))

    def _parsed(self, graph: GraphTreatment) -> ir.Model:
        fusion, equalization = graph.fusion, graph.equalization
        if fusion not in self.prepared.variants:
            reason = self.prepared.dropped_fusions.get(fusion, "it was not prepared")
            raise PolicyError(f"fusion '{fusion}' is not available for this model: {reason}")
        if (fusion, equalization) not in self._graphs:
            model = attach_constants(self.prepared.variants[fusion], self.prepared.constants)
            self._graphs[fusion, equalization] = self._equalize(model, equalization)
        return self._graphs[fusion, equalization]

    def _equalize(self, model: ir.Model, equalization: str) -> ir.Model:
        if equalization == "none":
            return model
        changed = equalize_layers(model) if equalization == "cross_layer" else smooth(model, self.inputs())
        if changed.n_changes == 0:
            raise PolicyError(f"equalization '{equalization}' finds nothing to change in this model; leave it out")
        return changed.model

    def _choose_ranges(self, graph: GraphTreatment) -> Mapping[str, Range]:
        chosen = LazyRanges(self._statistics(graph), graph.calibration)
        if not self.prepared.learned_ranges or graph.equalization != "none":
            return chosen
        return {**chosen, **self._learned_ranges(graph)}

    def _statistics(self, graph: GraphTreatment) -> Mapping[str, Histogram]:
        """Returns value name → calibration statistics; those of an equalised graph are collected once."""
        if graph.equalization == "none":
            return self.prepared.statistics[graph.fusion]
        key = (graph.fusion, graph.equalization)
        if key not in self._equalized_statistics:
            model, samples = self._parsed(graph), one_by_one(self.prepared.calibration)
            self._equalized_statistics[key] = collect_histograms(model, watched_values(model.graph), samples)
        return self._equalized_statistics[key]

    def _learned_ranges(self, graph: GraphTreatment) -> dict[str, Range]:
        """Returns value name → range of the inputs of trained layers; layers that share an input take the widest."""
        found: dict[str, Range] = {}
        for node in self._parsed(graph).graph:
            weight = weight_of(node)
            learned = None if weight is None else self.prepared.learned_ranges.get(_layer_name(weight))
            if learned is None:
                continue
            value = str(input_of(node, 0).name)
            known = found.get(value, learned)
            found[value] = Range(min(known.low, learned.low), max(known.high, learned.high))
        return found


def _layer_name(weight: ir.Value) -> str:
    return str(weight.name).removesuffix(".weight")


def _names_of(graph: ir.Graph) -> frozenset[str]:
    """Returns the names of nodes and of the values that they read and make."""
    nodes = (str(node.name) for node in graph)
    values = (str(value.name) for node in graph for value in (*node.inputs, *node.outputs) if value is not None)
    return frozenset((*nodes, *values))

"""The ONNX stage: storage and quantisation of a model whose shapes are settled, written into its graph."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from ..core.errors import PolicyError
from ..hw_profiles.target import Capabilities
from ..spaces.policy import GraphTreatment
from ..spaces.treatment import Treatment
from .activations import watched_values
from .artifact import Artifact
from .calibration import LazyRanges, Range, collect_histograms
from .graph import input_of, weight_of
from .lazy_inputs import LazyInputs
from .prepared import PreparedModel, attach_constants, one_by_one
from .quantize import QuantizationPlan, quantize_graph
from .weight_bank import WeightBank


@dataclass
class OnnxStage:
    """Writes policies into the graph; keeps parsed graphs, ranges, statistics and treated weights between calls."""

    prepared: PreparedModel
    scheme: Capabilities
    _graphs: dict[tuple[str, str], ir.Model] = field(default_factory=dict)
    _ranges: dict[tuple[str, str, str], Mapping[str, Range]] = field(default_factory=dict)
    _banks: dict[str, WeightBank] = field(default_factory=dict)
    _inputs: dict[str, LazyInputs] = field(default_factory=dict)

    def write(self, treatments: Mapping[str, Treatment], graph: GraphTreatment) -> Artifact:
        """Builds the artifact; structure and recovery are behind us.

        Args:
            treatments: layer name → treatment; layers that are missing stay as they are.
            graph: what happens to the graph as a whole.

        Raises:
            PolicyError: the fusion is not available, or a treatment cannot be written for its layer.
        """
        model = self._parsed(graph).clone()
        is_static = any(treatment.is_static for treatment in treatments.values())
        rows = frozenset(layer.name for layer in self.prepared.layers if len(layer.output_shape) == 2)
        plan = QuantizationPlan(
            treatments=treatments,
            quantized_ops=graph.quantized_ops,
            ranges=self.ranges(graph) if is_static else {},
            scheme=self.scheme,
            bank=self._banks.setdefault(graph.equalization, WeightBank()),
            row_layers=rows,
            **self._extras(graph),
        )
        if graph.correction == "bias":
            from .bias_correction import correct_graph

            correct_graph(model.graph, plan)
        quantize_graph(model.graph, plan)
        is_dynamic = any(treatment.activation_range == "dynamic" for treatment in treatments.values())
        pinned = sorted(name for name, treatment in treatments.items() if treatment.compute_dtype == "float32")
        return Artifact(
            model=ir.to_proto(model).SerializeToString(),
            precision=graph.precision,
            dynamic_activations=is_dynamic and self.scheme.dynamic_form == "weights",
            **({"full_precision": tuple(pinned)} if pinned and graph.precision != "float32" else {}),
        )

    def _extras(self, graph):
        import dataclasses

        found = dict(
            inputs=self.inputs(graph.equalization),
            statistics=self.prepared.statistics[graph.fusion] if graph.equalization == "none" else {},
            output_scales=self.prepared.output_scales if graph.equalization == "none" else {},
            learned_steps=self.prepared.learned_steps if graph.equalization == "none" else {},
            rounding=graph.rounding,
        )
        return {n: v for n, v in found.items() if n in {f.name for f in dataclasses.fields(QuantizationPlan)}}

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
        from .equalize import equalize_layers, smooth

        changed = equalize_layers(model) if equalization == "cross_layer" else smooth(model, self.inputs())
        if changed.n_changes == 0:
            raise PolicyError(f"equalization '{equalization}' finds nothing to change in this model; leave it out")
        return changed.model

    def _choose_ranges(self, graph: GraphTreatment) -> Mapping[str, Range]:
        histograms = self.prepared.statistics[graph.fusion]
        if graph.equalization == "none":
            return {**LazyRanges(histograms, graph.calibration), **self._learned_ranges(graph)} if (
                self.prepared.learned_ranges
            ) else LazyRanges(histograms, graph.calibration)  # fmt: skip
        model = self._parsed(graph)
        samples = one_by_one(self.prepared.calibration)
        return LazyRanges(collect_histograms(model, watched_values(model.graph), samples), graph.calibration)

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

"""From a policy to an artifact: what is paid once per model, and what is paid per trial."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from ..core.errors import PolicyError
from ..hw_profiles.target import Capabilities
from ..spaces.layer import Layer, fingerprint_layers
from ..spaces.policy import GraphTreatment
from ..spaces.treatment import Treatment
from .activations import watched_values
from .artifact import Artifact
from .calibration import Histogram, LazyRanges, Range, collect_histograms
from .fusion import build_variants
from .graph import build_base_graph
from .quantize import QuantizationPlan, WeightBank, quantize_graph
from .source import ModelSource


@dataclass(frozen=True)
class PreparedModel:
    """Everything that is paid once per model; picklable, so that workers receive it instead of repeating it."""

    layers: tuple[Layer, ...]
    #: fusion level → serialised float graph; its large constants are in ``constants``
    variants: Mapping[str, bytes]
    #: constant name → array, each stored once for all variants
    constants: Mapping[str, np.ndarray]
    #: fusion level → value name → calibration statistics
    statistics: Mapping[str, Mapping[str, Histogram]]
    #: fusion level → why it is not on offer
    dropped_fusions: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Digest of the layers' names, kinds and shapes."""
        return fingerprint_layers(self.layers)


def prepare_model(
    source: ModelSource, calibration: Mapping[str, np.ndarray], *, fusions: tuple[str, ...] = ("none",)
) -> PreparedModel:
    """Simplifies, fuses and calibrates.

    Args:
        source: the model as ONNX.
        calibration: model input name → (n_samples, …) array.
        fusions: the fusion levels to try.

    Raises:
        ModelError: the model has no layer that can be treated, or the runtime refuses it.
        DataError: the data do not fit the model's inputs.
    """
    samples = _one_by_one(calibration)
    base = build_base_graph(source, samples[0])
    variants, dropped = build_variants(base, fusions, samples[0])
    statistics = _collect(variants, samples)
    constants: dict[str, np.ndarray] = {}
    return PreparedModel(
        layers=base.layers,
        variants={level: _detach(model, constants) for level, model in variants.items()},
        constants=constants,
        statistics=statistics,
        dropped_fusions=dropped,
    )


def _collect(
    variants: Mapping[str, ir.Model], samples: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, dict[str, Histogram]]:
    """Watches each value once: a value that keeps its name through a fusion keeps its meaning."""
    known: dict[str, Histogram] = {}
    statistics = {}
    for level, model in variants.items():
        watched = watched_values(model.graph)
        missing = [name for name in watched if name not in known]
        if missing:
            known.update(collect_histograms(model, missing, samples))
        statistics[level] = {name: known[name] for name in watched}
    return statistics


#: constants with more elements than this are stored apart from their graphs
_LARGE = 1024


def _detach(model: ir.Model, constants: dict[str, np.ndarray]) -> bytes:
    """Serialises the graph without its large constants, which go to ``constants``."""
    proto = ir.to_proto(model)
    kept = []
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.size > _LARGE and np.array_equal(constants.setdefault(tensor.name, array), array):
            kept.append(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
        else:
            kept.append(numpy_helper.from_array(array, tensor.name))
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    content: bytes = proto.SerializeToString()
    return content


def _attach(content: bytes, constants: Mapping[str, np.ndarray]) -> ir.Model:
    """Undoes `_detach`; the arrays are shared, not copied."""
    proto = onnx.load_from_string(content)
    detached = [t.name for t in proto.graph.initializer if np.prod(t.dims) > _LARGE and not t.raw_data]
    model: ir.Model = ir.from_proto(proto)
    for name in detached:
        model.graph.initializers[name].const_value = ir.tensor(constants[name], name=name)
    return model


def _one_by_one(inputs: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    n_samples = len(next(iter(inputs.values())))
    return [{name: array[i : i + 1] for name, array in inputs.items()} for i in range(n_samples)]


@dataclass
class Pipeline:
    """Builds artifacts; keeps parsed graphs, ranges and treated weights between calls."""

    prepared: PreparedModel
    scheme: Capabilities
    _graphs: dict[str, ir.Model] = field(default_factory=dict)
    _ranges: dict[tuple[str, str], Mapping[str, Range]] = field(default_factory=dict)
    _bank: WeightBank = field(default_factory=WeightBank)

    def build(self, treatments: Mapping[str, Treatment], graph: GraphTreatment) -> Artifact:
        """Builds the artifact of a policy.

        Args:
            treatments: layer name → treatment; layers that are missing stay as they are.
            graph: what happens to the graph as a whole.

        Raises:
            PolicyError: the policy names a layer, a fusion or a treatment that this model does not have.
        """
        unknown = sorted(set(treatments) - {layer.name for layer in self.prepared.layers})
        if unknown:
            raise PolicyError(f"the model has no layer {', '.join(unknown)}")
        model = self._parsed(graph.fusion).clone()
        is_static = any(treatment.is_static for treatment in treatments.values())
        ranges = self.ranges(graph) if is_static else {}
        rows = frozenset(layer.name for layer in self.prepared.layers if len(layer.output_shape) == 2)
        plan = QuantizationPlan(treatments, graph.quantized_ops, ranges, self.scheme, self._bank, rows)
        quantize_graph(model.graph, plan)
        is_dynamic = any(treatment.activation_range == "dynamic" for treatment in treatments.values())
        return Artifact(
            model=ir.to_proto(model).SerializeToString(),
            precision=graph.precision,
            dynamic_activations=is_dynamic and self.scheme.dynamic_form == "weights",
        )

    def _parsed(self, fusion: str) -> ir.Model:
        if fusion not in self.prepared.variants:
            reason = self.prepared.dropped_fusions.get(fusion, "it was not prepared")
            raise PolicyError(f"fusion '{fusion}' is not available for this model: {reason}")
        if fusion not in self._graphs:
            self._graphs[fusion] = _attach(self.prepared.variants[fusion], self.prepared.constants)
        return self._graphs[fusion]

    def ranges(self, graph: GraphTreatment) -> Mapping[str, Range]:
        """Returns value name → calibrated range for the policy's fusion and calibration; made once."""
        key = (graph.fusion, graph.calibration)
        if key not in self._ranges:
            histograms = self.prepared.statistics[graph.fusion]
            self._ranges[key] = LazyRanges(histograms, graph.calibration)
        return self._ranges[key]

    def adopt_ranges(self, graph: GraphTreatment, ranges: Mapping[str, Range]) -> None:
        """Uses ranges that were calibrated elsewhere for this fusion and calibration."""
        self._ranges[(graph.fusion, graph.calibration)] = dict(ranges)

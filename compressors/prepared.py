"""What is paid once per model: the simplified graph, its fusions, its layers, and what calibration saw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from ..spaces.layer import Layer, Structure, fingerprint_layers
from .fusion import build_variants
from .graph import BaseGraph, array_of, build_base_graph, find_weights
from .quantization.activations import watched_values
from .quantization.calibration import Histogram, Range, collect_histograms
from .source import ModelSource, TorchOrigin

if TYPE_CHECKING:
    from .pruning.structures import FoundStructures

#: constants with more elements than this are stored apart from their graphs
_LARGE = 1024
#: a factor of a channel closer to 1 than this is rounding, not a batch norm
_ROUNDING = 1e-5


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
    #: value name → shape seen when one sample was run
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    #: the calibration samples, model input name → (n_samples, …) array: models of other shapes are calibrated anew
    calibration: Mapping[str, np.ndarray] = field(default_factory=dict)
    #: layer → (n_outputs,) float32 by which a merged batch norm multiplied its weight; a layer that is missing: 1
    output_scales: Mapping[str, np.ndarray] = field(default_factory=dict)
    #: layer → (n_outputs,) float32: the step of its int8 weight as learned in training, before that batch norm
    learned_steps: Mapping[str, np.ndarray] = field(default_factory=dict)
    #: layer → range of its quantised input as learned in training
    learned_ranges: Mapping[str, Range] = field(default_factory=dict)
    #: layer → the two values of its binary input as learned in training
    learned_levels: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    #: the torch module; None for an ``.onnx`` input
    origin: TorchOrigin | None = None
    #: what can be pruned; None where nobody looked
    found: "FoundStructures | None" = None

    @property
    def structures(self) -> tuple[Structure, ...]:
        """What can be pruned."""
        return () if self.found is None else self.found.structures

    @property
    def fingerprint(self) -> str:
        """Digest of the layers' names, kinds and shapes."""
        return fingerprint_layers(self.layers)

    @property
    def base(self) -> BaseGraph:
        """The unfused float graph, parsed anew: the caller may edit it."""
        return BaseGraph(attach_constants(self.variants["none"], self.constants), self.layers, self.shapes)


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
    base = build_base_graph(source, one_by_one(calibration)[0])
    return prepare_graph(base, source, calibration, fusions=fusions)


def prepare_graph(
    base: BaseGraph, source: ModelSource, calibration: Mapping[str, np.ndarray], *, fusions: tuple[str, ...]
) -> PreparedModel:
    """Fuses and calibrates a base graph; see `prepare_model`."""
    samples = one_by_one(calibration)
    scales = find_output_scales(base.model.graph, source.parameters)
    variants, dropped = build_variants(base, fusions, samples[0])
    statistics = _collect(variants, samples)
    constants: dict[str, np.ndarray] = {}
    return PreparedModel(
        layers=base.layers,
        variants={level: _detach(model, constants) for level, model in variants.items()},
        constants=constants,
        statistics=statistics,
        dropped_fusions=dropped,
        shapes=base.shapes,
        calibration=calibration,
        output_scales=scales,
        learned_steps=source.learned_steps,
        learned_ranges={name: Range(*edges) for name, edges in source.learned_ranges.items()},
        learned_levels=source.learned_levels,
        origin=source.origin,
    )


def find_output_scales(graph: ir.Graph, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns layer → (n_outputs,) float32 factors of the batch norms that were merged into convolutions.

    Args:
        graph: the base graph, its weights named after their layers.
        parameters: torch parameter name → array, before the merge.
    """
    found: dict[str, np.ndarray] = {}
    for weight in find_weights(graph):
        name, stored = str(weight.name).removesuffix(".weight"), array_of(weight)
        parameter = parameters.get(f"{name.partition('#')[0]}.weight")
        if parameter is None or parameter.shape != stored.shape or stored.ndim < 3:
            continue
        a, b = (array.reshape(len(stored), -1).astype(np.float64) for array in (stored, parameter))
        norms = (b * b).sum(1)
        scale = np.where(norms > 0, (a * b).sum(1) / np.where(norms > 0, norms, 1.0), 1.0)
        if np.abs(scale - 1.0).max() > _ROUNDING:
            found[name] = scale.astype(np.float32)
    return found


def one_by_one(inputs: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Returns the samples apart, each as a batch of one."""
    n_samples = len(next(iter(inputs.values())))
    return [{name: array[i : i + 1] for name, array in inputs.items()} for i in range(n_samples)]


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


def attach_constants(content: bytes, constants: Mapping[str, np.ndarray]) -> ir.Model:
    """Returns a variant's graph with its large constants; the arrays are shared, not copied."""
    proto = onnx.load_from_string(content)
    detached = [t.name for t in proto.graph.initializer if np.prod(t.dims) > _LARGE and not t.raw_data]
    model: ir.Model = ir.from_proto(proto)
    for name in detached:
        model.graph.initializers[name].const_value = ir.tensor(constants[name], name=name)
    return model

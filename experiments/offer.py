"""What a spec offers on this model and target: the space, and what fell away with the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from ..compressors.low_rank.factor_shapes import LayerGeometry
from ..compressors.low_rank.factorise import why_not_low_rank
from ..compressors.low_rank.graph_factors import geometries_of
from ..compressors.onnx_stage import OnnxStage
from ..compressors.prepared import PreparedModel
from ..compressors.quantization.activations import OP_FAMILIES
from ..core.errors import PolicyError, SpecError
from ..evaluators.dataset import Dataset
from ..evaluators.device import Device
from ..spaces.layer import Layer, Structure
from ..spaces.options import describe_option, parse_option
from ..spaces.policy import CALIBRATIONS
from ..spaces.recovery import Recovery
from ..spaces.rules import Doubts, Dropped, Rule, resolve_options, resolve_structures, tie_layers, tie_structures
from ..spaces.space import GraphOptions, Space, build_space
from ..spaces.treatment import GRADIENT_IMPORTANCES, Treatment
from .profiling.device_profiles import why_slow
from .spec import Spec

if TYPE_CHECKING:
    from ..compressors.pruning.structures import FoundStructures

#: alternatives for ``graph.quantized_ops`` when the spec names none
_DEFAULT_OPS: tuple[tuple[str, ...], ...] = ((), ("add",), ("add", "pool"), ("matmul",))


@dataclass(frozen=True)
class Offer:
    """The space of a spec, and what is not in it."""

    space: Space
    #: options that rules offered and the target, the layer or the model refuses
    dropped: tuple[Dropped, ...] = ()
    #: graph-wide alternatives that are not on offer, with the reason
    dropped_graph: tuple[tuple[str, str], ...] = ()
    #: structures on which pruning is on offer
    structures: tuple[Structure, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether some policy of the space needs training data."""
        gradients = any(option.importance in GRADIENT_IMPORTANCES for o in self.space.options for option in o)
        return gradients or any(recovery.trains for recovery in self.space.graph.recovery)

    @property
    def needs_module(self) -> bool:
        """Whether some policy of the space needs the torch module."""
        return bool(self.structures) or self.trains


def make_offer(
    spec: Spec, device: Device, model: PreparedModel, dataset: Dataset, profile: Any
) -> tuple[Offer, PreparedModel]:
    """Applies a spec's rules; returns the offer, and the model with its structures.

    Args:
        spec: rules and graph-wide alternatives.
        device: the target.
        model: layers, and the torch module where there is one.
        dataset: whether there is a train split decides on recovery.
        profile: the device's profile, which says what is slow; None where nothing does.

    Raises:
        SpecError: a rule matches nothing, or nothing that it offers can be had.
    """
    rules = [_to_rule(rule) for rule in spec.space]
    is_default = "space" not in spec.model_fields_set
    geometries = geometries_of(model.base) if any(rule.low_rank for rule in rules) else {}
    doubts = Doubts(partial(why_slow, profile), partial(_why_vain, geometries))
    options, dropped = resolve_options(
        model.layers, rules, device.capabilities.why_not, is_default=is_default, doubts=doubts
    )
    found, lost = _find_structures(rules, model)
    structures = () if found is None else found.structures
    pruning, unfit = resolve_structures(structures, rules) if structures else ({}, ())
    recovery, untrained = _recoveries(spec, model, dataset)
    graph, dropped_graph = _graph_options(spec, device, model)
    groups = (*tie_layers(model.layers), *tie_structures(structures, pruning))
    space = build_space(groups, {**options, **pruning}, replace(graph, recovery=recovery))
    offered = tuple(structure for structure in structures if structure.name in pruning)
    offer = Offer(space, (*dropped, *lost, *unfit), (*dropped_graph, *untrained), offered)
    origin = model.origin if offer.needs_module else None  # workers need not receive what nothing asks for
    return offer, replace(model, found=found, origin=origin)


def _to_rule(rule: Any) -> Rule:
    return Rule(
        rule.layers, rule.quantize, bool(rule.force), rule.prune, rule.low_rank, rule.cluster, rule.binarize,
        rule.sparsify,
    )  # fmt: skip


def _why_vain(geometries: Mapping[str, LayerGeometry], treatment: Treatment, layer: Layer) -> str | None:
    return why_not_low_rank(geometries.get(layer.name, layer), treatment) if treatment.rank != 1.0 else None


def _find_structures(
    rules: Sequence[Rule], model: PreparedModel
) -> tuple["FoundStructures | None", tuple[Dropped, ...]]:
    """Returns what can be pruned (None: nothing was asked for), and what falls away without a torch module."""
    wanted = [rule for rule in rules if any(parse_option("prune", o) != Treatment() for o in rule.prune or ())]
    if not wanted:
        return None, ()
    if model.origin is None:
        reason = "pruning changes the torch model, and this one was given as an .onnx file"
        return None, tuple(Dropped(rule.layers, "prune", reason) for rule in wanted)
    from ..compressors.pruning.structures import find_structures

    found = find_structures(model.origin.module, model.origin.example_inputs)
    if not found.structures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.dropped[:3])
        raise SpecError(f"space: nothing in this model can be pruned ({reasons}); leave out prune")
    return found, ()


def _recoveries(
    spec: Spec, model: PreparedModel, dataset: Dataset
) -> tuple[tuple[Recovery, ...], tuple[tuple[str, str], ...]]:
    """Returns the recoveries that can be had, and why the others cannot."""
    offered = spec.recoveries
    if not any(recovery.trains for recovery in offered):
        return offered, ()
    if model.origin is None:
        reason = "training needs the torch model, and this one was given as an .onnx file"
        return (Recovery(),), tuple((f"recovery {r.label}", reason) for r in offered if r.trains)
    if dataset.train is None:
        raise SpecError("recovery: the data have no train split; return one in Dataset(train=…), or leave out recovery")
    for recovery in offered:
        needs_labels = recovery.method == "finetune" or (recovery.method == "distill" and recovery.mix < 1.0)
        if needs_labels and dataset.train.labels is None:
            raise SpecError(f"recovery: {recovery.label} learns from labels, and the train split has none; "
                            f"distill with mix: 1 does without")  # fmt: skip
    return offered, ()


def _graph_options(
    spec: Spec, device: Device, model: PreparedModel
) -> tuple[GraphOptions, tuple[tuple[str, str], ...]]:
    wanted = spec.graph.fusion or device.capabilities.fusions
    fusions = tuple(fusion for fusion in wanted if fusion in model.variants) or ("none",)
    dropped = [(f"fusion {name}", reason) for name, reason in model.dropped_fusions.items() if name in wanted]
    present = _op_families(model)
    operators: dict[tuple[str, ...], None] = {}
    for alternative in spec.graph.quantized_ops or _DEFAULT_OPS:
        kept = tuple(sorted(op for op in alternative if op in present))
        if kept != tuple(sorted(alternative)):
            missing = ", ".join(op for op in alternative if op not in present)
            dropped.append((f"quantized_ops {'+'.join(alternative)}", f"the model has no {missing} to quantise"))
        operators.setdefault(kept)
    equalizations, lost = _equalizations(spec.graph.equalization or ("none",), device, model)
    options = GraphOptions(
        fusion=fusions,
        calibration=spec.graph.calibration or CALIBRATIONS,
        quantized_ops=tuple(operators),
        precision=spec.graph.precision or device.capabilities.precisions,
        rounding=spec.graph.rounding or ("nearest",),
        equalization=equalizations,
        correction=spec.graph.correction or ("none",),
    )
    return options, (*dropped, *lost)


def _equalizations(
    offered: Sequence[str], device: Device, model: PreparedModel
) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """Tries each equalisation on the model; one that changes nothing falls away."""
    stage = OnnxStage(model, device.capabilities)
    dropped: list[tuple[str, str]] = []
    for name in offered:
        if name == "none":
            continue
        try:
            stage.equalized(name)
        except PolicyError as error:
            dropped.append((f"equalization {name}", str(error)))
    refused = {name.removeprefix("equalization ") for name, _ in dropped}
    return tuple(name for name in offered if name not in refused) or ("none",), dropped


def _op_families(model: PreparedModel) -> set[str]:
    """Returns the families of `OP_FAMILIES` of which the float graph has members with two computed inputs, or one."""
    graph = ir.from_proto(onnx.load_from_string(model.variants["none"])).graph
    constants = set(graph.initializers)
    found: set[str] = set()
    for node in graph:
        computed = [value for value in node.inputs if value is not None and value.name not in constants]
        is_binary = node.op_type in ("Add", "MatMul")
        if len(computed) >= (2 if is_binary else 1):
            found.update(family for family, ops in OP_FAMILIES.items() if node.op_type in ops)
    return found


def find_size_only(offer: Offer, size_only: frozenset[str]) -> tuple[str, ...]:
    """Returns the techniques and quantize options on offer that make the file smaller and nothing faster."""
    used: set[str] = set()
    for options in offer.space.options:
        for option in options:
            used.update((*option.techniques, describe_option("quantize", option)))
    return tuple(sorted(size_only & used))

"""A policy: what happens to every group, and to the graph as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..core.errors import SpecError
from ..core.files import short_digest
from ..core.names import check_known, describe_unknown
from .recovery import Recovery
from .treatment import Treatment

CALIBRATIONS = ("minmax", "percentile", "entropy", "mse")
FUSIONS = ("none", "gelu", "attention", "full")
#: op families besides the layers themselves that can run on quantised tensors
EXTRA_OPS = ("add", "pool", "activation", "matmul")
PRECISIONS = ("float32", "bfloat16", "float16")
ROUNDINGS = ("nearest", "compensated")
EQUALIZATIONS = ("none", "cross_layer", "smooth")
CORRECTIONS = ("none", "bias")

_DEFAULT = Treatment()


@dataclass(frozen=True, slots=True)
class GraphTreatment:
    """What happens to the graph as a whole; it decides as much as any layer."""

    #: subgraphs that are replaced by the runtime's fused operators before quantising
    fusion: str = "none"
    #: how activation ranges are chosen from the calibration statistics
    calibration: str = "minmax"
    #: families from `EXTRA_OPS` that are quantised where they touch a quantised layer; sorted
    quantized_ops: tuple[str, ...] = ()
    #: the precision in which the runtime executes what stays floating point
    precision: str = "float32"
    #: how weights become integers: each to the ``nearest``, or ``compensated``: the next ones make good (GPTQ)
    rounding: str = "nearest"
    #: scales moved between layers before rounding: between convolutions (``cross_layer``), or from activations with
    #: outliers into the weights of linear layers (``smooth``: SmoothQuant)
    equalization: str = "none"
    #: ``bias``: the mean error of each output is taken off its bias
    correction: str = "none"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("fusion", self.fusion, FUSIONS),
            ("calibration", self.calibration, CALIBRATIONS),
            ("precision", self.precision, PRECISIONS),
            ("rounding", self.rounding, ROUNDINGS),
            ("equalization", self.equalization, EQUALIZATIONS),
            ("correction", self.correction, CORRECTIONS),
            *(("quantized_ops", op, EXTRA_OPS) for op in self.quantized_ops),
        ):
            if value not in allowed:
                raise SpecError(describe_unknown(name, str(value), allowed))
        object.__setattr__(self, "quantized_ops", tuple(sorted(set(self.quantized_ops))))

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        later = ("rounding", "equalization", "correction")  # came after the first files were written
        chosen = {name: getattr(self, name) for name in later}
        return {
            "fusion": self.fusion,
            "calibration": self.calibration,
            "quantized_ops": list(self.quantized_ops),
            "precision": self.precision,
            **{name: value for name, value in chosen.items() if value != getattr(_DEFAULT_GRAPH, name)},
        }

    @classmethod
    def from_json(cls, value: Any) -> "GraphTreatment":
        """Reads what `to_json` wrote.

        Raises:
            SpecError: a field is unknown or its value is not allowed.
        """
        if not isinstance(value, dict) or not isinstance(value.get("quantized_ops", []), list):
            raise SpecError(f"the graph's treatment must be an object of fields, got {value!r:.80}")
        check_known("graph field", value, [field.name for field in fields(cls)])
        return cls(**{**value, "quantized_ops": tuple(value.get("quantized_ops", []))})


_DEFAULT_GRAPH = GraphTreatment()


@dataclass(frozen=True, slots=True)
class Policy:
    """What happens to every group; canonical, so equivalent policies compare and hash equal.

    Groups that stay untouched are left out, and graph choices without effect fall back to their default:
    calibration and quantised ops mean nothing where no layer has statically quantised activations; rounding,
    equalisation and correction nothing where no weight becomes integers; recovery nothing where nothing was lost.

    >>> Policy({"fc": Treatment()}) == Policy({})
    True
    """

    groups: tuple[tuple[str, Treatment], ...]
    graph: GraphTreatment
    recovery: Recovery

    def __init__(
        self, groups: Mapping[str, Treatment], graph: GraphTreatment | None = None, recovery: Recovery | None = None
    ) -> None:
        graph = graph or GraphTreatment()
        kept = tuple((name, groups[name]) for name in sorted(groups) if groups[name] != _DEFAULT)
        if not any(choice.is_static for _, choice in kept):
            graph = replace(graph, calibration="minmax", quantized_ops=())
        if not any(choice.is_quantized for _, choice in kept):
            graph = replace(graph, rounding="nearest", equalization="none", correction="none")
        object.__setattr__(self, "groups", kept)
        object.__setattr__(self, "graph", graph)
        object.__setattr__(self, "recovery", recovery if recovery is not None and kept else Recovery())

    def __getitem__(self, group: str) -> Treatment:
        return dict(self.groups).get(group, _DEFAULT)

    @property
    def id(self) -> str:
        """A digest of the canonical form."""
        return short_digest(self.to_json())

    @property
    def is_untouched(self) -> bool:
        """Whether the policy leaves the model as it is."""
        return not self.groups and self.graph == GraphTreatment()

    def to_json(self) -> dict[str, Any]:
        """Returns the canonical form as JSON values."""
        return {
            "graph": self.graph.to_json(),
            "groups": {name: treatment.to_json() for name, treatment in self.groups},
            **({"recovery": self.recovery.to_json()} if self.recovery.trains else {}),
        }

    @property
    def needs_data(self) -> bool:
        """Whether the policy cannot be applied without calibration (or training) data, ranges aside."""
        graph, treatments = self.graph, [treatment for _, treatment in self.groups]
        refined = graph.rounding == "compensated" or graph.equalization == "smooth" or graph.correction == "bias"
        return refined or self.recovery.trains or any(treatment.needs_data for treatment in treatments)

    @property
    def untrained(self) -> "Policy":
        """The same policy without recovery: equal shapes and kernels, at no cost of training."""
        return Policy(dict(self.groups), self.graph)

    @classmethod
    def from_json(cls, value: Any) -> "Policy":
        """Reads what `to_json` wrote.

        Raises:
            SpecError: the value is not a policy.
        """
        if not isinstance(value, dict) or not isinstance(value.get("groups"), dict):
            raise SpecError("a policy must hold the objects 'graph' and 'groups'")
        groups = {str(name): Treatment.from_json(entry) for name, entry in value["groups"].items()}
        recovery = Recovery.from_json(value.get("recovery", "none"))
        return cls(groups, GraphTreatment.from_json(value.get("graph", {})), recovery)

"""What happens to one layer, or to one structure of channels, heads or a block."""

import re
from dataclasses import dataclass, fields
from typing import Any

from ..core.errors import SpecError
from ..core.names import check_known

#: importances that need the loss of training data
GRADIENT_IMPORTANCES = ("taylor", "fisher")
IMPORTANCES = ("magnitude", "bn_scale", "geometric_median", *GRADIENT_IMPORTANCES)
DECOMPOSITIONS = ("auto", "channel", "spatial", "tucker")
BINARY_FORMS = ("none", "binary", "ternary")
WEIGHT_DTYPES = ("float32", "float16", "float8", "int8", "int4")
ACTIVATION_DTYPES = ("float32", "float8", "int8", "binary")
ACTIVATION_RANGES = ("static", "dynamic")
_GRANULARITY = re.compile(r"tensor|channel|block(16|32|64|128|256)")
_PATTERN = re.compile(r"unstructured|([1-9]\d?):([1-9]\d?)")
_INTEGERS = ("int8", "int4")
#: codes of a clustered weight are stored in a byte or less
MAX_CLUSTERS = 256


@dataclass(frozen=True, slots=True)
class Treatment:
    """What happens to one layer; the default leaves it as it is. Fields stand in the order in which they are applied.

    Canonical: a field that means nothing beside the others falls back to its default.

    >>> Treatment(weight_dtype="int8", activation_dtype="int8").label
    'int8'
    >>> Treatment(clusters=16, weight_dtype="int8").label
    'cluster 16 + int8_weight'
    """

    #: prune: share of the channels, heads or inner units that stays; of a block 0 or 1
    keep_channels: float = 1.0
    #: what decides which of them stay
    importance: str = "magnitude"
    #: low_rank: share of the weight's elements that the factors may have, or of its energy that they must keep
    rank: float = 1.0
    #: ``ratio`` or ``energy``
    rank_by: str = "ratio"
    #: how a convolution is taken apart; a linear layer has one way only
    decomposition: str = "auto"
    #: what the factors come closest to: the ``weight``, or the layer's ``output`` on the calibration data
    rank_error: str = "weight"
    #: cluster: values that the weight may take; 0 leaves it as it is
    clusters: int = 0
    #: one codebook for the ``tensor``, or one for each ``group`` of output channels
    cluster_scope: str = "tensor"
    #: whether all weights count alike (``uniform``), or by what they do to the output (``sensitivity``)
    cluster_weighting: str = "uniform"
    #: binarize: ±1, or −1, 0 and 1, times a scale for each output channel
    binary: str = "none"
    #: sparsify: share of zeros; for a pattern N:M it follows from that
    sparsity: float = 0.0
    #: ``unstructured``, or ``N:M``: N of every M inputs in a row stay
    pattern: str = "unstructured"
    #: what decides which weights stay: their ``magnitude``, or ``wanda``: magnitude times the norm of the input
    saliency: str = "magnitude"
    #: how the weight is stored
    weight_dtype: str = "float32"
    #: how the input is represented while the layer computes
    activation_dtype: str = "float32"
    #: int8 activations: ranges from calibration (static) or from each input (dynamic)
    activation_range: str = "static"
    #: elements of the weight that share one scale: the whole tensor, an output channel, or a block of K inputs
    granularity: str = "channel"
    #: ``float32`` keeps the layer in full precision where the graph computes in a lower one
    compute_dtype: str = "any"

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_numbers(self)
        _check_quantization(self)
        _check_combination(self)
        _canonicalise(self)

    @property
    def is_static(self) -> bool:
        """Whether the layer computes with activations quantised by calibrated ranges."""
        return self.activation_dtype in ("int8", "float8") and self.activation_range == "static"

    @property
    def is_quantized(self) -> bool:
        """Whether the weight is stored as integers, so that rounding and equalisation matter."""
        return self.weight_dtype in _INTEGERS

    @property
    def needs_data(self) -> bool:
        """Whether what is done depends on data that run through the model."""
        by_data = self.goes_by_inputs or self.rank_error == "output" or self.importance in GRADIENT_IMPORTANCES
        return by_data or self.activation_dtype == "binary"

    @property
    def goes_by_inputs(self) -> bool:
        """Whether the values of the weight are chosen by what enters the layer."""
        return self.saliency == "wanda" or self.cluster_weighting == "sensitivity"

    @property
    def techniques(self) -> tuple[str, ...]:
        """The techniques that the treatment uses, in the order in which they are applied."""
        used = {
            "prune": self.keep_channels != 1.0,
            "low_rank": self.rank != 1.0,
            "cluster": self.clusters > 0,
            "binarize": self.binary != "none" or self.activation_dtype == "binary",
            "sparsify": self.sparsity > 0.0,
            "quantize": (self.weight_dtype, self.compute_dtype) != ("float32", "any"),
        }
        return tuple(name for name, is_used in used.items() if is_used)

    @property
    def label(self) -> str:
        """How a spec writes this treatment, techniques joined by ``+``."""
        from .options import describe_treatment

        return describe_treatment(self)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that differ from the default."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }

    @classmethod
    def from_json(cls, value: Any) -> "Treatment":
        """Reads what `to_json` wrote.

        Raises:
            SpecError: a field is unknown or its value is not allowed.
        """
        if not isinstance(value, dict):
            raise SpecError(f"a treatment must be an object of fields, got {value!r:.80}")
        check_known("treatment field", value, [field.name for field in fields(cls)])
        return cls(**value)


_CHOICES = {
    "importance": IMPORTANCES,
    "rank_by": ("ratio", "energy"),
    "decomposition": DECOMPOSITIONS,
    "rank_error": ("weight", "output"),
    "cluster_scope": ("tensor", "group"),
    "cluster_weighting": ("uniform", "sensitivity"),
    "binary": BINARY_FORMS,
    "saliency": ("magnitude", "wanda"),
    "weight_dtype": WEIGHT_DTYPES,
    "activation_dtype": ACTIVATION_DTYPES,
    "activation_range": ACTIVATION_RANGES,
    "compute_dtype": ("any", "float32"),
}


def _check_choices(treatment: Treatment) -> None:
    for name, allowed in _CHOICES.items():
        value = getattr(treatment, name)
        if value not in allowed:
            raise SpecError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _check_numbers(treatment: Treatment) -> None:
    for name in ("keep_channels", "rank", "sparsity"):
        value = getattr(treatment, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
            raise SpecError(f"{name} must be a share between 0 and 1, got {value!r}")
        object.__setattr__(treatment, name, float(value))
    if treatment.rank == 0.0:
        raise SpecError("rank must be greater than 0, got 0; prune the layer instead")
    if treatment.sparsity == 1.0:
        raise SpecError("sparsity must be below 1, got 1; prune the layer instead")
    clusters = treatment.clusters
    is_count = isinstance(clusters, int) and not isinstance(clusters, bool)
    if not is_count or (clusters != 0 and not 2 <= clusters <= MAX_CLUSTERS):
        raise SpecError(f"clusters must be a whole number from 2 to {MAX_CLUSTERS}, or 0 for none, got {clusters!r}")
    found = _PATTERN.fullmatch(str(treatment.pattern))
    if found is None or (found.group(1) and int(found.group(1)) >= int(found.group(2))):
        raise SpecError(f"pattern must be unstructured or N:M with N below M, got {treatment.pattern!r}")
    if found.group(1):
        share = 1.0 - int(found.group(1)) / int(found.group(2))
        if treatment.sparsity not in (0.0, share):
            raise SpecError(f"pattern {treatment.pattern} makes a sparsity of {share:g}, got {treatment.sparsity:g}")
        object.__setattr__(treatment, "sparsity", share)


def _check_quantization(treatment: Treatment) -> None:
    if not _GRANULARITY.fullmatch(str(treatment.granularity)):
        raise SpecError(f"granularity must be tensor, channel or block16…block256, got {treatment.granularity!r}")
    weight, activation = treatment.weight_dtype, treatment.activation_dtype
    if activation in ("int8", "float8") and weight != activation:
        raise SpecError(f"{activation} activations need an {activation} weight, got a {weight} weight")
    if treatment.activation_range == "dynamic" and activation != "int8":
        raise SpecError(f"dynamic ranges need int8 activations, got {activation} activations")
    if weight not in _INTEGERS:
        object.__setattr__(treatment, "granularity", "channel")
    is_blockwise = treatment.granularity.startswith("block")
    if weight == "int4" and not is_blockwise:
        raise SpecError(f"int4 weights need block16…block256, got '{treatment.granularity}'")
    if activation == "int8" and is_blockwise:
        raise SpecError(f"int8 activations need a weight scaled per tensor or channel, got '{treatment.granularity}'")


def _check_combination(treatment: Treatment) -> None:
    """Refuses what contradicts itself; each reason says which of the two to leave out."""
    is_binary, is_clustered = treatment.binary != "none", treatment.clusters > 0
    has_blocks = treatment.granularity.startswith("block")
    rules = (
        (is_binary and is_clustered, f"a {treatment.binary} weight has a codebook already; leave out cluster"),
        (treatment.binary == "binary" and treatment.sparsity > 0,
         "a binary weight has no zeros; use ternary instead of sparsify"),
        (treatment.binary == "ternary" and treatment.sparsity > 0,
         "a ternary weight has its own zeros; leave out sparsify"),
        (is_binary and has_blocks, f"a {treatment.binary} weight takes less than {treatment.weight_dtype}; "
         "leave out the weight's quantisation"),
        (is_clustered and has_blocks, "a weight in blocks has a grid of its own; cluster with int8 or float instead"),
        (treatment.activation_dtype == "binary" and not is_binary,
         "binary activations need a binary or ternary weight"),
        (treatment.weight_dtype == "float8" and (is_binary or is_clustered),
         "float8 has a grid of its own; cluster or binarise with int8 or float instead"),
        (treatment.compute_dtype == "float32" and treatment.activation_dtype != "float32",
         f"a layer in full precision cannot have {treatment.activation_dtype} activations"),
    )  # fmt: skip
    for is_broken, reason in rules:
        if is_broken:
            raise SpecError(reason)


def _canonicalise(treatment: Treatment) -> None:
    idle = {
        "importance": treatment.keep_channels in (0.0, 1.0),
        "rank_by": treatment.rank == 1.0,
        "decomposition": treatment.rank == 1.0,
        "rank_error": treatment.rank == 1.0,
        "cluster_scope": treatment.clusters == 0,
        "cluster_weighting": treatment.clusters == 0,
        "saliency": treatment.sparsity == 0.0,
    }
    for field in fields(treatment):
        if idle.get(field.name, False):
            object.__setattr__(treatment, field.name, field.default)


#: the values of ``quantize:`` in a spec
QUANTIZE_OPTIONS: dict[str, Treatment] = {
    "none": Treatment(),
    "float16": Treatment(weight_dtype="float16"),
    "int8": Treatment(weight_dtype="int8", activation_dtype="int8"),
    "int8_dynamic": Treatment(weight_dtype="int8", activation_dtype="int8", activation_range="dynamic"),
    "int8_weight": Treatment(weight_dtype="int8"),
    "int4_weight": Treatment(weight_dtype="int4", granularity="block32"),
    "float32": Treatment(compute_dtype="float32"),
    "float8": Treatment(weight_dtype="float8", activation_dtype="float8"),
}

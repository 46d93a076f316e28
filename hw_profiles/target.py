"""A target: runtime × device × settings, and what that pair accepts."""

from dataclasses import asdict, dataclass
from typing import Any

#: What is known of each layer kind and quantize option that no runtime can express at all.
OPTION_KINDS: dict[str, frozenset[str]] = {
    "none": frozenset({"conv", "depthwise_conv", "linear", "embedding"}),
    "int8": frozenset({"conv", "depthwise_conv", "linear"}),
    "int8_dynamic": frozenset({"linear"}),
    "int8_weight": frozenset({"conv", "depthwise_conv", "linear", "embedding"}),
    "int4_weight": frozenset({"linear"}),
    "float16": frozenset({"conv", "depthwise_conv", "linear", "embedding"}),
    "float32": frozenset({"conv", "depthwise_conv", "linear"}),
    "float8": frozenset({"conv", "linear"}),
}

#: The same of the techniques before quantisation; pruning is offered on structures, not on layers.
TECHNIQUE_KINDS: dict[str, frozenset[str]] = {
    "low_rank": frozenset({"conv", "linear"}),
    "cluster": frozenset({"conv", "depthwise_conv", "linear", "embedding"}),
    "binarize": frozenset({"conv", "depthwise_conv", "linear"}),
    "sparsify": frozenset({"conv", "depthwise_conv", "linear"}),
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model is to run, as a spec states it.

    >>> Target("onnxruntime").name
    'onnxruntime-cpu-1t-b1'
    """

    runtime: str
    device: str = "cpu"
    threads: int = 1
    batch_size: int = 1

    @property
    def name(self) -> str:
        """A short id, used in file names and messages."""
        return f"{self.runtime}-{self.device}-{self.threads}t-b{self.batch_size}"

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a target accepts, and the quantisation scheme that it runs fast.

    The scheme follows the target: the same graph can be fast in one runtime and slower than fp32 in another.
    """

    #: per quantize option, the layer kinds for which this runtime runs it
    quantize: dict[str, frozenset[str]]
    #: precisions in which the runtime can execute what stays floating point, the first is full precision
    precisions: tuple[str, ...] = ("float32",)
    #: the precision that the runtime picks when nobody asks
    default_precision: str = "float32"
    #: graph fusions that help (or may help) before quantising
    fusions: tuple[str, ...] = ("none",)
    #: codes of int8 activations: "asymmetric" (uint8, any zero point), "symmetric" (zero point 0; uint8 where
    #: nothing is negative, else int8) or "symmetric_signed" (int8, zero point 0)
    activation_codes: str = "asymmetric"
    #: convolutions need a quantised output to run as integers
    quantize_conv_outputs: bool = True
    #: how "int8_dynamic" is written: "operators" (DynamicQuantizeLinear + MatMulInteger) or "weights"
    #: (a compressed weight; the runtime quantises the activations itself)
    dynamic_form: str = "operators"
    #: techniques (and quantize options) that make a file smaller here and nothing faster, as measured
    size_only: frozenset[str] = frozenset()
    #: channel counts that pruning leaves are rounded to a multiple of this
    channel_multiple: int = 1

    def why_not(self, option: str, kind: str) -> str | None:
        """Returns why a layer of this kind cannot take the quantize option, or technique, here; None when it can."""
        known = OPTION_KINDS.get(option) or TECHNIQUE_KINDS.get(option, frozenset())
        if kind not in known:
            return f"{option} is not defined for {kind} layers"
        if option in TECHNIQUE_KINDS:
            return None
        if kind not in self.quantize.get(option, frozenset()):
            if option == "float32" and self.precisions == ("float32",):
                return "the target computes in float32 anyway"
            return f"the target does not run {option} on {kind} layers"
        return None

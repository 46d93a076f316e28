"""What happens to one layer, and the short names that a spec uses for it."""

import re
from dataclasses import dataclass, fields
from typing import Any

from ..core.errors import SpecError
from ..core.names import describe_unknown

WEIGHT_DTYPES = ("float32", "float16", "int8", "int4")
ACTIVATION_DTYPES = ("float32", "int8")
ACTIVATION_RANGES = ("static", "dynamic")
_GRANULARITY = re.compile(r"tensor|channel|block(16|32|64|128|256)")
_INTEGERS = ("int8", "int4")


@dataclass(frozen=True, slots=True)
class Treatment:
    """What happens to one layer; the default leaves it as it is.

    Canonical: granularity means nothing for weights in floating point and falls back to its default there.

    >>> Treatment(weight_dtype="int8", activation_dtype="int8").label
    'int8'
    """

    #: how the weight is stored
    weight_dtype: str = "float32"
    #: how the input is represented while the layer computes
    activation_dtype: str = "float32"
    #: int8 activations: ranges from calibration (static) or from each input (dynamic)
    activation_range: str = "static"
    #: elements of the weight that share one scale: the whole tensor, an output channel, or a block of K inputs
    granularity: str = "channel"

    def __post_init__(self) -> None:
        _check("weight_dtype", self.weight_dtype, WEIGHT_DTYPES)
        _check("activation_dtype", self.activation_dtype, ACTIVATION_DTYPES)
        _check("activation_range", self.activation_range, ACTIVATION_RANGES)
        if not _GRANULARITY.fullmatch(str(self.granularity)):
            raise SpecError(f"granularity must be tensor, channel or block16…block256, got {self.granularity!r}")
        if self.activation_dtype == "int8" and self.weight_dtype != "int8":
            raise SpecError(f"int8 activations need an int8 weight, got a {self.weight_dtype} weight")
        if self.activation_range == "dynamic" and self.activation_dtype != "int8":
            raise SpecError("dynamic ranges need int8 activations, got float32 activations")
        if self.weight_dtype not in _INTEGERS:
            object.__setattr__(self, "granularity", "channel")
        is_blockwise = self.granularity.startswith("block")
        if self.weight_dtype == "int4" and not is_blockwise:
            raise SpecError(f"int4 weights need block16…block256, got '{self.granularity}'")
        if self.activation_dtype == "int8" and is_blockwise:
            raise SpecError(f"int8 activations need a weight scaled per tensor or channel, got '{self.granularity}'")

    @property
    def is_static(self) -> bool:
        """Whether the layer computes with activations quantised by calibrated ranges."""
        return self.activation_dtype == "int8" and self.activation_range == "static"

    @property
    def label(self) -> str:
        """The spec's name for this treatment, or its fields where it has none."""
        for name, option in QUANTIZE_OPTIONS.items():
            if option == self:
                return name
        return "/".join(f"{key}={value}" for key, value in sorted(self.to_json().items()))

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
        known = [field.name for field in fields(cls)]
        for key in value:
            if key not in known:
                raise SpecError(describe_unknown("treatment field", str(key), known))
        return cls(**value)


def _check(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SpecError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


#: the values of ``quantize:`` in a spec
QUANTIZE_OPTIONS: dict[str, Treatment] = {
    "none": Treatment(),
    "float16": Treatment(weight_dtype="float16"),
    "int8": Treatment(weight_dtype="int8", activation_dtype="int8"),
    "int8_dynamic": Treatment(weight_dtype="int8", activation_dtype="int8", activation_range="dynamic"),
    "int8_weight": Treatment(weight_dtype="int8"),
    "int4_weight": Treatment(weight_dtype="int4", granularity="block32"),
}

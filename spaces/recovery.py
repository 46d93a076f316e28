"""Recovery: the training after compression that wins back accuracy."""

from dataclasses import dataclass, fields
from typing import Any

from ..core.errors import SpecError
from ..core.names import check_known, describe_unknown

METHODS = ("none", "finetune", "distill")
SCHEDULES = ("constant", "gradual")
#: more passes over the training data than this are a mistake
_MAX_EPOCHS = 10_000.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a compressed model is trained; the default does not train it.

    Canonical: without a method nothing else means anything, and without a teacher nothing of it does.

    >>> Recovery("distill", epochs=0.5).label
    'distill 0.5 epochs'
    """

    #: one of `METHODS`: ``finetune`` learns from the labels, ``distill`` from a teacher too
    method: str = "none"
    #: passes over the training data; a fraction takes that share of the steps
    epochs: float = 1.0
    #: the highest learning rate; None picks one by the model
    learning_rate: float | None = None
    #: samples in one step
    batch_size: int = 128
    #: distill: both sets of logits are divided by this
    temperature: float = 4.0
    #: distill: share of the loss that the teacher has; the labels have the rest
    mix: float = 0.9
    #: distill: pairs of module names, student's and teacher's, whose outputs are brought together
    features: tuple[tuple[str, str], ...] = ()
    #: distill: weight of the features' loss beside the others
    feature_weight: float = 1.0
    #: distill: ``module:callable`` of each teacher; empty: the original
    teachers: tuple[str, ...] = ()
    #: how sparsity is reached: at once, or ``gradual`` over the first half of the steps
    sparsity_schedule: str = "constant"
    #: whether quantised layers are trained as they will be rounded, with learned scales
    quantization_aware: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("sparsity_schedule", SCHEDULES)):
            if getattr(self, name) not in allowed:
                raise SpecError(f"recovery: {describe_unknown(name, str(getattr(self, name)), allowed)}")
        _check_number("epochs", self.epochs, low=0.0, high=_MAX_EPOCHS)
        _check_number("batch_size", self.batch_size, low=0, high=65536)
        _check_number("temperature", self.temperature, low=0.0, high=1000.0)
        _check_number("mix", self.mix, low=-1e-9, high=1.0)
        _check_number("feature_weight", self.feature_weight, low=-1e-9, high=1e6)
        if self.learning_rate is not None:
            _check_number("learning_rate", self.learning_rate, low=0.0, high=10.0)
        object.__setattr__(self, "features", tuple((str(a), str(b)) for a, b in _pairs(self.features)))
        object.__setattr__(self, "teachers", tuple(str(teacher) for teacher in self.teachers))
        idle: tuple[str, ...] = ()
        if self.method == "none":
            idle = tuple(field.name for field in fields(self))
        elif self.method == "finetune":
            idle = ("temperature", "mix", "features", "feature_weight", "teachers")
        for field in fields(self):
            if field.name in idle:
                object.__setattr__(self, field.name, field.default)

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return self.method != "none"

    @property
    def label(self) -> str:
        """A short description."""
        if not self.trains:
            return "none"
        return f"{self.method} {self.epochs:g} epoch{'s' if self.epochs != 1 else ''}"

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that differ from the default."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                found[field.name] = [list(v) if isinstance(v, tuple) else v for v in value] if isinstance(
                    value, tuple
                ) else value  # fmt: skip
        return found

    @classmethod
    def from_json(cls, value: Any) -> "Recovery":
        """Reads what `to_json` wrote; a bare word is a method.

        Raises:
            SpecError: a field is unknown or its value is not allowed.
        """
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, dict):
            raise SpecError(f"a recovery must be a method or an object of fields, got {value!r:.80}")
        check_known("recovery field", value, [field.name for field in fields(cls)])
        for name in ("features", "teachers"):
            if not isinstance(value.get(name, []), list | tuple):
                raise SpecError(f"recovery: {name} must be a list, got {value[name]!r:.80}")
        if not isinstance(value.get("quantization_aware", True), bool):
            raise SpecError(f"recovery: quantization_aware must be true or false, got {value['quantization_aware']!r}")
        return cls(**value)


def _check_number(name: str, value: object, *, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
        raise SpecError(f"recovery: {name} must be a number above {max(low, 0):g} and at most {high:g}, got {value!r}")
    if name == "batch_size" and value != int(value):
        raise SpecError(f"recovery: batch_size must be a whole number, got {value!r}")


def _pairs(value: object) -> list[tuple[str, str]]:
    """Reads pairs; one name stands for the same name on both sides."""
    if not isinstance(value, list | tuple):
        raise SpecError(f"recovery: features must be a list of module names, got {value!r:.80}")
    found = []
    for entry in value:
        names = (entry, entry) if isinstance(entry, str) else entry
        if not isinstance(names, list | tuple) or len(names) != 2:
            raise SpecError(
                f"recovery: a feature is a module's name or a pair (student's, teacher's), got {entry!r:.80}"
            )
        found.append((str(names[0]), str(names[1])))
    return found

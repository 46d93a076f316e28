"""Everything that is known of one artifact, each number with its spread."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..hw_profiles.energy.energy import Energy
from ..hw_profiles.latency import Latency

#: what is text in the JSON of a measurement, and what may be null
_TEXTS, _MAY_BE_NULL = ("source", "note"), "reference_s"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over samples with its standard error."""

    mean: float
    standard_error: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {"mean": self.mean, "standard_error": self.standard_error, "n": self.n}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Estimate":
        """Reads what `to_json` wrote.

        Raises:
            TypeError, KeyError: the value is something else.
            ValueError: a number is not finite, or is no number.
        """
        _check_numbers(value)
        return cls(value["mean"], value["standard_error"], value["n"])


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured of one artifact; what is missing is None, never NaN."""

    #: the metric itself, higher is better
    accuracy: Estimate | None = None
    #: original minus artifact, paired sample by sample; positive means worse than the original
    accuracy_drop: Estimate | None = None
    latency: Latency | None = None
    #: bytes of the model file
    size_bytes: int | None = None
    #: growth of the process's resident memory from before loading to the largest seen while running
    peak_memory_bytes: int | None = None
    #: inputs, outputs and everything in between that the runtime holds at once, by liveness; no weights
    peak_activation_bytes: int | None = None
    energy: Energy | None = None

    @property
    def energy_j(self) -> float | None:
        """Joules for one inference, whatever their source; None where it is not known."""
        return None if self.energy is None else self.energy.joules

    def is_scored_on(self, n_samples: int) -> bool:
        """Whether the accuracy stands on that many samples, and not on a part of them; see `evaluators.sequential`."""
        return self.accuracy is not None and self.accuracy.n >= n_samples

    def joined(self, other: "Measurement") -> "Measurement":
        """Returns both measurements in one; what the other one knows goes before."""
        known = {field.name: getattr(other, field.name) for field in fields(other)}
        return replace(self, **{name: value for name, value in known.items() if value is not None})

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that are known, as JSON values."""
        parts: dict[str, Any] = {
            "accuracy": self.accuracy and self.accuracy.to_json(),
            "accuracy_drop": self.accuracy_drop and self.accuracy_drop.to_json(),
            "latency": self.latency and self.latency.to_json(),
            "size_bytes": self.size_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "peak_activation_bytes": self.peak_activation_bytes,
            "energy": self.energy and self.energy.to_json(),
        }
        return {name: value for name, value in parts.items() if value is not None}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Measurement":
        """Reads what `to_json` wrote.

        Raises:
            TypeError, KeyError, AttributeError: the value is something else.
            ValueError: a number is not finite, or is no number.
        """
        _check_numbers(value)
        readers: dict[str, Any] = {
            "accuracy": Estimate.from_json,
            "accuracy_drop": Estimate.from_json,
            "latency": Latency.from_json,
            "energy": Energy.from_json,
        }
        if "energy_j" in value:  # schema 1 had no source
            number = {"joules": value["energy_j"], "iqr_j": 0.0, "runs": 1, "source": "unknown"}
            value = {**{name: part for name, part in value.items() if name != "energy_j"}, "energy": number}
        return cls(**{name: readers.get(name, lambda x: x)(part) for name, part in value.items()})


def _check_numbers(content: Mapping[str, Any]) -> None:
    """Makes sure that the JSON values of a measurement are finite numbers; what is missing is left out.

    Raises:
        ValueError: one is not.
    """
    for name, value in content.items():
        if isinstance(value, Mapping):
            _check_numbers(value)
        elif name in _TEXTS:
            if not isinstance(value, str):
                raise ValueError(f"{name} must be text, got {value!r:.80}")
        elif not (name == _MAY_BE_NULL and value is None) and not _is_finite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r:.80}")


def _is_finite(value: Any) -> bool:
    # compared, not converted: JSON's integers may have any number of digits
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max

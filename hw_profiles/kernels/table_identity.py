"""What a kernel table belongs to: one device under one runtime with its settings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ...core.errors import TableError
from ...core.files import short_digest
from ..profile import HardwareProfile

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class TableIdentity:
    """What kernel times depend on beside the kernel: a table is good for this device, runtime and settings alone.

    Batch size does not belong to it (shapes carry it), nor do memory size and the number of cores.
    """

    #: processor or accelerator, as it names itself
    device: str
    #: instruction sets that decide which kernels run, sorted
    features: tuple[str, ...]
    runtime: str
    runtime_version: str
    #: name → JSON scalar: ``device`` and ``threads`` of the target, and what else changes how long a kernel takes
    settings: Mapping[str, Scalar]

    def __post_init__(self) -> None:
        if any(isinstance(value, float) and not math.isfinite(value) for value in self.settings.values()):
            raise TableError(f"settings must be finite, got {dict(self.settings)!r:.120}")
        object.__setattr__(self, "features", tuple(sorted(self.features)))
        object.__setattr__(self, "settings", {name: self.settings[name] for name in sorted(self.settings)})

    @classmethod
    def of(cls, profile: HardwareProfile, settings: Mapping[str, Scalar] | None = None) -> Self:
        """Takes from a profile what kernel times depend on.

        Args:
            profile: the device under its runtime.
            settings: further settings, beside ``device`` and ``threads`` of the profile's target.
        """
        own: dict[str, Scalar] = {"device": profile.target.device, "threads": profile.target.threads}
        return cls(
            profile.device, profile.features, profile.runtime, profile.runtime_version, {**own, **(settings or {})}
        )

    @property
    def id(self) -> str:
        """A digest of all fields."""
        return short_digest(self.to_json())

    def describe_difference(self, other: "TableIdentity") -> str:
        """Says in words in what a table's identity differs from this one; empty when it does not.

        >>> here = TableIdentity("Xeon", ("avx2",), "onnxruntime", "1.31.1", {"threads": 1})
        >>> here.describe_difference(TableIdentity("Xeon", ("avx2",), "onnxruntime", "1.30.0", {"threads": 2}))
        'onnxruntime 1.31.1 here, 1.30.0 in the table; threads 1 here, 2 in the table'
        """
        parts = []
        if self.device != other.device:
            parts.append(f"device {self.device} here, {other.device} in the table")
        if self.features != other.features:
            parts.append(_describe_features(set(self.features), set(other.features)))
        if self.runtime != other.runtime:
            mine, its = (f"{each.runtime} {each.runtime_version}" for each in (self, other))
            parts.append(f"runtime {mine} here, {its} in the table")
        elif self.runtime_version != other.runtime_version:
            parts.append(f"{self.runtime} {self.runtime_version} here, {other.runtime_version} in the table")
        for name in sorted({*self.settings, *other.settings}):
            value, its_value = (each.settings.get(name, "not set") for each in (self, other))
            # 1 == True, and yet they are different settings
            if (value, type(value)) != (its_value, type(its_value)):
                parts.append(f"{name} {value} here, {its_value} in the table")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {
            "device": self.device,
            "features": list(self.features),
            "runtime": self.runtime,
            "runtime_version": self.runtime_version,
            "settings": dict(self.settings),
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            TableError: the value is not an identity.
        """
        try:
            texts = [value[name] for name in ("device", "runtime", "runtime_version")]
            features, settings = value["features"], value["settings"]
            is_sound = all(isinstance(text, str) for text in (*texts, *features)) and all(
                isinstance(setting, Scalar) for setting in settings.values()
            )
        except (KeyError, TypeError, AttributeError):
            is_sound = False
        if not is_sound or not isinstance(features, list):
            raise TableError(f"an identity must have device, features, runtime … and settings, got {value!r:.120}")
        return cls(texts[0], tuple(features), texts[1], texts[2], settings)


def _describe_features(here: set[str], table: set[str]) -> str:
    parts = [f"only here: {', '.join(sorted(here - table))}"] if here - table else []
    parts += [f"only in the table: {', '.join(sorted(table - here))}"] if table - here else []
    return f"instruction sets differ ({'; '.join(parts)})"

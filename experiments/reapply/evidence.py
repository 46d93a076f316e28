"""What a search knew of its policy: by this, applying it again tells whether it still suits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...core.errors import SpecError
from ...evaluators.measurement import Estimate
from ...spaces.policy import CALIBRATIONS, ROUNDINGS


@dataclass(frozen=True)
class Evidence:
    """The sensitivities of the weights that the policy was found for, and the accuracy that it kept.

    >>> Evidence.from_json(Evidence({"fc": 1e-5}, allowed_drop=0.01).to_json()).allowed_drop
    0.01
    """

    #: treated group → what its treatment alone did to the output, E|Δz|² / E|z|²; empty where it was not measured
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    #: how ranges were chosen, and weights rounded, when the sensitivities were measured
    calibration: str = "minmax"
    rounding: str = "nearest"
    #: of the policy, on the validation split; None where it was not scored
    accuracy_drop: Estimate | None = None
    #: what the budget allowed; None where it set no bound
    allowed_drop: float | None = None
    #: one-sided confidence with which the drop had to keep its bound
    confidence: float = 0.8

    def renamed(self, groups: Mapping[str, str]) -> "Evidence":
        """Returns the same for groups of other names; those that are not named fall away."""
        kept = {groups[name]: score for name, score in self.sensitivity.items() if name in groups}
        return replace(self, sensitivity=kept)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        drop = self.accuracy_drop
        return {
            "sensitivity": {name: float(score) for name, score in sorted(self.sensitivity.items())},
            "calibration": self.calibration,
            "rounding": self.rounding,
            "accuracy_drop": None if drop is None else drop.to_json(),
            "allowed_drop": self.allowed_drop,
            "confidence": self.confidence,
        }

    @classmethod
    def from_json(cls, value: Any) -> "Evidence":
        """Reads what `to_json` wrote.

        Raises:
            SpecError: a number is not finite, or a choice is not known.
            KeyError, TypeError, ValueError, AttributeError: the value is something else.
        """
        drop, allowed = value["accuracy_drop"], value["allowed_drop"]
        found = cls(
            sensitivity={str(name): float(score) for name, score in value["sensitivity"].items()},
            calibration=str(value["calibration"]),
            rounding=str(value["rounding"]),
            accuracy_drop=None if drop is None else Estimate(
                float(drop["mean"]), float(drop["standard_error"]), int(drop["n"])
            ),
            allowed_drop=None if allowed is None else float(allowed),
            confidence=float(value["confidence"]),
        )  # fmt: skip
        found._check()
        return found

    def _check(self) -> None:
        drop = self.accuracy_drop
        numbers = [*self.sensitivity.values(), *([] if drop is None else [drop.mean, drop.standard_error])]
        if not all(math.isfinite(number) for number in (*numbers, self.allowed_drop or 0.0)):
            raise SpecError("evidence: every number must be finite")
        if any(score < 0 for score in self.sensitivity.values()):
            raise SpecError("evidence: a sensitivity must be 0 or more")
        if not 0.0 < self.confidence < 1.0:
            raise SpecError(f"evidence: confidence must be above 0 and below 1, got {self.confidence}")
        if self.calibration not in CALIBRATIONS or self.rounding not in ROUNDINGS:
            raise SpecError(f"evidence: '{self.calibration}' or '{self.rounding}' is not known; known are "
                            f"{', '.join((*CALIBRATIONS, *ROUNDINGS))}")  # fmt: skip

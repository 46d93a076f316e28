"""A trial's journal line."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..core.errors import RunError, SpecError
from ..evaluators.measurement import Measurement
from ..spaces.policy import Policy


class Status(StrEnum):
    """How a trial ended."""

    COMPLETE = "COMPLETE"
    #: the policy cannot be built for this model (`PolicyError`)
    INFEASIBLE = "INFEASIBLE"
    FAILED = "FAILED"
    #: stopped early because it was clearly losing
    PRUNED = "PRUNED"


@dataclass(frozen=True, slots=True)
class Record:
    """One policy evaluated: what came out, what it cost, and where it came from."""

    #: 0, 1, 2 … in the order in which the policies were proposed
    id: int
    policy: Policy
    status: Status
    measurement: Measurement
    #: seconds of work, on whichever worker, summed over attempts
    cost_s: float
    seed: int
    #: why it was proposed: ``baseline:…`` or the name of the searcher
    origin: str
    #: what went wrong, in one line; empty when COMPLETE
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {
            "id": self.id,
            "policy": self.policy.to_json(),
            "status": self.status.value,
            "measurement": self.measurement.to_json(),
            "cost_s": self.cost_s,
            "seed": self.seed,
            "origin": self.origin,
            "error": self.error,
        }

    @classmethod
    def from_json(cls, value: Any) -> "Record":
        """Reads what `to_json` wrote.

        Raises:
            RunError: the value is not a record.
        """
        try:
            record = cls(
                id=int(value["id"]),
                policy=Policy.from_json(value["policy"]),
                status=Status(value["status"]),
                measurement=Measurement.from_json(value["measurement"]),
                cost_s=float(value["cost_s"]),
                seed=int(value["seed"]),
                origin=str(value["origin"]),
                error=str(value["error"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, SpecError) as cause:
            raise RunError(f"not a trial record: {cause!r}") from cause
        if not 0.0 <= record.cost_s < math.inf:
            raise RunError(f"not a trial record: cost_s must be at least 0, got {record.cost_s}")
        return record

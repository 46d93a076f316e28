"""A latency with its spread and its origin."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds for one inference.

    >>> Latency(0.004, 0.0001, 50, reference_s=0.008).ratio
    0.5
    """

    #: median over the runs, in seconds
    median_s: float
    #: interquartile range over the runs, in seconds
    iqr_s: float
    #: how many timed runs
    runs: int
    #: ``measured``, ``table`` or ``model``
    source: str = "measured"
    #: median of the original model, timed in turns with this one; None where it was not
    reference_s: float | None = None

    @property
    def ratio(self) -> float | None:
        """This latency over the original's, both from the same minutes; None without a reference."""
        return None if self.reference_s is None else self.median_s / self.reference_s

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Latency":
        """Reads what `to_json` wrote."""
        return cls(**value)

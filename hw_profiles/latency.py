"""A latency with its spread and its origin."""

import math
from dataclasses import asdict, dataclass, replace
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
    #: one standard error of a price, in seconds; None for a measurement, whose spread tells it
    standard_error_s: float | None = None

    @property
    def error_s(self) -> float:
        """One standard error of the median, in seconds.

        Of a measurement 0.93 interquartile ranges over √runs: that of a normal distribution's median is 1.2533
        standard deviations over √n (Kendall and Stuart, The Advanced Theory of Statistics, 1977, section 10.10), and
        its interquartile range is 1.349 of them.
        """
        if self.standard_error_s is not None:
            return self.standard_error_s
        return 0.93 * self.iqr_s / math.sqrt(max(self.runs, 1))

    @property
    def ratio(self) -> float | None:
        """This latency over the original's, both from the same minutes; None without a reference."""
        return None if self.reference_s is None else self.median_s / self.reference_s

    def scaled(self, factor: float) -> "Latency":
        """Returns this latency on a machine that takes ``factor`` times as long."""
        return replace(
            self,
            median_s=self.median_s * factor,
            iqr_s=self.iqr_s * factor,
            reference_s=None if self.reference_s is None else self.reference_s * factor,
            standard_error_s=None if self.standard_error_s is None else self.standard_error_s * factor,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values; without a stated error where there is none."""
        value = asdict(self)
        if self.standard_error_s is None:
            del value["standard_error_s"]
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Latency":
        """Reads what `to_json` wrote."""
        return cls(**value)

"""Upper bounds, what is optimised within them, and how far a measurement is from keeping them."""

from dataclasses import dataclass
from statistics import NormalDist

from ..evaluators.measurement import Estimate, Measurement

#: bounds of a budget: the attribute, how a person calls it, the factor from its unit to the person's, that unit
BOUNDS = (
    ("latency_s", "latency", 1e3, "ms"),
    ("accuracy_drop", "accuracy_drop", 1.0, ""),
    ("size_bytes", "size", 1e-6, "MB"),
    ("peak_memory_bytes", "peak_memory", 1e-6, "MB"),
    ("peak_activation_bytes", "peak_activation", 1e-6, "MB"),
    ("energy_j", "energy", 1e3, "mJ"),
)

#: an excess of accuracy drop is counted relative to this at the least, so that a bound of 0 stays usable
_MIN_DROP_UNIT = 0.01


@dataclass(frozen=True, slots=True)
class Budget:
    """Absolute upper bounds; None where a quantity is free.

    Latencies are compared in normalised seconds: the ratio to the original, timed in turns with it, times
    ``reference_s``. So trials from a slow minute and from a quick minute of the machine stay comparable.

    >>> budget = Budget(size_bytes=100)
    >>> budget.violation(Measurement(size_bytes=150))
    0.5
    """

    latency_s: float | None = None
    accuracy_drop: float | None = None
    size_bytes: float | None = None
    peak_memory_bytes: float | None = None
    peak_activation_bytes: float | None = None
    energy_j: float | None = None
    #: one-sided confidence with which the accuracy drop has to keep its bound
    confidence: float = 0.8
    #: one-sided confidence with which the latency has to keep its bound; 0.5 compares the median itself
    latency_confidence: float = 0.5
    #: latency of the original, measured once at the start of the search
    reference_s: float | None = None
    #: where the original's energy came from; joules of another source are not compared. None: any will do
    energy_source: str | None = None

    def violation(self, measurement: Measurement) -> float:
        """Returns the sum of relative excesses; 0.0 means feasible, infinity that a bounded number is missing."""
        return sum(excess for _, excess in self.excesses(measurement))

    def excesses(self, measurement: Measurement) -> list[tuple[str, float]]:
        """Returns (bound, relative excess ≥ 0) for every bound that is set."""
        found = []
        for name, *_ in BOUNDS:
            bound = getattr(self, name)
            if bound is None:
                continue
            value = self.value_of(name, measurement)
            unit = max(bound, _MIN_DROP_UNIT) if name == "accuracy_drop" else bound
            found.append((name, float("inf") if value is None else max(0.0, value - bound) / unit))
        return found

    def value_of(self, name: str, measurement: Measurement) -> float | None:
        """Returns what is compared with the bound: latency and drop with their margins, bytes, joules."""
        if name == "latency_s":
            return self.pessimistic_latency_s(measurement)
        if name == "accuracy_drop":
            drop = measurement.accuracy_drop
            return None if drop is None else pessimistic(drop, self.confidence)
        if name == "energy_j":
            return self.comparable_energy_j(measurement)
        value: float | None = getattr(measurement, name)
        return value

    def comparable_energy_j(self, measurement: Measurement) -> float | None:
        """Returns the joules; None where they are not known, or come from another source than the original's."""
        energy = measurement.energy
        if energy is None or self.energy_source not in (None, energy.source):
            return None
        return energy.joules

    def pessimistic_latency_s(self, measurement: Measurement) -> float | None:
        """Returns the upper end of the normal interval of the normalised latency: what is compared with the bound."""
        value, latency = self.normalised_latency_s(measurement), measurement.latency
        if value is None or latency is None:
            return value
        margin = NormalDist().inv_cdf(self.latency_confidence) * latency.error_s / latency.median_s
        return value * (1.0 + margin)

    def normalised_latency_s(self, measurement: Measurement) -> float | None:
        """Returns the latency in seconds as it would be in the minute in which the original was first timed."""
        latency = measurement.latency
        if latency is None:
            return None
        if self.reference_s is None or latency.ratio is None:
            return latency.median_s
        return latency.ratio * self.reference_s

    def normalised_latency(self, measurement: Measurement) -> tuple[float, float] | None:
        """Returns `normalised_latency_s` and its standard error, both in seconds; None where there is no latency."""
        seconds, latency = self.normalised_latency_s(measurement), measurement.latency
        if seconds is None or latency is None or latency.median_s <= 0.0:
            return None
        return seconds, seconds * latency.error_s / latency.median_s


def pessimistic(drop: Estimate, confidence: float) -> float:
    """Returns the upper end of the one-sided normal interval: mean + z(confidence) × standard error."""
    return drop.mean + NormalDist().inv_cdf(confidence) * drop.standard_error

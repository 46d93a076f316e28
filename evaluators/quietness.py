"""Is the machine quiet enough to measure? The null test: one artifact, loaded twice, must take as long as itself."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..compressors.artifact import Artifact
from ..core.errors import MeasurementError
from .device import Device
from .latency import Clock, TimingSettings, measure_together

#: Blocks of timing. The least and the largest of six block ratios contain the median of their distribution with
#: 1 - 2·0.5⁶ = 97 % confidence, whatever that distribution is (order statistics; Conover 1999, section 3.2).
_N_BLOCKS = 6


@dataclass(frozen=True, slots=True)
class Quietness:
    """How far two equal models may differ before measurements are widened, and before they are refused."""

    #: up to this relative difference nothing is done
    quiet: float = 0.02
    #: beyond this one nothing is believed
    refused: float = 0.15


@dataclass(frozen=True, slots=True)
class NullTest:
    """How one model compares with itself.

    >>> NullTest(deviation=0.001, low=-0.01, high=0.02).worst
    0.02
    """

    #: median over the blocks of the ratio of the two copies, minus 1
    deviation: float
    #: 97 % confidence interval of the deviation
    low: float
    high: float

    @property
    def worst(self) -> float:
        """The largest relative difference that the interval allows."""
        return max(abs(self.low), abs(self.high))

    def verdict(self, limits: Quietness | None = None) -> str:
        """Returns ``quiet``, ``noisy`` (believed, with wider errors) or ``unquiet``."""
        limits = limits or Quietness()
        if self.worst <= limits.quiet:
            return "quiet"
        return "noisy" if self.worst <= limits.refused else "unquiet"


def run_null_test(
    device: Device,
    artifact: Artifact,
    inputs: Mapping[str, np.ndarray],
    settings: TimingSettings | None = None,
    *,
    clock: Clock = time.perf_counter_ns,
) -> NullTest:
    """Loads an artifact twice and times the two in turns, in six blocks.

    Args:
        device: where.
        artifact: what; best something that takes about as long as what is to be measured.
        inputs: input name → (batch, …) array.
        settings: how long one block is.
        clock: nanoseconds.

    Raises:
        MeasurementError: the times of a block stayed unstable, or the runtime failed.
    """
    pair = [device.load(artifact), device.load(artifact)]
    block = settings or TimingSettings(min_runs=20, min_time_s=0.1)
    ratios = [measure_together(pair, inputs, block, clock=clock)[1].ratio or 1.0 for _ in range(_N_BLOCKS)]
    deviations = np.array(ratios) - 1.0
    return NullTest(float(np.median(deviations)), float(deviations.min()), float(deviations.max()))


def require_quiet(test: NullTest, limits: Quietness | None = None) -> float:
    """Returns the relative error that every ratio measured now has besides its own: 0.0 on a quiet machine.

    Raises:
        MeasurementError: the machine is too unquiet; the message has the figures.
    """
    limits = limits or Quietness()
    verdict = test.verdict(limits)
    if verdict == "unquiet":
        raise MeasurementError(
            f"a model timed against itself must differ by less than {limits.refused:.0%}, but it differs by "
            f"{test.deviation:+.1%} (from {test.low:+.1%} to {test.high:+.1%}); close what else runs on this machine"
        )
    return test.worst if verdict == "noisy" else 0.0

"""A fixed piece of work that tells how fast the machine is just now."""

from collections.abc import Mapping

import numpy as np

#: how often a run does its work over; both together take about a millisecond
N_REPEATS = 300


class Yardstick:
    """An `Executable` that no runtime, model or version of ours can make faster or slower.

    Timed in turns with an artifact when a promise is made and again when it is checked: the ratio tells a slower
    machine (shared, throttled) from a slower artifact. Element-wise numpy runs on one thread.
    """

    def __init__(self) -> None:
        # small enough for the first-level cache and with its own memory for results: neither a cold cache nor the
        # allocator, both disturbed by the model that runs in between, shall show in the time (about 1 ms)
        self._values = np.linspace(-4.0, 4.0, 2_000, dtype=np.float32)
        self._result = np.empty_like(self._values)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) float32 what the work begins with, and (n,) float32 where it leaves its result."""
        return self._values, self._result

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:  # noqa: ARG002 - the protocol's argument
        """Does the work; the inputs are not looked at."""
        for _ in range(N_REPEATS):
            np.exp(self._values, out=self._result)
            np.sqrt(self._result, out=self._result)
        return [self._result.copy()]

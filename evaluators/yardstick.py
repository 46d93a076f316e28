"""A fixed piece of work that tells how fast the machine is just now."""

from collections.abc import Mapping

import numpy as np


class Yardstick:
    """An `Executable` that no runtime, model or version of ours can make faster or slower.

    Timed in turns with an artifact when a promise is made and again when it is checked: the ratio tells a slower
    machine (shared, throttled) from a slower artifact. Element-wise numpy runs on one thread.
    """

    def __init__(self) -> None:
        self._values = np.linspace(-4.0, 4.0, 60_000, dtype=np.float32)

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:  # noqa: ARG002 - the protocol's argument
        """Does the work; the inputs are not looked at."""
        return [np.sqrt(np.exp(self._values) + np.abs(np.sin(self._values)))]

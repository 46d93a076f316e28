"""How fast this machine is just now."""

import statistics
import time
from collections.abc import Callable
from functools import cache

import numpy as np

from ...evaluators.yardstick import N_REPEATS, Yardstick

_N_RUNS = 9


def time_yardstick() -> float:
    """Returns the median seconds of a `Yardstick`, over runs that take ten milliseconds together.

    It counts the processor time of this thread, of the same work in two calls of NumPy instead of six hundred: each
    call waits for Python's lock, and beside a thread that holds it all the time even the waiting takes ten times the
    processor time of the work. What two threads wait for each other says nothing of the machine.
    """
    return statistics.median(_times_s(_Block().run)) * _scale()


class _Block:
    """The work of a `Yardstick` on one block of all its repetitions, which stand in the same memory."""

    def __init__(self) -> None:
        values, result = Yardstick().arrays
        shape, strides = (N_REPEATS, len(values)), (0, values.itemsize)
        self._values = np.lib.stride_tricks.as_strided(values, shape, strides)
        self._result = np.lib.stride_tricks.as_strided(result, shape, strides)

    def run(self) -> None:
        """Does the work."""
        np.exp(self._values, out=self._result)
        np.sqrt(self._result, out=self._result)


@cache
def _scale() -> float:
    """Returns how much longer a `Yardstick` takes than the block; the shortest of each, for others only add to it."""
    yardstick = Yardstick()
    return min(_times_s(lambda: yardstick.run({}))) / min(_times_s(_Block().run))


def _times_s(work: Callable[[], object]) -> list[float]:
    work()
    times_s = []
    for _ in range(_N_RUNS):
        start_s = time.thread_time()
        work()
        times_s.append(time.thread_time() - start_s)
    return times_s

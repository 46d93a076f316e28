"""How fast this machine is just now."""

import statistics
import time

from ...evaluators.yardstick import Yardstick

_N_RUNS = 9


def time_yardstick() -> float:
    """Returns the median seconds of a `Yardstick`, over runs that take ten milliseconds together."""
    yardstick = Yardstick()
    yardstick.run({})
    times_s = []
    for _ in range(_N_RUNS):
        start_s = time.perf_counter()
        yardstick.run({})
        times_s.append(time.perf_counter() - start_s)
    return statistics.median(times_s)

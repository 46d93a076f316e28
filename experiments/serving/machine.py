"""How fast this machine is just now."""

import statistics
import time

from ...evaluators.yardstick import Yardstick

_N_RUNS = 9


def time_yardstick() -> float:
    """Returns the median seconds of a `Yardstick`, over runs that take ten milliseconds together.

    It counts the processor time of this thread. Beside a thread that calls a model in a loop, the clock on the wall
    shows up to five times as much: what the two wait for Python's lock says nothing of the machine.
    """
    yardstick = Yardstick()
    yardstick.run({})
    times_s = []
    for _ in range(_N_RUNS):
        start_s = time.thread_time()
        yardstick.run({})
        times_s.append(time.thread_time() - start_s)
    return statistics.median(times_s)

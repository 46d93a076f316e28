"""Runs the original beside a fraction of the calls, in a thread of its own, so that no caller waits for it."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...core.errors import MeasurementError
from ...evaluators.device import Executable
from .agreement import compare_outputs

_log = logging.getLogger(__name__)

#: calls that may wait for the original
_MAX_WAITING = 16
#: level of the policy that served, inputs, outputs
_Shadowed = tuple[int, Mapping[str, np.ndarray], list[np.ndarray]]


class Shadow:
    """Compares sampled calls with the original; what comes while too many wait is dropped, and counted.

    Args:
        original: the original on its runtime; used by this thread only.
        report: called with the policy's level and (n,) scores, 0 to 1.
    """

    def __init__(self, original: Executable, report: Callable[[int, Sequence[float]], None]) -> None:
        self._original, self._report = original, report
        self._queue: queue.Queue[_Shadowed | None] = queue.Queue(_MAX_WAITING)
        self.n_compared = 0
        self.n_dropped = 0
        self.n_failed = 0
        self._thread = threading.Thread(target=self._work, name="trimtab shadow", daemon=True)
        self._thread.start()

    def offer(self, level: int, inputs: Mapping[str, np.ndarray], outputs: list[np.ndarray]) -> None:
        """Takes copies of a call, unless too many wait."""
        if self._queue.full():
            self.n_dropped += 1
            return
        copies = {name: np.array(array) for name, array in inputs.items()}
        try:
            self._queue.put_nowait((level, copies, [outputs[0].copy()]))
        except queue.Full:
            self.n_dropped += 1

    def close(self) -> None:
        """Ends the thread after the call that it is at."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (taken := self._queue.get()) is not None:
            level, inputs, outputs = taken
            try:
                scores = compare_outputs(outputs, self._original.run(inputs))
            except MeasurementError as error:
                self.n_failed += 1
                _log.warning("the original fails on a shadowed call: %s", error)
                continue
            self.n_compared += 1
            self._report(level, [float(score) for score in scores])

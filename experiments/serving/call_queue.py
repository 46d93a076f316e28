"""Calls of many threads in the order in which they came, so many at a time; who would wait too long is turned away."""

import threading
import time
from collections import deque
from collections.abc import Callable

from ...core.errors import TransientError
from .level_chooser import LevelChooser


class OverloadedError(TransientError):
    """Not even the fastest policy could answer this call within the bound: try again later, or elsewhere."""


class CallQueue:
    """Hands out places at the model first come, first served; callers run the model in their own threads.

    >>> from .level_chooser import LoadBounds
    >>> queue = CallQueue(LevelChooser([0.01], LoadBounds(p99_s=0.1)), max_waiting=8)
    >>> queue.enter()
    0
    >>> queue.leave(0, service_s=0.01)
    """

    def __init__(
        self, chooser: LevelChooser, *, max_waiting: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.chooser = chooser
        self._max_waiting = max_waiting
        self._clock = clock
        self._lock = threading.Lock()
        self._n_running = 0
        self._waiting: deque[threading.Lock] = deque()
        #: calls that were turned away
        self.n_shed = 0

    @property
    def n_waiting(self) -> int:
        """Calls that wait for a place."""
        return len(self._waiting)

    def enter(self) -> int:
        """Waits for a place, which is to be left with `leave`; returns the policy that is to serve.

        Raises:
            OverloadedError: the call would not be answered within the bound, or too many wait.
        """
        with self._lock:
            n_waiting = len(self._waiting)
            is_served = self.chooser.admit(self._clock(), self._n_running + n_waiting)
            is_free = self._n_running < self.chooser.bounds.n_slots
            if not is_served or (not is_free and n_waiting >= self._max_waiting):
                self.n_shed += 1
                raise OverloadedError(
                    f"a call must be answered within {self.chooser.bounds.p99_s * 1e3:.4g} ms in 99 of 100 cases, and "
                    f"{n_waiting} calls wait already, which not even the fastest policy could work off; try again "
                    f"later, or send less"
                )
            if is_free:
                self._n_running += 1
                return self.chooser.level
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        self._await(turn)
        return self.chooser.level

    def leave(self, level: int, service_s: float | None) -> None:
        """Gives a place to who waits longest.

        Args:
            level: the policy that served.
            service_s: how long it took; None where it failed, which says nothing of the policy.
        """
        with self._lock:
            if service_s is not None:
                self.chooser.note_service(level, service_s)
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._n_running -= 1

    def _await(self, turn: threading.Lock) -> None:
        try:
            turn.acquire()
        except BaseException:  # an interrupt: the place must not be lost
            with self._lock:
                is_waiting = turn in self._waiting
                if is_waiting:
                    self._waiting.remove(turn)
            if not is_waiting:
                self.leave(0, None)
            raise

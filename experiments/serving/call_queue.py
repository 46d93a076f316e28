"""Calls of many threads in the order in which they came, so many at a time; who would wait too long is turned away."""

import threading
import time
from collections import deque
from collections.abc import Callable

from ...core.errors import OverloadedError
from .level_chooser import LevelChooser

#: calls for which nothing was to be decided that the chooser is told of together
_MAX_UNTOLD = 64


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
        # what the chooser was not told yet: when calls came that found nothing before them, and what calls took. To an
        # idle model on its first level that is all there is to do, which is why it is done before all else
        self._is_calm = True
        self._arrivals_s: list[float] = []
        self._services_s: list[tuple[int, float]] = []
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
        now_s = self._clock()
        with self._lock:
            if self._is_calm and self._n_running == 0:
                self._n_running = 1
                self._arrivals_s.append(now_s)
                return 0
            turn = self._line_up(now_s)
        if turn is not None:
            self._await(turn)
        return self.chooser.level

    def _line_up(self, now_s: float) -> "threading.Lock | None":
        """Takes a place, or the next in the line, which is told by a lock that opens.

        Raises:
            OverloadedError: see `enter`.
        """
        self._tell_chooser()
        n_waiting, chooser = len(self._waiting), self.chooser
        is_free = self._n_running < chooser.bounds.n_slots
        is_admitted = chooser.admit(now_s, self._n_running + n_waiting)
        self._is_calm = chooser.level == 0
        if not is_admitted or (not is_free and n_waiting >= self._max_waiting):
            self.n_shed += 1
            raise OverloadedError(
                f"a call must be answered within {chooser.bounds.p99_s * 1e3:.4g} ms in 99 of 100 cases, and "
                f"{n_waiting} calls wait already, which not even the fastest policy could work off; try again "
                f"later, or send less"
            )
        if is_free:
            self._n_running += 1
            return None
        turn = threading.Lock()
        turn.acquire()
        self._waiting.append(turn)
        return turn

    def _tell_chooser(self) -> None:
        arrivals_s, self._arrivals_s = self._arrivals_s, []
        services_s, self._services_s = self._services_s, []
        for level, service_s in services_s:
            self.chooser.note_service(level, service_s)
        for arrived_s in arrivals_s:
            self.chooser.note_arrival(arrived_s)

    def leave(self, level: int, service_s: float | None) -> None:
        """Gives a place to who waits longest.

        Args:
            level: the policy that served.
            service_s: how long it took; None where it failed, which says nothing of the policy.
        """
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._n_running -= 1
            if service_s is not None:
                self._services_s.append((level, service_s))
            if len(self._arrivals_s) >= _MAX_UNTOLD:
                self._tell_chooser()

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

"""A crew: equal Ray actors that share a queue of tasks, watched for time, memory and death.

Every task ends in exactly one result. A crew never retries: it replaces the actor that failed and says that the
failure was transient; the rounds in `attempt` decide on retries.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions

from ..core.errors import SpecError, TransientError
from ..evaluators.measurement import Measurement
from .attempt import Attempt, transient_failure
from .ray_actors import HEALTH_GROUP
from .record import Status
from .worker_pool import Limits

_log = logging.getLogger(__name__)

#: how often memory and deadlines are looked at; a finished task wakes the crew at once
_TICK_S = 1.0
#: a bench that is not set up after this long never will be
_SETUP_LIMIT_S = 1800.0
#: actors in a row that may die while they are set up
_MAX_STILLBORN = 3
#: characters of Ray's own words that are kept
_MAX_CAUSE_LENGTH = 300

#: the process, its node or its objects went away; the job itself may be innocent
_DEATHS = (
    exceptions.RayActorError,
    exceptions.WorkerCrashedError,
    exceptions.OutOfMemoryError,
    exceptions.NodeDiedError,
    exceptions.ObjectLostError,
    exceptions.RaySystemError,
)


@dataclass(frozen=True, slots=True)
class Role:
    """What the actors of a crew are."""

    #: ``worker`` or ``device``, for messages
    noun: str
    n_seats: int
    #: starts an actor and returns its handle
    start: Callable[[], Any]
    #: whether the cluster has a node on which such an actor could run
    is_placeable: Callable[[], bool]
    #: how long a crew without any actor waits for such a node, in seconds
    grace_s: float


@dataclass(frozen=True, slots=True)
class Task:
    """A call of the actor; the arguments may hold object references."""

    job_id: int
    arguments: tuple[Any, ...]
    #: the actor's method; it returns an `Attempt` and something more
    method: str = "work"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a task."""

    job_id: int
    attempt: Attempt
    #: reference to the second thing that ``work`` returned; None after a failure
    extra: Any


@dataclass(slots=True)
class _Seat:
    """One actor and what it does just now: preparing, a task, or nothing."""

    actor: Any
    #: becomes ready when the actor has finished; None while it is idle
    running: Any
    since_s: float
    is_prepared: bool = False
    task: Task | None = None
    extra: Any = None
    health: Any = None


class Crew:
    """Actors in one role."""

    def __init__(self, role: Role, limits: Limits) -> None:
        self._role = role
        self._limits = limits
        self._seats: list[_Seat] = []
        self._n_stillborn = 0

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Yields a result per task as they finish.

        Raises:
            SpecError: the bench cannot be set up.
            TransientError: no actor can be had any more.
        """
        waiting = deque(tasks)
        n_left = len(waiting)
        try:
            while n_left:
                self._fill_seats()
                self._hand_out(waiting)
                for result in (*self._collect(), *self._police()):
                    n_left -= 1
                    yield result
                self._check_reach()
        finally:
            # an interrupted run leaves nothing behind that would disturb the next
            for seat in [seat for seat in self._seats if seat.task is not None]:
                self._dismiss(seat)

    def close(self) -> None:
        """Ends all actors; may be called twice."""
        for seat in list(self._seats):
            self._dismiss(seat)

    def _fill_seats(self) -> None:
        while len(self._seats) < self._role.n_seats:
            actor = self._role.start()
            self._seats.append(_Seat(actor, actor.prepare.remote(), time.monotonic()))

    def _hand_out(self, waiting: deque[Task]) -> None:
        for seat in self._seats:
            if waiting and seat.is_prepared and seat.running is None:
                seat.task = waiting.popleft()
                seat.since_s = time.monotonic()
                method = getattr(seat.actor, seat.task.method)
                seat.running, seat.extra = method.options(num_returns=2).remote(*seat.task.arguments)

    def _collect(self) -> list[Result]:
        """Waits until something finishes, at most one tick; returns the results of tasks."""
        busy = {seat.running: seat for seat in self._seats if seat.running is not None}
        deadlines_s = [self._limits.timeout_s - _elapsed_s(seat) for seat in busy.values() if self._limits.timeout_s]
        tick_s = max(0.0, min([_TICK_S, *deadlines_s]))
        ready, _ = ray.wait(list(busy), num_returns=1, timeout=tick_s)
        results = []
        for reference in ready:
            seat = busy[reference]
            if seat.task is None:
                self._admit(seat)
            else:
                results.append(self._finish(seat, seat.task))
        return results

    def _admit(self, seat: _Seat) -> None:
        """Takes an actor into service after its setup."""
        try:
            failure = ray.get(seat.running)
        except _DEATHS as error:
            self._dismiss(seat)
            self._n_stillborn += 1
            if self._n_stillborn >= _MAX_STILLBORN:
                cause = describe_cause(error)
                raise TransientError(f"every {self._role.noun} dies while it is set up: {cause}") from error
            return
        if failure is not None:
            kind, message = failure
            raised = TransientError if kind == "transient" else SpecError
            raise raised(f"the {self._role.noun} cannot be set up: {message}")
        self._n_stillborn = 0
        seat.is_prepared, seat.running = True, None

    def _finish(self, seat: _Seat, task: Task) -> Result:
        cost_s = _elapsed_s(seat)
        try:
            attempt = ray.get(seat.running)
        except Exception as error:
            self._dismiss(seat)
            return Result(task.job_id, self._failure(error, cost_s), None)
        result = Result(task.job_id, attempt, seat.extra)
        seat.running = seat.task = seat.extra = seat.health = None
        return result

    def _failure(self, error: Exception, cost_s: float) -> Attempt:
        cause = getattr(error, "cause", None)
        if isinstance(error, exceptions.ObjectLostError) or isinstance(cause, exceptions.ObjectLostError):
            return transient_failure(f"the artifact was lost with its node: {describe_cause(error)}", cost_s)
        if isinstance(error, exceptions.OutOfMemoryError):
            return transient_failure(f"the machine ran out of memory: {describe_cause(error)}", cost_s)
        if isinstance(error, _DEATHS):
            return transient_failure(f"the {self._role.noun} died: {describe_cause(error)}", cost_s)
        _log.warning("a %s failed on an unexpected error", self._role.noun, exc_info=error)
        return Attempt(Status.FAILED, Measurement(), cost_s, f"{type(error).__name__}: {describe_cause(error)}")

    def _police(self) -> list[Result]:
        """Stops what exceeds its limits."""
        results = []
        for seat in [seat for seat in self._seats if seat.task is not None]:
            excess = self._excess(seat)
            if excess is not None and seat.task is not None:
                results.append(Result(seat.task.job_id, transient_failure(excess, _elapsed_s(seat)), None))
                self._dismiss(seat)
        return results

    def _excess(self, seat: _Seat) -> str | None:
        used_bytes = 0 if seat.health is None else _answer_of(seat.health)
        if (excess := self._limits.excess(_elapsed_s(seat), used_bytes or 0)) is not None:
            return excess
        if self._limits.memory_bytes is not None and used_bytes is not None:
            seat.health = seat.actor.rss_bytes.options(concurrency_group=HEALTH_GROUP).remote()
        return None

    def _check_reach(self) -> None:
        """Gives up when the cluster offers no place for any actor of this crew."""
        if not self._seats or any(seat.is_prepared for seat in self._seats):
            return
        waited_s = min(_elapsed_s(seat) for seat in self._seats)
        if waited_s > _SETUP_LIMIT_S:
            raise TransientError(f"no {self._role.noun} was set up within {_SETUP_LIMIT_S:g} s")
        if waited_s > self._role.grace_s and not self._role.is_placeable():
            raise TransientError(
                f"no node offers a place for a {self._role.noun} any more, for {self._role.grace_s:g} s now; "
                "bring the node back, then resume"
            )

    def _dismiss(self, seat: _Seat) -> None:
        self._seats.remove(seat)
        ray.kill(seat.actor)


def _elapsed_s(seat: _Seat) -> float:
    return time.monotonic() - seat.since_s


def _answer_of(reference: Any) -> int | None:
    """Returns the actor's answer on its health; None while it owes one or when it cannot give one."""
    ready, _ = ray.wait([reference], timeout=0)
    if not ready:
        return None
    try:
        used_bytes: int = ray.get(reference)
    except exceptions.RayError:
        return None  # the task's own reference tells of the death
    return used_bytes


def describe_cause(error: BaseException) -> str:
    """Returns the last line of Ray's message, which holds the cause, in bounded length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:_MAX_CAUSE_LENGTH] if lines else type(error).__name__

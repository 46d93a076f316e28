"""Orders on their way: sent until they are answered, with the lease and the artifacts that they need."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from ...core.errors import MeasurementError, TransientError
from .connection import AgentConnection, Answer, Question
from .wire import (
    LEASE_HEADER,
    MAX_ANSWER_BYTES,
    MAX_ARTIFACT_BYTES,
    MAX_ORDER_BYTES,
    Arrays,
    Order,
    Refusal,
    WireError,
    pack,
    read_part,
    unpack,
)

#: an order that is not done after so long never will be, in seconds
_ORDER_S = 1800.0
#: an agent that dies so often while it works on one order dies of it
_MAX_DEATHS = 3
#: who waits for somebody else asks again after so long at the least, in seconds
_PAUSE_S = 0.05


@dataclass(frozen=True)
class Lease:
    """The sole use of an agent's machine, for as long as it is asked for again and again."""

    connection: AgentConnection
    path: str
    timeout_s: float

    def hold(self) -> None:
        """Takes or renews the lease, and waits for whoever has it.

        Raises:
            MeasurementError: somebody else kept it for too long.
        """
        deadline_s = time.monotonic() + self.timeout_s
        while (answer := self.connection.ask(Question("PUT", self.path))).status != 200:
            if answer.status != 409:
                raise MeasurementError(f"the agent at {self.connection.url} gives no lease: {explain(answer)}")
            if time.monotonic() > deadline_s:
                raise MeasurementError(
                    f"another client has been measuring on the agent at {self.connection.url} for more than "
                    f"{self.timeout_s:g} s; wait for it, or stop it"
                )
            time.sleep(max(answer.retry_after_s, _PAUSE_S))

    @property
    def headers(self) -> dict[str, str]:
        """What shows a request's lease."""
        return {LEASE_HEADER: self.path.rpartition("/")[2]}


@contextmanager
def open_lease(connection: AgentConnection, timeout_s: float) -> Iterator[Lease]:
    """Gives a lease back at the end; it is taken when it is first held.

    Args:
        connection: to the agent.
        timeout_s: how long to wait for whoever has it.
    """
    lease = Lease(connection, f"/v1/leases/{uuid.uuid4().hex}", timeout_s)
    try:
        yield lease
    finally:
        with suppress(TransientError, MeasurementError):  # then it expires
            connection.ask(Question("DELETE", lease.path, patience_s=1.0))


class Dispatch:
    """Sends one order; the agent carries it out once, however often it is sent."""

    def __init__(
        self, connection: AgentConnection, order: Order, arrays: Sequence[np.ndarray], models: Mapping[str, bytes]
    ) -> None:
        """Packs the order.

        Args:
            connection: to the agent.
            order: what to do.
            arrays: its arrays.
            models: sha256 → the bytes of every artifact that it names.

        Raises:
            MeasurementError: its arrays cannot be sent, or are too large.
        """
        self._connection, self._models = connection, models
        self._path = f"/v1/orders/{uuid.uuid4().hex}"
        try:
            self._body = pack(order, arrays)
        except WireError as error:
            raise MeasurementError(str(error)) from error
        if len(self._body) > MAX_ORDER_BYTES:
            raise MeasurementError(
                f"an order may have {MAX_ORDER_BYTES} bytes, and one batch makes {len(self._body)}; lower batch_size"
            )

    def carry_out(self, lease: Lease | None = None) -> list[np.ndarray]:
        """Returns the arrays of the answer.

        Args:
            lease: the sole use of the machine; None where the order needs none.

        Raises:
            MeasurementError: the agent says that it failed, answers something else, or dies of it.
            DeviceLostError: it cannot be reached.
        """
        deadline_s = time.monotonic() + _ORDER_S
        lives: set[str] = set()
        while True:
            if lease is not None:
                lease.hold()
            headers = {} if lease is None else lease.headers
            answer = self._connection.ask(Question("PUT", self._path, self._body, headers, MAX_ANSWER_BYTES))
            if answer.status == 200:
                return self._read(answer)
            lives.add(answer.boot)
            self._make_good(answer, headers, n_deaths=len(lives) - 1)
            if time.monotonic() > deadline_s:
                raise MeasurementError(f"the agent at {self._connection.url} was not done after {_ORDER_S:g} s")

    def _read(self, answer: Answer) -> list[np.ndarray]:
        try:
            return unpack(Arrays, answer.body)[1]
        except WireError as error:
            raise distrust(self._connection, error) from error

    def _make_good(self, answer: Answer, headers: dict[str, str], *, n_deaths: int) -> None:
        """Does what an answer asks for before the order is sent again.

        Raises:
            MeasurementError: nothing can be done about it.
        """
        url = self._connection.url
        if n_deaths >= _MAX_DEATHS:
            raise MeasurementError(f"the agent at {url} was started again {n_deaths} times while it worked on one "
                                   f"order; its runtime may die of this model")  # fmt: skip
        if answer.status == 409:
            time.sleep(max(answer.retry_after_s, _PAUSE_S))
        elif answer.status == 404:
            for sha256, model in self._models.items():
                self._bring(sha256, model, headers)
        elif answer.status != 202:
            raise MeasurementError(f"the agent at {url} refuses: {explain(answer)}")

    def _bring(self, sha256: str, model: bytes, headers: dict[str, str]) -> None:
        """Sends an artifact that is not there; where somebody else measures, the order is what waits.

        Raises:
            MeasurementError: the agent does not take it.
        """
        path = f"/v1/artifacts/{sha256}"
        if len(model) > MAX_ARTIFACT_BYTES:
            raise MeasurementError(f"agents take models of {MAX_ARTIFACT_BYTES} bytes at most, got {len(model)}")
        if self._connection.ask(Question("HEAD", path, headers=headers)).status in (204, 409):
            return
        answer = self._connection.ask(Question("PUT", path, model, headers))
        if answer.status not in (204, 409):
            raise MeasurementError(f"the agent at {self._connection.url} refuses the model: {explain(answer)}")


def distrust(connection: AgentConnection, error: Exception) -> MeasurementError:
    """Returns an error that names the agent whose answer is not believed."""
    return MeasurementError(f"the answer of the agent at {connection.url} is not believed: {error}")


def explain(answer: Answer) -> str:
    """Returns the agent's own words, as far as they are words."""
    try:
        detail = read_part(Refusal, answer.body).detail
    except WireError:
        return f"status {answer.status}"
    return "".join(letter if letter.isprintable() else " " for letter in detail)[:1000]

"""A model in service: runs it, records what it does, and signals what has drifted."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from ...core.errors import SpecError
from ...evaluators.device import Executable
from .call_queue import CallQueue
from .drift import Drift
from .level_chooser import LevelChooser, LoadBounds
from .machine import time_yardstick
from .member import Member
from .metrics import ServiceCollector, import_prometheus
from .recorder import Recorder, Sampling
from .shadow import Shadow
from .watcher import Watcher, make_watches

_now_ns = time.perf_counter_ns


@dataclass(frozen=True)
class ServeOptions:
    """How much is looked at, and what counts as drift."""

    #: how much slower than promised is within the band, beyond what the whole machine is slower
    tolerance: float = 0.25
    #: how much less agreement with the original than recorded is within the band
    agreement_tolerance: float = 0.02
    #: how many of the calls are looked at
    sampling: Sampling = field(default_factory=Sampling)
    #: under a bound on p99: calls that run at once
    n_slots: int = 1
    #: under a bound on p99: calls that may wait, at most
    max_waiting: int = 1024
    #: under a bound on p99: how long a slower policy must look good before it is tried, in seconds
    dwell_s: float = 2.0
    #: measures the machine, in seconds; compared with the yardstick of the promise
    yardstick: Callable[[], float] = field(default=time_yardstick, repr=False)

    def __post_init__(self) -> None:
        if self.tolerance < 0 or not 0 <= self.agreement_tolerance <= 1:
            raise SpecError(
                "tolerance >= 0 and 0 <= agreement_tolerance <= 1 must hold, got "
                f"{self.tolerance} and {self.agreement_tolerance}"
            )
        if self.n_slots < 1 or self.max_waiting < 0 or self.dwell_s < 0:
            raise SpecError(
                "n_slots >= 1, max_waiting >= 0 and dwell_s >= 0 must hold, got "
                f"{self.n_slots}, {self.max_waiting} and {self.dwell_s}"
            )


#: what is looked at, and what counts as drift, unless something else is asked for
DEFAULT_OPTIONS = ServeOptions()


@dataclass(frozen=True)
class Original:
    """The original model, which a fraction of the calls is compared with."""

    executable: Executable


class ServedModel:
    """What `serve` returns; any number of threads may call it. Close it, or use it in a ``with`` block.

    Without a bound on p99 a call runs at once in the thread that makes it. With one, calls take turns in the order in
    which they came, the policy suits what waits, and a call that not even the fastest policy could answer in time
    raises `OverloadedError` at once, so that those that are served keep the bound.

    >>> import trimtab
    >>> with trimtab.serve("tests/golden/artifact-v1") as model:
    ...     outputs = model.run({"x": np.zeros((1, 8), np.float32)})
    ...     print(outputs[0].shape, model.watched["inputs"])
    (1, 3) not watched: the artifact holds no statistics of inputs; make it again with data
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        p99_s: float | None = None,
        original: Original | None = None,
        on_drift: Callable[[Drift], None] | None = None,
        options: ServeOptions = DEFAULT_OPTIONS,
    ) -> None:
        self._runs = [member.executable.run for member in members]
        #: the policies' names, the slowest and most faithful first
        self.policies = tuple(member.name for member in members)
        #: the name in the metrics
        self.name = self.policies[0] if len(members) == 1 else "set of " + ", ".join(self.policies)
        self._queue = None if p99_s is None else _make_queue(members, p99_s, options)
        watches = make_watches(
            members,
            tolerance=options.tolerance,
            agreement_tolerance=None if original is None else options.agreement_tolerance,
            yardstick=options.yardstick,
        )
        self._shadow = None if original is None else Shadow(original.executable, self._take_scores)
        names = watches.inputs.names if watches.inputs else frozenset()
        self.recorder = Recorder(len(members), options.sampling, names, self._shadow)
        self._note, self._numbers = self.recorder.events.append, self.recorder.numbers
        self.watcher = Watcher(watches, self.recorder, on_drift)
        self.watcher.start()
        self._close_lock = threading.Lock()
        self._servers: list[Any] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch; see `Executable.run`.

        Raises:
            OverloadedError: under a bound on p99, where the call would not be answered in time.
            MeasurementError: the runtime fails; the message carries its own words.
        """
        # one function on purpose: each further one costs five microseconds behind a large model, see `recorder`
        note, queue = self._note, self._queue
        arrived_ns = started_ns = _now_ns()
        level = 0
        if queue is not None:
            level = queue.enter()
            started_ns = _now_ns()
        note(started_ns)
        try:
            outputs = self._runs[level](inputs)
        except BaseException:
            note(-started_ns)
            if queue is not None:
                queue.leave(level, None)
            raise
        ended_ns = _now_ns()
        note((level, arrived_ns, started_ns, ended_ns))
        if queue is not None:
            queue.leave(level, (ended_ns - started_ns) / 1e9)
        number = next(self._numbers)
        if number >= self.recorder.due:
            self.recorder.look(number, level, inputs, outputs)
        return outputs

    def drifts(self) -> list[Drift]:
        """Returns what has drifted so far, the oldest first."""
        return self.watcher.drifts()

    @property
    def watched(self) -> Mapping[str, str]:
        """Signal (``latency``, ``inputs``, ``agreement``) → its band, or why it is not watched."""
        return self.watcher.watches.notes

    def latency_s(self, share: float) -> float:
        """Returns the time from arrival to answer that a share of all calls kept (0.99: p99); NaN before any."""
        return self.recorder.read_answers().quantile_s(share)

    @property
    def level(self) -> int:
        """The policy in use, 0 being the most faithful."""
        return 0 if self._queue is None else self._queue.chooser.level

    @property
    def n_level_changes(self) -> int:
        """How often the policy was changed."""
        return 0 if self._queue is None else self._queue.chooser.n_changes

    @property
    def n_waiting(self) -> int:
        """Calls that wait for their turn."""
        return 0 if self._queue is None else self._queue.n_waiting

    @property
    def n_shed(self) -> int:
        """Calls that were turned away."""
        return 0 if self._queue is None else self._queue.n_shed

    @property
    def n_shadowed(self) -> int:
        """Calls that the original ran, too."""
        return 0 if self._shadow is None else self._shadow.n_compared

    @property
    def n_shadows_dropped(self) -> int:
        """Calls that the original was to run and had no time for."""
        return 0 if self._shadow is None else self._shadow.n_dropped

    def metrics_text(self) -> str:
        """Returns the metrics in Prometheus' text format.

        Raises:
            SpecError: prometheus-client is not installed.
        """
        text: bytes = import_prometheus().generate_latest(self._registry())
        return text.decode()

    def start_metrics_server(self, port: int, *, address: str = "127.0.0.1") -> int:
        """Serves the metrics over HTTP until the model is closed; to this machine only unless told otherwise.

        Args:
            port: where; 0 takes any that is free.
            address: what to bind to. The metrics tell names of policies and how much is called: no secrets, no access.

        Returns:
            The port.

        Raises:
            SpecError: prometheus-client is not installed, or the port is taken.
        """
        try:
            server, _ = import_prometheus().start_http_server(port, addr=address, registry=self._registry())
        except OSError as error:
            raise SpecError(f"metrics cannot be served on {address}:{port}: {error}; choose another port") from error
        self._servers.append(server)
        return int(server.server_port)

    def close(self) -> None:
        """Ends what runs beside the calls."""
        with self._close_lock:
            if self._shadow is not None:
                self._shadow.close()
                self._shadow = None
            self.watcher.close()
            while self._servers:
                server = self._servers.pop()
                server.shutdown()
                server.server_close()

    def __enter__(self) -> "ServedModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _registry(self) -> Any:
        registry = import_prometheus().CollectorRegistry()
        registry.register(ServiceCollector(self))
        return registry

    def _take_scores(self, level: int, scores: Sequence[float]) -> None:
        self.watcher.take_scores(level, scores)


def _make_queue(members: Sequence[Member], p99_s: float, options: ServeOptions) -> CallQueue:
    latencies = [member.manifest.promise.measurement.latency for member in members]
    if not p99_s > 0:
        raise SpecError(f"p99_s must be more than 0 seconds, got {p99_s}")
    missing = [member.name for member, latency in zip(members, latencies, strict=True) if latency is None]
    if missing:
        raise SpecError(f"{', '.join(missing)} promises no latency to choose by; apply the policy again")
    expected_s = [latency.median_s for latency in latencies if latency is not None]
    bounds = LoadBounds(p99_s, n_slots=options.n_slots, dwell_s=options.dwell_s)
    return CallQueue(LevelChooser(expected_s, bounds), max_waiting=options.max_waiting)

"""Looks at what the calls left behind, in a thread of its own, and signals what has left its band."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from .drift import Drift
from .machine import time_yardstick
from .member import Member
from .recorder import Recorder
from .watches import AgreementWatch, InputWatch, LatencyBand, LatencyWatch

_log = logging.getLogger(__name__)

_TICK_S = 0.1
#: drifts that are remembered
_MAX_DRIFTS = 1000


@dataclass(frozen=True)
class Watches:
    """What is watched: latency and agreement of each policy, and the inputs; None where something is missing."""

    latency: tuple[LatencyWatch | None, ...]
    inputs: InputWatch | None
    agreement: tuple[AgreementWatch | None, ...]
    #: signal → its band, or why it is not watched, in words
    notes: Mapping[str, str]
    #: how many times slower than promised the yardstick was at loading; None where no promise has one
    slowdown: float | None

    def list_drifting(self) -> list[tuple[str, str, bool]]:
        """Returns (signal, policy, whether it is drifting now) of everything that is watched."""
        found = [("latency", watch.policy, watch.detector.is_drifting) for watch in self.latency if watch]
        found += [("agreement", watch.policy, watch.detector.is_drifting) for watch in self.agreement if watch]
        return found + ([("inputs", "", self.inputs.detector.is_drifting)] if self.inputs else [])


def make_watches(
    members: Sequence[Member],
    *,
    tolerance: float = 0.25,
    agreement_tolerance: float | None = None,
    yardstick: Callable[[], float] = time_yardstick,
) -> Watches:
    """Makes the watches that the manifests allow.

    Args:
        members: the policies, of one model.
        tolerance: how much slower than promised is within the band.
        agreement_tolerance: how much less agreement than recorded is within the band; None: there is no original.
        yardstick: measures the machine, in seconds.
    """
    yardstick_s = yardstick() if any(member.manifest.promise.yardstick_s for member in members) else None
    bands = [_find_band(member, tolerance) for member in members]
    latency = tuple(
        None if band is None or yardstick_s is None else LatencyWatch(member.name, band, yardstick_s, yardstick)
        for member, band in zip(members, bands, strict=True)
    )
    statistics = next((m.manifest.input_statistics for m in members if m.manifest.input_statistics), None)
    agreement = tuple(_watch_agreement(member, agreement_tolerance) for member in members)
    known = [band.yardstick_s for band in bands if band is not None]
    notes = {
        "latency": "; ".join(_note_latency(m, watch) for m, watch in zip(members, latency, strict=True)),
        "inputs": "not watched: the artifact holds no statistics of inputs; make it again with data"
        if statistics is None
        else ", ".join(f"{len(features)} features of '{name}'" for name, features in statistics.items()),
        "agreement": "not watched: there is no original=…"
        if agreement_tolerance is None
        else "; ".join(_note_agreement(m, watch) for m, watch in zip(members, agreement, strict=True)),
    }
    slowdown = None if yardstick_s is None or not known else yardstick_s / known[0]
    return Watches(latency, InputWatch(statistics) if statistics else None, agreement, notes, slowdown)


class Watcher:
    """Feeds the watches; signals go to the log, to a list and to a callback.

    Args:
        watches: what is watched.
        recorder: what the calls left behind.
        on_drift: called with each drift, in the watcher's thread; None does without.
    """

    def __init__(self, watches: Watches, recorder: Recorder, on_drift: Callable[[Drift], None] | None = None) -> None:
        self.watches = watches
        self._recorder, self._on_drift = recorder, on_drift
        self._scores: deque[tuple[int, Sequence[float]]] = deque(maxlen=10_000)
        self._drifts: deque[Drift] = deque(maxlen=_MAX_DRIFTS)
        #: drifts so far
        self.n_drifts = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="trimtab watcher", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def close(self) -> None:
        """Looks once more, and ends the thread."""
        if not self._is_over.is_set():
            self._is_over.set()
            self._thread.join()
            self.tick(time.monotonic())

    def take_scores(self, level: int, scores: Sequence[float]) -> None:
        """Takes in how far shadowed samples agree; see `Shadow`."""
        self._scores.append((level, scores))

    def drifts(self) -> list[Drift]:
        """Returns the drifts so far, the oldest first."""
        return list(self._drifts)

    def tick(self, now_s: float) -> None:
        """Looks at what has come since the last time.

        Args:
            now_s: seconds of a clock that never goes back.
        """
        self._recorder.plan()
        found = [
            watch.add(latencies_ns, now_s)
            for watch, latencies_ns in zip(self.watches.latency, self._recorder.take_latencies(), strict=True)
            if watch is not None
        ]
        if self.watches.inputs is not None:
            found.append(self.watches.inputs.add(self._recorder.take_samples(), now_s))
        for _ in range(len(self._scores)):
            level, scores = self._scores.popleft()
            watch = self.watches.agreement[level]
            found.append(None if watch is None else watch.add(scores, now_s))
        for drift in found:
            if drift is not None:
                self._signal(replace(drift, at_s=time.time()))

    def _signal(self, drift: Drift) -> None:
        _log.warning("drift of %s: %s", drift.signal, drift.message)
        self._drifts.append(drift)
        self.n_drifts += 1
        if self._on_drift is None:
            return
        try:
            self._on_drift(drift)
        except Exception:  # anybody's code; the next drift must still be seen
            _log.exception("on_drift failed")

    def _work(self) -> None:
        while not self._is_over.wait(_TICK_S):
            self.tick(time.monotonic())


def _find_band(member: Member, tolerance: float) -> LatencyBand | None:
    promise = member.manifest.promise
    latency = promise.measurement.latency
    if latency is None or latency.source != "measured" or promise.yardstick_s is None:
        return None
    return LatencyBand(latency.median_s, promise.yardstick_s, tolerance)


def _watch_agreement(member: Member, tolerance: float | None) -> AgreementWatch | None:
    recorded = member.manifest.agreement
    if tolerance is None or recorded is None:
        return None
    return AgreementWatch(member.name, recorded.mean - 2.0 * recorded.standard_error - tolerance)


def _note_latency(member: Member, watch: LatencyWatch | None) -> str:
    if watch is None:
        return f"{member.name} not watched: it promises no latency that was measured beside a yardstick"
    return f"{member.name} up to {watch.limit_s * 1e3:.4g} ms"


def _note_agreement(member: Member, watch: AgreementWatch | None) -> str:
    if watch is None:
        return f"{member.name} not watched: the artifact does not say how often it agreed; make it again with data"
    return f"{member.name} from {watch.floor:.1%}"

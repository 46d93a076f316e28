"""``make bench-serve``: what a service costs, what it keeps, and what it notices.

1. Overhead: a served call against the bare session, in turns. Since a millisecond of noise hides a microsecond of
   overhead, it is what served calls take beside the session's own time, less what bare ones do.
2. Load step: Poisson arrivals that do not wait for answers (open loop), at a rate that the slowest policy can serve,
   then at one that it cannot, then at the first again. Latencies count from when a call was due. Each policy alone,
   through the same queue, against the set.
3. Drift: of latency (every call is run three times), of the inputs (paler images) and of agreement (half of the answers
   are another model's), against quiet runs that are as long. More is sampled than in production: the runs are short.
"""

import gc
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ...core.errors import OverloadedError
from ...evaluators.device import Executable
from ..serving.member import Member
from ..serving.recorder import Sampling
from ..serving.served_model import Original, ServedModel, ServeOptions
from .serving_models import ServedCase, make_digits, make_minilm

_N_CALLERS = 48
_PHASE_S = 5.0
_DRIFT_S = 5.0
_SEEDS = range(3)


def main() -> None:
    """Prints the three tables."""
    logging.disable(logging.WARNING)
    console = Console(width=140)
    minilm, digits = make_minilm(), make_digits()
    console.print(_overhead_table({"MiniLM, float32": (minilm, 150), "digits, int8": (digits, 3000)}))
    console.print(_load_table(minilm))
    console.print(_drift_table(digits))


class _TimedSession:
    """A session that remembers what its last run took, in nanoseconds."""

    def __init__(self, executable: Executable) -> None:
        self._session: Any = vars(executable)["_session"]
        self.last_ns = 0

    def run(self, outputs: None, inputs: Mapping[str, np.ndarray]) -> Any:
        """Runs the session."""
        start_ns = time.perf_counter_ns()
        found = self._session.run(outputs, inputs)
        self.last_ns = time.perf_counter_ns() - start_ns
        return found


def _overhead_table(cases: Mapping[str, tuple[ServedCase, int]]) -> Table:
    table = Table(
        title="overhead per call (bare and served: median, first to third quartile)",
        title_justify="left",
    )
    for heading in ("model", "service", "bare ms", "served ms", "µs more", "µs more, p90", "share of bare"):
        table.add_column(heading, justify="left" if heading in ("model", "service") else "right")
    for name, (case, n_calls) in cases.items():
        for words, fraction, p99_s in (
            ("watched", 0.0, None),
            ("and 1 % shadowed", 0.01, None),
            ("in a queue", 0.0, 9.0),
        ):
            bare_s, served_s, more_s = _time_overhead(case, n_calls, fraction, p99_s)
            table.add_row(
                name,
                words,
                _quartiles(bare_s),
                _quartiles(served_s),
                f"{np.median(more_s) * 1e6:.1f}",
                f"{np.quantile(more_s, 0.9) * 1e6:.1f}",
                f"{np.median(more_s) / np.median(bare_s):.2%}",
            )
    return table


def _time_overhead(
    case: ServedCase, n_calls: int, fraction: float, p99_s: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (n,) seconds of bare calls and of served ones, and how much more each of these takes beside it."""
    member = case.members[0]
    session = _TimedSession(member.executable)
    executable: Any = type(member.executable)
    timed = replace(member, executable=executable(session))
    options = ServeOptions(sampling=Sampling(shadow_fraction=fraction))
    original = Original(case.original) if fraction else None
    rows = []
    with ServedModel([timed], p99_s=p99_s, original=original, options=options) as model:
        gc.disable()
        for index in range(n_calls + 10):
            batch = case.batch(index)
            start_ns = time.perf_counter_ns()
            session.run(None, batch)
            bare_ns = time.perf_counter_ns() - start_ns
            beside_bare_ns = bare_ns - session.last_ns
            start_ns = time.perf_counter_ns()
            model.run(batch)
            served_ns = time.perf_counter_ns() - start_ns
            rows.append((bare_ns, served_ns, beside_bare_ns, served_ns - session.last_ns))
        gc.enable()
    bare, served, beside_bare, beside_served = np.array(rows[10:]).T / 1e9
    return bare, served, beside_served - np.median(beside_bare)


def _quartiles(times_s: np.ndarray) -> str:
    low, median, high = np.percentile(times_s, [25, 50, 75]) * 1e3
    return f"{median:.3f} ({low:.3f}–{high:.3f})"


@dataclass(frozen=True)
class _Load:
    """What came of calls that were due at given times."""

    #: (n,) seconds from when a call was due to its answer; NaN where it was turned away
    answers_s: np.ndarray
    #: (n,) when they were due
    due_s: np.ndarray

    def p99_ms(self, phase: int | None = None) -> str:
        chosen = np.isfinite(self.answers_s) & ((phase is None) | (self.due_s // _PHASE_S == phase))
        return f"{np.quantile(self.answers_s[chosen], 0.99) * 1e3:.0f}"


def _load_table(case: ServedCase) -> Table:
    latencies = [member.manifest.promise.measurement.latency for member in case.members]
    services_s = [latency.median_s for latency in latencies if latency is not None]
    bound_s = 10 * services_s[0]
    rates = (0.25 / services_s[0], 1.4 / services_s[0], 0.25 / services_s[0])
    words = " → ".join(f"{rate:.0f}" for rate in rates)
    table = Table(
        title=f"MiniLM under {words} calls/s, {_PHASE_S:g} s each; p99 to be kept: {bound_s * 1e3:.0f} ms",
        title_justify="left",
    )
    for heading in (
        "policies",
        "p99 ms",
        "in each phase",
        "kept",
        "turned away",
        "changes",
        "share of calls by policy",
    ):
        table.add_column(heading, justify="left" if heading == "policies" else "right")
    due_s = _draw_arrivals(rates, np.random.default_rng(0))
    for members in (*((member,) for member in case.members), case.members):
        is_set = len(members) > 1
        with ServedModel(members, p99_s=bound_s if is_set else 1e6, options=ServeOptions(dwell_s=1.0)) as model:
            load = _send(model, case, due_s)
            counts = [histogram.count for histogram in model.recorder.read_services()]
        answered = load.answers_s[np.isfinite(load.answers_s)]
        table.add_row(
            "set of all" if is_set else f"{members[0].name} alone",
            load.p99_ms(),
            " / ".join(load.p99_ms(phase) for phase in range(3)),
            "yes" if np.quantile(answered, 0.99) <= bound_s else "no",
            str(model.n_shed),
            str(model.n_level_changes),
            ", ".join(f"{m.name} {n / sum(counts):.0%}" for m, n in zip(members, counts, strict=True)),
        )
    return table


def _draw_arrivals(rates_per_s: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Returns (n,) ascending seconds: Poisson arrivals, one rate a phase."""
    phases = [
        phase * _PHASE_S + np.sort(rng.random(rng.poisson(rate * _PHASE_S))) * _PHASE_S
        for phase, rate in enumerate(rates_per_s)
    ]
    return np.concatenate(phases)


def _send(model: ServedModel, case: ServedCase, due_s: np.ndarray) -> _Load:
    """Sends calls when they are due, from threads that take the next one each; what comes late counts as waiting."""
    answers_s = np.full(len(due_s), np.nan)
    coming = iter(range(len(due_s)))
    lock = threading.Lock()
    began_s = time.perf_counter() + 0.1

    def call() -> None:
        while True:
            with lock:
                index = next(coming, None)
            if index is None:
                return
            time.sleep(max(0.0, began_s + due_s[index] - time.perf_counter()))
            try:
                model.run(case.batch(index))
            except OverloadedError:
                continue
            answers_s[index] = time.perf_counter() - began_s - due_s[index]

    threads = [threading.Thread(target=call) for _ in range(_N_CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _Load(answers_s, due_s)


class _Drifting:
    """An executable that can be made to drift."""

    def __init__(self, executable: Executable) -> None:
        self._executable = executable
        self.runs_thrice = False
        self.answers_backwards = False

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch; see `Executable`."""
        outputs = self._executable.run(inputs)
        for _ in range(2 * self.runs_thrice):
            outputs = self._executable.run(inputs)
        if self.answers_backwards and inputs["x"].sum() % 0.2 < 0.1:  # half of the answers are another model's
            outputs = [outputs[0][:, ::-1].copy()]
        return outputs


def _drift_table(case: ServedCase) -> Table:
    table = Table(title=f"digits, {len(_SEEDS)} runs of {_DRIFT_S:g} s each: signals", title_justify="left")
    for heading in ("run", "calls/s", "runs with the signal", "s until it (each run)", "other signals"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for kind in ("quiet", "latency", "inputs", "agreement"):
        outcomes = [_run_drift(case, kind, seed) for seed in _SEEDS]
        delays = [delay for _, delay, _ in outcomes if delay is not None]
        table.add_row(
            kind,
            f"{np.median([rate for rate, *_ in outcomes]):.0f}",
            "–" if kind == "quiet" else f"{len(delays)} of {len(outcomes)}",
            ", ".join(f"{delay:.1f}" for delay in delays) or "–",
            str(sum(others for *_, others in outcomes)),
        )
    return table


def _run_drift(case: ServedCase, kind: str, seed: int) -> tuple[float, float | None, int]:
    """Returns calls a second, seconds from the drift's begin to its signal, and the number of all other signals."""
    member = case.members[0]
    drifting = _Drifting(member.executable)
    options = ServeOptions(sampling=Sampling(inputs_per_s=600.0, shadow_fraction=0.2))
    heard: list[tuple[str, float]] = []
    served = Member(member.name, member.manifest, drifting)
    order = np.random.default_rng(seed).permutation(len(case.inputs["x"]))
    with ServedModel(
        [served],
        original=Original(case.original),
        on_drift=lambda drift: heard.append((drift.signal, time.perf_counter())),
        options=options,
    ) as model:
        began_s = time.perf_counter()
        change: Callable[[np.ndarray], np.ndarray] = (
            (lambda x: x * np.float32(0.7)) if kind == "inputs" else (lambda x: x)
        )
        drifting.runs_thrice, drifting.answers_backwards = kind == "latency", kind == "agreement"
        n_calls = 0
        while time.perf_counter() - began_s < _DRIFT_S:
            at = order[n_calls % len(order)]
            model.run({"x": change(case.inputs["x"][at : at + 1])})
            n_calls += 1
    expected = [at_s - began_s for signal, at_s in heard if signal == kind]
    others = sum(signal != kind for signal, _ in heard)
    return n_calls / _DRIFT_S, expected[0] if expected else None, others


if __name__ == "__main__":
    main()

"""Kernel tables: what each kernel, and each whole graph, was seen to take on one device under one runtime.

A table grows with every measurement, so it is mutable: `KernelTable.add`, `KernelTable.add_graph` and
`KernelTable.merge` change it in place, which is also what a read-merge-write of its file needs. The filters return
new tables. What a table keeps is a function of the *set* of observations that it was given, never of their order, so
merging is commutative, associative and idempotent.
"""

import math
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Self

from ...core.errors import TableError
from ..latency import Latency
from .kernel import Kernel, KernelTiming
from .table_identity import TableIdentity

#: observations kept of one kernel; those of more runs come first, then a digest decides
MAX_OBSERVATIONS = 16
#: whole-graph observations kept of one model, by the same order
MAX_GRAPHS = 512
#: seconds beyond this are a mistake
MAX_SECONDS = 1e6
#: runs beyond this are a mistake
MAX_RUNS = 10**9
#: characters of a source or of a model's name
MAX_NAME = 200
#: significant digits that are kept: finer ones are noise, and would make every line of a file differ
MEDIAN_DIGITS = 5
IQR_DIGITS = 3
#: interquartile range over standard deviation of a normal distribution: twice its 0.75 quantile
IQR_PER_SD = 1.34898


@dataclass(frozen=True, slots=True)
class Observation:
    """One timing of one kernel; numbers are rounded to the digits that a table keeps.

    >>> Observation(0.000123456, 0.0000011119, 30, "profile 2026-11-22 mobilenet_v2 #12").median_s
    0.00012346
    """

    median_s: float
    iqr_s: float
    runs: int
    #: where it came from, in a few words that identify it
    source: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "median_s", _seconds("median_s", self.median_s, MEDIAN_DIGITS))
        object.__setattr__(self, "iqr_s", _seconds("iqr_s", self.iqr_s, IQR_DIGITS))
        object.__setattr__(self, "runs", _count("runs", self.runs))
        _check_name("source", self.source)

    @property
    def order(self) -> tuple[Any, ...]:
        """What sorts observations in a file."""
        return self.source, self.median_s, self.iqr_s, self.runs

    @property
    def rank(self) -> tuple[Any, ...]:
        """What decides, smallest first, which observations stay when there are too many."""
        return -self.runs, zlib.crc32(f"{self.source}|{self.median_s}|{self.iqr_s}".encode()), *self.order


@dataclass(frozen=True)
class GraphObservation:
    """One measurement of a whole graph."""

    #: (kernel id, how often it runs), sorted by id
    counts: tuple[tuple[str, int], ...]
    #: median in seconds, normalised to the quiet machine by whoever measured
    latency_s: float
    iqr_s: float
    runs: int
    #: name or fingerprint of the model
    model: str
    #: where it came from, in a few words that identify it
    source: str

    def __post_init__(self) -> None:
        counts = tuple(sorted((name, _count("a kernel's count", number)) for name, number in self.counts))
        if not counts or len({name for name, _ in counts}) < len(counts):
            raise TableError(f"a graph must count each of its kernels once, and have one; got {self.counts!r:.120}")
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "latency_s", _seconds("latency_s", self.latency_s, MEDIAN_DIGITS))
        object.__setattr__(self, "iqr_s", _seconds("iqr_s", self.iqr_s, IQR_DIGITS))
        object.__setattr__(self, "runs", _count("runs", self.runs))
        _check_name("model", self.model)
        _check_name("source", self.source)

    @classmethod
    def of(cls, counts: Mapping[Kernel, int], latency: Latency, *, model: str, source: str) -> Self:
        """Makes one from the counts of a `LoweredGraph` and a latency.

        Raises:
            TableError: a number is not finite or negative, a name is empty or too long, there is no kernel.
        """
        pairs = tuple((kernel.id, number) for kernel, number in counts.items())
        return cls(pairs, latency.median_s, latency.iqr_s, latency.runs, model, source)

    @cached_property
    def order(self) -> tuple[Any, ...]:
        """What sorts graphs in a file."""
        return self.model, self.source, self.latency_s, self.iqr_s, self.runs, self.counts

    @cached_property
    def rank(self) -> tuple[Any, ...]:
        """What decides, smallest first, which observations stay when there are too many."""
        return -self.runs, zlib.crc32(repr(self.order).encode()), *self.order


class KernelTable:
    """What kernels and graphs were seen to take on one device; see the module for how it grows.

    >>> from trimtab.hw_profiles.kernels.kernel import Tensor
    >>> relu = Kernel("Relu", inputs=(Tensor("float32", (1, 8)),), outputs=(Tensor("float32", (1, 8)),))
    >>> table = KernelTable(TableIdentity("Xeon", (), "onnxruntime", "1.31.1", {"threads": 1}))
    >>> table.add([KernelTiming(relu, 2e-6, 1e-7, 30)], "profile 2026-11-22 tiny #1")
    >>> table.latency(relu)
    Latency(median_s=2e-06, iqr_s=1e-07, runs=30, source='table', reference_s=None)
    """

    def __init__(self, identity: TableIdentity) -> None:
        self.identity = identity
        self._kernels: dict[str, Kernel] = {}
        self._observations: dict[str, tuple[Observation, ...]] = {}
        self._graphs: dict[str, tuple[GraphObservation, ...]] = {}
        self._latencies: dict[str, Latency] = {}

    def add(self, timings: Iterable[KernelTiming], source: str) -> None:
        """Adds the timings of one measurement.

        A kernel that stands at several places of a graph gets one observation: the mean over its places, so that the
        sum over the graph stays what it was, with the spread between them in its IQR.

        Raises:
            TableError: a number is not finite or negative, or the source is empty or too long; nothing was added.
        """
        places: dict[str, list[KernelTiming]] = {}
        for timing in timings:
            places.setdefault(timing.kernel.id, []).append(timing)
        joined = [(same[0].kernel, _join_places(same, source)) for same in places.values()]
        for kernel, observation in joined:
            self.insert(kernel, [observation])

    def insert(self, kernel: Kernel, observations: Iterable[Observation] = ()) -> None:
        """Adds observations of one kernel; without any it only says which kernel has that id."""
        self._kernels.setdefault(kernel.id, kernel)
        union = {*self._observations.get(kernel.id, ()), *observations}
        if not union:
            return
        kept = sorted(union, key=_rank)[:MAX_OBSERVATIONS] if len(union) > MAX_OBSERVATIONS else union
        self._observations[kernel.id] = tuple(sorted(kept, key=_order))
        self._latencies.pop(kernel.id, None)

    def add_graph(self, observation: GraphObservation, kernels: Iterable[Kernel] = ()) -> None:
        """Adds a measurement of a whole graph.

        Args:
            observation: the measurement.
            kernels: its kernels; those that were never timed are known by their id afterwards.
        """
        for kernel in kernels:
            self._kernels.setdefault(kernel.id, kernel)
        self._insert_graphs(observation.model, [observation])

    def merge(self, other: "KernelTable") -> None:
        """Adds all that another table of the same identity holds.

        Raises:
            TableError: the other's identity differs; the message says in what. Nothing was added.
        """
        difference = self.identity.describe_difference(other.identity)
        if difference:
            raise TableError(f"only tables of one device, runtime and settings can be merged: {difference}")
        for kernel_id, kernel in other._kernels.items():
            self.insert(kernel, other._observations.get(kernel_id, ()))
        for model, graphs in other._graphs.items():
            self._insert_graphs(model, graphs)

    def latency(self, kernel: Kernel) -> Latency | None:
        """Returns what a kernel takes; None when it was never timed.

        The median is the run-weighted median of the observations' medians; the IQR holds both their own spread and
        the spread between them.
        """
        known = self._latencies.get(kernel.id)
        if known is None and kernel.id in self._observations:
            known = self._latencies[kernel.id] = _pool(self._observations[kernel.id])
        return known

    def observations(self, kernel: Kernel) -> tuple[Observation, ...]:
        """Returns what was seen of a kernel, sorted by source; empty when it was never timed."""
        return self._observations.get(kernel.id, ())

    def kernel(self, kernel_id: str) -> Kernel | None:
        """Returns the kernel of an id, timed or not; None when the id is not known."""
        return self._kernels.get(kernel_id)

    def kernels(self) -> tuple[Kernel, ...]:
        """Returns the timed kernels, by op and id."""
        return tuple(kernel for kernel in self.known_kernels() if kernel.id in self._observations)

    def known_kernels(self) -> tuple[Kernel, ...]:
        """Returns all kernels by op and id, with those that only graphs name."""
        return tuple(sorted(self._kernels.values(), key=lambda kernel: (kernel.op, kernel.id)))

    @property
    def graphs(self) -> tuple[GraphObservation, ...]:
        """The measurements of whole graphs, by model and source."""
        return tuple(graph for model in sorted(self._graphs) for graph in self._graphs[model])

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of all observations, sorted."""
        timed = {observation.source for same in self._observations.values() for observation in same}
        return tuple(sorted(timed | {graph.source for graph in self.graphs}))

    def without(self, kernel_ids: Collection[str]) -> "KernelTable":
        """Returns a table without the timings of some kernels; which kernels they are stays known, graphs stay."""
        names = frozenset(kernel_ids)
        return self._filter(lambda name, _: name not in names, lambda _: True)

    def only(self, kernel_ids: Collection[str]) -> "KernelTable":
        """Returns a table with the timings of some kernels alone; which kernels there are stays known, graphs stay."""
        names = frozenset(kernel_ids)
        return self._filter(lambda name, _: name in names, lambda _: True)

    def without_source(self, prefix: str) -> "KernelTable":
        """Returns a table without the observations, of kernels and graphs, whose source begins with ``prefix``.

        ``search digits trial 1`` is also a prefix of ``search digits trial 10``.
        """
        return self._filter(
            lambda _, observation: not observation.source.startswith(prefix),
            lambda graph: not graph.source.startswith(prefix),
        )

    def without_graphs(self, drop: Callable[[GraphObservation], bool]) -> "KernelTable":
        """Returns a table without the whole-graph observations for which ``drop`` holds; timings stay."""
        return self._filter(lambda _, __: True, lambda graph: not drop(graph))

    def __contains__(self, kernel: object) -> bool:
        return isinstance(kernel, Kernel) and kernel.id in self._observations

    def __len__(self) -> int:
        return len(self._observations)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KernelTable):
            return NotImplemented
        mine = (self.identity, self._kernels, self._observations, self._graphs)
        return mine == (other.identity, other._kernels, other._observations, other._graphs)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def _insert_graphs(self, model: str, graphs: Iterable[GraphObservation]) -> None:
        union = {*self._graphs.get(model, ()), *graphs}
        kept = sorted(union, key=_rank)[:MAX_GRAPHS] if len(union) > MAX_GRAPHS else union
        self._graphs[model] = tuple(sorted(kept, key=_order))

    def _filter(
        self, keep: Callable[[str, Observation], bool], keep_graph: Callable[[GraphObservation], bool]
    ) -> "KernelTable":
        table = KernelTable(self.identity)
        for kernel_id, kernel in self._kernels.items():
            table.insert(kernel, [each for each in self._observations.get(kernel_id, ()) if keep(kernel_id, each)])
        for model, graphs in self._graphs.items():
            if kept := [graph for graph in graphs if keep_graph(graph)]:
                table._insert_graphs(model, kept)
        return table


def _rank(observation: Observation | GraphObservation) -> tuple[Any, ...]:
    return observation.rank


def _order(observation: Observation | GraphObservation) -> tuple[Any, ...]:
    return observation.order


def _join_places(timings: list[KernelTiming], source: str) -> Observation:
    # checked one by one: a mean would hide a single bad number
    places = [Observation(timing.median_s, timing.iqr_s, timing.runs, source) for timing in timings]
    if len(places) == 1:
        return places[0]
    mean_s = math.fsum(timing.median_s for timing in timings) / len(timings)
    return Observation(mean_s, _joint_iqr_s(places, [1] * len(places), mean_s), sum(p.runs for p in places), source)


def _pool(observations: tuple[Observation, ...]) -> Latency:
    runs = [observation.runs for observation in observations]
    median_s = _weighted_median([observation.median_s for observation in observations], runs)
    return Latency(median_s, _joint_iqr_s(observations, runs, median_s), sum(runs), source="table")


def _joint_iqr_s(observations: Collection[Observation], weights: Collection[int], centre_s: float) -> float:
    """The IQR of normal distributions of these medians and IQRs mixed: within and between add as variances."""
    if len(observations) == 1:
        return next(iter(observations)).iqr_s
    variance = math.fsum(
        weight * (each.iqr_s**2 + (IQR_PER_SD * (each.median_s - centre_s)) ** 2)
        for each, weight in zip(observations, weights, strict=True)
    )
    return math.sqrt(variance / sum(weights))


def _weighted_median(values: list[float], weights: list[int]) -> float:
    half, below = sum(weights) / 2, 0
    pairs = sorted(zip(values, weights, strict=True))
    for place, (value, weight) in enumerate(pairs):
        below += weight
        if below == half:
            return (value + pairs[place + 1][0]) / 2
        if below > half:
            return value
    raise ValueError("the median of nothing is not defined")


def _seconds(name: str, value: Any, digits: int) -> float:
    if not _is_number(value, (float, int, Real)) or not 0 <= value <= MAX_SECONDS:
        raise TableError(f"{name} must be a number of seconds from 0 to {MAX_SECONDS:g}, got {value!r:.80}")
    return float(f"{float(value):.{digits}g}") + 0.0  # + 0.0 turns -0.0 into 0.0


def _count(name: str, value: Any) -> int:
    if not _is_number(value, (int, Integral)) or not 1 <= value <= MAX_RUNS:
        raise TableError(f"{name} must be a whole number from 1 to {MAX_RUNS}, got {value!r:.80}")
    return int(value)


def _is_number(value: Any, kinds: tuple[type, ...]) -> bool:
    # the plain types first: asking the abstract ones is slow
    return isinstance(value, kinds) and not isinstance(value, bool)


def _check_name(field: str, value: Any) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise TableError(f"{field} must be 1 to {MAX_NAME} printable characters, got {value!r:.80}")

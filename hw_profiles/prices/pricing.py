"""What a lowered graph will cost: the sum of its kernels' prices, corrected by what whole graphs were seen to take.

A graph takes longer than its kernels one by one: the runtime works between them, and caches are colder. What is
missing differs between kinds of kernels, so the sum is corrected by a Bayesian linear model (Bishop, Pattern
Recognition and Machine Learning, 2006, section 3.3) whose terms all have a meaning and a prior:

    seconds = Σ_k n_k · t_k · (1 + device + class(k) + kernel(k) + model + model_class(k)) + n · overhead + call

With no graph measured it returns the plain sum with wide error bars; every measured graph narrows them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..kernels.kernel import Kernel, LoweredGraph

#: Prior standard deviations of the terms above, as shares of the time that they multiply. Measured on MobileNetV2 to
#: MiniLM under both runtimes: sums of kernels are 3 to 20 % below the whole; classes differ by about as much.
_DEVICE, _CLASS, _MODEL, _MODEL_CLASS = 0.2, 0.1, 0.04, 0.04
#: what a table's entry may be off by in another graph: another neighbour leaves other caches
_KERNEL = 0.05
#: seconds per kernel and per inference that no kernel's time contains
_OVERHEAD_S, _CALL_S = 1e-6, 20e-6
#: noise of one measured graph on a quiet machine, as a share of it
NOISE = 0.015

#: graphs from which leave-one-out says anything about error bars, and how far it may narrow or widen them
_FEWEST_TO_CALIBRATE, _SCALES = 5, (0.5, 4.0)


@dataclass(frozen=True, slots=True)
class KernelPrice:
    """What one kernel is expected to take."""

    seconds: float
    #: standard error as a share of `seconds`
    relative_error: float
    #: ``table`` or ``model``
    source: str


class LatencySource(Protocol):
    """Prices kernels: a table, a predictor, or one behind the other."""

    def price(self, kernels: Sequence[Kernel]) -> list[KernelPrice]:
        """Returns one price per kernel, in their order."""
        ...


@dataclass(frozen=True, slots=True)
class MeasuredGraph:
    """A graph that was timed as a whole."""

    #: kernel → how often it runs
    counts: Mapping[Kernel, int]
    latency_s: float
    #: what the graph was made from; graphs of one model share a correction
    model: str = ""


@dataclass(frozen=True, slots=True)
class GraphPrice:
    """What one inference is expected to take."""

    seconds: float
    #: one standard error, in seconds
    standard_error_s: float
    #: share of the kernels' time that no table holds
    unseen_share: float = 0.0


def class_of(kernel: Kernel) -> str:
    """Returns what kernels must share to share a correction: operator, implementation and main dtype."""
    dtype = kernel.inputs[0].dtype if kernel.inputs else ""
    return f"{kernel.op}|{kernel.implementation}|{dtype}"


@dataclass
class GraphPricer:
    """Prices graphs; fitted once from what was measured, then only read."""

    source: LatencySource
    measured: Sequence[MeasuredGraph] = ()
    #: standard deviation of one measured graph, as a share of it
    noise: float = NOISE
    _prices: dict[Kernel, KernelPrice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._learn({kernel for graph in self.measured for kernel in graph.counts})
        rows = [self._row(graph.counts, graph.model) for graph in self.measured]
        self._terms = {term: i for i, term in enumerate(dict.fromkeys(term for row in rows for term in row.terms))}
        self._fit(rows)

    def price(self, graph: LoweredGraph | Mapping[Kernel, int], *, model: str = "") -> GraphPrice:
        """Prices one graph.

        Args:
            graph: the lowered graph, or kernel → how often it runs.
            model: as in `MeasuredGraph.model`; corrections learned for it are used.
        """
        counts = graph.counts if isinstance(graph, LoweredGraph) else graph
        self._learn(counts)
        row = self._row(counts, model)
        shared = self._design @ self._vector(row)  # (n graphs,) covariance with each measured graph
        seconds = row.seconds + float(shared @ self._weights)
        variance = sum(value**2 for value in row.terms.values()) - float(shared @ self._inverse @ shared)
        error_s = self._scale * float(np.sqrt(max(variance, 0.0) + (self.noise * seconds) ** 2))
        # an extrapolation must not end below what the kernels alone can hardly beat
        return GraphPrice(max(seconds, 0.5 * row.seconds), error_s, row.unseen_s / max(row.seconds, 1e-12))

    def choose(self, graphs: Sequence[Mapping[Kernel, int]], n_chosen: int, *, model: str = "") -> list[int]:
        """Returns which graphs to measure next: those whose price is least certain given the ones before.

        Greedy maximisation of the information gained (Krause, Singh and Guestrin, Journal of Machine Learning Research
        9, 2008): after each choice the variances are those that its measurement would leave. Kernels that no table
        holds, and boundaries that only rare neighbours make, have the widest priors, so they come first.

        Args:
            graphs: kernel → how often it runs, for each candidate.
            n_chosen: how many to choose at most.
            model: as in `MeasuredGraph.model`.

        Returns:
            Positions in ``graphs``, most informative first.
        """
        for counts in graphs:
            self._learn(counts)
        rows = [self._row(counts, model) for counts in graphs]
        terms = {
            term: i for i, term in enumerate(dict.fromkeys([*self._terms, *(t for row in rows for t in row.terms)]))
        }
        design = np.zeros((len(rows), len(terms)))
        for i, row in enumerate(rows):
            design[i, [terms[term] for term in row.terms]] = np.array(list(row.terms.values())) / row.seconds
        seen = np.zeros((len(self._design), len(terms)))
        seen[:, : self._design.shape[1]] = self._design
        seen /= np.array([graph.latency_s for graph in self.measured]).reshape(-1, 1)
        return _choose_rows(design, seen, noise=self.noise)[:n_chosen]

    def _learn(self, kernels: "Mapping[Kernel, int] | set[Kernel]") -> None:
        new = [kernel for kernel in kernels if kernel not in self._prices]
        self._prices.update(zip(new, self.source.price(new), strict=True))

    def _row(self, counts: Mapping[Kernel, int], model: str) -> "_Row":
        row = _Row()
        for kernel, n in counts.items():
            price, kind = self._prices[kernel], class_of(kernel)
            time_s = n * price.seconds
            row.seconds += time_s
            row.unseen_s += time_s if price.source != "table" else 0.0
            row.add("device", _DEVICE * time_s)
            row.add(f"class {kind}", _CLASS * time_s)
            row.add(f"kernel {kernel.id}", float(np.hypot(_KERNEL, price.relative_error)) * time_s)
            row.add(f"model {model}", _MODEL * time_s)
            row.add(f"model {model} class {kind}", _MODEL_CLASS * time_s)
            row.add("overhead", _OVERHEAD_S * n)
        row.add("call", _CALL_S)
        return row

    def _vector(self, row: "_Row") -> np.ndarray:
        """Returns the row's values of the terms that were measured: (n terms,)."""
        vector = np.zeros(len(self._terms))
        for term, value in row.terms.items():
            if term in self._terms:
                vector[self._terms[term]] = value
        return vector

    def _fit(self, rows: "Sequence[_Row]") -> None:
        """Conditions on the measured graphs; the dual form, since terms outnumber graphs.

        Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, equations 2.11 and 2.12; the error bars
        are scaled so that leave-one-out residuals (equations 5.10 to 5.12) have the spread that they promise.
        """
        self._design = np.array([self._vector(row) for row in rows]).reshape(len(rows), len(self._terms))
        seen_s = np.array([graph.latency_s for graph in self.measured])
        gap_s = seen_s - np.array([row.seconds for row in rows])
        covariance = self._design @ self._design.T + np.diag((self.noise * seen_s) ** 2)
        self._inverse = np.linalg.inv(covariance) if len(rows) else np.zeros((0, 0))
        self._weights = self._inverse @ gap_s
        self._scale = 1.0
        if len(rows) >= _FEWEST_TO_CALIBRATE:
            surprise = self._weights / np.sqrt(np.diag(self._inverse))
            self._scale = float(np.clip(np.sqrt(np.mean(surprise**2)), *_SCALES))


@dataclass
class _Row:
    """One graph in the terms of the model: the value of each is its prior standard deviation in seconds."""

    seconds: float = 0.0
    unseen_s: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)

    def add(self, term: str, value: float) -> None:
        self.terms[term] = self.terms.get(term, 0.0) + value


def _choose_rows(design: np.ndarray, seen: np.ndarray, *, noise: float) -> list[int]:
    """Returns all positions of (n candidates, n terms) rows, in relative units, by greedy information gain."""
    rows = np.concatenate([seen, design])
    covariance = rows @ rows.T
    for position in range(len(seen)):
        covariance = _condition(covariance, position, noise)
    chosen: list[int] = []
    for _ in range(len(design)):
        variances = np.diag(covariance)[len(seen) :].copy()
        variances[chosen] = -1.0
        chosen.append(int(np.argmax(variances)))
        covariance = _condition(covariance, len(seen) + chosen[-1], noise)
    return chosen


def _condition(covariance: np.ndarray, position: int, noise: float) -> np.ndarray:
    """Returns the covariance of all rows once the one at ``position`` is measured."""
    column = covariance[:, position]
    after: np.ndarray = covariance - np.outer(column, column) / (column[position] + noise**2)
    return after

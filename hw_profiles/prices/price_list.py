"""Prices of kernels: the table where it holds them, a predictor elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..kernels.kernel import Kernel
from ..kernels.kernel_table import IQR_PER_SD, KernelTable
from .predictors import KernelPredictor, build_predictor
from .pricing import NOISE, GraphPricer, KernelPrice, MeasuredGraph

#: what a kernel is taken to cost when there is neither an entry nor anything to predict from: a guess, and marked so
_GUESS = KernelPrice(5e-6, 1.0, "model")

#: whole graphs of other models that a pricer looks at; its cost grows with their cube
_MAX_OTHERS = 200


@dataclass
class PriceList:
    """A kernel table with a predictor behind it; see `LatencySource`."""

    table: KernelTable
    #: fitted; None: unseen kernels get a guess with an error as large as itself
    predictor: KernelPredictor | None = None

    def price(self, kernels: Sequence[Kernel]) -> list[KernelPrice]:
        """Returns one price per kernel, in their order."""
        found = [self._look_up(kernel) for kernel in kernels]
        missing = [kernel for kernel, price in zip(kernels, found, strict=True) if price is None]
        predicted = iter(self._predict(missing))
        return [next(predicted) if price is None else price for price in found]

    def _look_up(self, kernel: Kernel) -> KernelPrice | None:
        latency = self.table.latency(kernel)
        if latency is None:
            return None
        n_observations = len(self.table.observations(kernel))
        error_s = latency.iqr_s / IQR_PER_SD / np.sqrt(n_observations)
        return KernelPrice(latency.median_s, float(error_s / max(latency.median_s, 1e-9)), "table")

    def _predict(self, kernels: Sequence[Kernel]) -> list[KernelPrice]:
        if self.predictor is None or not kernels:
            return [_GUESS for _ in kernels]
        seconds, errors = self.predictor.predict(kernels)
        return [KernelPrice(float(s), float(e), "model") for s, e in zip(seconds, errors, strict=True)]


def build_pricer(
    table: KernelTable, *, model: str = "", predictor: KernelPredictor | None = None, noise: float = NOISE
) -> GraphPricer:
    """Makes a pricer from all that a table holds.

    Args:
        table: kernels and whole graphs of one device.
        model: whose graphs are all used; of the others a fixed number is.
        predictor: fitted, for kernels outside the table.
        noise: see `GraphPricer.noise`.
    """
    own = [graph for graph in table.graphs if graph.model == model]
    others = [graph for graph in table.graphs if graph.model != model]
    chosen = others[:: max(1, -(-len(others) // _MAX_OTHERS))]
    measured = []
    for graph in (*own, *chosen):
        counts = {kernel: n for name, n in graph.counts if (kernel := table.kernel(name)) is not None}
        if len(counts) == len(graph.counts):
            measured.append(MeasuredGraph(counts, graph.latency_s, graph.model))
    return GraphPricer(PriceList(table, predictor), measured, noise)


def fit_predictor(table: KernelTable) -> KernelPredictor | None:
    """Fits the predictor of choice to a table; None where the table is empty."""
    predictor = build_predictor()
    kernels = table.kernels()
    latencies = [table.latency(kernel) for kernel in kernels]
    if not kernels:
        return None
    predictor.fit(kernels, np.array([latency.median_s for latency in latencies if latency is not None]))
    return predictor

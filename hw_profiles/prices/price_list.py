"""Prices of kernels: the table where it holds them, a predictor elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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
    #: fit a predictor to the table as soon as a kernel is asked for that it does not hold; otherwise such kernels get
    #: a guess with an error as large as itself
    predicts: bool = True

    def price(self, kernels: Sequence[Kernel]) -> list[KernelPrice]:
        """Returns one price per kernel, in their order."""
        found = [self._look_up(kernel) for kernel in kernels]
        missing = [kernel for kernel, price in zip(kernels, found, strict=True) if price is None]
        predicted = iter(self._predict(missing))
        return [next(predicted) if price is None else price for price in found]

    @cached_property
    def _predictor(self) -> KernelPredictor | None:
        timed = [(kernel, latency) for kernel in self.table.kernels() if (latency := self.table.latency(kernel))]
        if not timed or not self.predicts:
            return None
        predictor = build_predictor()
        predictor.fit([kernel for kernel, _ in timed], np.array([latency.median_s for _, latency in timed]))
        return predictor

    def _look_up(self, kernel: Kernel) -> KernelPrice | None:
        latency = self.table.latency(kernel)
        if latency is None:
            return None
        n_observations = len(self.table.observations(kernel))
        error_s = latency.iqr_s / IQR_PER_SD / np.sqrt(n_observations)
        return KernelPrice(latency.median_s, float(error_s / max(latency.median_s, 1e-9)), "table")

    def _predict(self, kernels: Sequence[Kernel]) -> list[KernelPrice]:
        if not kernels:
            return []
        if self._predictor is None:
            return [_GUESS for _ in kernels]
        seconds, errors = self._predictor.predict(kernels)
        return [KernelPrice(float(s), float(e), "model") for s, e in zip(seconds, errors, strict=True)]


def build_pricer(table: KernelTable, *, model: str = "", predicts: bool = True, noise: float = NOISE) -> GraphPricer:
    """Makes a pricer from all that a table holds.

    Args:
        table: kernels and whole graphs of one device.
        model: whose graphs are all used; of the others a fixed number is.
        predicts: see `PriceList.predicts`.
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
    return GraphPricer(PriceList(table, predicts), measured, noise)

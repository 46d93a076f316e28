"""Compares the predictors of unseen kernels on a kernel table, leaving out one architecture after the other.

A model's kernels are what its measured graphs run. All models of one architecture, whatever their width and
resolution, are left out together; kernels that others have too keep their measured time, as they do in real pricing.
"""

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ...core.errors import SpecError
from ...hw_profiles.kernels.kernel import Kernel
from ...hw_profiles.kernels.kernel_table import GraphObservation, KernelTable
from ...hw_profiles.kernels.table_file import read_table
from ...hw_profiles.prices.predictors import PREDICTORS, SHORTEST_S, KernelPredictor, build_predictor

#: models of this name only teach
_TEACHERS = "synthetic"
_HEADINGS = (
    "predictor", "kernel MAPE", "by time", "policy MAPE", "bias", "within 5 %", "within 10 %", "within 1 s.e.", "fit s",
    "200 kernels, ms",
)  # fmt: skip


@dataclass(frozen=True)
class Errors:
    """What one predictor got wrong."""

    #: (n,) logarithm of predicted over measured time of each unseen kernel
    logs: np.ndarray
    #: (n,) predicted standard error of `logs`
    predicted: np.ndarray
    #: (n,) measured seconds
    seconds: np.ndarray
    #: (policies,) relative error of the sum over a policy's kernels
    policies: np.ndarray
    fit_s: float
    predict_s: float


def main(paths: Sequence[str]) -> None:
    """Prints one comparison per kernel table."""
    if not paths:
        raise SystemExit("which kernel tables? make bench-predictors TABLES='a.jsonl b.jsonl'")
    console = Console(width=140)
    for path in paths:
        console.print(compare(read_table(Path(path)), Path(path).stem))


def compare(table: KernelTable, title: str) -> Table:
    """Returns the comparison as a table; ``calibrated`` adds error bars from cross-validation."""
    n_models = len({graph.model for graph in table.graphs})
    printed = Table(title=f"{title}: {len(table)} kernels of {n_models} models", title_justify="left")
    for heading in _HEADINGS:
        printed.add_column(heading, justify="left" if heading == "predictor" else "right")
    for name in PREDICTORS:
        printed.add_row(name, *_describe(evaluate(table, PREDICTORS.get(name))))
    printed.add_row("default, calibrated", *_describe(evaluate(table, build_predictor)))
    return printed


def evaluate(table: KernelTable, make: Callable[[], KernelPredictor]) -> Errors:
    """Leaves out one architecture after the other.

    Raises:
        SpecError: the table has measured graphs of fewer than two architectures.
    """
    architectures = sorted({find_architecture(graph.model) for graph in table.graphs} - {_TEACHERS})
    if len(architectures) < 2:
        raise SpecError(f"graphs of at least two architectures are needed, got {', '.join(architectures) or 'none'}")
    found = [_leave_out(table, architecture, make) for architecture in architectures]
    return Errors(
        logs=np.concatenate([errors.logs for errors in found]),
        predicted=np.concatenate([errors.predicted for errors in found]),
        seconds=np.concatenate([errors.seconds for errors in found]),
        policies=np.concatenate([errors.policies for errors in found]),
        fit_s=float(np.mean([errors.fit_s for errors in found])),
        predict_s=float(np.mean([errors.predict_s for errors in found])),
    )


def find_architecture(model: str) -> str:
    """Returns a model's name without width, depth and resolution, and ``synthetic`` for all of those.

    >>> find_architecture("mobilenet_v2_w050_r128")
    'mobilenet_v2'
    """
    if model.startswith(_TEACHERS):
        return _TEACHERS
    return re.sub(r"(_[wdr]\d{3})+$", "", model)


def _leave_out(table: KernelTable, architecture: str, make: Callable[[], KernelPredictor]) -> Errors:
    own = [graph for graph in table.graphs if find_architecture(graph.model) == architecture]
    shared = {name for graph in table.graphs if graph not in own for name, _ in graph.counts}
    times = {kernel.id: latency.median_s for kernel in table.kernels() if (latency := table.latency(kernel))}
    known = _kernels(table, shared & times.keys())
    unseen = _kernels(table, {name for graph in own for name, _ in graph.counts} - shared & times.keys(), times)
    predictor = make()
    start_s = time.process_time()
    predictor.fit(known, np.array([times[kernel.id] for kernel in known]))
    fitted_s = time.process_time()
    medians, predicted = predictor.predict(unseen)
    predict_s = (time.process_time() - fitted_s) / max(len(unseen), 1)
    seconds = np.array([max(times[kernel.id], SHORTEST_S) for kernel in unseen])
    guesses = dict(zip((kernel.id for kernel in unseen), medians.tolist(), strict=True))
    policies = np.array([_sum(graph, {**times, **guesses}) / _sum(graph, times) - 1 for graph in own])
    return Errors(np.log(medians / seconds), predicted, seconds, policies, fitted_s - start_s, predict_s)


def _kernels(table: KernelTable, names: set[str], times: dict[str, float] | None = None) -> list[Kernel]:
    found = [table.kernel(name) for name in sorted(names) if times is None or name in times]
    return [kernel for kernel in found if kernel is not None]


def _sum(graph: GraphObservation, times: dict[str, float]) -> float:
    return sum(number * times.get(name, 0.0) for name, number in graph.counts)


def _describe(errors: Errors) -> list[str]:
    misses = np.abs(np.expm1(errors.logs))
    by_time = (misses * errors.seconds).sum() / errors.seconds.sum()
    policies = np.abs(errors.policies)
    shares = (misses.mean(), by_time, policies.mean(), errors.policies.mean())
    hits = ((policies <= 0.05).mean(), (policies <= 0.1).mean(), (np.abs(errors.logs) <= errors.predicted).mean())
    return [
        *(f"{100 * share:.1f} %" for share in shares),
        *(f"{100 * hit:.0f} %" for hit in hits),
        f"{errors.fit_s:.1f}",
        f"{errors.predict_s * 200e3:.0f}",
    ]


if __name__ == "__main__":
    main(sys.argv[1:])

"""How well four methods price mixed policies that none of them was fitted on; run by ``make bench-latency``.

Per network and runtime, designed policies are measured whole and kernel by kernel (what a table is made of), then
mixed ones as wholes (what all methods are tested on). *Known* means that a method saw the designed policies of the
network itself, *left out* that it saw those of the other networks only. Forest and Trimtab may also learn from the
kernels of small random networks.
"""

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ...evaluators.latency import pin_cores
from ..profiling.accuracy import PriceAccuracy, compare_prices, describe
from ..profiling.learn import LearningPlan
from .latency_methods import Prices, make_ours, price_forest, price_layers, price_macs
from .latency_runs import Lesson, ModelRuns, at_speed, identify, obtain_lessons, obtain_originals, obtain_runs

MODELS = ("resnet8", "resnet18", "mobilenet_v2", "convnext", "minilm", "vit_tiny")
RUNTIMES = ("onnxruntime", "openvino")
PLAN = LearningPlan(n_designed=28, n_test=40)
#: small random networks that all methods but the first two may learn from
_N_RANDOM = 72

_Method = Callable[[ModelRuns, Sequence[ModelRuns], Sequence[Lesson]], Prices | None]


def main() -> None:
    """Measures what is not on disk yet, then prints one table per runtime."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-latency"), help="where measurements are kept")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--runtimes", nargs="+", default=RUNTIMES)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    pin_cores(1)
    console = Console(width=140)
    for runtime in chosen.runtimes:
        measured = [obtain_runs(model, runtime, chosen.runs, PLAN) for model in chosen.models]
        originals = obtain_originals(chosen.models, runtime, chosen.runs)
        lessons = obtain_lessons(runtime, chosen.runs, _N_RANDOM)
        console.print(_compare(runtime, [at_speed(runs, originals[runs.model]) for runs in measured], lessons))


def _compare(runtime: str, every: Sequence[ModelRuns], lessons: Sequence[Lesson]) -> Table:
    methods: dict[str, _Method] = {
        "MACs-linear": price_macs,
        "additive per-layer table": price_layers,
        "random forest per kernel": price_forest,
        "Trimtab": make_ours(identify(runtime)),
    }
    n_policies = sum(len(runs.tested) for runs in every)
    table = Table(title=f"{runtime}: prices of {n_policies} mixed policies, none fitted on", title_justify="left")
    for heading in ("network", "method", "seen before", *describe(_NOTHING)):
        table.add_column(heading, justify="left" if heading in ("network", "method", "seen before") else "right")
    totals: dict[tuple[str, str], list[PriceAccuracy]] = {}
    for runs in every:
        for seen, learned_from in (("known", list(every)), ("left out", [r for r in every if r is not runs])):
            for name, method in methods.items():
                accuracy = _assess(method, runs, learned_from, lessons)
                if accuracy is not None:
                    totals.setdefault((seen, name), []).append(accuracy)
                    table.add_row(runs.model, name, seen, *describe(accuracy).values())
        table.add_section()
    for (seen, name), found in sorted(totals.items(), key=lambda item: item[0]):
        table.add_row("mean of all", name, seen, *describe(_average(found)).values())
    return table


_NOTHING = PriceAccuracy(0, 0.0, 0.0, 0.0, 0.0, None)


def _assess(
    method: _Method, runs: ModelRuns, learned_from: Sequence[ModelRuns], lessons: Sequence[Lesson]
) -> PriceAccuracy | None:
    priced = method(runs, learned_from, lessons) if learned_from else None
    if priced is None:
        return None
    prices, errors = priced
    measured = [run.latency.median_s for run in runs.tested]

    return compare_prices(prices, np.array(measured), errors)


def _average(found: Sequence[PriceAccuracy]) -> PriceAccuracy:
    def mean(values: Sequence[float | None]) -> float:
        known = [value for value in values if value is not None]
        return sum(known) / max(len(known), 1)

    covers = [one.coverage_95 for one in found]
    return PriceAccuracy(
        n_policies=sum(one.n_policies for one in found),
        mape=mean([one.mape for one in found]),
        bias=mean([one.bias for one in found]),
        hits_5=mean([one.hits_5 for one in found]),
        hits_10=mean([one.hits_10 for one in found]),
        kendall_tau=mean([one.kendall_tau for one in found]),
        coverage_95=None if None in covers else mean(covers),
    )


if __name__ == "__main__":
    main()

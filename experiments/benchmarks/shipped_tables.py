"""Writes the kernel tables that ship with the package from what ``make bench-latency`` measured on this machine."""

import argparse
import datetime
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...hw_profiles.kernels.kernel import Kernel, KernelTiming
from ...hw_profiles.kernels.kernel_table import GraphObservation, KernelTable
from ...hw_profiles.kernels.shipped import SHIPPED_FOLDER, table_name
from ...hw_profiles.kernels.table_file import write_table
from .latency_runs import ModelRuns, at_speed, identify, obtain_lessons, obtain_originals


def main() -> None:
    """Writes one table per runtime."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-latency"), help="where measurements are kept")
    parser.add_argument("--out", type=Path, default=SHIPPED_FOLDER)
    chosen = parser.parse_args()
    for runtime in ("onnxruntime", "openvino"):
        paths = sorted(chosen.runs.glob(f"{runtime}-*.json"))
        every = [ModelRuns.from_json(json.loads(path.read_text())) for path in paths]
        if not every:
            continue
        table = KernelTable(identify(runtime))
        source = f"bench-latency {datetime.date.today().isoformat()}"
        for lesson in obtain_lessons(runtime, chosen.runs, 0):
            table.add(lesson.timings, f"{source} {lesson.name}")
        originals = obtain_originals([runs.model for runs in every], runtime, chosen.runs)
        for runs in every:
            _add(table, at_speed(runs, originals[runs.model]), f"{source} {runs.model}")
        write_table(chosen.out / table_name(table.identity), table)


def _add(table: KernelTable, runs: ModelRuns, source: str) -> None:
    """Adds one pooled observation per kernel, and every whole graph."""
    table.add(list(_pool(runs)), source)
    for i, run in enumerate((*runs.designed, *runs.tested)):
        graph = GraphObservation.of(run.counts, run.latency, model=runs.table_name, source=f"{source} #{i}")
        table.add_graph(graph, run.counts)


def _pool(runs: ModelRuns) -> Iterable[KernelTiming]:
    seen: dict[Kernel, list[KernelTiming]] = {}
    for run in runs.designed:
        for timing in run.timings:
            seen.setdefault(timing.kernel, []).append(timing)
    for kernel, timings in seen.items():
        low, median, high = np.percentile([timing.median_s for timing in timings], [25, 50, 75])
        spread = float(np.hypot(high - low, np.median([timing.iqr_s for timing in timings])))
        yield KernelTiming(kernel, float(median), spread, sum(timing.runs for timing in timings))


if __name__ == "__main__":
    main()

"""``make bench-overhead``: what a trial costs besides the work of evaluating it.

1. Controller time per trial: searches whose trials cost nothing, inline and through Ray, with a real journal (fsync
   per record). Everything that is left is ours: ask, hand-out, journal, tell.
2. Build time per policy: random policies of MiniLM's architecture (random weights; the time does not depend on them),
   each built to bytes by the pipeline, the first apart from the rest.
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ...compressors.pipeline import Pipeline
from ...compressors.prepared import prepare_model
from ...compressors.source import load_source
from ...evaluators.onnxruntime_device import OnnxRuntimeDevice
from ...hw_profiles.target import Target
from ...search.budget import Budget
from ...search.controller import SearchPlan, SilentObserver, run_search
from ...search.journal import Journal
from ...search.pools import build_pool
from ...search.problem import Problem
from ...search.testing import FakeBenchFactory, small_space
from ...search.worker_pool import Limits
from ...spaces.policy import GraphTreatment
from ...spaces.treatment import QUANTIZE_OPTIONS

#: (groups, options each): the sizes of `digits` and of `minilm-spam`
_SPACES = ((10, 2), (38, 4))
_N_TRIALS = 64
_N_REPEATS = 3
_N_POLICIES = 20


def main() -> None:
    """Prints both tables."""
    logging.disable(logging.WARNING)
    console = Console(width=110)
    console.print(_controller_table())
    console.print(_build_table())


def _controller_table() -> Table:
    table = Table(
        title="controller time per trial, ms (median of 3 searches of 64 trials, min–max)", title_justify="left"
    )
    for heading in ("algorithm", "groups × options", "inline", "Ray, 1 worker", "target"):
        table.add_column(heading, justify="left" if heading in ("algorithm", "groups × options") else "right")
    for algorithm in ("random", "tpe", "nsga2", "evolution"):
        for shape in _SPACES:
            inline, ray = _repeat(algorithm, shape, "inline"), _repeat(algorithm, shape, "local")
            table.add_row(algorithm, f"{shape[0]} × {shape[1]}", _spread(inline), _spread(ray), "≤ 5 / ≤ 15")
    return table


def _repeat(algorithm: str, shape: tuple[int, int], address: str) -> list[float]:
    """Returns milliseconds per trial of each repeat; one pool serves them all, warmed up by a first search."""
    space = small_space(*shape)
    times_ms = []
    with tempfile.TemporaryDirectory() as folder:
        pool = build_pool(address, FakeBenchFactory(space), Limits(), n_workers=1)
        try:
            for repeat in range(_N_REPEATS + 1):
                plan = SearchPlan(
                    Problem(space, Budget(accuracy_drop=0.01)), algorithm=algorithm, n_trials=_N_TRIALS, seed=repeat
                )
                start_s = time.perf_counter()
                with Journal.create(Path(folder) / f"{repeat}.jsonl", {}) as journal:
                    records = run_search(plan, pool, journal, SilentObserver())
                times_ms.append((time.perf_counter() - start_s) * 1e3 / len(records))
        finally:
            pool.close()
    return times_ms[1:]


def _build_table() -> Table:
    import torch

    from ..minilm import MiniLmClassifier

    torch.manual_seed(0)
    model = MiniLmClassifier().eval()
    rng = np.random.default_rng(0)
    tokens = {
        "input_ids": rng.integers(0, 30000, (4, 128)),
        "attention_mask": np.ones((4, 128), np.int64),
    }
    example = {name: torch.from_numpy(array[:1]) for name, array in tokens.items()}
    start_s = time.perf_counter()
    prepared = prepare_model(load_source((model, example)), tokens, fusions=("none", "gelu"))
    prepare_s = time.perf_counter() - start_s
    pipeline = Pipeline(prepared, OnnxRuntimeDevice(Target("onnxruntime")).capabilities)
    table = Table(
        title=f"QDQ build of MiniLM policies, s (model prepared once in {prepare_s:.1f} s)", title_justify="left"
    )
    for heading in ("policies", "first", "median after it", "slowest after it", "target"):
        table.add_column(heading, justify="right")
    times_s = []
    names = [layer.name for layer in prepared.layers if layer.kind == "linear"]
    options = [QUANTIZE_OPTIONS[name] for name in ("none", "int8", "int8_dynamic", "int8_weight")]
    for _ in range(_N_POLICIES):
        chosen = {name: options[int(rng.integers(4))] for name in names}
        graph = GraphTreatment(fusion=("none", "gelu")[int(rng.integers(2))])
        start_s = time.perf_counter()
        pipeline.build({name: t for name, t in chosen.items() if t != options[0]}, graph)
        times_s.append(time.perf_counter() - start_s)
    rest = times_s[1:]
    table.add_row(str(_N_POLICIES), f"{times_s[0]:.2f}", f"{statistics.median(rest):.2f}", f"{max(rest):.2f}", "≤ 0.3")
    return table


def _spread(times_ms: Sequence[float]) -> str:
    return f"{statistics.median(times_ms):.1f} ({min(times_ms):.1f}–{max(times_ms):.1f})"


if __name__ == "__main__":
    main()

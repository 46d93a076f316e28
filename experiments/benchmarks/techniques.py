"""``make bench-techniques``: what each technique does to accuracy, latency and size, with and without recovery.

On ResNet-20 for Fashion-MNIST and on MiniLM for spam, each technique alone at three strengths and hybrids of several,
as stored and executed by ONNX Runtime and OpenVINO. What was measured is kept in ``runs/bench-techniques`` and not
measured again: remove the folder to start anew. ``python -m trimtab.experiments.benchmarks.techniques fashion`` runs
one model, ``distillation`` the comparison of distilling with plain fine-tuning, over seeds.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ...compressors.artifact import Artifact
from ...compressors.weights.storage import measure_storage
from ...core.errors import MeasurementError, PolicyError
from ...evaluators.accuracy import AccuracyEvaluator, take_batch
from ...evaluators.device import build_device
from ...evaluators.latency import TimingSettings, measure_latency
from ...hw_profiles.target import Target
from ...spaces.policy import GraphTreatment
from ...spaces.recovery import Recovery
from ..preparation import Preparation, prepare
from ..spec_file import load_spec
from .technique_cases import SUBJECTS, Case, Subject

RUNTIMES = ("onnxruntime", "openvino")
FOLDER = Path("runs") / "bench-techniques"
#: samples scored at a time, and threads that do it; latency is that of one sample on one thread
_N_SCORED, _N_THREADS = 25, 2
_N_SEEDS = 5

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Runs the named subjects, or all and the comparison of distillation, and prints a table for each."""
    console = Console(width=190)
    names = list(arguments) or [*SUBJECTS, "distillation"]
    for name in names:
        if name == "distillation":
            console.print(_compare_distillation())
        else:
            console.print(_table(name, _measure_all(name, SUBJECTS[name], console)))


def _measure_all(name: str, subject: Subject, console: Console) -> list[dict[str, Any]]:
    """Returns a row per case, recovery and runtime."""
    path = FOLDER / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    rows = {_key(row): row for row in found}  # a later one replaces an earlier one
    benches = {runtime: Bench(subject, runtime) for runtime in RUNTIMES}
    for recovered in (False, True):
        for case in subject.cases:
            for runtime, bench in benches.items():
                recovery = subject.recovery_of(case) if recovered else Recovery()
                known = rows.get((case.label, recovery.label, runtime), {})
                if "error" in known or known.get("ratio"):
                    continue
                row = bench.measure(case, recovery)
                console.print(f"{runtime} {case.label} {recovery.label}: {row}", soft_wrap=True, highlight=False)
                rows[_key(row)] = row
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return list(rows.values())


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["label"], row["recovery"], row["runtime"]


class Bench:
    """One model on one runtime."""

    def __init__(self, subject: Subject, runtime: str) -> None:
        self._runtime = runtime
        self._preparation: Preparation = prepare(load_spec(subject.spec(runtime)))
        self._pipeline = self._preparation.pipeline
        test = self._preparation.dataset.test
        self._split = test if subject.n_test is None else test.take(slice(subject.n_test))
        self._batch = take_batch(test, 0, 1)
        # accuracy does not depend on threads and batch, and is scored faster so
        self._scorer = build_device(Target(runtime, threads=_N_THREADS, batch_size=_N_SCORED))
        self.original = self._pipeline.build({}, GraphTreatment())
        self._reference = self._preparation.device.load(self.original)
        self._evaluator = AccuracyEvaluator(
            self._scorer.load(self.original), self._split, metric="accuracy", batch_size=_N_SCORED
        )

    def measure(self, case: Case, recovery: Recovery) -> dict[str, Any]:
        """Builds, scores and times a case; what cannot be had is a row with the reason."""
        row: dict[str, Any] = {"label": case.label, "family": case.family, "runtime": self._runtime,
                               "recovery": recovery.label}  # fmt: skip
        start_s = time.perf_counter()
        try:
            artifact = self._pipeline.build(case.treatments(self._preparation.model), case.graph, recovery)
            return {**row, "build_s": round(time.perf_counter() - start_s, 1), **self._judge(artifact)}
        except PolicyError as error:
            return {**row, "error": str(error)}

    def accuracy_drop(self, artifact: Artifact) -> float:
        """Returns the drop on the test split."""
        return self._evaluator.score(self._scorer.load(artifact)).accuracy_drop.mean

    def build(self, case: Case, recovery: Recovery, *, seed: int) -> Artifact:
        """Builds a case with another seed of its training."""
        training = self._pipeline.training
        if training is None:
            raise MeasurementError("the benchmark needs training data")
        pipeline = replace(self._preparation, training=replace(training, seed=seed)).pipeline
        return pipeline.build(case.treatments(self._preparation.model), case.graph, recovery)

    def _judge(self, artifact: Artifact) -> dict[str, Any]:
        score = self._evaluator.score(self._scorer.load(artifact))
        found = {
            "accuracy": score.accuracy.mean,
            "drop": score.accuracy_drop.mean,
            "drop_se": score.accuracy_drop.standard_error,
            "size": artifact.size_bytes,
            "original_size": self.original.size_bytes,
            "weights": weight_bytes(artifact.model),
            "original_weights": weight_bytes(self.original.model),
        }
        executable = self._preparation.device.load(artifact)
        try:
            latency = measure_latency(executable, self._reference, self._batch, TimingSettings())
        except MeasurementError as error:  # the machine is unquiet: the next run times it again
            return {**found, "unquiet": str(error)}
        times = {"ms": latency.median_s * 1e3, "original_ms": (latency.reference_s or 0.0) * 1e3}
        return {**found, **times, "ratio": latency.ratio}


def weight_bytes(model: bytes) -> int:
    """Returns the bytes of weights and of what is needed to read them."""
    storage = measure_storage(model)
    return storage.weights + storage.quantization_bytes


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=f"{name}: drop in points on test data; time and size as ratios to the original",
                  title_justify="left")  # fmt: skip
    columns = ("technique", "recovery", "drop ORT", "drop OV", "time ORT", "time OV", "MB", "× smaller", "weights ×")
    for heading in columns:
        table.add_column(heading, justify="left" if heading in ("technique", "recovery") else "right", no_wrap=True)
    cells: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["label"], row["recovery"]), {})[row["runtime"]] = row
    for (label, recovery), found in cells.items():
        ort, vino = (found.get(runtime, {}) for runtime in RUNTIMES)
        size = ort.get("size") or vino.get("size")
        original = ort.get("original_size") or vino.get("original_size") or 1
        table.add_row(
            label, recovery, _drop(ort), _drop(vino), _ratio(ort), _ratio(vino),
            "–" if size is None else f"{size / 1e6:.3f}", "–" if size is None else f"{original / size:.1f}",
            f"{ort['original_weights'] / ort['weights']:.1f}" if "weights" in ort else "–",
        )  # fmt: skip
    return table


def _drop(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return "refused"
    return f"{100 * row['drop']:+.2f} ± {100 * row['drop_se']:.2f}" if "drop" in row else "–"


def _ratio(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.2f}" if row.get("ratio") else "–"


def _compare_distillation() -> Table:
    """Fine-tunes and distils the same pruned model from several seeds."""
    subject = SUBJECTS["fashion"]
    bench = Bench(subject, RUNTIMES[0])
    table = Table(title=f"fashion, recovery of half an epoch, {_N_SEEDS} seeds: drop in points", title_justify="left")
    for heading in ("technique", "finetune", "distill", "difference, paired", "standard error"):
        table.add_column(heading, justify="left" if heading == "technique" else "right")
    methods = (Recovery("finetune", epochs=subject.recovery.epochs), subject.recovery)
    for label in ("prune 0.5", "binarize ternary"):
        case = next(case for case in subject.cases if case.label == label)
        drops = np.array([
            [bench.accuracy_drop(bench.build(case, method, seed=seed)) for method in methods]
            for seed in range(1, _N_SEEDS + 1)
        ])  # fmt: skip
        gain = 100 * (drops[:, 0] - drops[:, 1])
        means, deviations = 100 * drops.mean(0), 100 * drops.std(0, ddof=1)
        table.add_row(
            label,
            *(f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in zip(means, deviations, strict=True)),
            f"{gain.mean():+.2f}",
            f"{gain.std(ddof=1) / _N_SEEDS**0.5:.2f}",
        )
    return table


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.disable(logging.WARNING)
    main(sys.argv[1:])

"""``python -m trimtab.experiments.tabulated.measure NAME``: measures every policy of a recipe and writes its table.

Takes 10 to 30 minutes on one core; a killed run goes on where it was. The order is random, so that a machine that
drifts makes no structure. Latency is timed in turns with the original at batch 1; a timing in which the original itself
was slower than usual is disturbed and is repeated, at once and in later passes. A tenth of the artifacts is loaded and
timed a second time: how well that repeats is written into the table. The fastest tenth of the usable policies is timed
five times, or else the best of thousands would be the luckiest.
"""

import gc
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import typer
from rich.console import Console

from ...compressors.artifact import Artifact
from ...core.cache import cache_folder
from ...core.errors import MeasurementError, PolicyError
from ...core.seeds import derive_rng
from ...evaluators.accuracy import AccuracyEvaluator
from ...evaluators.device import Device, Executable, build_device
from ...evaluators.latency import TimingSettings, measure_latency
from ...hw_profiles.target import Target
from .assemble import assemble_table
from .measurings import MeasuringJournal, Vector, read_measurings
from .table import read_table, write_table
from .table_builder import TableBuilder
from .table_recipes import find_recipe
from .tabulated_problem import TABLE_FOLDER

#: short on purpose: noise of one percent is less than what policies differ by
_TIMING = TimingSettings(min_runs=40, max_runs=400, min_time_s=0.03, warm_up_runs=10, attempts=1)
#: timings at once of an artifact whose original is slower than usual
_N_TRIES = 3
#: passes over what stayed disturbed
_N_PASSES = 4
#: share of the artifacts that is loaded and timed twice
REPEATED = 0.1
#: the fastest artifacts are loaded and timed so often: this share of those that lose no more than so much
_N_TIMED, _FASTEST, _USABLE_DROP = 5, 0.1, 0.03
#: others go first
_NICENESS = 1


@dataclass
class Measuring:
    """Measures policies and writes what it sees into a journal."""

    builder: TableBuilder
    journal: MeasuringJournal
    reference: Executable
    evaluator: AccuracyEvaluator
    #: the device on which accuracy is measured, in batches
    batched: Device | None
    timing: TimingSettings = _TIMING
    _limit_s: float = field(default=float("inf"))

    @classmethod
    def open(cls, builder: TableBuilder, path: Path) -> "Measuring":
        """Opens the journal of a recipe, and runs its original."""
        recipe, device = builder.recipe, builder.device
        batch_size = recipe.accuracy_batch
        batched = build_device(Target(recipe.runtime, batch_size=batch_size)) if batch_size > 1 else None
        reference = device.load(builder.original)
        scored = reference if batched is None else batched.load(builder.original)
        dataset = builder.dataset
        evaluator = AccuracyEvaluator(scored, dataset.validation, metric=dataset.metric, batch_size=batch_size)
        original = evaluator.original
        header = {
            "recipe": recipe.name,
            "fingerprints": builder.fingerprints(),
            "profile": device.identify().to_json(),
            "date": datetime.now(UTC).date().isoformat(),
            "accuracy": original.to_json(),
            "size_bytes": builder.original.size_bytes,
        }
        journal = MeasuringJournal(path, header)
        return cls(builder, journal, reference, evaluator, batched, _limit_s=journal.known.quiet_s)

    def measure(self, vector: Vector) -> None:
        """Builds a policy; scores and times its artifact unless that was done for an equal one."""
        known = self.journal.known
        if vector in known.artifacts or vector in known.refused:
            return
        try:
            artifact = self.builder.build(self.builder.space.decode(vector))
        except PolicyError as error:
            self.journal.append({"kind": "refused", "vector": list(vector), "error": str(error)})
            return
        digest = digest_of(artifact)
        if digest not in known.scores and digest not in known.failures:
            self._score_and_time(artifact, digest)
        line = {"kind": "policy", "vector": list(vector), "artifact": digest, "size_bytes": artifact.size_bytes}
        self.journal.append(line)

    def repeat(self, vector: Vector) -> None:
        """Loads and times the artifact of a policy once more."""
        artifact = self.builder.build(self.builder.space.decode(vector))
        self._time(self.builder.device.load(artifact), digest_of(artifact))

    def unquiet(self) -> list[Vector]:
        """Returns a vector for each artifact without an undisturbed timing, in the order of the journal."""
        self._limit_s = self.journal.known.quiet_s
        return self._find(lambda digest: not self.journal.known.quiet(digest, self._limit_s))

    def once_timed(self, name: str) -> list[Vector]:
        """Returns the vectors of the artifacts that are to be repeated and have one undisturbed timing so far."""
        limit_s, known = self.journal.known.quiet_s, self.journal.known
        return self._find(
            lambda digest: derive_rng(name, digest).random() < REPEATED and len(known.quiet(digest, limit_s)) < 2
        )

    def fastest(self) -> list[Vector]:
        """Returns the vectors of the fastest usable artifacts that have too few undisturbed timings so far."""
        limit_s, known = self.journal.known.quiet_s, self.journal.known
        ratios: dict[str, float] = {}
        for digest, (_, drop, _) in known.scores.items():
            if drop <= _USABLE_DROP and (quiet := known.quiet(digest, limit_s)):
                ratios[digest] = float(np.mean([timing.ratio for timing in quiet]))
        ranked = sorted(ratios, key=lambda digest: ratios[digest])
        chosen = set(ranked[: math.ceil(_FASTEST * len(ranked))])
        return self._find(lambda digest: digest in chosen and len(known.quiet(digest, limit_s)) < _N_TIMED)

    def _find(self, wanted: Callable[[str], bool]) -> list[Vector]:
        known = self.journal.known
        first: dict[str, Vector] = {}
        for vector, digest in known.artifacts.items():
            if digest in known.scores:
                first.setdefault(digest, vector)
        return [vector for digest, vector in first.items() if wanted(digest)]

    def _score_and_time(self, artifact: Artifact, digest: str) -> None:
        try:
            executable = self.builder.device.load(artifact)
            score = self.evaluator.score(executable if self.batched is None else self.batched.load(artifact))
        except MeasurementError as error:
            self.journal.append({"kind": "failure", "artifact": digest, "error": str(error)})
            return
        drop = score.accuracy_drop
        self._time(executable, digest)
        self.journal.append(
            {"kind": "score", "artifact": digest, "accuracy": score.accuracy.mean, "drop": drop.mean,
             "error": drop.standard_error}
        )  # fmt: skip

    def _time(self, executable: Executable, digest: str) -> None:
        for _ in range(_N_TRIES):
            try:
                latency = measure_latency(executable, self.reference, self.builder.sample, self.timing)
            except MeasurementError:
                continue  # unstable: a later pass times it again
            self.journal.append(
                {"kind": "timing", "artifact": digest, "median_s": latency.median_s, "iqr_s": latency.iqr_s,
                 "runs": latency.runs, "reference_s": latency.reference_s}
            )  # fmt: skip
            if (latency.reference_s or 0.0) <= self._limit_s:
                return


def digest_of(artifact: Artifact) -> str:
    """Returns what tells artifacts apart: their bytes, and how the runtime is set for them."""
    settings = (artifact.precision, *artifact.full_precision, "dynamic" if artifact.dynamic_activations else "")
    return f"{artifact.sha256[:24]} {' '.join(settings).strip()}"


def measure_table(name: str, journal: Path, console: Console) -> None:
    """Measures what is still missing of a recipe."""
    recipe = find_recipe(name)
    measuring = Measuring.open(TableBuilder.open(recipe), journal)
    gc.collect()
    gc.freeze()  # what lives until the end needs no collecting before each timing
    vectors = [tuple(int(entry) for entry in row) for row in recipe.vectors()]
    console.print(f"{name}: {len(vectors)} policies, {measuring.journal.known.n_policies} known")
    _work("measured", vectors, measuring.measure, measuring, console)
    for number in range(_N_PASSES):
        _work(f"pass {number + 1}", measuring.unquiet(), measuring.repeat, measuring, console)
        _work("repeated", measuring.once_timed(name), measuring.repeat, measuring, console)
    for _ in range(_N_PASSES * _N_TIMED):  # those whose first timing was luck make room for others
        if todo := measuring.fastest():
            _work("timed again", todo, measuring.repeat, measuring, console)
    measuring.journal.close()


def _work(
    label: str, vectors: Iterable[Vector], step: Callable[[Vector], None], measuring: Measuring, console: Console
) -> None:
    started_s = told_s = time.monotonic()
    todo = list(vectors)
    for number, vector in enumerate(todo):
        step(vector)
        if number % 50 == 0:
            measuring._limit_s = measuring.journal.known.quiet_s
        if time.monotonic() - told_s > 30.0:
            told_s = time.monotonic()
            console.print(f"{label} {number + 1} of {len(todo)} in {told_s - started_s:.0f} s")
    console.print(f"{label} {len(todo)} in {time.monotonic() - started_s:.0f} s")


def journal_path(name: str) -> Path:
    """Returns where the journal of a recipe is kept."""
    return cache_folder() / "tabulated" / f"{name}.jsonl"


def main(name: str, out: Path = TABLE_FOLDER) -> None:
    """Measures a recipe and writes its table into a folder; what was known beforehand is kept."""
    os.nice(_NICENESS)
    console, recipe = Console(width=120), find_recipe(name)
    measure_table(name, journal_path(name), console)
    vectors = [tuple(int(entry) for entry in row) for row in recipe.vectors()]
    table = assemble_table(name, recipe.space, vectors, read_measurings(journal_path(name)))
    path = out / f"{name}.npz"
    if path.exists() and (known := read_table(path)).space == table.space:
        table = table.with_knowledge(known.knowledge)
    write_table(path, table)
    console.print(f"{path} has {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    typer.run(main)

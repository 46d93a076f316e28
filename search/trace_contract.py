"""What a whole search must keep with every algorithm: one trace, whatever the workers and whenever the process dies."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .controller import SearchPlan, SilentObserver, run_search
from .journal import Journal
from .record import Record
from .testing import informed_problem, policy_of
from .worker_pool import WorkerPool

#: the synthetic problem with all that can be known of it: its space has 256 policies
PROBLEM = informed_problem()


def plan_of(algorithm: str, *, n_trials: int = 14) -> SearchPlan:
    """Returns a small plan: two baselines, one start, and batches that do not divide the trials."""
    space = PROBLEM.space
    baselines = (("untouched", policy_of(space, [0] * 4)), ("uniform", policy_of(space, [2] * 4)))
    return SearchPlan(
        PROBLEM,
        baselines=baselines,
        starts=(("given", policy_of(space, [1, 2, 0, 3])),),
        algorithm=algorithm,
        n_trials=n_trials,
        seed=5,
    )


def search_trace(plan: SearchPlan, pool: WorkerPool, path: Path) -> list[Record]:
    """Searches, or goes on with the journal at ``path``; returns the records without what they cost."""
    with Journal.open(path) if path.exists() else Journal.create(path, {}) as journal:
        records = run_search(plan, pool, journal, SilentObserver())
    return [replace(record, cost_s=0.0) for record in records]


def check_traces_agree(plan: SearchPlan, pools: Sequence[WorkerPool], folder: Path) -> None:
    """Every pool gives the same trace, whatever the number of its workers."""
    traces = [search_trace(plan, pool, folder / f"{plan.algorithm}-{i}") for i, pool in enumerate(pools)]
    if any(trace != traces[0] for trace in traces):
        raise AssertionError(f"the trace of '{plan.algorithm}' must not depend on the pool")


def check_goes_on_after_death(plan: SearchPlan, pool: WorkerPool, journal_path: Path, folder: Path) -> None:
    """A journal whose writer was killed goes on to the trace of a search that nothing happened to."""
    with Journal.open(journal_path) as journal:
        n_before = len(journal.records)
    if not 0 < n_before < plan.n_trials:
        raise AssertionError(f"the search must have been killed in the middle, {n_before} trials were done")
    whole = search_trace(plan, pool, folder / f"{plan.algorithm}-whole")
    if search_trace(plan, pool, journal_path) != whole:
        raise AssertionError(f"'{plan.algorithm}' must go on as if it had not been killed")


class Dying(SilentObserver):
    """Kills its own process, as ``kill -9`` does, when so many records are in the journal."""

    def __init__(self, n_records: int) -> None:
        self._n_left = n_records

    def on_record(self, record: Record, best: Record | None) -> None:  # noqa: ARG002
        """Counts, then dies."""
        self._n_left -= 1
        if self._n_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

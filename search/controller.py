"""The loop of a search: baselines and starts, then ask → run → journal → tell, batch by batch.

The trace of a search (ids, policies, seeds) depends on the plan and on what was measured, never on the number of
workers or their order: the batch size stands in the plan, each trial's seed is derived from its id, and a batch is
told at once, sorted by id. Resuming replays the journal through the same loop, so it needs no state of its own.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..core.errors import RunError, SpecError
from ..core.seeds import derive_seed
from ..spaces.policy import Policy
from .answer import find_best, merit
from .goal import Goal
from .journal import Journal
from .objectives import objective_value
from .problem import Problem
from .record import Record, Status
from .searcher import Searcher, Suggestion, Verdict, build_searcher, give_verdict
from .worker_pool import Job, Outcome, WorkerPool

_log = logging.getLogger(__name__)

#: an error is kept to this many characters in its record; the whole of it is in the log
_MAX_ERROR_LENGTH = 2000


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """What is searched, for what, and when to stop.

    Raises:
        SpecError: a number is out of range.
    """

    problem: Problem
    #: (label, policy) evaluated before anything else, in this order; equivalent ones are evaluated once
    baselines: tuple[tuple[str, Policy], ...] = ()
    #: (label, policy) evaluated next: the solver's front, what another run found, a policy from another device
    starts: tuple[tuple[str, Policy], ...] = ()
    algorithm: str = "auto"
    #: all records count, baselines and starts too; but those are run even when there are more of them
    n_trials: int = 60
    #: policies proposed before anything is told; part of the plan so that the workers do not change the trace
    batch_size: int = 4
    seed: int = 0
    #: wall time of one call of `run_search`, in seconds; None is unlimited
    time_limit_s: float | None = None
    #: stop after this many trials in which the best did not improve; None never
    patience: int | None = None
    #: whether trials are scored on a part of the samples first, and in full only where they can still win
    is_adaptive: bool = False

    def __post_init__(self) -> None:
        for name in ("n_trials", "batch_size", "time_limit_s", "patience"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SpecError(f"{name} must be greater than 0, got {value}")


class Observer(Protocol):
    """Follows a search; the library itself never prints."""

    def on_start(self, n_planned: int, n_done: int) -> None:
        """The search begins; ``n_done`` trials are in the journal already."""
        ...

    def on_record(self, record: Record, best: Record | None) -> None:
        """A trial ended and is in the journal; ``best`` is the best feasible record so far."""
        ...

    def on_stop(self, reason: str) -> None:
        """The search ends: ``trials``, ``time limit``, ``no progress`` or ``space exhausted``."""
        ...


class SilentObserver:
    """Looks away."""

    def on_start(self, n_planned: int, n_done: int) -> None:
        """Does nothing."""

    def on_record(self, record: Record, best: Record | None) -> None:
        """Does nothing."""

    def on_stop(self, reason: str) -> None:
        """Does nothing."""


def run_search(plan: SearchPlan, pool: WorkerPool, journal: Journal, observer: Observer) -> list[Record]:
    """Runs a search, or goes on with the one that the journal holds; returns all records by id.

    Every finished trial is in the journal before anything else happens; an interrupt, or an error of the pool,
    leaves this function after that.

    Raises:
        SpecError: the algorithm is unknown, or the pool cannot be set up.
        RunError: the journal holds trials that this plan would not have proposed, or cannot be written.
        TransientError: the pool has no worker or no device left; resume later.
    """
    searcher = build_searcher(plan.algorithm, plan.problem, seed=plan.seed)
    search = _Search(plan, pool, journal, observer)
    given = [_Proposal(i, policy, origin) for i, (origin, policy) in enumerate(_given(plan))]
    observer.on_start(max(plan.n_trials, len(given)), len(journal.records))
    reason = search.run_given(given, searcher) or search.run_trials(searcher, n_done=len(given))
    observer.on_stop(reason)
    return journal.records


@dataclass(frozen=True, slots=True)
class _Proposal:
    id: int
    policy: Policy
    origin: str


class _Search:
    """One call of `run_search`."""

    def __init__(self, plan: SearchPlan, pool: WorkerPool, journal: Journal, observer: Observer) -> None:
        self._plan, self._problem = plan, plan.problem
        self._pool = pool
        self._journal = journal
        self._observer = observer
        self._deadline_s = None if plan.time_limit_s is None else time.monotonic() + plan.time_limit_s
        self._done = {record.id: record for record in journal.records}
        #: the best among all records that were told
        self._best = find_best(journal.records, plan.problem.budget, plan.problem.objective)

    def run_given(self, given: Sequence[_Proposal], searcher: Searcher) -> str | None:
        """Evaluates baselines and starts and injects them; returns why to stop, or None."""
        size = self._plan.batch_size
        for start in range(0, len(given), size):
            if not self._run_batch(given[start : start + size]):
                return "time limit"
        for proposal in given:
            searcher.inject(proposal.policy, self._judge(self._done[proposal.id], proposal.id))
        return None

    def run_trials(self, searcher: Searcher, *, n_done: int) -> str:
        """Asks, evaluates and tells until there is a reason to stop, which it returns."""
        plan, n_baselines = self._plan, n_done
        while n_done < plan.n_trials:
            if self._has_stalled(n_done, n_baselines):
                return "no progress"
            n_asked = min(plan.batch_size, plan.n_trials - n_done)
            suggestions = searcher.ask(n_asked)
            proposals = [_Proposal(n_done + i, s.policy, plan.algorithm) for i, s in enumerate(suggestions)]
            if not self._run_batch(proposals):
                return "time limit"
            searcher.tell(self._verdicts(proposals, suggestions))
            n_done += len(proposals)
            if len(proposals) < n_asked:
                return "space exhausted"
        return "trials"

    def _run_batch(self, proposals: Sequence[_Proposal]) -> bool:
        """Makes sure that every proposal has a record; returns False when time ran out before that."""
        for proposal in proposals:
            self._check_replay(proposal)
        missing = {proposal.id: proposal for proposal in proposals if proposal.id not in self._done}
        if not missing:
            return True
        if self._is_late():
            return False
        goal = self._goal(before=proposals[0].id)
        outcomes = self._pool.run([Job(p.id, p.policy, self._trial_seed(p.id), goal) for p in missing.values()])
        try:
            for outcome in outcomes:
                self._keep(missing.pop(outcome.id), outcome)
                if missing and self._is_late():
                    return False
        finally:
            # a pool that runs ahead in a generator gives its workers back here, after an interrupt too
            if (close := getattr(outcomes, "close", None)) is not None:
                close()
        return True

    def _goal(self, *, before: int) -> Goal | None:
        """Returns what the trials of a batch are up against: what was known when it began, resumed or not."""
        if not self._plan.is_adaptive:
            return None
        problem = self._problem
        known = [record for record in self._done.values() if record.id < before]
        best = find_best(known, problem.budget, problem.objective)
        value = None if best is None else objective_value(problem.objective, best.measurement, problem.budget)
        return Goal(problem.objective, problem.budget, value)

    def _keep(self, proposal: _Proposal, outcome: Outcome) -> None:
        record = Record(
            id=proposal.id,
            policy=proposal.policy,
            status=outcome.status,
            measurement=outcome.measurement,
            cost_s=outcome.cost_s,
            seed=self._trial_seed(proposal.id),
            origin=proposal.origin,
            error=" ".join(outcome.error.split())[:_MAX_ERROR_LENGTH],
        )
        self._journal.append(record)
        _log.info("trial %d %s %s in %.1f s %s", record.id, record.origin, record.status, record.cost_s, record.error)
        self._done[record.id] = record
        candidates = [record] if self._best is None else [self._best, record]
        self._best = find_best(candidates, self._problem.budget, self._problem.objective)
        self._observer.on_record(record, self._best)

    def _check_replay(self, proposal: _Proposal) -> None:
        record = self._done.get(proposal.id)
        if record is None:
            return
        if (record.policy, record.seed) != (proposal.policy, self._trial_seed(proposal.id)):
            raise RunError(
                f"journal {self._journal.path} was written by another version, spec or seed: trial {proposal.id} "
                f"differs from what would be proposed now; start a new search"
            )

    def _verdicts(self, proposals: Sequence[_Proposal], suggestions: Sequence[Suggestion]) -> list[Verdict]:
        pairs = zip(proposals, suggestions, strict=True)
        verdicts = [self._judge(self._done[proposal.id], suggestion.id) for proposal, suggestion in pairs]
        return sorted(verdicts, key=lambda verdict: verdict.id)

    def _judge(self, record: Record, suggestion_id: int) -> Verdict:
        if record.status is Status.PRUNED:
            return Verdict(suggestion_id, None, math.inf, record.measurement)
        if record.status is not Status.COMPLETE:
            return Verdict(suggestion_id, None, 0.0)
        return give_verdict(self._problem, suggestion_id, record.measurement)

    def _has_stalled(self, n_done: int, n_baselines: int) -> bool:
        """Whether the last `patience` trials brought nothing better; coming closer to the budget counts too."""
        patience = self._plan.patience
        if patience is None or n_done - n_baselines < patience:
            return False
        ranked = []
        for record_id in range(n_done):
            if (key := merit(self._done[record_id], self._problem.budget, self._problem.objective)) is not None:
                ranked.append((key[:2], record_id))
        return not ranked or min(ranked)[1] < n_done - patience

    def _is_late(self) -> bool:
        return self._deadline_s is not None and time.monotonic() >= self._deadline_s

    def _trial_seed(self, trial_id: int) -> int:
        return derive_seed(self._plan.seed, "trial", trial_id)


def _given(plan: SearchPlan) -> list[tuple[str, Policy]]:
    """Returns (origin, policy) of baselines and starts, without those that equal an earlier one."""
    first: dict[Policy, str] = {}
    for kind, pairs in (("baseline", plan.baselines), ("start", plan.starts)):
        for label, policy in pairs:
            first.setdefault(policy, f"{kind}:{label}")
    return [(origin, policy) for policy, origin in first.items()]

"""What is expected of policies that differ from one in a single group, from all that a run has measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ...evaluators.measurement import Measurement
from ...search.beliefs.beliefs import Beliefs, Believed, Trial, fit_beliefs
from ...search.budget import Budget
from ...search.problem import Problem
from ...search.record import Record, Status
from ...search.solver.additive_cost import AdditiveCost
from ...spaces.treatment import Treatment


@dataclass(frozen=True, slots=True)
class Difference:
    """Another policy's value minus this one's."""

    value: float
    #: standard error where both were measured, else the standard deviation of what is believed of the other
    error: float
    is_measured: bool

    @property
    def is_clear(self) -> bool:
        """Whether the difference is larger than twice its error."""
        return abs(self.value) > 2 * self.error


@dataclass(frozen=True, slots=True)
class Change:
    """What one option in one group makes of the policy; None where a number is not known."""

    #: of the whole model
    latency_s: Difference | None
    #: of the accuracy drop of the whole model, on validation
    drop: Difference | None
    #: of the file
    size_bytes: float | None
    #: what the option alone does to the output
    sensitivity: float | None
    #: probability that the budget is kept with it
    sureness: float
    #: why the changed policy could not be had; empty where it could, or was not tried
    failure: str
    #: trials of the changed policy
    trials: tuple[int, ...]
    #: groups at whose borders it has to convert, so that it does not pay
    converting: tuple[str, ...]


@dataclass(frozen=True)
class Outlook:
    """Answers what becomes of the whole model when one group of a policy is treated in another way.

    >>> from trimtab.search.testing import fake_measurement, small_problem, policy_of
    >>> problem = small_problem()
    >>> policies = [policy_of(problem.space, [choice] * 4) for choice in range(4)]
    >>> records = [Record(i, p, Status.COMPLETE, fake_measurement(problem.space, p), 0.0, 0, "example")
    ...            for i, p in enumerate(policies)]
    >>> Outlook.of(problem, records, problem.space.encode(policies[1])).trials(0, 1)
    (1,)
    """

    problem: Problem
    #: (n_dimensions,) int64: the policy
    vector: np.ndarray
    #: canonical vector → ids of the trials of that policy
    seen: Mapping[tuple[int, ...], tuple[int, ...]]
    #: id → measurement of the trials that are COMPLETE
    measurements: Mapping[int, Measurement]
    #: ids of trials that could not be built or measured → why
    failures: Mapping[int, str]
    #: the budget and the objective
    beliefs: Beliefs
    #: seconds and drop as they are measured, without the margins that the budget adds; None where no trial had them
    latency: Believed | None
    drop: Believed | None
    #: every change of latency is multiplied by this: the machine may have been slower or quicker when it mattered
    slowness: float = 1.0

    @classmethod
    def of(cls, problem: Problem, records: Sequence[Record], vector: np.ndarray, *, slowness: float = 1.0) -> "Outlook":
        """Fits what is believed to the records.

        Args:
            problem: space, budget, objective and what was known beforehand.
            records: of the space; at least one is COMPLETE.
            vector: (n_dimensions,) int64, the policy in question.
            slowness: seconds of the wanted minute in one of the minute in which the original was first timed.
        """
        encoded = [(record, tuple(map(int, problem.space.encode(record.policy)))) for record in records]
        seen: dict[tuple[int, ...], tuple[int, ...]] = {}
        for record, key in encoded:
            seen[key] = (*seen.get(key, ()), record.id)
        trials = [
            Trial(np.array(key, np.int64), record.measurement if record.status is Status.COMPLETE else None)
            for record, key in encoded
        ]
        return cls(
            problem=problem,
            vector=vector,
            seen=seen,
            measurements={r.id: r.measurement for r in records if r.status is Status.COMPLETE},
            failures={r.id: r.error for r in records if r.status in (Status.FAILED, Status.INFEASIBLE)},
            beliefs=fit_beliefs(problem, trials),
            latency=_believe(problem, trials, "latency"),
            drop=_believe(problem, trials, "accuracy"),
            slowness=slowness,
        )

    def changed(self, group: int, option: int) -> np.ndarray:
        """Returns (n_dimensions,) int64: the policy with another option in one group, in canonical form."""
        vector = self.vector.copy()
        vector[group] = option
        changed: np.ndarray = self.problem.space.canonical(vector[None])[0]
        return changed

    def trials(self, group: int, option: int) -> tuple[int, ...]:
        """Returns the ids of the trials that were the policy with this option in the group."""
        return self.seen.get(tuple(map(int, self.changed(group, option))), ())

    def change(self, group: int, option: int) -> Change:
        """Returns what the option makes of the policy, all else alike: measured where a trial was it, else expected."""
        changed = self.changed(group, option)
        measured = self._measured(tuple(map(int, changed))), self._measured(tuple(map(int, self.vector)))
        size, before = self._size(group, option), self._size(group, int(self.vector[group]))
        influence = self.problem.knowledge.influence
        return Change(
            latency_s=self._change_of_latency(measured, changed),
            drop=self._drop_change(measured) or self._expected_change(self.drop, changed, priced=False),
            size_bytes=None if size is None or before is None else size - before,
            sensitivity=float(influence[group][option]) if influence else None,
            sureness=self.sureness(changed),
            failure=next((self.failures[n] for n in self.trials(group, option) if n in self.failures), ""),
            trials=self.trials(group, option),
            converting=self.converting_neighbours(group, option),
        )

    def _change_of_latency(
        self, measured: tuple[Measurement | None, Measurement | None], changed: np.ndarray
    ) -> Difference | None:
        found = self._latency_change(measured) or self._expected_change(self.latency, changed, priced=True)
        return found and Difference(found.value * self.slowness, found.error * self.slowness, found.is_measured)

    def _measured(self, key: tuple[int, ...]) -> Measurement | None:
        """Returns the measurement of a policy that stands on the most samples."""
        found = [self.measurements[n] for n in self.seen.get(key, ()) if n in self.measurements]
        return max(found, key=lambda m: 0 if m.accuracy is None else m.accuracy.n, default=None)

    def _latency_change(self, measured: tuple[Measurement | None, Measurement | None]) -> Difference | None:
        budget = self.problem.budget
        changed, own = (None if one is None else budget.normalised_latency(one) for one in measured)
        if changed is None or own is None:
            return None
        return Difference(changed[0] - own[0], math.hypot(changed[1], own[1]), is_measured=True)

    def _drop_change(self, measured: tuple[Measurement | None, Measurement | None]) -> Difference | None:
        drops = [None if m is None else m.accuracy_drop for m in measured]
        if drops[0] is None or drops[1] is None or min(drop.n for drop in drops if drop) < self.n_full:
            return None
        error = math.hypot(drops[0].standard_error, drops[1].standard_error)
        return Difference(drops[0].mean - drops[1].mean, error, is_measured=True)

    def _expected_change(self, believed: Believed | None, changed: np.ndarray, *, priced: bool) -> Difference | None:
        knowledge = self.problem.knowledge
        if believed is None or not (knowledge.latency if priced else knowledge.influence):
            return None
        (mean, deviation), (own, _) = _predict(believed, changed), _predict(believed, self.vector)
        return Difference(mean - own, deviation, is_measured=False)

    def _size(self, group: int, option: int) -> float | None:
        sizes = self.problem.knowledge.size_bytes
        return None if sizes is None else float(sizes.unary[group][option])

    def sureness(self, vector: np.ndarray) -> float:
        """Returns the probability that the policy of a vector, (n_dimensions,) int64, keeps the budget."""
        return float(np.exp(self.beliefs.log_probability(vector[None])[0]))

    def untouched(self, group: int) -> int | None:
        """Returns which option leaves the group as it is; None where that is not on offer."""
        options = self.problem.space.options[group]
        return options.index(Treatment()) if Treatment() in options else None

    def converting_neighbours(self, group: int, option: int) -> tuple[str, ...]:
        """Returns the groups at whose borders this option has to convert, so that it does not pay.

        That is so where the kernel table says that the option costs time among these neighbours, and that it would save
        time if they were treated so that their borders cost least.
        """
        cost, own = self._price, int(self.vector[group])
        if cost is None:
            return ()
        change = float(cost.unary[group][option] - cost.unary[group][own])
        best, lost = change, []
        for edge, table in cost.edges.items():
            if group not in edge:
                continue
            index = [int(self.vector[g]) for g in edge]
            position = edge.index(group)
            now = float(np.take(table, option, position)[tuple(index[:position] + index[position + 1 :])])
            before = float(table[tuple(index)])
            cheapest = float(np.take(table, option, position).min())
            change += now - before
            best += cheapest - before
            if cheapest < now:
                lost += [g for g in edge if g != group]
        names = dict.fromkeys(self.problem.space.groups[g].name for g in lost)
        return tuple(names) if change > 0.0 > best else ()

    @cached_property
    def n_full(self) -> int:
        """The most samples on which a trial was scored: those of the validation split."""
        return max((m.accuracy.n for m in self.measurements.values() if m.accuracy is not None), default=0)

    @cached_property
    def _price(self) -> AdditiveCost | None:
        return self.problem.knowledge.price(tuple(map(int, self.vector[len(self.problem.space.groups) :])))


def _believe(problem: Problem, trials: Sequence[Trial], objective: str) -> Believed | None:
    """Fits one quantity by itself, as it is measured."""
    free = Budget(reference_s=problem.budget.reference_s)
    known = [t.measurement for t in trials if t.measurement is not None]
    part = "latency" if objective == "latency" else "accuracy_drop"
    if not any(getattr(measurement, part) is not None for measurement in known):
        return None
    return fit_beliefs(replace(problem, budget=free, objective=objective), trials).objective


def _predict(believed: Believed, vector: np.ndarray) -> tuple[float, float]:
    mean, deviation = (float(part[0]) for part in believed.predict(vector[None]))
    return believed.quantity.readable(mean, deviation)

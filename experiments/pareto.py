"""Another budget, answered from what a run knows already: nothing is built or measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from pydantic import ValidationError

from ..core.errors import RunError, SpecError
from ..core.names import describe_unknown
from ..evaluators.measurement import Measurement
from ..search.answer import Answer, answer, rank_records
from ..search.beliefs.beliefs import Beliefs, Trial, fit_beliefs
from ..search.budget import BOUNDS, Budget
from ..search.journal import read_records
from ..search.knowledge import Knowledge
from ..search.objectives import BOUND_OF
from ..search.problem import Problem
from ..search.record import Record, Status
from ..search.searchers.candidates import neighbours_of
from ..search.searchers.solved import believed_reach, solve_believed
from ..spaces.policy import Policy
from .budgets import resolve_budget
from .result_file import ResultFile
from .run_folder import RunFolder
from .spec import BudgetSpec
from .spec_file import read_spec

#: policies that were never measured are shown up to this many, where they promise more than the best measured one
_N_UNTRIED = 3
#: an untried policy is shown where it keeps the budget at least this surely
_LEAST_SURE = 0.5


@dataclass(frozen=True)
class Tried:
    """A policy that was measured, and how surely it keeps the budget when it is measured again."""

    record: Record
    #: probability, 0 to 1: each bound by the standard error of its own measurement, taken for independent
    sureness: float


@dataclass(frozen=True)
class Untried:
    """A policy that was never measured: what is believed of it."""

    policy: Policy
    #: probability, 0 to 1, that it keeps the budget
    sureness: float
    #: quantity → (expected value, standard deviation), in seconds, bytes, joules or as a drop
    expected: Mapping[str, tuple[float, float]]
    #: expected objective over that of the best measured policy; None where none keeps the budget
    ratio: float | None


@dataclass(frozen=True)
class BudgetAnswer:
    """What a run says to another budget."""

    budget: Budget
    objective: str
    #: the best measured policy that keeps it; None where none does
    best: Tried | None
    #: measured policies that come next, or nearest where none keeps the budget
    answer: Answer
    #: policies that are believed to be better, the most promising first
    untried: tuple[Untried, ...]
    #: where none keeps the budget: bound → the least value that is believed to be reachable within the other bounds
    reachable: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Returns the answer as JSON values."""
        nearest = self.answer.nearest
        return {
            "objective": self.objective,
            "budget": {name: getattr(self.budget, name) for name, *_ in BOUNDS},
            "best": None if self.best is None else {**self.best.record.to_json(), "sureness": self.best.sureness},
            "nearest": None if nearest is None else nearest.to_json(),
            "relaxations": self.answer.relaxations,
            "reachable": dict(self.reachable),
            "untried": [
                {
                    "policy": found.policy.to_json(),
                    "sureness": found.sureness,
                    "expected": {name: list(pair) for name, pair in found.expected.items()},
                    "ratio": found.ratio,
                }
                for found in self.untried
            ],
        }


def read_bounds(texts: Iterable[str]) -> dict[str, Any]:
    """Reads bounds as a command line has them: ``latency=3ms``, ``accuracy_drop=0.02``, ``size_mb=none``.

    Raises:
        SpecError: a text is not a bound with a value, or names one that is not known.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, separator, value = (part.strip() for part in text.partition("="))
        if not separator or not value:
            raise SpecError(f"budget: '{text}' must be a bound and its value, such as latency=3ms")
        if name not in BudgetSpec.model_fields:
            raise SpecError(describe_unknown("bound", name, BudgetSpec.model_fields))
        found[name] = None if value == "none" else value
    return found


def answer_budget(run: str | Path, budget: Mapping[str, Any], *, objective: str | None = None) -> BudgetAnswer:
    """Answers a budget from the journal of a run, while the search may still be running.

    Args:
        run: the run's folder.
        budget: bounds as in a spec: ``{"latency": "3ms"}``; those not named are the run's own, and None lifts one.
        objective: what is minimised; None: what the run minimised.

    Raises:
        RunError: there is no such run, it is damaged, or nothing was measured yet.
        SpecError: a bound is not known or cannot be read.
    """
    folder = RunFolder.open(Path(run))
    spec, original, space = read_spec(folder.spec), folder.read_original(), folder.read_space()
    if original is None or space is None:
        raise RunError(f"{run} has measured nothing yet, or was begun by an earlier version; search first")
    merged = {**spec.budget.model_dump(exclude_none=True), **budget}
    try:
        asked = spec.model_copy(update={"budget": BudgetSpec(**{k: v for k, v in merged.items() if v is not None})})
    except ValidationError as error:
        problem = error.errors()[0]
        raise SpecError(f"budget.{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    resolved = resolve_budget(asked, original)
    question = Problem(space, resolved, objective or spec.objective, folder.read_knowledge() or Knowledge())
    finals = (folder.read_result() or ResultFile()).finals()
    records = [replace(r, measurement=finals.get(r.id, r.measurement)) for r in read_records(folder.journal)]
    return answer_problem(question, records)


def answer_problem(problem: Problem, records: Sequence[Record]) -> BudgetAnswer:
    """Answers a budget from records; see `answer_budget`.

    Raises:
        RunError: nothing was measured.
    """
    found = answer(records, problem.budget, problem.objective)
    best = None if found.best is None else Tried(found.best, _sureness(problem.budget, found.best.measurement))
    trials = [
        Trial(problem.space.encode(record.policy), record.measurement if record.status is Status.COMPLETE else None)
        for record in records
        if problem.space.contains(record.policy)
    ]
    if not any(trial.measurement for trial in trials):
        raise RunError("nothing was measured yet; let the search go on")
    beliefs = fit_beliefs(problem, trials)
    starts = _best_vectors(problem, records)
    untried = _find_untried(problem, beliefs, trials, starts)
    reachable = {} if best is not None else _reach(problem, beliefs, starts, found)
    return BudgetAnswer(problem.budget, problem.objective, best, found, untried, reachable)


def _sureness(budget: Budget, measurement: Measurement) -> float:
    """Returns the probability that all bounds are kept, by the standard errors of the measurement."""
    sure = 1.0
    for name, *_ in BOUNDS:
        limit = getattr(budget, name)
        if limit is None:
            continue
        pair = _mean_and_error(budget, name, measurement)
        if pair is None:
            return 0.0
        mean, error = pair
        sure *= float(mean <= limit) if error == 0.0 else NormalDist(mean, error).cdf(limit)
    return sure


def _mean_and_error(budget: Budget, name: str, measurement: Measurement) -> tuple[float, float] | None:
    if name == "latency_s":
        return budget.normalised_latency(measurement)
    if name == "accuracy_drop":
        drop = measurement.accuracy_drop
        return None if drop is None else (drop.mean, drop.standard_error)
    value = budget.value_of(name, measurement)
    return None if value is None else (value, 0.0)


def _reach(problem: Problem, beliefs: Beliefs, starts: np.ndarray, measured: Answer) -> dict[str, float]:
    """Returns what is believed to be reachable and was not measured yet, by the names of a budget."""
    believed = believed_reach(problem.space, beliefs, starts)
    found = {BOUND_OF.get(name, name): value for name, value in believed.items()}
    known = {name: value for name, value in measured.relaxations.items() if value is not None}
    return {name: value for name, value in found.items() if value < known.get(name, math.inf)}


def _best_vectors(problem: Problem, records: Sequence[Record]) -> np.ndarray:
    """Returns (up to 4, n_dimensions) int64: the best measured policies."""
    space = problem.space
    inside = [record for record in records if space.contains(record.policy)]
    ranked = rank_records(inside, problem.budget, problem.objective)[:4]
    return np.array([space.encode(record.policy) for record in ranked], np.int64).reshape(-1, len(space.dimensions))


def _find_untried(
    problem: Problem, beliefs: Beliefs, trials: Sequence[Trial], starts: np.ndarray
) -> tuple[Untried, ...]:
    """Solves what is believed, and looks around the best that was measured."""
    space = problem.space
    tried = {tuple(map(int, trial.vector)) for trial in trials}
    pool = np.concatenate([solve_believed(space, beliefs, starts, tried), neighbours_of(space, starts[:1])])
    fresh = [vector for vector in dict.fromkeys(map(tuple, pool.tolist())) if vector not in tried]
    if not fresh:
        return ()
    vectors = np.array(fresh, np.int64)
    kept = np.exp(beliefs.log_probability(vectors))
    expected, _ = beliefs.objective.predict(vectors)
    order = np.lexsort((-beliefs.score(vectors),))
    promising = [i for i in order if kept[i] >= _LEAST_SURE and (beliefs.best is None or expected[i] < beliefs.best)]
    return tuple(_describe(problem, beliefs, vectors[i], float(kept[i])) for i in promising[:_N_UNTRIED])


def _describe(problem: Problem, beliefs: Beliefs, vector: np.ndarray, sureness: float) -> Untried:
    expected = {}
    for believed in (beliefs.objective, *beliefs.bounds):
        mean, deviation = (float(part[0]) for part in believed.predict(vector[None]))
        name = believed.quantity.name
        if name != "failure":
            expected[name] = believed.quantity.readable(mean, deviation)
    mean = float(beliefs.objective.predict(vector[None])[0][0])
    ratio = None if beliefs.best is None or math.isclose(beliefs.best, 0.0) else mean / beliefs.best
    return Untried(problem.space.decode(vector), sureness, expected, ratio)

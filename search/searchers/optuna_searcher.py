"""Optuna's samplers behind the `Searcher` protocol: TPE, NSGA-II, NSGA-III and Gaussian processes.

Exact resume by design: before every batch the study is given a fresh sampler, seeded from the search's seed and the
number of the batch. So suggestions are a pure function of the seed, the batch number and the trials told.

Every choice is a CategoricalDistribution: treatments have no order. Measured with 40 choices of 5 alternatives after
200 trials, on one core of a shared Xeon: 12 ms a suggestion for TPE (multivariate; independent TPE needed 34 ms and
found worse policies), 6 ms for NSGA-II and NSGA-III, and 1.5 s after 40 trials for GP, which is therefore meant for
small spaces with dear trials.
"""

import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from ...core.errors import RunError, SpecError
from ...core.seeds import derive_rng, derive_seed
from ...spaces.policy import Policy
from ..problem import Problem
from ..searcher import Suggestion, Verdict
from .unseen import find_unseen

Constraints = Callable[[FrozenTrial], Sequence[float]]

#: where Optuna keeps a trial's constraint values
_CONSTRAINTS = "constraints"
#: budgets exceeded more than this many times over are all equally hopeless; keeps infinities out of the models
_MAX_VIOLATION = 1e3
#: a third of a usual search of 60 trials, so that evolution gets further than its first generation
_POPULATION = 16


@dataclass(frozen=True, slots=True)
class Sampling:
    """What distinguishes one Optuna algorithm from another."""

    #: (seed, constraints) → sampler
    build: Callable[[int, Constraints], BaseSampler]
    #: whether it is told all objectives or only the first
    is_multi_objective: bool = False
    #: where the sampler keeps the generation of a trial; empty where it knows none
    generation: str = ""
    #: proposals in a row that may turn out known before a neighbour of the best is taken instead
    n_proposals: int = 10
    #: what surrounds every batch of proposals
    surround: Callable[[], AbstractContextManager[None]] = nullcontext


def build_tpe(problem: Problem, *, seed: int) -> "OptunaSearcher":
    """Makes a tree-structured Parzen estimator (Bergstra et al. 2011), multivariate, with constant liar."""
    return OptunaSearcher(problem, seed=seed, sampling=Sampling(_tpe_sampler, n_proposals=3))


def build_nsga2(problem: Problem, *, seed: int) -> "OptunaSearcher":
    """Makes an NSGA-II (Deb et al. 2002), which works on the whole trade-off."""
    return OptunaSearcher(problem, seed=seed, sampling=_genetic(NSGAIISampler))


def build_nsga3(problem: Problem, *, seed: int) -> "OptunaSearcher":
    """Makes an NSGA-III (Deb and Jain 2014), which spreads over the whole trade-off by reference points."""
    return OptunaSearcher(problem, seed=seed, sampling=_genetic(NSGAIIISampler))


def build_gp(problem: Problem, *, seed: int) -> "OptunaSearcher":
    """Makes a Gaussian-process search with constrained expected improvement.

    Raises:
        SpecError: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise SpecError("torch is not installed, and algorithm 'gp' needs it; pip install 'trimtab[gp]'")
    # every proposal of a Gaussian process is dear, and after a repetition it tends to repeat itself
    return OptunaSearcher(problem, seed=seed, sampling=Sampling(_gp_sampler, n_proposals=3, surround=_one_thread))


class OptunaSearcher:
    """Asks an Optuna sampler and never suggests a policy twice.

    A proposal that is known already (equal as a canonical policy) is discarded as a failed trial, which no
    sampler learns from: telling its result again would count one observation several times.

    >>> from trimtab.search.testing import small_problem
    >>> len(build_tpe(small_problem(), seed=0).ask(3))
    3
    """

    def __init__(self, problem: Problem, *, seed: int, sampling: Sampling) -> None:
        self._space = problem.space
        self._seed = seed
        self._sampling = sampling
        self._choices: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(range(n)) for name, n in problem.space.dimensions.items() if n > 1
        }
        self._n_asks = 0
        #: policies of the space that were suggested or injected → number of the study's trial
        self._numbers: dict[Policy, int] = {}
        self._violations: dict[int, float] = {}
        self._begin(n_objectives=1)

    def ask(self, n: int) -> list[Suggestion]:
        """Returns up to n suggestions; fewer only when the space is exhausted."""
        with _quiet(), self._sampling.surround():
            self._renew_sampler()
            self._n_asks += 1
            found: list[Suggestion] = []
            while len(found) < n and (suggestion := self._suggest()):
                found.append(suggestion)
        return found

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Learns from verdicts on earlier suggestions, by id, in any order.

        Raises:
            RunError: a verdict's id is not open, or its number of objectives differs from earlier ones.
        """
        for verdict in verdicts:
            trials = self._trials()
            if not 0 <= verdict.id < len(trials) or trials[verdict.id].state is not TrialState.RUNNING:
                raise RunError(f"verdict on suggestion {verdict.id}, which is not open")
            values = self._values(verdict.objectives)
            self._violations[verdict.id] = min(verdict.violation, _MAX_VIOLATION)
            with _quiet():
                self._study.tell(verdict.id, values, state=_state_of(values, verdict.violation))

    def inject(self, policy: Policy, verdict: Verdict) -> None:
        """Learns from a policy that it did not suggest; one outside the space, or known, is left aside."""
        if policy in self._numbers or not self._space.contains(policy):
            return
        values = self._values(verdict.objectives)
        attrs = self._youngest_generation()
        state = _state_of(values, verdict.violation)
        if state is not TrialState.FAIL:
            attrs[_CONSTRAINTS] = [min(verdict.violation, _MAX_VIOLATION)]
        self._numbers[policy] = self._add(self._params(policy), state, values=values, attrs=attrs)

    def state_dict(self) -> dict[str, Any]:
        """Returns the whole state as JSON values."""
        suggested = set(self._numbers.values())
        return {
            "n_asks": self._n_asks,
            "n_objectives": self._n_objectives,
            "study_attrs": dict(self._storage.get_study_system_attrs(self._study_id)),
            "trials": [_trial_to_json(trial, trial.number in suggested) for trial in self._trials()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state that `state_dict` returned."""
        self._n_asks = state["n_asks"]
        self._numbers, self._violations = {}, {}
        self._begin(n_objectives=state["n_objectives"])
        for key, value in state["study_attrs"].items():
            self._storage.set_study_system_attr(self._study_id, key, value)
        for entry in state["trials"]:
            params, attrs = entry["params"], dict(entry["attrs"])
            number = self._add(params, TrialState[entry["state"]], values=entry["values"], attrs=attrs)
            if params is not None:
                self._numbers[self._policy(params)] = number

    def _begin(self, *, n_objectives: int) -> None:
        self._n_objectives = n_objectives
        self._storage = optuna.storages.InMemoryStorage()
        with _quiet():
            self._study = optuna.create_study(storage=self._storage, directions=["minimize"] * n_objectives)
        self._study_id = self._storage.get_study_id_from_name(self._study.study_name)
        self._renew_sampler()

    def _renew_sampler(self) -> None:
        seed = derive_seed(self._seed, "ask", self._n_asks) % 2**32  # numpy's RandomState takes 32 bits
        with _quiet():
            self._study.sampler = self._sampling.build(seed, lambda trial: (self._violations[trial.number],))

    def _suggest(self) -> Suggestion | None:
        if len(self._numbers) >= self._space.size:
            return None
        for _ in range(self._sampling.n_proposals):
            trial = self._study.ask(self._choices)
            policy = self._policy(trial.params)
            if policy not in self._numbers:
                self._numbers[policy] = trial.number
                return Suggestion(trial.number, policy)
            self._study.tell(trial, state=TrialState.FAIL)
        unseen = find_unseen(self._space, self._numbers.keys(), self._ranked())
        if unseen is None:
            unseen = self._space.sample(derive_rng(self._seed, "sample", self._n_asks))
        self._numbers[unseen] = self._add(self._params(unseen), TrialState.RUNNING, attrs=self._youngest_generation())
        return Suggestion(self._numbers[unseen], unseen)

    def _ranked(self) -> list[Policy]:
        """Returns the known policies, the best first, those without a result last."""
        trials = self._trials()

        def rank(policy: Policy) -> tuple[float, float, int]:
            trial = trials[self._numbers[policy]]
            if trial.state is not TrialState.COMPLETE:
                return (math.inf, 0.0, trial.number)
            return (sum(trial.system_attrs[_CONSTRAINTS]), trial.values[0], trial.number)

        return sorted(self._numbers, key=rank)

    def _add(
        self,
        params: dict[str, Any] | None,
        state: TrialState,
        *,
        values: Sequence[float] | None = None,
        attrs: dict[str, Any] | None = None,
    ) -> int:
        """Adds a trial that Optuna did not propose, or did propose in an earlier life; returns its number."""
        trial = optuna.trial.create_trial(
            state=state,
            values=values,
            params=params,
            distributions=self._choices if params is not None else None,
            system_attrs=attrs,
        )
        self._study.add_trial(trial)
        return len(self._trials()) - 1

    def _youngest_generation(self) -> dict[str, Any]:
        """Returns the attributes that let a trial from outside become a parent in NSGA-II and NSGA-III."""
        if not (key := self._sampling.generation):
            return {}
        return {key: max((trial.system_attrs.get(key, 0) for trial in self._trials()), default=0)}

    def _values(self, objectives: tuple[float, ...] | None) -> list[float] | None:
        """Returns what the study is told; rebuilds it when the first result shows how many objectives there are."""
        if objectives is None or not all(math.isfinite(value) for value in objectives):
            return None
        values = list(objectives) if self._sampling.is_multi_objective else [objectives[0]]
        if len(values) != self._n_objectives:
            if any(trial.state is TrialState.COMPLETE for trial in self._trials()):
                raise RunError(f"a verdict has {len(values)} objectives, earlier ones had {self._n_objectives}")
            self.load_state_dict({**self.state_dict(), "n_objectives": len(values)})
        return values

    def _trials(self) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._study_id, deepcopy=False)

    def _policy(self, params: dict[str, Any]) -> Policy:
        return self._space.decode([params.get(name, 0) for name in self._space.dimensions])

    def _params(self, policy: Policy) -> dict[str, Any]:
        entries = dict(zip(self._space.dimensions, self._space.encode(policy).tolist(), strict=True))
        return {name: entries[name] for name in self._choices}


def _state_of(values: Sequence[float] | None, violation: float) -> TrialState:
    """Returns how Optuna is told: of what failed no sampler learns, of what was stopped TPE learns that it is bad."""
    if values is not None:
        return TrialState.COMPLETE
    return TrialState.PRUNED if math.isinf(violation) else TrialState.FAIL


def _trial_to_json(trial: FrozenTrial, is_suggested: bool) -> dict[str, Any]:
    """Returns a trial as JSON; a discarded proposal keeps only its place in the numbering."""
    return {
        "state": trial.state.name,
        "params": trial.params if is_suggested else None,
        "values": trial.values,
        "attrs": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in trial.system_attrs.items()
            if is_suggested
        },
    }


def _tpe_sampler(seed: int, constraints: Constraints) -> BaseSampler:
    return TPESampler(seed=seed, multivariate=True, constant_liar=True, constraints_func=constraints)


def _genetic(algorithm: type[NSGAIISampler] | type[NSGAIIISampler]) -> Sampling:
    def build(seed: int, constraints: Constraints) -> BaseSampler:
        return algorithm(seed=seed, population_size=_POPULATION, constraints_func=constraints)

    return Sampling(build, is_multi_objective=True, generation=f"{algorithm.__name__}:generation")


def _gp_sampler(seed: int, constraints: Constraints) -> BaseSampler:
    return GPSampler(seed=seed, constraints_func=constraints, warn_independent_sampling=False)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps torch on one thread: its tensors are tiny here, and on a busy machine threads made it 12 times slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Optuna's own warnings (experimental, deprecated) and log lines away from the user."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)

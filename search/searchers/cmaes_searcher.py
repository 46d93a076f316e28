"""CMA-ES with margin: a normal distribution over ordered choices.

R. Hamano et al., CMA-ES with Margin, GECCO 2022, as `cmaes.CMAwM` has it: the covariance matrix adaptation evolution
strategy with integers, in which no alternative's probability falls to nothing. CMA-ES knows only numbers, and a
choice of treatments is none; so each choice becomes one coordinate on which its options stand at equal distances *in
an order*: the dearest first, by the latency (else the size, else the influence) that is known of each, else by the
bits that a treatment leaves of a weight and of its input. Where that order says little about an option, so does a
step along the coordinate. Graph-wide choices keep the order in which they are listed, which means nothing: CMA-ES is
weak at them.

Optuna's CmaEsSampler is not used: it keeps its optimiser pickled in the study. Here the optimiser is worked out anew
at every `ask` from the seed and the results: draw i of generation g has its own seed.
"""

from collections.abc import Iterator

import numpy as np
from cmaes import CMAwM

from ...core.seeds import derive_seed
from ...spaces.policy import Policy
from ...spaces.treatment import Treatment
from ..problem import Problem
from .replaying_searcher import ReplayingSearcher
from .tried import Tried

#: standard deviation at the start, of coordinates from 0 to 1: as in Optuna; 0.3 was worse on the synthetic problem
_SIGMA = 1.0 / 6.0
#: generations without a policy that was not tried, after which the distribution counts as settled
_MAX_IDLE = 20

_BITS = {"float32": 32, "float16": 16, "float8": 8, "int8": 8, "int4": 4, "binary": 1}


def build_cmaes(problem: Problem, *, seed: int) -> ReplayingSearcher:
    """Makes a CMA-ES with margin, which starts from the best policy that was injected before its first suggestion.

    >>> from trimtab.search.testing import small_problem
    >>> len(build_cmaes(small_problem(), seed=0).ask(3))
    3
    """
    return ReplayingSearcher(problem, seed=seed, propose=_propose)


def option_orders(problem: Problem) -> list[np.ndarray]:
    """Returns per choice (n_alternatives,) int64: the alternatives in the order of their coordinate."""
    space, knowledge = problem.space, problem.knowledge
    known = [cost.unary for cost in knowledge.latency.values()]
    if known:
        costs = [np.mean([unary[g] for unary in known], axis=0) for g in range(len(space.groups))]
    elif knowledge.size_bytes is not None:
        costs = list(knowledge.size_bytes.unary)
    elif knowledge.influence:
        costs = [-influence for influence in knowledge.influence]
    else:
        costs = [np.array([_bits(option) for option in options]) for options in space.options]
    orders = [np.argsort(-cost, kind="stable") for cost in costs]
    return [*orders, *(np.arange(size) for size in list(space.dimensions.values())[len(space.groups) :])]


def _bits(treatment: Treatment) -> float:
    """Returns the bits left of an element of the weight, and of its input, by what the treatment says."""
    weight = float(_BITS[treatment.weight_dtype])
    if treatment.clusters:
        weight = min(weight, float(np.log2(treatment.clusters)))
    if treatment.binary != "none":
        weight = 1.0 if treatment.binary == "binary" else float(np.log2(3))
    return treatment.keep_channels * treatment.rank * (1.0 - treatment.sparsity) * (
        weight + _BITS[treatment.activation_dtype]
    )  # fmt: skip


def _propose(problem: Problem, tried: Tried, seed: int) -> Iterator[Policy]:
    axes = _Axes(problem)
    if not len(axes.free):
        return
    ranks = {result.policy: float(rank) for rank, result in enumerate(tried.ranked())}
    ranks |= {policy: float(len(ranks)) for policy, result in tried.results.items() if result.is_hopeless}
    optimiser = axes.optimiser(tried)
    n_idle = 0
    while n_idle < _MAX_IDLE:
        valued: list[tuple[np.ndarray, float]] = []
        n_draws, n_new = 0, 0
        while len(valued) < optimiser.population_size:
            optimiser.reseed_rng(derive_seed(seed, "draw", optimiser.generation, n_draws) % 2**32)
            n_draws += 1
            point, raw = optimiser.ask()
            policy = axes.policy(point)
            if policy in ranks:
                valued.append((raw, ranks[policy]))
                continue
            n_new += policy not in tried
            yield policy
        # the result of a policy that was tried before counts again: drawing it is what the distribution has learned
        optimiser.tell(valued)
        n_idle = 0 if n_new else n_idle + 1


class _Axes:
    """The coordinates, from 0 to 1, one for each choice of two alternatives or more."""

    def __init__(self, problem: Problem) -> None:
        self._space = problem.space
        self._sizes = np.array(list(problem.space.dimensions.values()))
        self.free = np.flatnonzero(self._sizes > 1)
        self._orders = option_orders(problem)

    def optimiser(self, tried: Tried) -> CMAwM:
        """Makes an optimiser that starts at the best policy that was injected; in the middle without one."""
        injected = [result for result in tried.ranked() if result.number is None]
        mean = self._coordinates(injected[0].vector) if injected else np.full(len(self.free), 0.5)
        bounds = np.tile([0.0, 1.0], (len(self.free), 1))
        return CMAwM(mean=mean, sigma=_SIGMA, bounds=bounds, steps=1.0 / (self._sizes[self.free] - 1), seed=0)

    def policy(self, point: np.ndarray) -> Policy:
        """Returns the policy at a point of the grid."""
        vector = np.zeros(len(self._sizes), int)
        steps = np.rint(point * (self._sizes[self.free] - 1)).astype(int)
        vector[self.free] = [self._orders[i][step] for i, step in zip(self.free, steps, strict=True)]
        return self._space.decode(vector)

    def _coordinates(self, vector: np.ndarray) -> np.ndarray:
        steps = [list(self._orders[i]).index(vector[i]) for i in self.free]
        coordinates: np.ndarray = np.array(steps) / (self._sizes[self.free] - 1)
        return coordinates

"""A controller that walks the layers and draws what happens to each: policy gradient.

In the manner of AMC (Y. He et al., AMC: AutoML for Model Compression, ECCV 2018) and HAQ (K. Wang et al., HAQ:
Hardware-Aware Automated Quantization, CVPR 2019), but for tens of trials instead of hundreds of thousands: one
softmax over the options of each choice, linear in what the controller sees of it (the choice itself, its role, its
place, what the option saves and what it does to the output where that is known, the action before it), trained by
REINFORCE with a moving baseline (R. Williams, Simple statistical gradient-following algorithms, Machine Learning 8,
1992). The reward is the rank among all results, what keeps the budget first: so no scale has to be chosen.

As in AMC actions are limited so that every walk ends within the budget: an option that even the cheapest completion
of the rest could not make good is not drawn. What is cheap and what the budget allows is a matter of prices: latency,
size and bytes alive as `Knowledge` has them, accuracy by the influences, brought to scale by measured drops. Where
nothing is known, or nothing is within the budget by these prices, no action is limited.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np

from ...core.seeds import derive_rng
from ...spaces.policy import Policy
from ..problem import Problem
from .fence import Fence
from .prices import known_prices
from .replaying_searcher import ReplayingSearcher
from .roles import find_roles
from .tried import Result, Tried

#: passes over the results, oldest first, and the step of each; the entropy's weight keeps the softmax from settling:
#: tuned on the synthetic problem, 80 trials
_N_PASSES, _STEP, _ENTROPY = 4, 0.3, 0.1
#: share of the moving baseline that each result replaces
_MOVING = 0.1
#: logits at the start for the option that saves most, and for the one that does most to the output
_SAVING, _INFLUENCE = 2.0, -2.0
#: weights that every option has: of its saving, of its influence, and of being the same as the action before
_N_NUMBERS, _SAME = 3, 2


def build_policy_gradient(problem: Problem, *, seed: int) -> ReplayingSearcher:
    """Makes a controller that walks the layers.

    >>> from trimtab.search.testing import small_problem
    >>> len(build_policy_gradient(small_problem(), seed=0).ask(3))
    3
    """
    return ReplayingSearcher(problem, seed=seed, propose=_propose)


def _propose(problem: Problem, tried: Tried, seed: int) -> Iterator[Policy]:
    rng = derive_rng(seed, "ask", tried.n_asks)
    ranked = tried.ranked()
    controller = _Controller(problem)
    if not len(controller.walk):
        return
    controller.learn(tried.known(), ranked)
    fence = cache(lambda graph: Fence(problem, known_prices(problem, graph, ranked), graph, ranked))
    n_groups = len(problem.space.groups)
    while True:
        vector = np.zeros(len(problem.space.dimensions), int)
        for step in range(controller.n_graph):
            controller.act(vector, step, None, rng)
        limits = fence(tuple(vector[n_groups:].tolist())).open()
        for step in range(controller.n_graph, len(controller.walk)):
            position = controller.walk[step]
            controller.act(vector, step, limits.allowed(position), rng)
            limits.take(position, int(vector[position]))
        yield problem.space.decode(vector)


class _Controller:
    """A softmax for each choice, linear in shared features; first the graph-wide choices, then layer by layer."""

    def __init__(self, problem: Problem) -> None:
        space = problem.space
        sizes = list(space.dimensions.values())
        free = [i for i, size in enumerate(sizes) if size > 1]
        graph = [i for i in free if i >= len(space.groups)]
        self.n_graph = len(graph)
        self.walk = np.array([*graph, *(i for i in free if i < len(space.groups))], int)
        shape = (len(self.walk), max([sizes[i] for i in free], default=1))
        self._is_option = np.arange(shape[1]) < np.array([sizes[i] for i in self.walk], int)[:, None]
        self._features, self._values, self._tokens = _features(problem, self.walk, shape)
        self._weights = np.zeros(self._features.max(initial=_N_NUMBERS) + 1)
        self._weights[:_N_NUMBERS] = _SAVING, _INFLUENCE, 0.0
        self._table = np.zeros(shape)

    def learn(self, known: list[Result], ranked: list[Result]) -> None:
        """Follows the gradient of the expected reward along all results, the oldest first."""
        n = len(ranked)
        if n < 2:
            return
        rewards = {result.policy: 1.0 - 2.0 * rank / (n - 1) for rank, result in enumerate(ranked)}
        baseline = 0.0
        for _ in range(_N_PASSES):
            for result in known:
                reward = rewards[result.policy]
                self._step(result.vector[self.walk], reward - baseline)
                baseline += _MOVING * (reward - baseline)

    def act(self, vector: np.ndarray, step: int, allowed: np.ndarray | None, rng: np.random.Generator) -> None:
        """Draws one choice into the vector, among what is allowed."""
        previous = self._tokens[step - 1, vector[self.walk[step - 1]]] if step else -1
        logits = self._logits(slice(step, step + 1), np.array([previous]))[0]
        mask = self._is_option[step].copy()
        if allowed is not None:
            mask[: len(allowed)] &= allowed
        vector[self.walk[step]] = rng.choice(len(logits), p=_softmax(logits, mask))

    def _step(self, actions: np.ndarray, advantage: float) -> None:
        rows = np.arange(len(actions))
        previous = np.concatenate([[-1], self._tokens[rows, actions][:-1]])
        shares = _softmax(self._logits(slice(None), previous), self._is_option)
        # ∇ log π of what was done, times the advantage, plus the gradient of the entropy
        slope = -advantage * shares
        slope[rows, actions] += advantage
        surprise = -np.log(np.where(shares > 0.0, shares, 1.0))
        slope += _ENTROPY * shares * (surprise - (shares * surprise).sum(axis=1, keepdims=True))
        self._table += _STEP * slope
        shared = np.bincount(
            self._features.ravel(), (slope[:, :, None] * self._values).ravel(), minlength=len(self._weights)
        )
        shared[_SAME] = (slope * (self._tokens == previous[:, None])).sum()
        # a weight that all choices share moves with all of them at once
        self._weights += _STEP * shared / len(actions)

    def _logits(self, rows: slice, previous: np.ndarray) -> np.ndarray:
        shared = (self._weights[self._features[rows]] * self._values[rows]).sum(axis=2)
        is_same = self._tokens[rows] == previous[:, None]
        logits: np.ndarray = self._table[rows] + shared + is_same * self._weights[_SAME]
        return logits


def _features(problem: Problem, walk: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns which weights each option has, their factors, and what the options are.

    The first two are (n_choices, n_options, 5) int64 and float64, the third (n_choices, n_options) int64: options of
    different choices that are the same treatment have the same number.
    """
    space, n_groups = problem.space, len(problem.space.groups)
    sizes = list(space.dimensions.values())
    roles = {position: number for number, role in enumerate(find_roles(space)) for position in role}
    tokens = np.full(shape, -2)
    features, values = np.zeros((*shape, 5), int), np.zeros((*shape, 5))
    features[:, :, 1] = 1
    seen: dict[object, int] = {}
    names: dict[object, int] = {}
    for step, position in enumerate(walk.tolist()):
        place = step / max(len(walk) - 1, 1) - 0.5
        for option in range(sizes[position]):
            what = space.options[position][option] if position < n_groups else (position, option)
            token = tokens[step, option] = seen.setdefault(what, len(seen))
            for slot, name in enumerate((("is", token), ("role", roles[position], token), ("at", token))):
                features[step, option, 2 + slot] = _N_NUMBERS + names.setdefault(name, len(names))
            values[step, option, 2:] = 1.0, 1.0, place
    _add_prices(problem, walk, values)
    return features, values, tokens


def _add_prices(problem: Problem, walk: np.ndarray, values: np.ndarray) -> None:
    """Writes what each option saves and does to the output, as shares of the most that any does; 0 where unknown."""
    n_groups = len(problem.space.groups)
    latency = list(problem.knowledge.latency.values())
    for step, position in enumerate(walk.tolist()):
        if position >= n_groups:
            continue
        costs = [cost.unary[position] for cost in latency]
        if not costs and problem.knowledge.size_bytes is not None:
            costs = [problem.knowledge.size_bytes.unary[position]]
        if costs:
            cost = np.mean(costs, axis=0)
            values[step, : len(cost), 0] = cost[0] - cost
        if problem.knowledge.influence:
            influence = problem.knowledge.influence[position]
            values[step, : len(influence), 1] = influence
    values[:, :, :2] /= np.maximum(np.abs(values[:, :, :2]).max(axis=(0, 1), initial=0.0), 1e-300)


def _softmax(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns float64 shares along the last axis; 0 where the mask is False."""
    top = np.where(mask, logits, -np.inf).max(axis=-1, keepdims=True)
    powers = np.where(mask, np.exp(np.where(mask, logits - top, 0.0)), 0.0)
    shares: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return shares

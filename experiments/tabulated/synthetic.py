"""Synthetic problems of any size with a known optimum: chains of groups with costs at the boundaries of precision.

Latency is that of design.md, section 6: each option saves time, and between neighbours of different precision stands
a conversion, so that mixed policies can be slower than uniform ones. The damage to the output is a sum of small whole
numbers, one for each group and one for each pair of damaged neighbours, and the accuracy drop saturates with it. Whole
numbers make the optimum exact: a dynamic programme over the chain and the damage so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...core.errors import SpecError
from ...core.seeds import derive_rng
from ...evaluators.measurement import Estimate, Measurement
from ...hw_profiles.latency import Latency
from ...search.baselines import list_baselines
from ...search.budget import Budget, pessimistic
from ...search.knowledge import Knowledge
from ...search.problem import Problem
from ...search.solver.additive_cost import AdditiveCost
from ...spaces.layer import Group
from ...spaces.policy import Policy
from ...spaces.space import GraphOptions, Space
from ...spaces.treatment import Treatment
from .chain_optimum import Chain, find_chain_optimum
from .regret import Optimum, regrets

#: what a group may choose from, first the untouched layer; the precision in which it computes; its bytes as a share
_POOL: tuple[tuple[Treatment, str, float], ...] = (
    (Treatment(), "float", 1.0),
    (Treatment(weight_dtype="int8", activation_dtype="int8"), "int8", 0.25),
    (Treatment(weight_dtype="int8", activation_dtype="int8", rank=0.5), "int8", 0.13),
    (Treatment(rank=0.5), "float", 0.5),
    (Treatment(binary="ternary", weight_dtype="int8", activation_dtype="int8"), "int8", 0.06),
    (Treatment(rank=0.25), "float", 0.25),
    (Treatment(weight_dtype="int8", activation_dtype="int8", rank=0.25), "int8", 0.07),
    (Treatment(clusters=8, weight_dtype="int8", activation_dtype="int8"), "int8", 0.1),
)
#: time that an option leaves, as a share of the untouched layer's, and damage in units, each before it is varied
_LEFT = np.array([1.0, 0.45, 0.3, 0.7, 0.42, 0.5, 0.2, 0.45])
_DAMAGE = np.array([0.0, 3.0, 30.0, 25.0, 60.0, 90.0, 100.0, 15.0])
#: a conversion takes this share of a mean layer
_CONVERSION = 0.35
#: interaction of two damaged neighbours, as a share of the smaller damage
_INTERACTION = 0.5
#: seconds of the original, samples of the split, its accuracy, and the drop to which everything saturates
_ORIGINAL_S, _N_SAMPLES, _ACCURACY, _MOST_DROP = 1e-3, 1000, 0.95, 0.45
#: drop for a unit of damage, before it saturates
_UNIT_DROP = 1e-4
#: feasible shares are set by this many random policies
_N_DRAWN = 4000
#: how wrong prior knowledge is: latency tables by a tenth, influences by a factor of two either way
_LATENCY_ERROR, _INFLUENCE_ERROR = 0.1, np.log(2.0)


@dataclass(frozen=True, slots=True)
class SyntheticShape:
    """How large and how hard a synthetic problem is.

    Raises:
        SpecError: something is out of range.
    """

    n_groups: int = 12
    #: of each group, the untouched layer included
    n_options: int = 4
    #: share of random policies that keep the budget
    feasible_share: float = 0.2
    #: whether the searcher is told of latencies and influences, wrongly by their errors
    is_informed: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_groups < 2 or not 2 <= self.n_options <= len(_POOL) or not 0.0 < self.feasible_share < 1.0:
            raise SpecError(
                f"n_groups >= 2, 2 <= n_options <= {len(_POOL)} and 0 < feasible_share < 1 must hold, got "
                f"{self.n_groups}, {self.n_options} and {self.feasible_share}"
            )


@dataclass(frozen=True)
class SyntheticProblem:
    """A problem whose latency, damage and optimum are known exactly.

    >>> problem = make_synthetic(SyntheticShape(n_groups=6, n_options=3))
    >>> problem.regret([problem.optimum.policy])
    0.0
    """

    name: str
    problem: Problem
    #: the truth: seconds, and units of damage
    chain: Chain
    #: bytes of each group under each option
    sizes: AdditiveCost
    #: the most units of damage within the budget
    most_damage: int

    def measure(self, policy: Policy) -> Measurement:
        """Computes what a policy would show; without noise, the drop with the standard error of 1,000 samples.

        Raises:
            PolicyError: it is not in the space.
        """
        vector = self.problem.space.encode(policy)[: len(self.chain.sizes)]
        drop = _drop(int(self.chain.damage(vector[None])[0]))
        seconds = float(self.chain.seconds(vector[None])[0])
        accuracy = _ACCURACY - drop.mean
        return Measurement(
            accuracy=Estimate(accuracy, (accuracy * (1 - accuracy) / _N_SAMPLES) ** 0.5, _N_SAMPLES),
            accuracy_drop=drop,
            latency=Latency(seconds, 0.01 * seconds, 30, reference_s=_ORIGINAL_S),
            size_bytes=round(float(self.sizes.value(vector[None])[0])),
        )

    @cached_property
    def optimum(self) -> Optimum:
        """The fastest policy within the budget, by dynamic programming."""
        vector, seconds = find_chain_optimum(self.chain, self.most_damage)
        rest = [0] * (len(self.problem.space.dimensions) - len(vector))
        return Optimum(self.problem.space.decode([*vector, *rest]), seconds)

    @cached_property
    def baselines(self) -> tuple[tuple[str, Policy], ...]:
        """(label, policy) of the original and of the uniform policies, as every search tries them."""
        space = self.problem.space
        return tuple((label, policy) for label, policy in list_baselines(space) if space.contains(policy))

    def regret(self, policies: Sequence[Policy]) -> float:
        """Returns the regret after evaluating these; see `regrets`."""
        return float(self.regrets(policies)[-1])

    def regrets(self, policies: Sequence[Policy]) -> np.ndarray:
        """Returns (n_policies + 1,) float64: the regret before any evaluation and after each of them."""
        return regrets(self.problem, self.measure, self.optimum, policies)


def make_synthetic(shape: SyntheticShape) -> SyntheticProblem:
    """Draws a problem; equal shapes give equal problems, informed or not."""
    key = (shape.n_groups, shape.n_options, shape.feasible_share, shape.seed)
    rng = derive_rng("synthetic", *key)
    chain = _draw_chain(shape, rng)
    drawn = rng.integers(0, shape.n_options, (_N_DRAWN, shape.n_groups))
    most = int(np.quantile(chain.damage(drawn), shape.feasible_share, method="lower"))
    # between two whole numbers, so that rounding decides nothing
    bounds = [pessimistic(_drop(units), Budget().confidence) for units in (most, most + 1)]
    space, sizes = _make_space(shape), _draw_sizes(shape, rng)
    knowledge = _draw_knowledge(chain, sizes, space, derive_rng("synthetic knowledge", *key))
    problem = Problem(
        space,
        Budget(accuracy_drop=sum(bounds) / 2, reference_s=_ORIGINAL_S),
        "latency",
        knowledge if shape.is_informed else Knowledge(),
    )
    informed = "informed" if shape.is_informed else "uninformed"
    name = f"synthetic-{shape.n_groups}x{shape.n_options}-{informed}-{shape.seed}"
    return SyntheticProblem(name, problem, chain, sizes, most)


def _make_space(shape: SyntheticShape) -> Space:
    names = [f"layer{position}" for position in range(shape.n_groups)]
    options = tuple(treatment for treatment, _, _ in _POOL[: shape.n_options])
    return Space(tuple(Group(name, (name,)) for name in names), (options,) * shape.n_groups, GraphOptions())


def _draw_chain(shape: SyntheticShape, rng: np.random.Generator) -> Chain:
    n, m = shape.n_groups, shape.n_options
    weights = rng.lognormal(0.0, 0.6, n)
    weights *= _ORIGINAL_S / weights.sum()
    left = _LEFT[:m] ** rng.lognormal(0.0, 0.3, (n, 1))  # some layers gain more than others
    left = np.clip(left * rng.lognormal(0.0, 0.08, (n, m)), 0.05, 1.2)
    left[:, 0] = 1.0
    damage = np.round(_DAMAGE[:m] * rng.lognormal(0.0, 0.7, (n, 1)) * rng.lognormal(0.0, 0.3, (n, m))).astype(np.int64)
    damage[:, 0] = 0
    kinds = np.array([kind for _, kind, _ in _POOL[:m]])
    differs = kinds[:, None] != kinds[None, :]
    conversions = _CONVERSION * _ORIGINAL_S / n * rng.lognormal(0.0, 0.4, (n - 1, 2))
    boundary = np.stack([np.where(kinds[:, None] == "float", into, back) * differs for into, back in conversions])
    smaller = np.minimum(damage[:-1, :, None], damage[1:, None, :])
    interaction = np.floor(_INTERACTION * rng.random((n - 1, 1, 1)) * smaller).astype(np.int64)
    return Chain(weights[:, None] * left, boundary, damage, interaction)


def _draw_sizes(shape: SyntheticShape, rng: np.random.Generator) -> AdditiveCost:
    shares = np.array([share for _, _, share in _POOL[: shape.n_options]])
    weights = np.round(4e4 * rng.lognormal(0.0, 0.8, shape.n_groups))
    return AdditiveCost(1000.0, tuple(np.round(weight * shares) for weight in weights))


def _draw_knowledge(chain: Chain, sizes: AdditiveCost, space: Space, rng: np.random.Generator) -> Knowledge:
    """Returns the truth with errors: what an option saves and what a boundary costs, and each influence, by factors."""
    unary = chain.unary_s / _ORIGINAL_S
    saved = (unary - unary[:, :1]) * (1.0 + _LATENCY_ERROR * rng.normal(size=unary.shape))
    edges = chain.boundary_s / _ORIGINAL_S * (1.0 + _LATENCY_ERROR * rng.normal(size=chain.boundary_s.shape))
    influence = _UNIT_DROP * chain.unary_damage * rng.lognormal(0.0, _INFLUENCE_ERROR, unary.shape)
    n_graph = len(space.dimensions) - len(unary)
    cost = AdditiveCost(1.0, tuple(saved), {(g, g + 1): table for g, table in enumerate(edges)})
    return Knowledge({(0,) * n_graph: cost}, tuple(influence), sizes)


def _drop(damage: int) -> Estimate:
    """Returns the accuracy drop for whole units of damage: rises with them, ever more slowly."""
    mean = _MOST_DROP * (1.0 - float(np.exp(-_UNIT_DROP * damage / _MOST_DROP)))
    return Estimate(mean, (mean * (1.0 - mean) / _N_SAMPLES) ** 0.5, _N_SAMPLES)

import numpy as np
import pytest
from trimtab.experiments.profiling.surrogate import Effort, build_surrogate
from trimtab.hw_profiles.surrogate.surrogate import PairwiseSurrogate
from trimtab.hw_profiles.surrogate.surrogate_terms import Edges
from trimtab.spaces.layer import Group
from trimtab.spaces.space import GraphOptions, Space
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

_EDGES = Edges(tuple((g, g + 1) for g in range(9)), tuple((g, g + 1, g + 2) for g in range(8)))
#: where the entry of the precision stands: behind ten groups and three other graph-wide choices
_PRECISION = 13
_TREATMENTS = tuple(QUANTIZE_OPTIONS[name] for name in ("none", "int8", "float16"))


class KernelTables:
    """Level 2 with a known truth for each precision; counts what it is asked."""

    def __init__(self, *, has_chains):
        groups = tuple(Group(f"g{i}", (f"g{i}",)) for i in range(10))
        graph = GraphOptions(calibration=("minmax", "mse"), precision=("float32", "bfloat16"))
        self.space = Space(groups, (_TREATMENTS,) * 10, graph)
        self.n_asked = 0
        rng = np.random.default_rng(0)
        edges = _EDGES.with_chains if has_chains else _EDGES.pairs
        unary = tuple(rng.normal(0, 3e-4, 3) for _ in range(10))
        boundary = {edge: rng.normal(0, 1e-4, (3,) * len(edge)) for edge in edges}
        float32 = PairwiseSurrogate(5e-3, unary, boundary)
        bfloat16 = PairwiseSurrogate(3e-3, tuple(0.7 * costs for costs in unary), boundary)
        self._truths = (float32, bfloat16)

    def price(self, vectors):
        return np.array([self._truths[vector[_PRECISION]].price(vector[None])[0] for vector in vectors])

    def __call__(self, policies):
        self.n_asked += len(policies)
        return [(float(cost), 0.0) for cost in self.price([self.space.encode(policy) for policy in policies])]

    def random_vectors(self, n, seed=1):
        return np.random.default_rng(seed).integers(0, list(self.space.dimensions.values()), (n, 18))


@pytest.mark.parametrize("has_chains", [False, True], ids=["pairs", "chains"])
def test_prices_follow_level_2_in_every_combination_of_graph_choices(has_chains):
    level2 = KernelTables(has_chains=has_chains)
    surrogate = build_surrogate(level2.space, _EDGES, level2, seed=0)
    vectors = level2.random_vectors(300)
    errors = surrogate.price(vectors) / level2.price(vectors) - 1
    assert np.sqrt((errors**2).mean()) < 0.01
    assert level2.n_asked <= 2 * Effort().n_most


def test_only_combinations_that_are_priced_are_fitted():
    level2 = KernelTables(has_chains=False)
    surrogate = build_surrogate(level2.space, _EDGES, level2, seed=0)
    n_first = level2.n_asked
    vectors = level2.random_vectors(50)
    vectors[:, _PRECISION] = 0
    surrogate.price(vectors)
    assert level2.n_asked == n_first
    vectors[0, _PRECISION] = 1
    surrogate.price(vectors)
    assert level2.n_asked > n_first


def test_measurements_correct_prices_and_their_standard_errors_also_where_nothing_was_measured():
    level2 = KernelTables(has_chains=False)
    surrogate = build_surrogate(level2.space, _EDGES, level2, seed=0)
    vectors = level2.random_vectors(200)
    before = surrogate.standard_error(vectors).mean()
    proposed = surrogate.propose(20)
    measured = [(1.2 * cost, 0.005 * cost) for cost in level2.price(proposed.vectors)]
    surrogate.update(proposed.policies, measured)
    errors = surrogate.price(vectors) / (1.2 * level2.price(vectors)) - 1
    # float32 was measured; bfloat16 only learns that measurements are a fifth above level 2
    assert np.abs(errors[vectors[:, _PRECISION] == 0]).max() < 0.03
    assert np.abs(errors[vectors[:, _PRECISION] == 1]).mean() < 0.05
    assert surrogate.standard_error(vectors).mean() < 0.8 * before


def test_a_search_is_the_same_each_time():
    first, again = (KernelTables(has_chains=True) for _ in range(2))
    vectors = first.random_vectors(50)
    prices = [build_surrogate(l2.space, _EDGES, l2, seed=3).price(vectors) for l2 in (first, again)]
    assert np.array_equal(*prices)

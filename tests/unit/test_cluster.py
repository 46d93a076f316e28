"""Codebooks, against scikit-learn on the raw values, brute force, and the weights that have one already."""

import itertools

import numpy as np
import pytest
from sklearn.cluster import KMeans
from trimtab.compressors.layer_inputs import LayerInputs
from trimtab.compressors.weights.cluster import assign, cluster_weight, find_codebook
from trimtab.core.errors import PolicyError
from trimtab.spaces.treatment import Treatment


def _weight(shape, seed=0):
    """Heavy tails, as trained weights have them."""
    return (np.random.default_rng(seed).standard_t(4, size=shape) * 0.05).astype(np.float32)


def _inputs(energy, *, n_groups=1):
    """Inputs of the given E[x²]: (K,), the same in each group."""
    moments = np.broadcast_to(np.diag(energy).astype(np.float64), (n_groups, len(energy), len(energy)))
    return LayerInputs(moments, np.zeros((n_groups, len(energy))), np.ones((n_groups, len(energy))))


def _error(weight, treated, importance=1.0):
    return float((importance * (weight.astype(np.float64) - treated) ** 2).sum())


@pytest.mark.parametrize(("size", "k"), [(500, 2), (500, 16), (20_000, 4), (20_000, 16), (20_000, 100)])
def test_a_codebook_errs_no_more_than_that_of_sklearn_on_the_raw_values(size, k):
    weight = _weight((size, 1))
    theirs = KMeans(k, n_init=5, random_state=0).fit(weight).inertia_
    treated = cluster_weight(weight, Treatment(clusters=k), axis=0)
    assert len(np.unique(treated.values)) == k
    # theirs are the best of a few local optima, ours comes from the best of a histogram
    assert _error(weight, treated.array) <= 1.002 * theirs


@pytest.mark.parametrize("k", [2, 3])
def test_a_codebook_of_a_few_values_is_the_best_there_is(k):
    values = np.sort(_weight(14, seed=3))
    best = np.inf
    for cuts in itertools.combinations(range(1, len(values)), k - 1):
        cells = np.split(values.astype(np.float64), cuts)
        best = min(best, sum(float(((cell - cell.mean()) ** 2).sum()) for cell in cells))
    assert _error(values, assign(values, find_codebook(values, k))) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_sensitivity_is_sklearns_sample_weight(axis):
    weight, energy = _weight((24, 40)), np.geomspace(1e-3, 10, 40 if axis == 0 else 24)
    importance = np.broadcast_to(energy if axis == 0 else energy[:, None], weight.shape)
    theirs = KMeans(8, n_init=20, random_state=0).fit(weight.reshape(-1, 1), sample_weight=importance.ravel())
    treatment = Treatment(clusters=8, cluster_weighting="sensitivity")
    treated = cluster_weight(weight, treatment, axis=axis, inputs=_inputs(energy))
    assert _error(weight, treated.array, importance) <= 1.002 * theirs.inertia_
    plain = cluster_weight(weight, Treatment(clusters=8), axis=axis)
    assert _error(weight, treated.array, importance) < _error(weight, plain.array, importance)


def test_the_scale_of_an_output_counts_squared():
    """Two channels of one size before a batch norm that makes the second ten times as large."""
    weight, scale = _weight((2, 300)), np.array([1.0, 10.0])
    merged = (weight * scale[:, None]).astype(np.float32)
    treatment = Treatment(clusters=8, cluster_weighting="sensitivity")
    treated = cluster_weight(merged, treatment, axis=0, inputs=_inputs(np.ones(300)), output_scale=scale)
    importance = np.repeat(scale[:, None] ** 2, 300, 1)
    theirs = KMeans(8, n_init=20, random_state=0).fit(weight.reshape(-1, 1), sample_weight=importance.ravel())
    assert _error(merged, treated.array) <= 1.002 * theirs.inertia_


def test_each_group_of_sixteen_outputs_has_its_own_codebook():
    weight = _weight((40, 3, 3, 3)) * np.geomspace(0.01, 1, 40, dtype=np.float32).reshape(-1, 1, 1, 1)
    treated = cluster_weight(weight, Treatment(clusters=4, cluster_scope="group"), axis=0)
    for start in (0, 16, 32):
        part = weight[start : start + 16].reshape(-1, 1)
        theirs = KMeans(4, n_init=20, random_state=0).fit(part)
        assert len(np.unique(treated.values[start : start + 16])) == 4
        assert _error(part.ravel(), treated.array[start : start + 16].ravel()) <= 1.002 * theirs.inertia_


def test_groups_of_a_linear_layer_are_columns():
    weight = _weight((5, 32))
    treated = cluster_weight(weight, Treatment(clusters=2, cluster_scope="group"), axis=1)
    turned = cluster_weight(weight.T, Treatment(clusters=2, cluster_scope="group"), axis=0)
    np.testing.assert_array_equal(treated.array, turned.array.T)
    assert [len(np.unique(treated.array[:, part])) for part in (slice(0, 16), slice(16, 32))] == [2, 2]


@pytest.mark.parametrize("scope", ["tensor", "group"])
@pytest.mark.parametrize("n_values", [1, 5, 16])
def test_a_weight_with_few_values_comes_back_bit_for_bit(scope, n_values):
    rng = np.random.default_rng(1)
    weight = rng.choice(_weight(n_values), size=(20, 3, 3, 3))
    treated = cluster_weight(weight, Treatment(clusters=16, cluster_scope=scope), axis=0)
    np.testing.assert_array_equal(treated.array, weight)


@pytest.mark.parametrize("treatment", [Treatment(clusters=16), Treatment(clusters=16, cluster_scope="group")])
def test_clustering_twice_is_clustering_once(treatment):
    once = cluster_weight(_weight((40, 30)), treatment, axis=1).array
    np.testing.assert_array_equal(cluster_weight(once, treatment, axis=1).array, once)


def test_a_codebook_from_before_a_batch_norm_is_found_again():
    rng = np.random.default_rng(2)
    codebook = np.sort(_weight(16))
    scale = rng.normal(size=12).astype(np.float32)
    scale[3] = 0
    weight = rng.choice(codebook, size=(12, 8, 3, 3))
    treated = cluster_weight(
        weight * scale.reshape(-1, 1, 1, 1), Treatment(clusters=16), axis=0, output_scale=scale.astype(np.float64)
    )
    np.testing.assert_array_equal(treated.scale, scale)
    assert len(np.unique(treated.values)) == 16
    used = np.arange(12) != 3
    np.testing.assert_allclose(treated.values[used], weight[used], rtol=1e-6)
    np.testing.assert_allclose(treated.array, weight * scale.reshape(-1, 1, 1, 1), rtol=1e-6)
    assert not treated.array[3].any()


def test_a_scale_of_zero_beside_weights_counts_as_one():
    weight = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    treated = cluster_weight(weight, Treatment(clusters=4), axis=0, output_scale=np.array([0.0, 2.0]))
    np.testing.assert_array_equal(treated.array, weight)


def test_close_neighbours_are_not_taken_for_copies():
    """A chain of values, each within the tolerance of the next, from 1 to 2."""
    values = np.linspace(1, 2, 2_000_001).astype(np.float32)
    codebook = find_codebook(values, 4)
    # the best four values of a uniform distribution stand in the middle of its quarters
    np.testing.assert_allclose(codebook, [1.125, 1.375, 1.625, 1.875], atol=2e-3)


def test_with_sparsity_one_value_is_zero_and_the_rest_is_for_what_stays():
    weight = _weight((64, 64))
    treatment = Treatment(clusters=8, sparsity=0.75)
    treated = cluster_weight(weight, treatment, axis=0)
    values = np.unique(treated.values)
    assert len(values) <= 8
    assert 0.0 in values
    stays = np.abs(weight) > np.quantile(np.abs(weight), 0.75)
    theirs = KMeans(7, n_init=10, random_state=0).fit(weight[stays].reshape(-1, 1))
    assert _error(weight[stays], treated.array[stays]) <= 1.05 * theirs.inertia_


def test_clustering_is_deterministic_and_leaves_the_global_seed_alone():
    weight = _weight((100, 90))
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    first = cluster_weight(weight, Treatment(clusters=16), axis=0)
    second = cluster_weight(weight.copy(), Treatment(clusters=16), axis=0)
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_statistics_of_another_layer_are_refused():
    treatment = Treatment(clusters=4, cluster_weighting="sensitivity")
    with pytest.raises(PolicyError, match=r"must be those of a \(6, 9\) weight matrix, got 2 groups of 8 inputs"):
        cluster_weight(_weight((6, 1, 3, 3)), treatment, axis=0, inputs=_inputs(np.ones(8), n_groups=2))

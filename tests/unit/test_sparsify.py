"""Which weights become zero, against torch's pruning, brute force and the formulas of the papers."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.utils import prune
from trimtab.compressors.layer_inputs import LayerInputs
from trimtab.compressors.weights.sparsify import choose_kept, n_zeros, sparsify_weight
from trimtab.compressors.weights.weight_treatment import treat_weight
from trimtab.core.errors import PolicyError
from trimtab.spaces.treatment import Treatment

SHAPES = [((8, 6, 3, 3), 0), ((24, 10), 1), ((8, 1, 3, 3), 0)]


def _weight(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _inputs(n_groups, n_inputs, seed=1):
    x = np.random.default_rng(seed).normal(size=(n_groups, 50, n_inputs)) * np.geomspace(0.1, 10, n_inputs)
    return LayerInputs(np.einsum("gsi,gsj->gij", x, x) / 50, x.mean(1), np.abs(x).max(1))


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_magnitude_keeps_what_torch_keeps(sparsity, shape, axis):
    weight = _weight(shape)
    layer = torch.nn.Linear(1, 1)
    layer.weight = torch.nn.Parameter(torch.from_numpy(weight.copy()))
    prune.l1_unstructured(layer, "weight", amount=sparsity)
    treated = sparsify_weight(weight, Treatment(sparsity=sparsity), axis=axis)
    np.testing.assert_array_equal(treated.array, layer.weight.detach().numpy())
    assert treated.storage == "masked"


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.8])
def test_wanda_sorts_each_row_by_weight_times_norm_of_the_input(sparsity):
    weight = _weight((40, 7))  # (in, out)
    x = np.random.default_rng(3).normal(size=(200, 40)) * np.geomspace(0.01, 10, 40)
    inputs = LayerInputs((x.T @ x / 200)[None], x.mean(0)[None], np.abs(x).max(0)[None])
    kept = choose_kept(weight, Treatment(sparsity=sparsity, saliency="wanda"), axis=1, inputs=inputs)
    # the listing of Sun et al. (2023), figure 2, in torch
    matrix = torch.from_numpy(weight.T.astype(np.float64))
    metric = matrix.abs() * torch.from_numpy(x).norm(p=2, dim=0)
    _, order = torch.sort(metric, dim=1)
    pruned = order[:, : int(matrix.shape[1] * sparsity)]
    expected = torch.ones_like(matrix, dtype=torch.bool).scatter_(1, pruned, False)
    np.testing.assert_array_equal(kept, expected.numpy().T)


def test_the_statistics_of_a_grouped_convolution_are_those_of_its_group():
    weight, inputs = _weight((6, 2, 3, 3)), _inputs(3, 18)
    treatment = Treatment(sparsity=0.5, saliency="wanda")
    kept = choose_kept(weight, treatment, axis=0, inputs=inputs)
    for group in range(3):
        part = slice(2 * group, 2 * group + 2)
        own = LayerInputs(inputs.moments[group][None], inputs.mean[group][None], inputs.peak[group][None])
        np.testing.assert_array_equal(kept[part], choose_kept(weight[part], treatment, axis=0, inputs=own))


def _lines(array, axis):
    """The runs of inputs in which a pattern counts: channels, or where there is one only, the kernel."""
    moved = np.moveaxis(array, axis, 0)
    if moved.ndim > 2 and moved.shape[1] > 1:
        moved = np.moveaxis(moved, 1, -1)
        return moved.reshape(-1, moved.shape[-1])
    return moved.reshape(len(moved), -1)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:2", "4:8"])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_a_pattern_keeps_the_best_n_of_every_m(pattern, shape, axis):
    weight = _weight(shape)
    n, m = map(int, pattern.split(":"))
    kept = choose_kept(weight, Treatment(pattern=pattern), axis=axis)
    for values, chosen in zip(_lines(np.abs(weight), axis), _lines(kept, axis), strict=True):
        for start in range(0, len(values), m):
            run, ours = values[start : start + m], chosen[start : start + m]
            n_kept = math.ceil(n / m * len(run))
            best = max(sum(run[list(c)]) for c in itertools.combinations(range(len(run)), n_kept))
            assert ours.sum() == n_kept
            assert run[ours].sum() == pytest.approx(best)


def test_a_pattern_by_wanda_weighs_the_inputs():
    weight, inputs = np.ones((8, 1), np.float32), _inputs(1, 8)
    kept = choose_kept(weight, Treatment(pattern="2:4", saliency="wanda"), axis=1, inputs=inputs)
    energy = np.diagonal(inputs.moments[0])
    expected = np.concatenate([run >= np.sort(run)[-2] for run in energy.reshape(2, 4)])
    np.testing.assert_array_equal(kept[:, 0], expected)


EVERY = [
    Treatment(sparsity=0.6),
    Treatment(sparsity=0.5, saliency="wanda"),
    Treatment(pattern="2:4"),
    Treatment(clusters=8, sparsity=0.6),
    Treatment(clusters=8, cluster_scope="group", pattern="2:4", saliency="wanda"),
]


@pytest.mark.parametrize("treatment", EVERY, ids=lambda treatment: treatment.label)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_twice_is_once(treatment, shape, axis):
    n_inputs = math.prod(shape) // shape[axis]
    once = treat_weight(_weight(shape), treatment, axis=axis, inputs=_inputs(1, n_inputs))
    # training changed what enters the layer
    again = treat_weight(once.array, treatment, axis=axis, inputs=_inputs(1, n_inputs, seed=5))
    np.testing.assert_array_equal(again.array, once.array)
    assert again.storage == once.storage == ("coded" if treatment.clusters else "masked")


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_a_clustered_weight_has_as_many_zeros_as_asked_and_few_values(shape, axis):
    treated = treat_weight(_weight(shape), Treatment(clusters=4, sparsity=0.7), axis=axis)
    assert (treated.array == 0).sum() == n_zeros(math.prod(shape), 0.7)
    assert len(np.unique(treated.values)) <= 4


def test_of_weights_with_one_shared_value_the_larger_original_stays():
    weight = np.array([[0.9, 1.1, 1.0, -5.0]], np.float32)
    shared = np.array([[1.0, 1.0, 1.0, -5.0]], np.float32)
    kept = choose_kept(shared, Treatment(sparsity=0.5), axis=0, ties=weight)
    np.testing.assert_array_equal(kept, [[False, True, False, True]])


def test_a_weight_that_has_more_zeros_than_asked_loses_nothing_else():
    weight = _weight((10, 10))
    weight[:7] = 0
    np.testing.assert_array_equal(sparsify_weight(weight, Treatment(sparsity=0.5), axis=0).array, weight)


def test_without_a_technique_the_weight_is_what_it_was():
    weight = _weight((4, 5))
    treated = treat_weight(weight, Treatment(weight_dtype="int8"), axis=0)
    assert treated.array is weight
    assert (treated.scale, treated.storage) == (None, "dense")


def test_statistics_of_another_layer_are_refused():
    with pytest.raises(PolicyError, match=r"must be those of a \(10, 24\) weight matrix, got 1 groups of 23 inputs"):
        choose_kept(_weight((24, 10)), Treatment(sparsity=0.5, saliency="wanda"), axis=1, inputs=_inputs(1, 23))

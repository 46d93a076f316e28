"""Binary and ternary weights, against the best that brute force finds and the closed forms of the papers."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from trimtab.compressors.weights.binarize import binarize_weight
from trimtab.compressors.weights.weight_treatment import treat_weight
from trimtab.spaces.treatment import Treatment

FORMS = ("binary", "ternary")
SHAPES = [((6, 4, 3, 3), 0), ((9, 5), 1), ((3, 1, 3, 3), 0)]


def _weight(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _outputs(array, axis):
    return [array.take(n, axis).ravel() for n in range(array.shape[axis])]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_binary_weights_are_as_close_as_any_signs_times_any_scale(shape, axis):
    weight = _weight(shape)
    treated = binarize_weight(weight, "binary", axis=axis)
    for real, kept, signs in zip(
        _outputs(weight, axis), _outputs(treated.array, axis), _outputs(treated.values, axis), strict=True
    ):
        best = minimize_scalar(lambda scale, w=real: float(((np.abs(w) - scale) ** 2).sum()))  # signs as of w
        assert float(((real - kept) ** 2).sum()) == pytest.approx(best.fun, rel=1e-5)
        assert set(np.unique(signs)) <= {-1.0, 1.0}


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_ternary_weights_follow_the_paper_weight_for_weight(shape, axis):
    weight = _weight(shape)
    treated = binarize_weight(weight, "ternary", axis=axis)
    for real, signs, scale in zip(_outputs(weight, axis), _outputs(treated.values, axis), treated.scale, strict=True):
        threshold = 0.7 * sum(abs(float(w)) for w in real) / len(real)
        large = [abs(float(w)) for w in real if abs(float(w)) > threshold]
        assert signs.tolist() == [float(np.sign(w)) if abs(float(w)) > threshold else 0.0 for w in real]
        assert scale == pytest.approx(sum(large) / len(large), rel=1e-6)


def test_the_scale_of_ternary_weights_is_the_best_for_their_signs():
    weight = _weight((4, 50))
    treated = binarize_weight(weight, "ternary", axis=0)
    for real, signs, scale in zip(weight, treated.values, treated.scale, strict=True):
        best = minimize_scalar(lambda s, w=real, t=signs: float(((w - s * t) ** 2).sum()))
        assert scale == pytest.approx(best.x, rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_twice_is_once_also_behind_a_batch_norm(form, shape, axis):
    once = binarize_weight(_weight(shape), form, axis=axis).array
    np.testing.assert_array_equal(binarize_weight(once, form, axis=axis).array, once)
    others = tuple(i for i in range(once.ndim) if i != axis)
    merged = once * np.expand_dims(_weight(shape[axis], seed=4), others)
    np.testing.assert_array_equal(binarize_weight(merged, form, axis=axis).array, merged)


def test_zero_counts_as_positive_in_a_binary_weight():
    treated = binarize_weight(np.array([[0.0, -0.0, -3.0, 1.0]], np.float32), "binary", axis=0)
    np.testing.assert_array_equal(treated.values, [[1, 1, -1, 1]])
    np.testing.assert_array_equal(treated.scale, np.float32([1.0]))


@pytest.mark.parametrize("form", FORMS)
def test_an_output_of_zeros_stays_zero(form):
    treated = binarize_weight(np.zeros((2, 3), np.float32), form, axis=0)
    assert not treated.array.any()
    assert np.isfinite(treated.values).all()


@pytest.mark.parametrize("form", FORMS)
def test_a_treatment_binarises_what_it_says(form):
    weight = _weight((6, 4, 3, 3))
    treated = treat_weight(weight, Treatment(binary=form), axis=0)
    expected = binarize_weight(weight, form, axis=0)
    np.testing.assert_array_equal(treated.array, expected.array)
    assert treated.storage == "coded"

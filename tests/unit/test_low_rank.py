"""Factors of a weight, against scipy's decompositions, brute force and HOSVD written out here."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from trimtab.compressors.layer_inputs import LayerInputs
from trimtab.compressors.low_rank.factor_shapes import (
    LayerGeometry,
    count_elements,
    count_macs,
    factor_shapes,
)
from trimtab.compressors.low_rank.factorise import factorise, why_not_low_rank
from trimtab.compressors.patches import Window
from trimtab.core.errors import PolicyError
from trimtab.spaces.layer import Layer
from trimtab.spaces.treatment import Treatment

SHARES = st.floats(0.05, 0.95)


def _linear(n_in, n_out):
    return LayerGeometry("fc", "linear", (n_in, n_out))


def _conv(shape, *, strides=(1, 1), pads=((1, 1), (1, 1)), sides=(), n_groups=1):
    window = Window(shape[2:], strides, (1, 1), pads, n_groups=n_groups)
    return LayerGeometry("conv", "conv", shape, window, sides)


def _weight(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _inputs(k, seed=0, n=400):
    """Correlated inputs: rows (n, k) and their statistics."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, k)) @ (rng.normal(size=(k, k)) * np.geomspace(1, 0.01, k)) + rng.normal(size=k)
    return rows, LayerInputs((rows.T @ rows / n)[None], rows.mean(0)[None], np.abs(rows).max(0)[None])


def _whole(factors):
    """The weight that factors stand for, by contraction over everything between them."""
    if factors.form == "linear":
        return factors.weights[0] @ factors.weights[1]
    if factors.form == "spatial":
        return np.einsum("riyz,orwx->oiyx", *factors.weights)
    if factors.form == "channel":
        return np.einsum("ri...,or->oi...", factors.weights[0], factors.weights[1][:, :, 0, 0])
    return np.einsum(
        "ri,srkl,os->oikl", factors.weights[0][..., 0, 0], factors.weights[1], factors.weights[2][..., 0, 0]
    )


def _distance(weight, factors):
    return float(((weight - _whole(factors)).astype(np.float64) ** 2).sum())


def _output_error(weight, factors, rows):
    """E‖(W − W')x‖² on the rows themselves."""
    difference = (weight - _whole(factors)).astype(np.float64)
    matrix = difference.T if factors.form == "linear" else difference.reshape(len(difference), -1)
    return float(((rows @ matrix.T) ** 2).sum(1).mean())


# -- the closest weight ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (20, 20)])
def test_the_error_is_what_the_singular_values_lose(shape):
    weight = _weight(shape)
    factors = factorise(weight, Treatment(rank=0.5), _linear(*shape))
    rank = factors.weights[0].shape[1]
    tail = scipy.linalg.svdvals(weight.astype(np.float64))[rank:]
    assert factors.error == pytest.approx((tail**2).sum(), rel=1e-9)  # Eckart and Young
    assert _distance(weight, factors) == pytest.approx((tail**2).sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("form", "unfold"),
    [
        ("channel", lambda w: w.reshape(len(w), -1)),
        ("spatial", lambda w: w.transpose(1, 2, 0, 3).reshape(w.shape[1] * w.shape[2], -1)),
    ],
)
def test_the_error_of_a_convolution_is_what_its_unfolding_loses(form, unfold):
    weight = _weight((12, 8, 3, 3))
    factors = factorise(weight, Treatment(rank=0.5, decomposition=form), _conv(weight.shape))
    rank = factors.weights[0].shape[0]
    tail = scipy.linalg.svdvals(unfold(weight.astype(np.float64)))[rank:]
    assert _distance(weight, factors) == pytest.approx((tail**2).sum(), rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_tucker_is_no_worse_than_a_higher_order_svd_and_no_better_than_one_unfolding(seed):
    weight = _weight((12, 10, 3, 3), seed)
    factors = factorise(weight, Treatment(rank=0.4, decomposition="tucker"), _conv(weight.shape))
    before, behind = factors.weights[1].shape[1], factors.weights[1].shape[0]
    outer, outer_values, _ = np.linalg.svd(weight.reshape(12, -1).astype(np.float64), full_matrices=False)
    inner, inner_values, _ = np.linalg.svd(np.moveaxis(weight, 1, 0).reshape(10, -1).astype(np.float64))
    outer, inner = outer[:, :behind], inner[:, :before]
    hosvd = np.einsum("oikl,os,ps,ir,jr->pjkl", weight, outer, outer, inner, inner, optimize=True)
    error = _distance(weight, factors)
    assert error <= ((weight - hosvd) ** 2).sum() * (1 + 1e-5)
    least = max((outer_values[behind:] ** 2).sum(), (inner_values[before:] ** 2).sum())
    assert error >= least * (1 - 1e-5)


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker"])
@pytest.mark.parametrize("by", ["weight", "output"])
def test_a_weight_that_has_the_rank_comes_back(form, by):
    rng = np.random.default_rng(0)
    core = {
        "channel": lambda: np.einsum("rikl,or->oikl", rng.normal(size=(2, 8, 3, 3)), rng.normal(size=(12, 2))),
        "spatial": lambda: np.einsum("riy,orx->oiyx", rng.normal(size=(2, 8, 3)), rng.normal(size=(12, 2, 3))),
        "tucker": lambda: np.einsum(
            "ri,srkl,os->oikl", rng.normal(size=(2, 8)), rng.normal(size=(2, 2, 3, 3)), rng.normal(size=(12, 2))
        ),
    }[form]()
    weight = core.astype(np.float32)
    treatment = Treatment(rank=0.4, decomposition=form, rank_error=by)
    factors = factorise(weight, treatment, _conv(weight.shape), inputs=_inputs(72)[1])
    np.testing.assert_allclose(_whole(factors), weight, atol=1e-4)


# -- the closest output ---------------------------------------------------------------------------


def _damped(inputs):
    moments = inputs.moments[0]
    return moments + 1e-4 * np.trace(moments) / len(moments) * np.eye(len(moments))


@pytest.mark.parametrize("shape", [(24, 16), (12, 30)])
def test_the_output_error_is_that_of_the_generalised_eigenvalue_problem(shape):
    # (W - W')ᵀ(W - W') against C⁻¹: the smallest sum of generalised eigenvalues is what no rank r can get below
    weight = _weight(shape)
    rows, inputs = _inputs(shape[0])
    factors = factorise(weight, Treatment(rank=0.5, rank_error="output"), _linear(*shape), inputs=inputs)
    rank = factors.weights[0].shape[1]
    matrix = weight.T.astype(np.float64)
    values = scipy.linalg.eigh(matrix.T @ matrix, np.linalg.inv(_damped(inputs)), eigvals_only=True)[::-1]
    assert factors.error == pytest.approx(values[rank:].sum(), rel=1e-6)
    assert _output_error(weight, factors, rows) <= factors.error * (1 + 1e-4)  # damping adds to it


@pytest.mark.parametrize("shape", [(16, 12), (9, 20)])
def test_no_other_factor_has_a_smaller_output_error(shape):
    # coordinate descent: with one factor fixed the other has a closed form; from random starts it ends no lower
    weight = _weight(shape)
    _, inputs = _inputs(shape[0], seed=3)
    factors = factorise(weight, Treatment(rank=0.4, rank_error="output"), _linear(*shape), inputs=inputs)
    rank, moments, matrix = factors.weights[0].shape[1], _damped(inputs), weight.T.astype(np.float64)
    rng = np.random.default_rng(0)
    for _ in range(5):
        left = rng.normal(size=(shape[1], rank))
        for _ in range(200):
            right = np.linalg.lstsq(left, matrix, rcond=None)[0]
            left = matrix @ moments @ right.T @ np.linalg.pinv(right @ moments @ right.T)
        rest = matrix - left @ right
        assert np.trace(rest @ moments @ rest.T) >= factors.error * (1 - 1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.sampled_from(["linear", "channel", "spatial", "tucker"]), st.floats(0.3, 0.8))
def test_knowing_the_inputs_never_makes_the_output_worse(seed, form, share):
    shape = (18, 12) if form == "linear" else (10, 6, 3, 3)
    geometry = _linear(*shape) if form == "linear" else _conv(shape)
    rows, inputs = _inputs(18 if form == "linear" else 54, seed)
    weight = _weight(shape, seed)
    chosen = {} if form == "linear" else {"decomposition": form}
    plain = factorise(weight, Treatment(rank=share, **chosen), geometry)
    aware = factorise(weight, Treatment(rank=share, rank_error="output", **chosen), geometry, inputs=inputs)
    assume([w.shape for w in plain.weights] == [w.shape for w in aware.weights])  # tucker may split its ranks anew
    # what damping adds, by less than which the two may swap
    slack = 1e-4 * np.trace(inputs.moments[0]) / len(inputs.moments[0]) * _distance(weight, plain)
    assert _output_error(weight, aware, rows) <= _output_error(weight, plain, rows) * (1 + 1e-4) + slack


def test_inputs_that_never_vary_do_no_harm():
    inputs = LayerInputs(np.zeros((1, 16, 16)), np.zeros((1, 16)), np.zeros((1, 16)))
    weight = _weight((16, 12))
    treatment = Treatment(rank=0.5, rank_error="output")
    aware = factorise(weight, treatment, _linear(16, 12), inputs=inputs)
    plain = factorise(weight, Treatment(rank=0.5), _linear(16, 12))
    np.testing.assert_allclose(_whole(aware), _whole(plain), atol=1e-5)


# -- ranks ----------------------------------------------------------------------------------------


@given(st.integers(2, 60), st.integers(2, 60), SHARES)
def test_a_ratio_gives_the_largest_rank_that_has_room(n_in, n_out, share):
    fitting = [rank for rank in range(1, 61) if rank * (n_in + n_out) <= share * n_in * n_out * (1 + 1e-12)]
    geometry, treatment = _linear(n_in, n_out), Treatment(rank=share)
    if not fitting:
        assert "raise the share or leave low_rank out" in why_not_low_rank(geometry, treatment)
        return
    factors = factorise(_weight((n_in, n_out)), treatment, geometry)
    assert factors.weights[0].shape == (n_in, fitting[-1])


@pytest.mark.parametrize(
    ("form", "share", "ranks"),
    # elements for each rank: 8·9 + 16 = 88, and 8·3 + 16·3 = 72; the weight has 1152
    [("channel", 0.5, (6,)), ("channel", 0.25, (3,)), ("spatial", 0.5, (8,)), ("spatial", 0.25, (4,))],
)
def test_ranks_of_convolutions_are_counted_by_hand(form, share, ranks):
    weight = _weight((16, 8, 3, 3))
    factors = factorise(weight, Treatment(rank=share, decomposition=form), _conv(weight.shape))
    assert (factors.weights[0].shape[0],) == ranks


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 10), st.integers(3, 10), st.floats(0.3, 0.9))
def test_tucker_takes_the_pair_of_ranks_with_the_least_bound_on_the_error(n_out, n_in, share):
    weight = _weight((n_out, n_in, 3, 3), n_out * 11 + n_in)
    geometry, treatment = _conv(weight.shape), Treatment(rank=share, decomposition="tucker")
    outer = scipy.linalg.svdvals(weight.reshape(n_out, -1).astype(np.float64)) ** 2
    inner = scipy.linalg.svdvals(np.moveaxis(weight, 1, 0).reshape(n_in, -1).astype(np.float64)) ** 2
    bounds = {
        (r, s): outer[s:].sum() + inner[r:].sum()
        for r in range(1, n_in + 1)
        for s in range(1, n_out + 1)
        if r * n_in + 9 * r * s + s * n_out <= share * weight.size and r <= 9 * s and s <= 9 * r
    }
    factors = factorise(weight, treatment, geometry)
    chosen = (factors.weights[1].shape[1], factors.weights[1].shape[0])
    assert bounds[chosen] == pytest.approx(min(bounds.values()), rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.2, 0.9), st.integers(0, 100))
def test_energy_gives_the_smallest_rank_that_keeps_it(share, seed):
    weight = (_weight((30, 20), seed) * np.geomspace(1, 1e-3, 20)).astype(np.float32)
    energies = scipy.linalg.svdvals(weight.astype(np.float64)) ** 2
    want = next(r for r in range(1, 21) if energies[:r].sum() >= share * energies.sum() * (1 - 1e-9))
    factors = factorise(weight, Treatment(rank=share, rank_by="energy"), _linear(30, 20))
    assert factors.weights[0].shape[1] == want


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker", "auto"])
def test_energy_keeps_at_least_what_was_asked_for(form):
    rng = np.random.default_rng(0)
    weight = np.einsum("ri,srkl,os->oikl", *(rng.normal(size=s) for s in ((3, 16), (4, 3, 3, 3), (20, 4))))
    weight = (weight + 0.05 * rng.normal(size=weight.shape)).astype(np.float32)
    treatment = Treatment(rank=0.9, rank_by="energy", decomposition=form)
    factors = factorise(weight, treatment, _conv(weight.shape))
    assert _distance(weight, factors) <= 0.1 * (weight.astype(np.float64) ** 2).sum() * (1 + 1e-4)


def test_auto_takes_the_form_with_the_least_error():
    weight = _weight((12, 8, 3, 3), 4)
    errors = {
        form: factorise(weight, Treatment(rank=0.5, decomposition=form), _conv(weight.shape)).error
        for form in ("channel", "spatial", "tucker")
    }
    factors = factorise(weight, Treatment(rank=0.5), _conv(weight.shape))
    assert factors.form == min(errors, key=errors.get)
    assert factors.error == pytest.approx(min(errors.values()))


def test_auto_leaves_out_forms_that_take_too_much_arithmetic():
    # the first layer of ``tucker`` runs on all 4096 places of the input, the layer itself on 64
    weight = np.einsum("ri,srkl,os->oikl", *(_weight(s) for s in ((12, 24), (12, 12, 3, 3), (24, 12)))) / 100
    geometry = _conv(weight.shape, strides=(8, 8), sides=(64, 64))
    assert factorise(weight, Treatment(rank=0.5), _conv(weight.shape)).form == "tucker"
    factors = factorise(weight, Treatment(rank=0.5), geometry)
    assert factors.form != "tucker"
    own = weight.size * 64
    assert count_macs(geometry, factors.shapes) < own


# -- where it is no gain --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("geometry", "treatment", "reason"),
    [
        (_linear(4, 3), Treatment(rank=0.5), r"layer fc: low rank \(linear\) has 7 elements even with rank 1, and"),
        (_linear(20, 20), Treatment(rank=0.99, rank_by="energy"), r"with rank \d+ has \d+ elements, and"),
        (_conv((8, 4, 3, 3), n_groups=2), Treatment(rank=0.5), "convolutions of one group, and this one has 2"),
        (LayerGeometry("words", "embedding", (9, 8)), Treatment(rank=0.5), "this is a layer of kind embedding"),
        (
            LayerGeometry("sound", "conv", (9, 8, 3), Window((3,), (1,), (1,), ())),
            Treatment(rank=0.5, decomposition="spatial"),
            "spatial exists for convolutions with 2 axes, and this one has 1; use channel",
        ),
        (
            _conv((8, 8, 3, 3), strides=(4, 4), sides=(64, 64)),
            Treatment(rank=0.7, decomposition="spatial"),
            r"with rank 8 takes \d\.\d+ times the layer's own multiply-accumulates; lower the share, use channel",
        ),
        (_linear(9, 9), Treatment(rank=0.5, rank_error="output"), "low rank by output needs calibration data"),
    ],
)  # fmt: skip
def test_what_is_no_gain_is_refused_with_the_numbers(geometry, treatment, reason):
    with pytest.raises(PolicyError, match=reason):
        factorise(_weight(geometry.weight_shape), treatment, geometry)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_shapes_alone_tell_what_will_be_refused(data):
    form = data.draw(st.sampled_from(["linear", "auto", "channel", "spatial", "tucker"]))
    sizes = st.integers(1, 9)
    shape = tuple(data.draw(sizes) for _ in range(2))
    if form != "linear":
        shape = (*shape, *data.draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (5, 5)])))
    kind = "linear" if form == "linear" else "conv"
    treatment = Treatment(rank=data.draw(SHARES), decomposition="auto" if form == "linear" else form)
    layer = Layer("layer", kind, shape, (-1, shape[0], 8, 8), 0, 0)
    geometry = LayerGeometry.of(layer)
    reason = why_not_low_rank(layer, treatment)
    try:
        factors = factorise(_weight(shape), treatment, geometry)
    except PolicyError as error:
        assert reason is not None and str(error).startswith("layer layer: low rank")
        return
    assert reason is None
    own = int(np.prod(shape))
    assert count_elements(factors.shapes) <= treatment.rank * own < own
    assert [w.shape for w in factors.weights] == [f.weight_shape for f in factors.shapes]


def test_a_layer_that_stays_whole_has_no_reason_against_it():
    assert why_not_low_rank(Layer("words", "embedding", (9, 8), (-1, 8), 72, 0), Treatment()) is None


def test_of_a_layer_alone_a_depthwise_convolution_is_known_to_have_groups():
    reason = why_not_low_rank(Layer("dw", "depthwise_conv", (8, 1, 3, 3), (-1, 8, 4, 4), 72, 0), Treatment(rank=0.5))
    assert "one group, and this one has 8" in reason


def test_how_far_energy_goes_is_not_told_by_shapes_but_that_rank_1_is_too_much_is():
    treatment = Treatment(rank=0.5, rank_by="energy")
    assert why_not_low_rank(_linear(20, 20), treatment) is None
    assert "rank 1 has 21 elements, and the layer itself 20" in why_not_low_rank(_linear(20, 1), treatment)


def test_a_weight_of_zeros_has_factors_of_zeros():
    factors = factorise(np.zeros((16, 16), np.float32), Treatment(rank=0.9, rank_by="energy"), _linear(16, 16))
    assert _whole(factors).shape == (16, 16)
    assert not _whole(factors).any()


def test_shapes_of_strided_convolutions_split_by_axis():
    geometry = LayerGeometry("c", "conv", (6, 4, 3, 5), Window((3, 5), (2, 3), (1, 2), ((1, 0), (2, 4))))
    down, across = (shape.window for shape in factor_shapes(geometry, "spatial", (2,)))
    assert (down.kernel, down.strides, down.dilations, down.pads) == ((3, 1), (2, 1), (1, 1), ((1, 0), (0, 0)))
    assert (across.kernel, across.strides, across.dilations, across.pads) == ((1, 5), (1, 3), (1, 2), ((0, 0), (2, 4)))

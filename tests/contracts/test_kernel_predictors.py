"""Every predictor of unseen kernels keeps the contract; a new one is a line in `PREDICTORS`."""

import numpy as np
import pytest
from trimtab.core.errors import SpecError
from trimtab.hw_profiles.kernels.kernel import Kernel, Tensor
from trimtab.hw_profiles.kernels.kernel_features import measure_work
from trimtab.hw_profiles.prices.predictors import PREDICTORS, Calibrated, build_predictor, fold_by_shape

#: rates of a made-up device
OVERHEAD_S, OPERATIONS_PER_S, BYTES_PER_S = 2e-6, 5e10, 1e10


def matmul(rows, depth, columns, dtype="float32"):
    return Kernel(
        "MatMul",
        inputs=(Tensor(dtype, (rows, depth)), Tensor(dtype, (depth, columns), is_constant=True)),
        outputs=(Tensor("float32", (rows, columns)),),
    )


def add(n_channels, side):
    image = Tensor("float32", (1, n_channels, side, side))
    return Kernel("Add", inputs=(image, image), outputs=(image,))


def draw(n, seed):
    """Distinct matrix products and additions."""
    rng = np.random.default_rng(seed)
    kernels = {}
    while len(kernels) < n:
        rows, depth, columns = (8 * int(rng.integers(1, 64)) for _ in range(3))
        is_product = rng.random() < 0.6
        kernel = matmul(rows, depth, columns) if is_product else add(depth, int(rng.choice([7, 14, 28, 56])))
        kernels[kernel.id] = kernel
    return list(kernels.values())


def roofline_seconds(kernels):
    works = [measure_work(kernel) for kernel in kernels]
    return np.array(
        [OVERHEAD_S + max(w.flops / OPERATIONS_PER_S, w.moved_bytes / BYTES_PER_S) for w in works], np.float64
    )


@pytest.fixture(params=list(PREDICTORS))
def make(request):
    if request.param in ("random_forest", "gradient_boosting"):
        pytest.importorskip("sklearn")
    return PREDICTORS.get(request.param)


def test_a_roofline_is_recovered(make):
    known, unseen = draw(260, seed=0), draw(80, seed=1)
    predictor = make()
    predictor.fit(known, roofline_seconds(known))
    medians, _ = predictor.predict(unseen)
    misses = np.abs(medians / roofline_seconds(unseen) - 1)
    # a smooth maximum is up to √2 of the larger term where both are equal
    assert np.median(misses) < 0.08
    assert misses.max() < 0.6


def test_more_work_takes_longer(make):
    known = draw(260, seed=0)
    predictor = make()
    predictor.fit(known, roofline_seconds(known))
    medians, _ = predictor.predict([matmul(2**i, 256, 256) for i in range(3, 11)])
    # every second doubling: steps of trees are flat between two kernels that they saw
    assert (medians[2:] > medians[:-2]).all()


def test_the_same_kernels_give_the_same_prediction(make):
    known, unseen = draw(120, seed=0), draw(20, seed=1)
    results = []
    for _ in range(2):
        predictor = make()
        predictor.fit(known, roofline_seconds(known))
        results.append(predictor.predict(unseen))
    assert np.array_equal(results[0], results[1])


def test_fitting_again_forgets(make):
    known, unseen = draw(60, seed=0), draw(10, seed=1)
    once, twice = make(), make()
    twice.fit(draw(60, seed=2), np.ones(60))
    for predictor in (once, twice):
        predictor.fit(known, roofline_seconds(known))
    assert np.array_equal(once.predict(unseen), twice.predict(unseen))


@pytest.mark.parametrize("n", [1, 2, 30])
def test_anything_is_priced_from_few_kernels(make, n):
    known = draw(n, seed=0)
    predictor = make()
    predictor.fit(known, np.zeros(n))
    odd = Kernel("vendor.Frobnicate", (), (Tensor("dynamic", (-1, 3)),), "fast")
    medians, errors = predictor.predict([odd, *known, *draw(5, seed=3)])
    assert np.isfinite(medians).all() and (medians > 0).all()
    assert np.isfinite(errors).all() and (errors > 0).all()


def test_no_kernels_have_no_prices(make):
    predictor = make()
    predictor.fit(draw(30, seed=0), np.full(30, 1e-5))
    medians, errors = predictor.predict([])
    assert (medians.shape, errors.shape) == ((0,), (0,))


@pytest.mark.parametrize(
    ("kernels", "seconds"),
    [([], []), (draw(2, 0), [1.0]), (draw(1, 0), [float("nan")]), (draw(1, 0), [-1.0]), (draw(1, 0), [float("inf")])],
)
def test_bad_times_are_refused(make, kernels, seconds):
    with pytest.raises(SpecError, match=r"must be finite|at least one kernel"):
        make().fit(kernels, np.array(seconds))


def test_an_unfitted_predictor_says_so(make):
    with pytest.raises(SpecError, match="fitted"):
        make().predict(draw(1, seed=0))


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_error_bars_hold_for_noise_that_is_known(noise):
    known, unseen = draw(300, seed=0), draw(300, seed=1)
    rng = np.random.default_rng(2)
    seen, truth = (roofline_seconds(k) * np.exp(rng.normal(0, noise, len(k))) for k in (known, unseen))
    predictor = build_predictor()
    predictor.fit(known, seen)
    medians, errors = predictor.predict(unseen)
    share = (np.abs(np.log(medians / truth)) < errors).mean()
    # 0.683 of a normal distribution; 300 draws scatter by 0.027, the calibration by as much again
    assert share == pytest.approx(0.683, abs=0.1)
    assert np.median(errors) == pytest.approx(noise, rel=0.5)


def test_far_away_is_less_certain_than_near():
    known = [matmul(rows, 256, 256) for rows in range(8, 400, 8)]
    predictor = build_predictor()
    predictor.fit(known, roofline_seconds(known) * np.exp(0.2 * np.sin(np.arange(len(known)))))
    _, (near, far) = predictor.predict([matmul(100, 256, 256), matmul(100, 8, 4096)])
    assert far > near


def test_one_shape_stays_in_one_fold():
    kernels = [matmul(rows, 64, 64, dtype) for rows in range(1, 60) for dtype in ("float32", "int8")]
    folds = fold_by_shape(kernels).reshape(-1, 2)
    assert np.array_equal(folds[:, 0], folds[:, 1])
    assert set(folds.ravel()) == {0, 1, 2, 3, 4}


def test_calibration_keeps_the_medians():
    known, unseen = draw(80, seed=0), draw(20, seed=1)
    plain, calibrated = PREDICTORS.get("roofline")(), Calibrated(PREDICTORS.get("roofline"))
    for predictor in (plain, calibrated):
        predictor.fit(known, roofline_seconds(known))
    assert np.array_equal(plain.predict(unseen)[0], calibrated.predict(unseen)[0])

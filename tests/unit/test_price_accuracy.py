"""How far prices are from measurements, against other libraries' figures."""

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import mean_absolute_percentage_error
from trimtab.experiments.profiling.accuracy import compare_prices
from trimtab.experiments.profiling.scatter import draw_scatter


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    measured = rng.uniform(1e-3, 9e-3, 40).round(4)  # with ties
    return measured * rng.normal(1.02, 0.05, 40), measured


def test_figures_are_those_of_scipy_and_scikit_learn(pair):
    priced, measured = pair
    accuracy = compare_prices(priced, measured)
    assert accuracy.mape == pytest.approx(mean_absolute_percentage_error(measured, priced))
    assert accuracy.kendall_tau == pytest.approx(kendalltau(priced, measured).statistic)


def test_hits_and_bias_are_counted_by_hand():
    accuracy = compare_prices(np.array([1.0, 1.06, 1.2, 0.96]), np.ones(4), np.array([0.1, 0.01, 0.2, 0.01]))
    assert (accuracy.hits_5, accuracy.hits_10, accuracy.coverage_95) == (0.5, 0.75, 0.5)
    assert accuracy.bias == pytest.approx(0.055)


def test_order_of_one_policy_says_nothing():
    assert compare_prices(np.array([1.0]), np.array([1.0])).kendall_tau is None


def test_the_picture_is_a_png(tmp_path, pair):
    priced, measured = pair
    draw_scatter(tmp_path / "scatter.png", (priced, 0.05 * priced, measured), title="tiny")
    assert (tmp_path / "scatter.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

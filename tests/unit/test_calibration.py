import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization.calibrate import HistogramCollector
from trimtab.compressors.quantization.calibration import Histogram, choose_range, collect_histograms
from trimtab.core.errors import DataError, ModelError


@pytest.fixture(scope="module")
def squares():
    """The model y = x · x, (batch, n) → (batch, n)."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "x"], ["y"])],
        "squares",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def _collect(model, arrays, names=("x", "y")):
    feeds = [{"x": np.asarray(array, np.float32).reshape(1, -1)} for array in arrays]
    return collect_histograms(model, names, feeds)


_RNG = np.random.default_rng(0)
_SETS = {
    "one size": [_RNG.normal(size=500) for _ in range(4)],
    "growing": [_RNG.normal(size=200) * 1.5**n for n in range(6)],
    "growing to one side": [_RNG.exponential(size=200) + n for n in range(8)],
    "exploding": [_RNG.normal(size=300) * 1e-4, _RNG.normal(size=300) * 1e3, _RNG.normal(size=300)],
    "constant, then not": [np.full(10, 3.0), _RNG.normal(size=300)],
    "constant": [np.full(10, -2.0)] * 3,
    "huge constants": [np.full(10, 1e10), np.full(10, 1e10)],
    "zeros": [np.zeros(10)] * 2,
    "masks": [np.where(_RNG.random(100) < 0.5, 0.0, np.finfo(np.float32).min) for _ in range(2)],
}


@pytest.mark.parametrize("arrays", _SETS.values(), ids=_SETS)
def test_a_histogram_has_the_range_and_the_number_of_the_values(squares, arrays):
    values = np.concatenate(arrays).astype(np.float32)
    histogram = _collect(squares, arrays, ["x"])["x"]
    assert (histogram.minimum, histogram.maximum) == (values.min(), values.max())
    assert histogram.counts.sum() == values.size
    assert (np.diff(histogram.edges) > 0).all()
    assert histogram.edges[0] <= values.min()
    assert values.max() <= histogram.edges[-1]


@pytest.mark.parametrize("name", ["one size", "growing", "growing to one side"])
def test_counts_are_those_of_numpy_over_the_same_edges(squares, name):
    values = np.concatenate(_SETS[name]).astype(np.float32).astype(np.float64)
    histogram = _collect(squares, _SETS[name], ["x"])["x"]
    expected = np.histogram(values, histogram.edges)[0]
    # a value on an edge may fall to either side
    assert np.abs(np.cumsum(histogram.counts) - np.cumsum(expected)).max() <= 1
    assert np.abs(histogram.counts - expected).sum() <= 4


@pytest.mark.parametrize("name", ["exploding", "constant, then not"])
def test_a_range_that_explodes_moves_no_value_by_more_than_a_coarse_bin(squares, name):
    values = np.sort(np.concatenate(_SETS[name]).astype(np.float32).astype(np.float64))
    histogram = _collect(squares, _SETS[name], ["x"])["x"]
    width = np.diff(histogram.edges).max()
    assert len(histogram.counts) <= 16 * 2048
    below = np.cumsum(histogram.counts)
    for edge, count in zip(histogram.edges[1:], below, strict=True):
        assert np.searchsorted(values, edge - width) <= count <= np.searchsorted(values, edge + width, "right")


def test_a_value_is_watched_once_and_only_if_named(squares):
    assert list(_collect(squares, [[1.0, 2.0]], ["y", "y"])) == ["y"]


def test_a_value_that_is_not_finite_is_named(squares):
    with pytest.raises(ModelError, match="the value 'y' is not finite on the calibration data"):
        _collect(squares, [[1.0], [1e30]])


def test_nan_in_the_data_is_named(squares):
    with pytest.raises(ModelError, match="the value 'x' is not finite on the calibration data"):
        _collect(squares, [[np.nan]])


def test_a_sample_that_the_model_cannot_run_is_an_error_in_the_data(squares):
    with pytest.raises(DataError, match="the model cannot run on calibration sample 1"):
        collect_histograms(
            squares, ["y"], [{"x": np.zeros((1, 2), np.float32)}, {"x": np.zeros((1, 2, 3), np.float32)}]
        )


# -- ranges ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tailed():
    """(200000,) float32: normal, with 40 outliers on the right and 10 on the left."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=200_000)
    values[:40] = rng.uniform(20, 40, 40)
    values[40:50] = rng.uniform(-15, -10, 10)
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def histogram(squares, tailed):
    return _collect(squares, tailed.reshape(10, -1), ["x"])["x"]


def test_minmax_keeps_everything(histogram, tailed):
    chosen = choose_range(histogram, "minmax")
    assert (chosen.low, chosen.high) == (tailed.min(), tailed.max())


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("shift", [50.0, -50.0])
def test_zero_lies_inside_every_range(squares, method, shift):
    values = np.random.default_rng(0).normal(size=1000) + shift
    chosen = choose_range(_collect(squares, [values], ["x"])["x"], method)
    assert chosen.low <= 0 <= chosen.high
    assert min(abs(chosen.low), abs(chosen.high)) == 0


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_no_range_exceeds_what_was_seen(histogram, method):
    chosen = choose_range(histogram, method)
    assert histogram.minimum <= chosen.low < chosen.high <= histogram.maximum


@pytest.mark.parametrize("name", _SETS)
@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_every_method_survives_odd_values(squares, name, method):
    chosen = choose_range(_collect(squares, _SETS[name], ["x"])["x"], method)
    assert np.isfinite([chosen.low, chosen.high]).all()


def test_percentiles_are_those_of_numpy_within_a_bin(histogram, tailed):
    width = histogram.edges[1] - histogram.edges[0]
    tail = (100 - 99.999) / 2
    low, high = np.percentile(tailed.astype(np.float64), [tail, 100 - tail], method="inverted_cdf")
    chosen = choose_range(histogram, "percentile")
    assert chosen.low == pytest.approx(low, abs=width * 1.01)
    assert chosen.high == pytest.approx(high, abs=width * 1.01)


def test_percentiles_cut_outliers_off(histogram, tailed):
    chosen = choose_range(histogram, "percentile")
    kept = ((tailed >= chosen.low) & (tailed <= chosen.high)).mean()
    assert 0.99999 <= kept < 1


@pytest.mark.parametrize("distribution", ["normal", "laplace", "relu"])
def test_entropy_finds_the_threshold_of_onnxruntimes_collector(squares, distribution, capsys):
    rng = np.random.default_rng(5)
    draw = {"normal": rng.normal, "laplace": rng.laplace, "relu": lambda size: np.maximum(rng.normal(size=size), 0)}
    values = draw[distribution](size=50_000).astype(np.float32)
    values[:5] = 12
    collector = HistogramCollector("entropy", True, 1025, 128, 99.999, "same")
    collector.collect({"x": values})
    low, high = (float(np.squeeze(edge)) for edge in collector.compute_collection_result()["x"][:2])
    chosen = choose_range(_collect(squares, [values], ["x"])["x"], "entropy")
    # ours counts in 2048 bins over the real range first, so a value may land one bin of theirs away, and the
    # divergence is so flat around its minimum that this moves the threshold by some bins of 0.023
    assert chosen.high == pytest.approx(high, rel=0.03)
    assert chosen.low == pytest.approx(min(low, 0.0), rel=0.03)


def _rounding_error(values, low, high):
    """The mean squared error of really rounding to 8 bits, in float64."""
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    codes = np.clip(np.rint(values / scale) + zero, 0, 255)
    return ((codes - zero) * scale - values).astype(np.float64).__pow__(2).mean()


@pytest.mark.parametrize("distribution", ["normal", "tailed", "relu"])
def test_mse_is_nearly_as_good_as_the_best_of_all_shrunken_ranges(squares, tailed, distribution):
    rng = np.random.default_rng(5)
    values = {"normal": rng.normal(size=20_000), "relu": np.maximum(rng.normal(size=20_000), 0), "tailed": tailed}
    array = values[distribution].astype(np.float32).astype(np.float64)
    chosen = choose_range(_collect(squares, [array], ["x"])["x"], "mse")
    low, high = min(array.min(), 0), max(array.max(), 0)
    errors = [_rounding_error(array, low * share, high * share) for share in np.linspace(0.05, 1, 120)]
    # 3 %: the shares tried are not the same, and rounding noise is only nearly uniform within a step
    assert _rounding_error(array, chosen.low, chosen.high) <= 1.03 * min(errors)


def test_mse_weighs_clipping_against_rounding():
    """By hand: 10^6 values spread over [-1, 1], one at 100 and one at -100.

    Keeping the share s of the range costs 2 · (100 - 100 s)² for clipping and 10^6 · (200 s / 255)² / 12 for rounding;
    the derivative is zero at s = 40000 / (40000 + 2 · 51262) = 0.281.
    """
    edges = np.linspace(-102, 102, 2041)
    counts = np.zeros(2040, np.int64)
    counts[1010:1030] = 50_000
    counts[[20, -21]] = 1
    chosen = choose_range(Histogram(counts, edges, -100.0, 100.0), "mse")
    # the shares tried are 0.009 apart
    assert (chosen.low, chosen.high) == (pytest.approx(-28.1, abs=0.95), pytest.approx(28.1, abs=0.95))

"""What is counted is counted right, and what drifts is signalled; what does not is not."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from trimtab.core.errors import ArtifactError
from trimtab.evaluators.measurement import Estimate
from trimtab.experiments.manifest import read_manifest
from trimtab.experiments.serving.agreement import compare_outputs
from trimtab.experiments.serving.chi_square import chi_square_tail, compare_counts, population_stability
from trimtab.experiments.serving.drift import DriftDetector
from trimtab.experiments.serving.histogram import LatencyHistogram
from trimtab.experiments.serving.input_statistics import (
    MAX_ELEMENTS,
    measure_row,
    record_inputs,
    statistics_from_json,
    statistics_to_json,
    take_elements,
)
from trimtab.experiments.serving.watches import AgreementWatch, InputWatch, LatencyBand, LatencyWatch, binomial_tail

GOLDEN = Path(__file__).parent.parent / "golden" / "artifact-v1"
MS = 1_000_000


@settings(max_examples=50)
@given(
    st.lists(st.integers(2_000, 60_000_000_000), min_size=1, max_size=300),
    st.sampled_from([0.01, 0.25, 0.5, 0.9, 0.99, 1.0]),
)
def test_quantiles_are_those_of_numpy_within_a_bucket(latencies_ns, share):
    histogram = LatencyHistogram()
    for latency_ns in latencies_ns:
        histogram.add(latency_ns)
    exact = np.quantile(latencies_ns, share, method="inverted_cdf") / 1e9
    assert histogram.quantile_s(share) == pytest.approx(exact, rel=2 ** (1 / 32) - 1 + 1e-9)


def test_cumulated_counts_are_those_of_numpy():
    latencies_ns = np.random.default_rng(0).lognormal(14, 3, 2000).astype(np.int64) + 1
    histogram = LatencyHistogram()
    for latency_ns in latencies_ns:
        histogram.add(int(latency_ns))
    for bound_s, count in histogram.cumulate():
        assert count == (latencies_ns < bound_s * 1e9).sum()
    assert (histogram.count, histogram.sum_ns) == (2000, latencies_ns.sum())


def test_a_histogram_of_nothing_has_no_quantile():
    assert math.isnan(LatencyHistogram().quantile_s(0.5))


def test_what_is_shorter_or_longer_than_all_buckets_counts_in_the_outer_ones():
    histogram = LatencyHistogram()
    for latency_ns in (0, 1, 10**15):
        histogram.add(latency_ns)
    assert histogram.cumulate()[0][1] == 2
    assert histogram.cumulate()[-1] == (math.inf, 3)


@settings(max_examples=40)
@given(st.floats(1e-3, 300.0), st.integers(1, 40))
def test_the_tail_of_chi_square_is_scipys(statistic, n_degrees):
    assert chi_square_tail(statistic, n_degrees) == pytest.approx(stats.chi2.sf(statistic, n_degrees), rel=1e-9)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=12))
def test_two_samples_are_compared_as_a_contingency_table(pairs):
    table = np.array(pairs).T
    kept = table[:, table.sum(axis=0) > 0]
    if kept.shape[1] < 2 or not kept.sum(axis=1).all():
        return
    expected = stats.chi2_contingency(kept, correction=False).pvalue
    assert compare_counts(table[0], table[1]) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_equal_shares_have_a_stability_index_of_nothing_and_others_that_of_its_definition():
    assert population_stability(np.array([100, 300]), np.array([100, 300])) == pytest.approx(0.0)
    p, q = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    found = population_stability((p * 1e9).astype(int), (q * 1e9).astype(int))
    assert found == pytest.approx(float(((q - p) * np.log(q / p)).sum()), rel=1e-6)


@settings(max_examples=40)
@given(st.integers(0, 64), st.integers(1, 64), st.floats(0.01, 0.99))
def test_the_tail_of_a_binomial_is_scipys(n_successes, n_trials, rate):
    expected = stats.binom.cdf(n_successes, n_trials, rate)
    assert binomial_tail(n_successes, n_trials, rate) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_false_alarms_are_as_rare_as_stated():
    """Simulated at its worst, 5 % of windows out by chance, with a limit that can be waited for."""
    rng = np.random.default_rng(1)
    waits = []
    for _ in range(60):
        detector, n_windows = DriftDetector(windows_per_false_alarm=100), 0
        while not detector.is_drifting:
            detector.add(is_out=bool(rng.random() < 0.05))
            n_windows += 1
        waits.append(n_windows)
    assert np.mean(waits) > 100


def test_a_drift_is_signalled_once_until_it_is_over():
    detector = DriftDetector()
    signals = [detector.add(is_out=is_out) for is_out in [True] * 20 + [False] * 5 + [True] * 5]
    assert [index for index, signal in enumerate(signals) if signal] == [4, 29]


def tokens(n, rng, largest=30_000):
    """Ids as words are spread, padded with zeros, and a small vector."""
    ids = rng.zipf(1.3, size=(n, 32)).clip(max=largest)
    ids[np.arange(32)[None] >= rng.integers(5, 32, size=n)[:, None]] = 0
    return {"ids": ids.astype(np.int64), "x": rng.normal(size=(n, 8)).astype(np.float32)}


def samples_of(inputs, rng):
    n_samples = len(inputs["ids"])
    return [
        {name: (take_elements(array, row, rng.random()), rng.random()) for name, array in inputs.items()}
        for row in range(n_samples)
    ]


@pytest.mark.parametrize("n_recorded", [64, 1000])
def test_inputs_like_the_recorded_ones_are_no_drift(n_recorded):
    rng = np.random.default_rng(n_recorded)
    watch = InputWatch(record_inputs(tokens(n_recorded, rng)))
    assert watch.add(samples_of(tokens(2400, rng), rng), 0.0) is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ids", lambda ids: np.where(ids > 0, ids % 50 + 20_000, 0)),  # another vocabulary
        ("ids", lambda ids: np.where(np.arange(32) < 8, ids, 0)),  # cut off early
        ("x", lambda x: x + np.float32(0.5)),  # brighter
        ("x", lambda x: x * np.float32(0.5)),  # paler
        ("x", lambda x: np.full_like(x, np.nan)),  # broken
        ("x", lambda x: np.zeros_like(x)),  # a dead sensor
    ],
)
def test_other_inputs_are_a_drift_of_that_input(name, change):
    rng = np.random.default_rng(0)
    watch = InputWatch(record_inputs(tokens(1000, rng)))
    inputs = tokens(1000, rng)
    drift = watch.add(samples_of({**inputs, name: change(inputs[name])}, rng), 0.0)
    assert (drift.signal, f"'{name}'" in drift.message) == ("inputs", True)


def test_of_large_samples_all_elements_are_looked_at_in_turn():
    array = np.arange(10 * MAX_ELEMENTS)[None]
    taken = [take_elements(array, 0, offset) for offset in np.linspace(0, 0.99, 10)]
    assert max(map(len, taken)) == MAX_ELEMENTS
    assert set(np.concatenate(taken)) == set(range(10 * MAX_ELEMENTS))


def test_features_are_those_of_numpy():
    values = np.array([0, 3, 0, 5, 7], np.int64)
    found = measure_row(values, 0.99)
    expected = {"mean": values.mean(), "spread": values.std(), "zeros": 0.4, "element": 7.0}
    assert found == pytest.approx(expected)


def test_too_few_samples_texts_and_constants_leave_no_statistics():
    assert record_inputs({"x": np.random.default_rng(0).normal(size=(15, 3))}) == {}
    assert record_inputs({"x": np.full((100, 3), 7.0)}) == {}
    assert record_inputs({"x": np.full((100, 1), "word")}) == {}


def test_statistics_come_back_from_a_manifest(tmp_path):
    statistics = record_inputs(tokens(500, np.random.default_rng(0)))
    assert statistics_from_json(json.loads(json.dumps(statistics_to_json(statistics)))) == statistics
    for name in ("model.onnx", "policy.json"):
        (tmp_path / name).write_bytes((GOLDEN / name).read_bytes())
    agreement = Estimate(0.99, 0.004, 500)
    replace(read_manifest(GOLDEN), input_statistics=statistics, agreement=agreement).write(tmp_path)
    found = read_manifest(tmp_path)
    assert (found.input_statistics, found.agreement) == (statistics, agreement)


@pytest.mark.parametrize(
    "service",
    [
        {"input_statistics": {"x": {"mean": {"edges": [1.0, 1.0], "counts": [1, 1, 1]}}}},
        {"input_statistics": {"x": {"mean": {"edges": [0.0], "counts": [1]}}}},
        {"input_statistics": {"x": {"mean": {"edges": [0.0], "counts": [1, -1]}}}},
        {"input_statistics": {"x": {"mean": {"edges": [float("nan")], "counts": [1, 1]}}}},
        {"input_statistics": [1]},
        {"input_statistics": {"x": {str(k): {"edges": [0.0], "counts": [1, 1]} for k in range(300)}}},
        {"agreement": {"mean": 1.5, "standard_error": 0.0, "n": 3}},
        {"agreement": {"mean": "1"}},
    ],
)
def test_damaged_statistics_are_refused(tmp_path, service):
    content = json.loads((GOLDEN / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "service": service}))
    with pytest.raises(ArtifactError, match="is damaged"):
        read_manifest(tmp_path)


def test_an_artifact_of_before_has_no_statistics():
    assert (read_manifest(GOLDEN).input_statistics, read_manifest(GOLDEN).agreement) == ({}, None)


BAND = LatencyBand(promised_s=0.010, yardstick_s=0.001, tolerance=0.25)


def windows(watch, latencies_ms):
    """One window of 20 calls for each latency; returns those in which a drift is signalled."""
    signals = []
    for index, milliseconds in enumerate(latencies_ms):
        now_s = float(index)
        found = [watch.add([round(milliseconds * MS)] * 10, now_s + part * 0.5) for part in (0, 1)]
        signals += [index for drift in found if drift is not None]
    return signals


def test_a_model_that_takes_longer_than_promised_is_signalled():
    watch = LatencyWatch("a", BAND, 0.001, lambda: 0.001)
    assert windows(watch, [12.4] * 20 + [12.6] * 10) == [24]


def test_a_machine_that_slows_everything_down_is_no_drift_of_the_model():
    watch = LatencyWatch("a", BAND, 0.001, lambda: 0.002)
    assert windows(watch, [24.0] * 20) == []
    assert windows(LatencyWatch("a", BAND, 0.001, lambda: 0.002), [26.0] * 20) == [4]


def test_a_machine_that_is_slower_from_the_start_is_forgiven_up_to_three_times():
    for yardstick_s, limit_s in ((0.0005, 0.0125), (0.002, 0.025), (0.009, 0.0375)):
        assert LatencyWatch("a", BAND, yardstick_s, lambda: 0.001).limit_s == pytest.approx(limit_s)


def test_single_disturbances_are_no_drift():
    watch = LatencyWatch("a", BAND, 0.001, lambda: 0.001)
    assert windows(watch, ([10.0] * 9 + [50.0]) * 20) == []


def test_the_yardstick_is_only_asked_where_a_window_is_too_slow():
    asked = []
    watch = LatencyWatch("a", BAND, 0.001, lambda: asked.append(1) or 0.001)
    windows(watch, [10.0] * 20)
    assert asked == []
    windows(watch, [20.0])
    assert asked == [1]


def test_models_that_no_longer_agree_are_signalled():
    rng = np.random.default_rng(0)
    watch = AgreementWatch("a", floor=0.95)
    assert watch.add((rng.random(64 * 200) < 0.95).astype(float).tolist(), 0.0) is None
    drift = watch.add((rng.random(64 * 20) < 0.7).astype(float).tolist(), 0.0)
    assert (drift.signal, drift.policy, drift.figures["rate"] < 0.9) == ("agreement", "a", True)


def test_scores_of_classes_agree_where_they_are_largest_in_one_place_and_numbers_where_they_are_close():
    ours = np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)
    assert compare_outputs([ours], [ours * 3]).tolist() == [1.0, 1.0]
    assert compare_outputs([ours], [ours[::-1]]).tolist() == [0.0, 0.0]
    boxes, masks = np.array([[1.0], [100.0]]), np.array([[3.0], [110.0]])
    assert compare_outputs([boxes], [masks]).tolist() == [1.0, 0.0]
    assert compare_outputs([ours], [ours[:, :1]]).tolist() == [0.0, 0.0]

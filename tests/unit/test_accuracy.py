"""Accuracy on an executable, in batches and paired."""

import numpy as np
import pytest
import scipy.stats
from trimtab.core.errors import DataError, MeasurementError
from trimtab.evaluators.accuracy import AccuracyEvaluator, run_split, take_batch
from trimtab.evaluators.dataset import Split

N, CLASSES = 23, 4


class FixedBatch:
    """Adds an offset to its input and insists on its batch size."""

    def __init__(self, batch_size, offset=0.0):
        self.batch_size = batch_size
        self.offset = offset

    def run(self, inputs):
        assert len(inputs["x"]) == self.batch_size
        return [inputs["x"] + self.offset]


class Returns:
    def __init__(self, *outputs):
        self.outputs = outputs

    def run(self, inputs):
        return list(self.outputs)


@pytest.fixture
def split():
    rng = np.random.default_rng(1)
    return Split({"x": rng.standard_normal((N, CLASSES)).astype(np.float32)}, rng.integers(0, CLASSES, N))


@pytest.mark.parametrize("batch_size", [1, 4, 23, 64])
def test_any_batch_size_gives_every_sample_once_and_in_order(split, batch_size):
    (outputs,) = run_split(FixedBatch(batch_size), split, batch_size=batch_size)
    np.testing.assert_array_equal(outputs, split.inputs["x"])


def test_a_batch_beyond_the_end_repeats_the_last_sample(split):
    np.testing.assert_array_equal(take_batch(split, 22, 3)["x"], split.inputs["x"][[22, 22, 22]])


def test_a_batch_after_the_last_sample_is_refused(split):
    with pytest.raises(DataError, match="before sample 23, got 23"):
        take_batch(split, 23, 1)


def test_the_original_loses_nothing_against_itself(split):
    evaluator = AccuracyEvaluator(FixedBatch(4), split, metric="accuracy", batch_size=4)
    score = evaluator.score(FixedBatch(4))
    assert (evaluator.original, 0.0, 0.0) == (
        score.accuracy,
        score.accuracy_drop.mean,
        score.accuracy_drop.standard_error,
    )


def test_accuracy_and_drop_are_the_paired_statistics_of_scipy(split):
    worse = FixedBatch(4, np.array([2.0, 0.0, 0.0, 0.0], np.float32))
    evaluator = AccuracyEvaluator(FixedBatch(4), split, metric="accuracy", batch_size=4)
    score = evaluator.score(worse)
    right = (split.inputs["x"].argmax(1) == split.labels).astype(float)
    still = ((split.inputs["x"] + worse.offset).argmax(1) == split.labels).astype(float)
    expected = (still.mean(), (right - still).mean(), scipy.stats.sem(right - still))
    got = (score.accuracy.mean, score.accuracy_drop.mean, score.accuracy_drop.standard_error)
    assert expected == pytest.approx(got)


def test_a_paired_subset_scores_as_those_samples_of_the_whole(split):
    evaluator = AccuracyEvaluator(FixedBatch(4), split, metric="kl", batch_size=4)
    worse = FixedBatch(4, np.array([2.0, 0.0, 0.0, 0.0], np.float32))
    indices = np.array([20, 3, 7, 7, 11])
    np.testing.assert_allclose(
        evaluator.score_samples(worse, indices=indices), evaluator.score_samples(worse)[indices], atol=1e-12
    )
    assert evaluator.score(worse, indices=indices).accuracy_drop.n == 5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused(split, value):
    broken = np.zeros((4, 2), np.float32)
    broken[1, 1] = value
    with pytest.raises(MeasurementError, match="6 of 46 values that are not in output 1"):
        run_split(Returns(np.zeros((4, 2)), broken), split, batch_size=4)


@pytest.mark.parametrize("shape", [(), (2, 4)])
def test_outputs_without_the_batch_in_front_are_refused(split, shape):
    with pytest.raises(MeasurementError, match="must have the batch of 4 as its first dimension"):
        run_split(Returns(np.zeros(shape)), split, batch_size=4)


def test_outputs_whose_shape_changes_between_batches_are_refused(split):
    class Growing:
        width = 1

        def run(self, inputs):
            self.width += 1
            return [np.zeros((4, self.width))]

    with pytest.raises(MeasurementError, match="one shape in all batches"):
        run_split(Growing(), split, batch_size=4)


class ScalesByBatch:
    """Rounds to a step that depends on all samples of the batch, as dynamic quantisation does."""

    def __init__(self, n_steps):
        self.n_steps = n_steps

    def run(self, inputs):
        step = np.abs(inputs["x"]).max() / self.n_steps
        return [np.round(inputs["x"] / step) * step]


class Shifts(FixedBatch):
    """Says the next class for a share of the samples, whatever they are."""

    def __init__(self, share):
        super().__init__(1)
        self.share = share

    def run(self, inputs):
        hashed = np.abs(inputs["x"]).sum(axis=1) * 1e3 % 1.0
        return [np.where((hashed < self.share)[:, None], np.roll(inputs["x"], 1, axis=1), inputs["x"])]


@pytest.fixture(scope="module")
def large_split():
    logits = np.random.default_rng(3).standard_normal((600, CLASSES)).astype(np.float32)
    return Split({"x": logits}, logits.argmax(1))


@pytest.mark.parametrize("metric", ["accuracy", "top5", "agreement", "kl", "nll"])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_scoring_in_pieces_is_scoring_at_once_to_the_last_bit(large_split, metric, batch_size):
    logits = np.random.default_rng(4).standard_normal((600, 9)).astype(np.float32)
    split = Split({"x": logits}, large_split.labels)
    evaluator = AccuracyEvaluator(ScalesByBatch(100), split, metric=metric, batch_size=batch_size)
    scores = np.empty(0)
    for look in evaluator.looks:
        scores, stopped = evaluator.go_on(ScalesByBatch(3), scores, n_samples=look, max_drop=1e9)
        assert (len(scores), stopped) == (look, "")
    assert len(evaluator.looks) >= 4
    assert evaluator.summarise(scores) == evaluator.score(ScalesByBatch(3))
    assert evaluator.go_on(None, scores, n_samples=600) == (scores, "")  # nothing is left to run


def test_a_first_part_is_the_same_random_subset_for_every_artifact(large_split):
    evaluator = AccuracyEvaluator(FixedBatch(1), large_split, metric="accuracy", batch_size=1)
    scores, _ = evaluator.go_on(Shifts(0.2), np.empty(0), n_samples=evaluator.n_first)
    subset = evaluator.order[: evaluator.n_first]
    assert len(set(subset)) == len(scores) == 150  # an eighth would be 75, too few to tell much
    whole = evaluator.score_samples(Shifts(0.2))
    np.testing.assert_array_equal(scores, whole[subset])
    # paired: where the original is always right, the drop is the share of samples of the subset that are shifted
    drop = evaluator.summarise(scores).accuracy_drop
    assert (drop.mean, drop.n) == (pytest.approx(1 - whole[subset].mean()), 150)
    other = AccuracyEvaluator(FixedBatch(1), large_split, metric="accuracy", batch_size=1)
    np.testing.assert_array_equal(other.order, evaluator.order)


def test_a_clear_loser_is_stopped_at_the_first_look_in_words(large_split):
    evaluator = AccuracyEvaluator(FixedBatch(1), large_split, metric="accuracy", batch_size=1)
    scores, stopped = evaluator.go_on(Shifts(0.9), np.empty(0), n_samples=600, max_drop=0.01)
    assert len(scores) == evaluator.looks[0] == 75
    drop = evaluator.summarise(scores).accuracy_drop
    assert stopped == (
        f"stopped after 75 of 600 samples: an accuracy drop of {drop.mean:.4g} ± {drop.standard_error:.2g} "
        "is clearly above 0.01"
    )


def test_what_keeps_the_bound_or_has_none_is_scored_to_the_end(large_split):
    evaluator = AccuracyEvaluator(FixedBatch(1), large_split, metric="accuracy", batch_size=1)
    for share, max_drop in ((0.9, None), (0.9, 0.95), (0.01, 0.02)):
        scores, stopped = evaluator.go_on(Shifts(share), np.empty(0), n_samples=600, max_drop=max_drop)
        assert (len(scores), stopped) == (600, "")


def test_a_metric_whose_largest_score_is_unknown_stops_nothing(large_split):
    def margin(outputs, labels):
        return outputs[0][np.arange(len(labels)), labels]

    evaluator = AccuracyEvaluator(FixedBatch(1), large_split, metric=margin, batch_size=1)
    assert evaluator.go_on(Shifts(0.9), np.empty(0), n_samples=600, max_drop=0.0)[1] == ""

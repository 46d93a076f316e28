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

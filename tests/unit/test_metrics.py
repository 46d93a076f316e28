"""Metrics against scikit-learn and scipy."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from trimtab.core.errors import DataError, SpecError
from trimtab.evaluators.metrics import METRICS, estimate, find_metric, paired_drop

N, CLASSES, SEQ = 200, 10, 6


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def logits(rng):
    return (3 * rng.standard_normal((N, CLASSES))).astype(np.float32)


@pytest.fixture
def labels(rng):
    return rng.integers(0, CLASSES, N)


def probabilities(logits):
    return scipy.special.softmax(logits.astype(np.float64), axis=-1)


def score(name, outputs, labels=None, reference=None):
    return find_metric(name)([outputs], labels, [outputs if reference is None else reference])


def test_accuracy_is_scikit_learns(logits, labels):
    assert accuracy_score(labels, logits.argmax(1)) == pytest.approx(score("accuracy", logits, labels).mean())


def test_top5_is_scikit_learns(logits, labels):
    assert top_k_accuracy_score(labels, logits, k=5) == pytest.approx(score("top5", logits, labels).mean())


def test_nll_is_minus_scikit_learns_log_loss(logits, labels):
    expected = -log_loss(labels, probabilities(logits), labels=range(CLASSES))
    assert expected == pytest.approx(score("nll", logits, labels).mean(), rel=1e-6)


def test_kl_is_minus_scipys_relative_entropy(rng, logits):
    other = (logits + rng.standard_normal(logits.shape)).astype(np.float32)
    expected = -scipy.stats.entropy(probabilities(logits), probabilities(other), axis=-1)
    np.testing.assert_allclose(score("kl", other, reference=logits), expected, rtol=1e-6, atol=1e-12)


def test_kl_and_nll_survive_logits_whose_exponential_overflows():
    huge = np.array([[1e4, 0.0], [-1e4, 0.0]], np.float32)
    np.testing.assert_array_equal(score("kl", huge), [0.0, 0.0])
    np.testing.assert_array_equal(score("nll", huge, np.array([1, 1])), [-1e4, 0.0])


def test_agreement_is_accuracy_with_the_originals_decisions_as_labels(rng, logits):
    other = logits + 2 * rng.standard_normal(logits.shape)
    expected = accuracy_score(logits.argmax(1), other.argmax(1))
    assert expected == pytest.approx(score("agreement", other, reference=logits).mean())


def test_accuracy_of_sequences_skips_ignored_positions(rng):
    logits = rng.standard_normal((N, SEQ, CLASSES))
    labels = rng.integers(0, CLASSES, (N, SEQ))
    labels[:, 3:] = np.where(rng.random((N, SEQ - 3)) < 0.5, -100, labels[:, 3:])
    expected = [accuracy_score(own[own >= 0], one.argmax(1)[own >= 0]) for own, one in zip(labels, logits, strict=True)]
    np.testing.assert_allclose(score("accuracy", logits, labels), expected)


@pytest.mark.parametrize("name", sorted({"accuracy", "top5", "nll", "kl", "agreement"}))
def test_what_stands_at_ignored_positions_changes_no_score(rng, name):
    logits, reference = rng.standard_normal((2, N, SEQ, CLASSES))
    labels = rng.integers(0, CLASSES, (N, SEQ))
    labels[:, -1] = -100
    changed = logits.copy()
    changed[:, -1] = 7 * rng.standard_normal((N, CLASSES))
    np.testing.assert_array_equal(
        score(name, logits, labels, reference=reference), score(name, changed, labels, reference=reference)
    )


def test_exp_of_minus_mean_nll_of_uniform_logits_is_the_number_of_classes():
    scores = score("nll", np.zeros((4, SEQ, CLASSES)), np.zeros((4, SEQ), np.int64))
    assert pytest.approx(np.exp(-scores.mean())) == CLASSES


def test_ties_go_to_the_lower_class_in_accuracy_and_top5():
    tied = np.zeros((7, 7), np.float32)
    np.testing.assert_array_equal(score("accuracy", tied, np.arange(7)), [1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(score("top5", tied, np.arange(7)), [1, 1, 1, 1, 1, 0, 0])


def test_the_standard_error_is_scipys(rng):
    values = rng.standard_normal(50)
    got = estimate(values)
    assert (values.mean(), scipy.stats.sem(values), 50) == pytest.approx((got.mean, got.standard_error, got.n))


def test_mean_over_standard_error_of_a_paired_drop_is_scipys_paired_t(rng):
    original = rng.standard_normal(60)
    artifact = original - 0.1 + 0.3 * rng.standard_normal(60)
    drop = paired_drop(original, artifact)
    assert scipy.stats.ttest_rel(original, artifact).statistic == pytest.approx(drop.mean / drop.standard_error)


def test_pairing_is_tighter_than_independent_errors(rng):
    original = rng.standard_normal(60)
    artifact = original - 0.1
    assert paired_drop(original, artifact).standard_error < 1e-12


@pytest.mark.parametrize("values", [np.zeros(1), np.zeros(0), np.zeros((3, 2))])
def test_an_estimate_of_fewer_than_two_samples_is_refused(values):
    with pytest.raises(DataError, match="at least 2 samples"):
        estimate(values)


def test_drops_of_different_lengths_are_refused():
    with pytest.raises(DataError, match=r"one shape, got \(3,\) and \(2,\)"):
        paired_drop(np.zeros(3), np.zeros(2))


def test_the_built_in_metrics_are_registered():
    assert {"accuracy", "agreement", "kl", "nll", "top5"} <= set(METRICS)


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'accuracy'"):
        find_metric("acuracy")


def test_a_metric_can_be_a_module_and_a_callable(logits, labels):
    by_path = find_metric("trimtab.evaluators.metrics:accuracy")
    np.testing.assert_array_equal(by_path([logits], labels, [logits]), score("accuracy", logits, labels))


def test_a_users_metric_may_leave_the_reference_out(logits, labels):
    metric = find_metric(lambda outputs, labels: outputs[0][:, 0] - labels)
    np.testing.assert_allclose(metric([logits], labels, [logits]), logits[:, 0] - labels)


def test_a_users_metric_may_take_the_reference(logits):
    metric = find_metric(lambda outputs, labels, reference: -np.abs(outputs[0] - reference[0]).max(axis=1))
    np.testing.assert_array_equal(metric([logits], None, [logits]), np.zeros(N))


def test_a_found_metric_is_found_again():
    metric = find_metric("accuracy")
    assert find_metric(metric) is metric


@pytest.mark.parametrize("wrong", [lambda outputs: outputs, lambda a, b, c, d: a])
def test_a_metric_with_other_arguments_is_refused(wrong):
    with pytest.raises(DataError, match=r"must take \(outputs, labels\)"):
        find_metric(wrong)


def test_a_metric_that_is_no_callable_is_refused():
    with pytest.raises(DataError, match="got 3"):
        find_metric(3)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (np.zeros((N, 2)), r"'mine' must return one score per sample, shape \(200,\), got shape \(200, 2\)"),
        (0.5, r"got shape \(\)"),
        (np.full(N, np.nan), "'mine' must return finite scores, got nan for sample 0"),
        ("good", "'mine' failed: ValueError"),
    ],
)
def test_a_metric_that_returns_something_else_is_refused_by_name(logits, labels, returned, message):
    def mine(outputs, labels):
        return returned

    with pytest.raises(DataError, match=message):
        find_metric(mine)([logits], labels, [logits])


def test_a_metric_that_fails_is_named(logits):
    def mine(outputs, labels):
        return labels["nope"]

    with pytest.raises(DataError, match="metric 'mine' failed: TypeError"):
        find_metric(mine)([logits], None, [logits])


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "message"),
    [
        ("accuracy", np.zeros((3, 2)), None, "'accuracy': needs labels"),
        ("accuracy", np.zeros((3, 2)), np.zeros((3, 2), int), r"shape \(3,\).*got int64 of shape \(3, 2\)"),
        ("accuracy", np.zeros((3, 2)), np.zeros(3), "labels must be integers.*got float64"),
        ("nll", np.zeros((3, 2)), np.array([0, 1, 2]), "0 … 1 or be -100, got 2"),
        ("nll", np.zeros((3, 2)), np.array([0, 1, -1]), "got -1"),
        ("accuracy", np.zeros((3, 1)), np.zeros(3, int), "at least 2 classes"),
        ("accuracy", np.zeros(3), np.zeros(3, int), r"got shape \(3,\)"),
        ("top5", np.zeros((3, 5)), np.zeros(3, int), "more than 5 classes, got 5"),
        ("accuracy", np.zeros((3, 2)), np.array([0, -100, 1]), "sample 1 has no label"),
    ],
)
def test_data_that_do_not_fit_a_metric_are_refused(name, outputs, labels, message):
    with pytest.raises(DataError, match=message):
        score(name, outputs, labels)


def test_kl_of_different_shapes_is_refused():
    with pytest.raises(DataError, match=r"original's shape \(3, 4\), got \(3, 2\)"):
        score("kl", np.zeros((3, 2)), reference=np.zeros((3, 4)))

"""What recovery minimises: losses by name, by the labels, of several tasks; and what teachers add."""

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax
from torch import nn
from torch.nn import functional
from trimtab.compressors.recovery.data import TrainingData
from trimtab.compressors.recovery.distill import FeatureMatch, SoftTargets, Teachers, output_kind
from trimtab.compressors.recovery.losses import find_loss, iterate_losses, list_outputs
from trimtab.core.errors import DataError, PolicyError, SpecError


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def mean_log_loss(logits, labels):
    """(n, classes) and (n,), negative labels left out."""
    known = labels >= 0
    return -log_softmax(logits[known], axis=1)[np.arange(known.sum()), labels[known]].mean()


def test_whole_numbers_as_labels_mean_cross_entropy() -> None:
    logits, labels = draw(5, 3), torch.tensor([0, 2, 1, 1, 0])
    assert float(find_loss(None)([logits], labels)) == pytest.approx(mean_log_loss(logits.numpy(), labels.numpy()))


def test_tokens_with_negative_labels_do_not_count() -> None:
    logits, labels = draw(2, 4, 3), torch.tensor([[0, 2, -100, 1], [-1, -100, 2, 2]])
    expected = mean_log_loss(logits.numpy().reshape(8, 3), labels.numpy().reshape(8))
    assert float(find_loss("cross_entropy")([logits], labels)) == pytest.approx(expected)


def test_classes_stand_second_where_labels_are_a_map() -> None:
    logits, labels = draw(2, 3, 4, 5), torch.from_numpy(np.random.default_rng(1).integers(0, 3, (2, 4, 5)))
    expected = mean_log_loss(logits.numpy().transpose(0, 2, 3, 1).reshape(-1, 3), labels.numpy().reshape(-1))
    assert float(find_loss(None)([logits], labels)) == pytest.approx(expected, rel=1e-5)


def test_real_labels_mean_the_squared_error_whatever_their_shape() -> None:
    outputs, labels = draw(6, 1), draw(6, seed=1)
    expected = np.mean((outputs.numpy()[:, 0] - labels.numpy()) ** 2)
    assert float(find_loss(None)([outputs], labels)) == pytest.approx(expected)


def test_binary_cross_entropy_takes_logits() -> None:
    outputs, labels = draw(6, 1), torch.tensor([0, 1, 1, 0, 1, 0])
    p = expit(outputs.numpy()[:, 0].astype(np.float64))
    expected = -np.where(labels.numpy() == 1, np.log(p), np.log1p(-p)).mean()
    assert float(find_loss("binary_cross_entropy")([outputs], labels)) == pytest.approx(expected, rel=1e-5)


def test_several_tasks_count_alike() -> None:
    outputs, labels = [draw(5, 3), draw(5, 4, seed=1)], torch.tensor([[0, 3], [1, 2], [2, 1], [0, 0], [1, 3]])
    each = [mean_log_loss(o.numpy(), labels.numpy()[:, i]) for i, o in enumerate(outputs)]
    assert float(find_loss(None)(outputs, labels)) == pytest.approx(np.mean(each))


def test_without_a_column_for_each_output_the_first_output_counts() -> None:
    outputs, labels = [draw(5, 3), draw(5, 7, 2, seed=1)], torch.tensor([0, 2, 1, 1, 0])
    assert float(find_loss(None)(outputs, labels)) == pytest.approx(mean_log_loss(outputs[0].numpy(), labels.numpy()))


def test_a_callable_is_the_loss_itself() -> None:
    assert find_loss(lambda outputs, labels: outputs[0].sum() * 0 + 3)([draw(2)], draw(2)) == 3
    assert find_loss("torch.nn.functional:mse_loss") is functional.mse_loss


def test_an_unknown_loss_names_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"did you mean 'cross_entropy'\?"):
        find_loss("cross_entrpy")


@pytest.mark.parametrize(("loss", "shape"), [("mse", (4, 2)), ("cross_entropy", (4,))])
def test_labels_that_do_not_fit_are_refused(loss, shape) -> None:
    with pytest.raises(DataError, match=loss):
        find_loss(loss)([draw(4, 3)], draw(*shape))


def test_outputs_come_as_a_list_of_float_tensors() -> None:
    first, second = draw(2, 3), draw(2, 4)
    for outputs in ((first, second), [first, None, second], {"a": first, "n": torch.tensor([1, 2]), "b": second}):
        assert [tensor.shape[1] for tensor in list_outputs(outputs)] == [3, 4]
    with pytest.raises(DataError, match="float tensors"):
        list_outputs("nothing")


def test_losses_of_batches_have_gradients() -> None:
    module = nn.Linear(3, 2)
    data = TrainingData({"input": draw(10, 3).numpy()}, np.arange(10) % 2)
    losses = list(iterate_losses(module, data, n_batches=2, batch_size=4))
    losses[0].backward()
    assert len(losses) == 2
    assert float(module.weight.grad.abs().sum()) > 0


# -- teachers -------------------------------------------------------------------------------------


def test_soft_targets_are_the_divergence_times_the_squared_temperature() -> None:
    ours, theirs, temperature = draw(5, 3), draw(5, 3, seed=1), 4.0
    targets = SoftTargets("categorical", temperature)
    p, log_q = softmax(theirs.numpy() / temperature, 1), log_softmax(ours.numpy() / temperature, 1)
    expected = temperature**2 * (p * (np.log(p) - log_q)).sum(1).mean()
    assert float(targets.loss([ours], targets.soften([theirs], None), None)) == pytest.approx(expected, rel=1e-4)


def test_who_agrees_with_the_teacher_has_no_loss() -> None:
    logits = draw(5, 3)
    for kind in ("categorical", "bernoulli", "real"):
        targets = SoftTargets(kind, 2.0)
        assert float(targets.loss([logits], targets.soften([logits], None), None)) == pytest.approx(0, abs=1e-6)


def test_one_logit_is_distilled_as_two_classes_of_which_one_is_zero() -> None:
    ours, theirs = draw(5, 1), draw(5, 1, seed=1)
    one, two = SoftTargets("bernoulli", 3.0), SoftTargets("categorical", 3.0)
    pair = [torch.cat([torch.zeros(5, 1), logit], 1) for logit in (ours, theirs)]
    expected = float(two.loss(pair[:1], two.soften(pair[1:], None), None))
    assert float(one.loss([ours], one.soften([theirs], None), None)) == pytest.approx(expected, rel=1e-4)


def test_padding_is_not_distilled() -> None:
    ours, theirs, labels = draw(2, 3, 4), draw(2, 3, 4, seed=1), torch.tensor([[0, 1, -100], [2, -100, -100]])
    targets = SoftTargets("categorical", 1.0)
    known = labels >= 0
    expected = float(targets.loss([ours[known]], targets.soften([theirs[known]], None), None))
    assert float(targets.loss([ours], targets.soften([theirs], labels), labels)) == pytest.approx(expected, rel=1e-5)


def test_what_outputs_are_is_read_off_loss_and_labels() -> None:
    whole, real = np.zeros(3, np.int64), np.zeros(3, np.float32)
    found = [output_kind(*case) for case in ((None, whole), (None, real), ("mse", None), (None, None))]
    assert found == ["categorical", "real", "real", "categorical"]
    assert output_kind("binary_cross_entropy", real) == "bernoulli"


def two_teachers(*, keeps):
    torch.manual_seed(0)
    modules = [nn.Linear(3, 4), nn.Linear(3, 4)]
    data = TrainingData({"input": draw(300, 3).numpy()})
    return modules, data, Teachers(modules, SoftTargets("categorical", 2.0), data, torch.device("cpu"), keeps=keeps)


@pytest.mark.parametrize("keeps", [False, True])
def test_several_teachers_speak_with_the_mean_of_their_probabilities(keeps) -> None:
    modules, data, teachers = two_teachers(keeps=keeps)
    chosen = np.array([299, 0, 7])
    x = torch.from_numpy(data.inputs["input"][chosen])
    expected = np.mean([softmax(module(x).detach().numpy() / 2.0, 1) for module in modules], 0)
    np.testing.assert_allclose(teachers.teach(chosen)[0].numpy(), expected, rtol=1e-5)


def test_teachers_run_once_for_each_sample_where_samples_come_again() -> None:
    modules, _, teachers = two_teachers(keeps=True)
    teachers.teach(np.arange(5))
    seen = []
    modules[0].register_forward_hook(lambda *_: seen.append(1))
    teachers.teach(np.arange(5, 10))
    assert seen == []


def test_teachers_of_other_shapes_are_refused() -> None:
    _, data, _ = two_teachers(keeps=False)
    targets = SoftTargets("categorical", 2.0)
    odd = Teachers([nn.Linear(3, 4), nn.Linear(3, 5)], targets, data, torch.device("cpu"))
    with pytest.raises(PolicyError, match="equal shapes"):
        odd.teach(np.arange(3))
    with pytest.raises(PolicyError, match="equal shapes"):
        targets.loss([draw(2, 4)], [draw(2, 5)], None)


def test_features_are_compared_in_units_of_the_teachers_variance() -> None:
    student, teacher = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 4))
    match = FeatureMatch(student, teacher, [("0", "0")])
    x = draw(6, 3)
    ours, theirs = student(x).detach().numpy(), teacher(x).detach().numpy()
    match.prepare()
    student(x), teacher(x)
    expected = np.mean((ours - theirs) ** 2) / np.var(theirs, ddof=1)
    assert float(match.loss().detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (2, 7, 3)])
def test_features_of_fewer_channels_are_led_to_the_teachers_by_a_learned_map(shape) -> None:
    layer = nn.Conv2d if len(shape) == 4 else nn.Linear
    size = (1,) if len(shape) == 4 else ()
    student, teacher = nn.Sequential(layer(3, 4, *size)), nn.Sequential(layer(3, 6, *size))
    match = FeatureMatch(student, teacher, [("0", "0")])
    x = draw(*shape)
    student(x), teacher(x)
    match.prepare()
    student(x), teacher(x)
    match.loss().backward()
    assert [tuple(p.shape) for p in match.parameters()] == [(6, 4), (6,)]
    assert float(student[0].weight.grad.abs().sum()) > 0


def test_an_unknown_feature_names_the_nearest_module() -> None:
    with pytest.raises(SpecError, match=r"did you mean 'layer'\?"):
        FeatureMatch(nn.ModuleDict({"layer": nn.Linear(2, 2)}), nn.Linear(2, 2), [("layr", "")])

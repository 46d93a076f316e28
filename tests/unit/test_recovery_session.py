"""Training after compression as a whole: it regains accuracy, can be stopped at any step, leaves weights baked."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from trimtab.compressors.recovery.data import Order, TrainingData
from trimtab.compressors.recovery.schedules import gradual_sparsity, is_mask_due, learning_rate_factor
from trimtab.compressors.recovery.train import RecoveryPlan, RecoverySession, recover
from trimtab.compressors.testing import random_inputs, small_cnn
from trimtab.compressors.weights.quantized_weights import quantize_blocks
from trimtab.compressors.weights.weight_treatment import treat_weight
from trimtab.core.errors import DataError, PolicyError, RunError, SpecError
from trimtab.spaces.options import QUANTIZE_OPTIONS
from trimtab.spaces.recovery import Recovery
from trimtab.spaces.treatment import Treatment

#: technique → treatment; all of them leave weights that the same treatment maps to themselves
TREATMENTS = {
    "cluster": Treatment(clusters=4),
    "cluster by group": Treatment(clusters=3, cluster_scope="group", cluster_weighting="sensitivity"),
    "binary": Treatment(binary="binary", activation_dtype="binary"),
    "ternary": Treatment(binary="ternary"),
    "sparse": Treatment(sparsity=0.6),
    "2:4 wanda": Treatment(pattern="2:4", saliency="wanda"),
    "sparse clusters": Treatment(clusters=4, sparsity=0.5),
    "sparse int8": Treatment(sparsity=0.5, weight_dtype="int8", activation_dtype="int8"),
}
LAYERS = ("stem.0", "left.0", "depthwise.0", "point", "fc")


def cnn_data(n=40):
    return TrainingData(random_inputs("cnn", n), np.random.default_rng(1).integers(0, 5, n))


def cnn_session(treatment, student=None, **recovery):
    chosen = Recovery(**{"method": "finetune", "epochs": 2, "batch_size": 8, "learning_rate": 0.05, **recovery})
    plan = RecoveryPlan(dict.fromkeys(LAYERS, treatment), chosen, teachers=(small_cnn(seed=1),))
    return RecoverySession(student or small_cnn(), cnn_data(), plan)


def are_equal(left, right):
    states = left.state_dict(), right.state_dict()
    return list(states[0]) == list(states[1]) and all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.mark.parametrize("name", TREATMENTS)
def test_trained_weights_stay_as_they_are_under_their_treatment(name) -> None:
    treatment = TREATMENTS[name]
    session = cnn_session(treatment, epochs=1, sparsity_schedule="gradual" if " " in name else "constant")
    session.advance(session.n_steps)
    before = small_cnn()
    for layer in LAYERS:
        weight = session.finish().module.get_submodule(layer).weight.detach().numpy()
        assert np.array_equal(treat_weight(weight, treatment, axis=0).array, weight), layer
        assert not np.array_equal(weight, before.get_submodule(layer).weight.detach().numpy())


@pytest.mark.parametrize(
    ("name", "method", "features"),
    [
        ("binary", "distill", ()),
        ("2:4 wanda", "finetune", ()),
        ("sparse clusters", "distill", (("stem", "point"),)),
        ("sparse int8", "finetune", ()),
    ],
)
def test_going_on_from_a_state_gives_the_same_bits(name, method, features) -> None:
    student = small_cnn()
    student.pool = nn.Sequential(student.pool, nn.Dropout(0.3))
    how = {"method": method, "features": features, "sparsity_schedule": "gradual"}
    whole = cnn_session(TREATMENTS[name], student, **how)
    stop = int(np.random.default_rng(len(name)).integers(1, whole.n_steps))
    whole.advance(stop)
    state = whole.state_dict()
    whole.advance(whole.n_steps)
    again = cnn_session(TREATMENTS[name], student, **how)
    again.load_state_dict(state)
    again.advance(whole.n_steps)
    assert are_equal(whole.finish().module, again.finish().module)
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in state.values())


def test_the_state_of_another_session_is_refused() -> None:
    with pytest.raises(RunError, match="same student and plan"):
        cnn_session(TREATMENTS["ternary"]).load_state_dict(cnn_session(TREATMENTS["cluster"]).state_dict())


def test_student_teachers_and_random_state_are_left_alone() -> None:
    student, teacher = small_cnn(), small_cnn(seed=1).train()
    before, state = (copy.deepcopy(student), copy.deepcopy(teacher)), torch.get_rng_state()
    plan = RecoveryPlan(
        {"fc": TREATMENTS["ternary"]}, Recovery("distill", features=(("point", "point"),)), teachers=(teacher,)
    )
    recovered = recover(student, cnn_data(), plan)
    assert are_equal(student, before[0])
    assert are_equal(teacher, before[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert (student.training, teacher.training, recovered.module.training) == (False, True, False)
    assert not any(module._forward_hooks for module in (*student.modules(), *teacher.modules()))


def test_without_treatments_a_model_of_the_same_structure_comes_back_trained() -> None:
    student = small_cnn()
    recovered = recover(student, cnn_data(), RecoveryPlan({"fc": Treatment()}, Recovery("finetune")))
    assert list(recovered.module.state_dict()) == list(student.state_dict())
    assert [type(module) for module in recovered.module.modules()] == [type(module) for module in student.modules()]
    assert not torch.equal(recovered.module.stem[1].running_mean, student.stem[1].running_mean)
    assert (dict(recovered.learned_steps), dict(recovered.learned_ranges)) == ({}, {})


def test_int8_weights_are_whole_multiples_of_their_learned_steps() -> None:
    session = cnn_session(QUANTIZE_OPTIONS["int8"])
    session.advance(session.n_steps)
    recovered = session.finish()
    assert set(recovered.learned_steps) == set(recovered.learned_ranges) == set(LAYERS)
    for layer, step in recovered.learned_steps.items():
        weight = recovered.module.get_submodule(layer).weight.detach().numpy()
        codes = weight / step.reshape(-1, *[1] * (weight.ndim - 1))
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
        assert np.abs(codes).max() < 127.5
    # what follows a Relu has no negative values, and the images have
    assert recovered.learned_ranges["depthwise.0"][0] == 0.0 > recovered.learned_ranges["stem.0"][0]


def test_int4_weights_stay_as_they_are_in_blocks() -> None:
    plan = RecoveryPlan({"fc": QUANTIZE_OPTIONS["int4_weight"]}, Recovery("finetune"))
    weight = recover(small_cnn(), cnn_data(), plan).module.fc.weight.detach().numpy()
    stored = quantize_blocks(weight.T, bits=4, block_size=32)
    codes = np.stack([stored.codes & 15, stored.codes >> 4], -1).reshape(len(weight), -1)[:, : weight.shape[1]]
    assert np.array_equal((codes.astype(np.float32) - 8) * stored.scales[:, None], weight)


def test_layers_that_read_one_value_share_its_range() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.other = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.other(self.left(x) + self.right(x))

    data = TrainingData({"x": np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)}, np.arange(64) % 3)
    plan = RecoveryPlan(dict.fromkeys(("left", "right", "other"), QUANTIZE_OPTIONS["int8"]), Recovery("finetune"))
    ranges = recover(Twins(), data, plan).learned_ranges
    assert ranges["left"] == ranges["right"] != ranges["other"]


def test_without_quantization_aware_training_weights_stay_float() -> None:
    session = cnn_session(QUANTIZE_OPTIONS["int8"], quantization_aware=False)
    assert dict(session.snapshot().learned_steps) == {}
    assert torch.equal(session.snapshot().module.fc.weight, small_cnn().fc.weight)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(6, 8), nn.Linear(8, 6, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x):
        return self.out(torch.tanh(self.words(x)))


def test_a_shared_weight_is_treated_once_and_stays_shared() -> None:
    data = TrainingData({"x": np.arange(60) % 6}, np.arange(60) % 6)
    plan = RecoveryPlan({"words": TREATMENTS["cluster"], "out": TREATMENTS["cluster"]}, Recovery("finetune"))
    session = RecoverySession(Tied(), data, plan)
    session.advance(session.n_steps)
    module = session.finish().module
    assert module.out.weight is module.words.weight
    assert len(np.unique(module.out.weight.detach().numpy())) <= 4
    assert sum("codebook" in name for name in session.state_dict()) == 1


def test_a_shared_weight_cannot_be_treated_in_two_ways() -> None:
    plan = RecoveryPlan({"words": TREATMENTS["cluster"], "out": TREATMENTS["sparse"]}, Recovery("finetune"))
    with pytest.raises(PolicyError, match="share a weight"):
        RecoverySession(Tied(), TrainingData({"x": np.arange(6)}, np.arange(6)), plan)


@pytest.mark.parametrize(("path", "reason"), [("stem.9", "no module stem.9"), ("stem.1", "got BatchNorm2d")])
def test_a_module_that_cannot_be_treated_is_named(path, reason) -> None:
    with pytest.raises(PolicyError, match=reason):
        RecoverySession(small_cnn(), cnn_data(), RecoveryPlan({path: TREATMENTS["sparse"]}, Recovery("finetune")))


def test_a_training_that_diverges_says_what_to_do() -> None:
    data = cnn_data()
    data = TrainingData(data.inputs, data.labels, loss=lambda outputs, _: outputs[0].exp().exp().exp().exp().sum())
    session = RecoverySession(small_cnn(), data, RecoveryPlan({}, Recovery("finetune")))
    with pytest.raises(PolicyError, match="diverged at step 0 of 1; lower learning_rate"):
        session.advance(1)


def test_a_training_must_end_before_its_model_is_taken() -> None:
    session = cnn_session(Treatment())
    session.advance(1)
    with pytest.raises(RunError, match="step 1 of 10"):
        session.finish()
    assert session.snapshot().module.training is False


def test_what_cannot_be_learned_from_is_refused() -> None:
    unlabelled = TrainingData(random_inputs("cnn", 8))
    with pytest.raises(SpecError, match="labels"):
        RecoverySession(small_cnn(), unlabelled, RecoveryPlan({}, Recovery("finetune")))
    with pytest.raises(SpecError, match="at least one teacher"):
        RecoverySession(small_cnn(), unlabelled, RecoveryPlan({}, Recovery("distill", mix=1.0)))
    with pytest.raises(DataError, match="one length"):
        TrainingData({"x": np.zeros(4)}, np.zeros(3))


# -- it works -------------------------------------------------------------------------------------


def rings(n=200):
    """Four rings of two classes in turn, apart by more than their noise."""
    rng = np.random.default_rng(0)
    ring = np.arange(n) % 4
    labels = ring % 2
    angle, radius = rng.uniform(0, 2 * np.pi, n), 0.5 + 0.5 * ring + rng.normal(0, 0.05, n)
    points = np.stack([np.cos(angle) * radius, np.sin(angle) * radius], 1).astype(np.float32)
    return TrainingData({"input": points}, labels)


@pytest.fixture(scope="module")
def trained():
    """An MLP that has learned the rings."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    data = rings()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(300):
        x, y = torch.from_numpy(data.inputs["input"]), torch.from_numpy(data.labels)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert accuracy(model, data) == 1.0
    return model


def accuracy(model, data):
    with torch.no_grad():
        return float((model(torch.from_numpy(data.inputs["input"])).argmax(1).numpy() == data.labels).mean())


@pytest.mark.parametrize(
    ("method", "treatment"),
    [
        ("finetune", Treatment(binary="ternary")),
        ("finetune", Treatment(clusters=2)),
        ("distill", Treatment(sparsity=0.9)),
    ],
    ids=lambda value: getattr(value, "label", value),
)
def test_a_broken_model_learns_again_from_labels_or_from_its_teacher_alone(trained, method, treatment) -> None:
    recovery = Recovery(method, epochs=40, batch_size=50, learning_rate=0.01, mix=1.0)
    data = rings() if method == "finetune" else TrainingData(rings().inputs)
    session = RecoverySession(trained, data, RecoveryPlan({"2": treatment}, recovery, teachers=(trained,)))
    before = accuracy(session.snapshot().module, rings())
    session.advance(session.n_steps)
    after = accuracy(session.finish().module, rings())
    # chance is 0.5, and the original is always right
    assert before < 0.75
    assert 1 - after <= (1 - before) / 3


# -- order and schedules --------------------------------------------------------------------------


def test_an_epoch_shows_every_sample_once_and_a_fraction_shows_its_share() -> None:
    order = Order(20, 5, seed=3)
    first = np.concatenate([order.indices(step) for step in range(order.n_steps(1.0))])
    assert sorted(first.tolist()) == list(range(20))
    second = np.concatenate([order.indices(step) for step in range(4, 8)])
    assert sorted(second.tolist()) == list(range(20))
    assert second.tolist() != first.tolist()
    assert order.n_steps(0.5) == 2
    assert Order(20, 5, seed=4).indices(0).tolist() != order.indices(0).tolist()


def test_gradual_sparsity_follows_the_cubic_of_zhu_and_gupta() -> None:
    for step in range(0, 50, 7):
        assert gradual_sparsity(step, 100, 0.8) == pytest.approx(0.8 * (1 - (1 - step / 50) ** 3))
    assert [gradual_sparsity(step, 100, 0.8) for step in (50, 75, 99)] == [0.8] * 3


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7, 1000])
def test_the_last_mask_has_all_zeros_it_should_have(n_steps) -> None:
    due = [step for step in range(n_steps) if is_mask_due(step, n_steps)]
    reached = [gradual_sparsity(step, n_steps, 0.8) for step in due]
    assert reached == sorted(reached)
    assert reached[-1] == 0.8 or n_steps == 1
    assert len(due) <= 34


def test_the_learning_rate_rises_to_its_peak_and_falls_along_a_cosine() -> None:
    factors = [learning_rate_factor(step, 100) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:] == pytest.approx([0.5 * (1 + np.cos(np.pi * t / 95)) for t in range(95)])
    assert learning_rate_factor(0, 1) == 1.0

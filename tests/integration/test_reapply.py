"""Policies live on: on retrained weights, under other names, in models that have changed; nothing of it goes unsaid."""

import json
import logging
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
import trimtab
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn
from trimtab import ApplyOptions, Dataset, Split
from trimtab.core.errors import PolicyError, SpecError
from trimtab.evaluators.measurement import Estimate
from trimtab.experiments.finish import describe_policy
from trimtab.experiments.policy_file import load_policy
from trimtab.experiments.preparation import prepare
from trimtab.experiments.reapply.evidence import Evidence
from trimtab.experiments.reapply.suitability import Suitability, compare_sensitivities
from trimtab.experiments.resnet import BasicBlock, ResNet
from trimtab.experiments.sensitivity import measure_sensitivity
from trimtab.experiments.spec_file import load_spec
from trimtab.spaces.policy import GraphTreatment, Policy
from trimtab.spaces.treatment import Treatment

SIMULATED = "trimtab.evaluators.testing:SimulatedDevice"
INT8 = Treatment(weight_dtype="int8", activation_dtype="int8")
RENAMED, CHANGED = ApplyOptions(match="renamed"), ApplyOptions(match="changed")


def images(n, seed):
    return np.random.default_rng(seed).normal(size=(n, 1, 28, 28)).astype(np.float32)


@pytest.fixture(scope="module")
def data():
    splits = (Split({"x": images(n, seed)}) for seed, n in enumerate((8, 16, 64)))
    return Dataset(*splits, metric="agreement")


def resnet(n_classes=10, seed=0):
    """ResNet-8 as the zoo builds it, with batch norms that have seen data."""
    torch.manual_seed(seed)
    return settled(ResNet(1, n_classes))


def settled(model):
    with torch.no_grad():
        model.train()(torch.from_numpy(images(64, 9)))
    model.example_inputs = {"x": torch.zeros(2, 1, 28, 28)}
    return model.eval()


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.backbone, self.example_inputs = inner, inner.example_inputs

    def forward(self, x):
        return self.backbone(x)


class Renamed(nn.Module):
    """The same model, computed by modules of other names."""

    def __init__(self, inner, names):
        super().__init__()
        blocks = (inner.layer1[0], inner.layer2[0], inner.layer3[0])
        self.names, self.example_inputs = names, inner.example_inputs
        for name, module in zip(names, (inner.conv1, inner.bn1, *blocks, inner.pool, inner.fc), strict=True):
            self.add_module(name, module)

    def forward(self, x):
        conv, norm, *blocks, pool, last = (getattr(self, name) for name in self.names)
        x = torch.relu(norm(conv(x)))
        for block in blocks:
            x = block(x)
        return last(torch.flatten(pool(x), 1))


@pytest.fixture(scope="module")
def policy(data):
    """Everything int8 but the first layer, as a search would have written it down."""
    spec = {"model": resnet(), "data": data, "target": {"runtime": SIMULATED}, "budget": {"accuracy_drop": 0.1}}
    preparation = prepare(load_spec({**spec, "space": [{"layers": "*", "quantize": ["none", "int8"]}]}))
    names = [group.name for group in preparation.space.groups if group.name != "conv1"]
    chosen = Policy(dict.fromkeys(names, INT8), GraphTreatment(quantized_ops=("add",)))
    influence = measure_sensitivity(preparation)
    scores = {g.name: float(s[1]) for g, s in zip(influence.space.groups, influence.scores, strict=True)}
    evidence = Evidence({name: scores[name] for name in names}, accuracy_drop=Estimate(0.0, 0.01, 64), allowed_drop=0.1)
    return replace(describe_policy(preparation, chosen, run="test"), evidence=evidence)


def weights(folder):
    """The bytes of everything that is stored in the model, whatever it is called."""
    stored = onnx.load(folder / "model.onnx").graph.initializer
    return sorted((tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes()) for tensor in stored)


@pytest.fixture(scope="module")
def as_found(policy, tmp_path_factory):
    """The artifact of the model that the policy was found for."""
    return trimtab.apply(policy, resnet(), out=tmp_path_factory.mktemp("as-found") / "artifact")


def test_the_file_keeps_what_the_search_knew(policy, tmp_path):
    policy.save(tmp_path / "policy.json")
    again = load_policy(tmp_path / "policy.json")
    assert (again.evidence, again.range_order) == (policy.evidence, policy.range_order)


def test_the_model_that_it_was_found_for_needs_no_words(as_found):
    assert as_found.matching.is_identity
    assert as_found.to_json()["mapping"] == []


def test_other_names_are_refused_with_the_way_out(policy, tmp_path):
    with pytest.raises(PolicyError, match="same but for their names: --match renamed"):
        trimtab.apply(policy, Wrapped(resnet()), out=tmp_path / "out")


def test_a_prefix_changes_nothing_in_the_artifact_but_names(policy, as_found, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "trimtab.experiments.apply"):
        applied = trimtab.apply(policy, Wrapped(resnet()), out=tmp_path / "out", options=RENAMED)
    assert weights(applied.folder) == weights(as_found.folder)
    assert applied.matching.pairs["layer2.0.conv1"] == "backbone.layer2.0.conv1"
    assert "fc → backbone.fc" in [record.getMessage() for record in caplog.records]
    assert trimtab.verify(applied.folder).is_kept


def test_the_policy_of_the_artifact_speaks_of_the_new_names(policy, tmp_path):
    applied = trimtab.apply(policy, Wrapped(resnet()), out=tmp_path / "out", options=RENAMED)
    written = load_policy(applied.folder / "policy.json")
    assert {name for name, _ in written.policy.groups} == {f"backbone.{name}" for name, _ in policy.policy.groups}
    again = trimtab.apply(written, Wrapped(resnet()), out=tmp_path / "again")
    assert weights(again.folder) == weights(applied.folder)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.from_regex(r"[h-s]{3,8}", fullmatch=True), min_size=7, max_size=7, unique=True))
def test_a_random_renaming_gives_the_same_bytes(names, policy, as_found, tmp_path):
    applied = trimtab.apply(policy, Renamed(resnet(), names), out=tmp_path / "out", options=RENAMED)
    blocks = dict(zip(("layer1.0", "layer2.0", "layer3.0"), names[2:5], strict=True))
    expected = {"conv1": names[0], "fc": names[6]}
    expected |= {f"{old}.{conv}": f"{new}.{conv}" for old, new in blocks.items() for conv in ("conv1", "conv2")}
    expected |= {f"{old}.downsample.0": f"{new}.downsample.0" for old, new in list(blocks.items())[1:]}
    assert dict(applied.matching.pairs) == expected
    assert weights(applied.folder) == weights(as_found.folder)


def longer():
    """One more block in the first stage, which adds nothing as yet."""
    model = resnet()
    model.layer1.append(BasicBlock(16, 16, 1))
    return settled(model)


def test_a_new_block_stays_untreated(policy, data, tmp_path):
    applied = trimtab.apply(policy, longer(), out=tmp_path / "out", data=data, options=CHANGED)
    assert applied.matching.added == ("layer1.1.conv1", "layer1.1.conv2")
    assert applied.matching.lines == tuple(f"none → {name}: new, stays untreated" for name in applied.matching.added)
    stored = {t.name: t.data_type for t in onnx.load(applied.folder / "model.onnx").graph.initializer}
    floats = {name for name, kind in stored.items() if kind == onnx.TensorProto.FLOAT}
    assert {"layer1.1.conv1.weight", "layer1.1.conv2.weight", "conv1.weight"} <= floats
    assert "layer1.0.conv1.weight" not in floats


def test_another_number_of_classes_keeps_the_treatment(policy, data, tmp_path):
    applied = trimtab.apply(policy, resnet(12), out=tmp_path / "out", data=data, options=CHANGED)
    assert applied.matching.reshaped == ("fc",)
    assert load_policy(applied.folder / "policy.json").policy["fc"] == INT8


def test_changed_layers_are_calibrated_anew_or_not_at_all(policy, tmp_path):
    with pytest.raises(PolicyError, match="layers have changed, and with them what their activations are; give data"):
        trimtab.apply(policy, resnet(12), out=tmp_path / "out", options=CHANGED)


def test_a_policy_of_an_earlier_version_is_calibrated_anew_under_other_names(policy, data, tmp_path):
    old = replace(policy, range_order=(), evidence=None)
    with pytest.raises(PolicyError, match="does not hold the order of its activation ranges"):
        trimtab.apply(old, Wrapped(resnet()), out=tmp_path / "out", options=RENAMED)
    applied = trimtab.apply(old, Wrapped(resnet()), out=tmp_path / "out", data=data, options=RENAMED)
    assert "not checked" in applied.suitability.drift_note
    assert applied.suitability.keeps_accuracy is None


def test_the_same_weights_do_not_drift(policy, data, tmp_path):
    applied = trimtab.apply(policy, resnet(), out=tmp_path / "out", data=data)
    assert [drift.factor for drift in applied.suitability.drifts] == pytest.approx([1.0] * 9)
    assert applied.suitability.suits


def spoiled():
    """Retrained so that a channel of one layer is a thousand times as large as the others: int8 loses those."""
    model = resnet()
    with torch.no_grad():
        model.layer2[0].conv2.weight[:, 0] *= 1000.0
    return settled(model)


def test_a_layer_that_drifted_is_named_with_its_figures(policy, data, tmp_path):
    applied = trimtab.apply(policy, spoiled(), out=tmp_path / "out", data=data)
    drifted = {drift.group: drift for drift in applied.suitability.drifts if drift.is_material}
    assert "layer2.0.conv2" in drifted
    # what comes before it is as it was; layers behind it receive the large channel
    assert not any(name.startswith(("layer1", "layer2.0.conv1", "layer2.0.downsample")) for name in drifted)
    assert drifted["layer2.0.conv2"].before == policy.evidence.sensitivity["layer2.0.conv2"]
    assert any("layer2.0.conv2: its treatment changes the output" in text for text in applied.suitability.warnings)


def test_strict_writes_nothing_where_the_policy_no_longer_suits(policy, data, tmp_path):
    applied = trimtab.apply(policy, spoiled(), out=tmp_path / "out", data=data, options=ApplyOptions(strict=True))
    assert not applied.is_written
    assert not (tmp_path / "out").exists()


def test_without_data_nothing_is_checked(as_found):
    assert as_found.suitability.drift_note == "not checked: that needs data (--data)"
    assert as_found.suitability.keeps_accuracy is None


@pytest.mark.parametrize(
    ("drop", "is_kept"),
    # 0.842 standard errors are the margin of 80 % confidence: 0.05 + 0.842 × 0.05 < 0.1 < 0.06 + 0.842 × 0.05
    [(Estimate(0.05, 0.05, 64), True), (Estimate(0.06, 0.05, 64), False)],
)
def test_the_drop_keeps_its_bound_with_the_margin_of_the_search(drop, is_kept):
    found = Suitability(accuracy_drop=drop, allowed_drop=0.1, confidence=0.8)
    assert found.keeps_accuracy is is_kept
    assert found.suits is is_kept


def test_twice_next_to_nothing_is_no_drift():
    small, large = compare_sensitivities({"a": 1e-9, "b": 1e-4}, {"a": 1e-7, "b": 5e-4})
    assert (small.is_material, large.is_material) == (False, True)


def test_pruned_channels_stay_a_share_under_other_names(policy, data, tmp_path):
    channels = policy.groups[0]
    pruned = replace(
        policy,
        policy=Policy({"channels:layer3.0.conv1": Treatment(keep_channels=0.5)}),
        groups=(replace(channels, name="channels:layer3.0.conv1", layers=("layer3.0.conv1", "layer3.0.conv2"),
                        kind="channels"),),
        ranges={}, range_order=(), evidence=None,
    )  # fmt: skip
    applied = trimtab.apply(pruned, Wrapped(resnet()), out=tmp_path / "out", options=RENAMED)
    shapes = {t.name: tuple(t.dims) for t in onnx.load(applied.folder / "model.onnx").graph.initializer}
    assert shapes["backbone.layer3.0.conv1.weight"][0] == 32
    assert load_policy(applied.folder / "policy.json").policy.groups[0][0] == "channels:backbone.layer3.0.conv1"


def test_a_structure_that_ties_other_layers_here_is_refused(policy, tmp_path):
    group = replace(policy.groups[0], name="channels:conv1", layers=("conv1", "fc"), kind="channels")
    broken = replace(
        policy,
        policy=Policy({"channels:conv1": Treatment(keep_channels=0.5)}),
        groups=(group,),
        ranges={},
        evidence=None,
    )
    with pytest.raises(PolicyError, match="prunes channels:conv1 with conv1, fc; in this model it ties"):
        trimtab.apply(broken, resnet(), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("confidence", 2.0, "confidence must be above 0 and below 1"),
        ("calibration", "guess", "'guess'.*is not known"),
        ("sensitivity", {"a": -1.0}, "must be 0 or more"),
        ("allowed_drop", float("inf"), "must be finite"),
    ],
)
def test_evidence_that_cannot_be_is_refused(field, value, words):
    with pytest.raises(SpecError, match=words):
        Evidence.from_json({**Evidence().to_json(), field: value})


MINE = """
import numpy as np
import torch
from trimtab import Dataset, Split
from trimtab.experiments.resnet import ResNet

def images(n, seed):
    return np.random.default_rng(seed).normal(size=(n, 1, 28, 28)).astype(np.float32)

def data():
    return Dataset(*(Split({"x": images(n, seed)}) for seed, n in enumerate((8, 16, 64))), metric="agreement")

def spoiled():
    torch.manual_seed(0)
    model = ResNet(1)
    with torch.no_grad():
        model.layer2[0].conv2.weight[:, 0] *= 1000.0
        model.train()(torch.from_numpy(images(64, 9)))
    model.example_inputs = {"x": torch.zeros(2, 1, 28, 28)}
    return model.eval()
"""


def test_the_command_warns_and_with_strict_ends_with_1(policy, workplace):
    (workplace.path / "mine.py").write_text(MINE)
    policy.save(workplace.path / "policy.json")
    arguments = ("apply", "policy.json", "--model", "mine:spoiled", "--data", "mine:data", "--out", "out")
    strict = workplace.call(*arguments, "--strict", "--json")
    found = json.loads(strict.stdout)
    assert (strict.exit_code, found["artifact"], found["suits"]) == (1, None, False)
    assert any(drift["group"] == "layer2.0.conv2" and drift["material"] for drift in found["drifts"])
    lenient = workplace.call(*arguments)
    assert lenient.exit_code == 0
    assert "warning: layer2.0.conv2: its treatment changes the output" in lenient.stdout
    assert (workplace.path / "out" / "manifest.json").is_file()


def test_the_command_prints_the_mapping(policy, workplace):
    (workplace.path / "mine.py").write_text(MINE + """
def wrapped():
    inner = spoiled()
    model = torch.nn.Sequential()
    model.add_module("backbone", inner)
    model.forward = lambda x: inner(x)
    model.example_inputs = inner.example_inputs
    return model
""")  # fmt: skip
    policy.save(workplace.path / "policy.json")
    shown = workplace.call("apply", "policy.json", "--model", "mine:wrapped", "--out", "out", "--match", "renamed")
    assert shown.exit_code == 0, shown.stderr
    assert "  fc → backbone.fc" in shown.stdout.splitlines()

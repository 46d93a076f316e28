"""Specs, policies and artifacts that an earlier version wrote stay readable; the files here are never written again."""

from pathlib import Path

import pytest
import trimtab
from trimtab.compressors.quantization.calibration import Range
from trimtab.evaluators.measurement import Estimate
from trimtab.experiments.manifest import check_files, read_manifest
from trimtab.experiments.policy_file import load_policy
from trimtab.experiments.spec_file import load_spec
from trimtab.hw_profiles.target import Target
from trimtab.spaces.policy import GraphTreatment, Policy
from trimtab.spaces.treatment import Treatment

GOLDEN = Path(__file__).parent
SIMULATED = Target("trimtab.evaluators.testing:SimulatedDevice")


@pytest.fixture
def spec():
    return load_spec(GOLDEN / "spec-v1.yaml")


def test_a_spec_keeps_model_data_and_target(spec):
    assert (spec.name, spec.model) == ("golden", "trimtab.compressors.testing:small_cnn")
    assert (spec.data, spec.objective) == ("somewhere.else:digits", "accuracy")
    assert spec.target.to_target() == Target("onnxruntime", "cpu", threads=2, batch_size=4)


def test_a_spec_keeps_its_space(spec):
    assert [(rule.layers, rule.quantize) for rule in spec.space] == [
        ("*", ("none", "float16", "int8", "int8_dynamic", "int8_weight", "int4_weight")),
        ("kind:linear", ("none", "int8")),
        ("fc", None),
    ]
    assert spec.graph.fusion == ("none", "gelu", "attention", "full")
    assert spec.graph.calibration == ("minmax", "percentile", "entropy", "mse")
    assert spec.graph.quantized_ops == ((), ("add",), ("add", "pool"), ("activation", "matmul"))
    assert spec.graph.precision == ("float32", "bfloat16", "float16")


def test_a_spec_keeps_budget_and_search(spec):
    budget, search = spec.budget, spec.search
    assert (budget.latency, budget.accuracy_drop, budget.size_mb) == ("0.5x", 0.01, "200kB")
    assert (budget.peak_memory_mb, budget.confidence) == (64, 0.9)
    assert (search.algorithm, search.trials, search.seed) == ("tpe", 12, 7)
    assert (search.time_limit, search.patience, search.batch) == ("20m", 5, 8)


def test_a_spec_keeps_workers_and_timing(spec):
    assert (spec.workers.address, spec.workers.count) == ("ray://host:10001", 3)
    assert (spec.workers.trial_timeout, spec.workers.memory_limit) == ("90s", "2GB")
    assert (spec.timing.runs, spec.timing.peak_memory) == (50, True)


@pytest.fixture
def policy():
    return load_policy(GOLDEN / "policy-v1.json")


def test_a_policy_keeps_its_treatments(policy):
    int8 = Treatment(weight_dtype="int8", activation_dtype="int8")
    assert policy.policy == Policy({"w1": int8, "w2": Treatment(weight_dtype="int8")}, GraphTreatment())
    assert policy.layer_treatments == {"w1": int8, "w2": Treatment(weight_dtype="int8")}


def test_a_policy_keeps_layers_ranges_and_target(policy):
    assert [(layer.name, layer.kind, layer.weight_shape) for layer in policy.layers] == [
        ("w1", "linear", (8, 16)), ("w2", "linear", (16, 3)),
    ]  # fmt: skip
    assert sorted(policy.ranges) == ["h", "h_matmul", "logits", "r", "x"]
    assert policy.ranges["x"] == Range(-2.32503080368042, 2.002392530441284)
    assert (policy.target, policy.origin["run"]) == (SIMULATED, "golden")


def test_a_policy_can_be_applied(policy, tmp_path):
    applied = trimtab.apply(policy, GOLDEN / "tiny.onnx", out=tmp_path / "out")
    assert trimtab.verify(applied.folder).is_kept


def test_an_artifact_keeps_its_promise_on_paper():
    manifest = read_manifest(GOLDEN / "artifact-v1")
    check_files(GOLDEN / "artifact-v1", manifest)
    promised = manifest.promise.measurement
    assert (promised.accuracy, promised.accuracy_drop) == (Estimate(0.9, 0.01, 100), Estimate(0.01, 0.005, 100))
    assert promised.size_bytes == (GOLDEN / "artifact-v1" / "model.onnx").stat().st_size
    assert (manifest.target, manifest.precision, manifest.dynamic_activations) == (SIMULATED, "float32", False)
    assert (manifest.promise.split, manifest.promise.yardstick_s) == ("test", None)


def test_an_artifact_keeps_its_promise_when_it_runs():
    assert trimtab.verify(GOLDEN / "artifact-v1", tolerance=0.0).is_kept

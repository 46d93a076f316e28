"""Techniques together: searched with training, applied, resumed, and refused where something is missing."""

import json
import shutil

import pytest

_RULES = [
    {"layers": "*", "prune": [0, 0.5], "cluster": ["none", 16], "quantize": ["none", "int8"]},
    {"layers": "second", "low_rank": [1.0, 0.5]},
]


def _write(workplace, **parts):
    spec = {
        "name": "hybrid",
        "model": "tiny:cnn",
        "data": "tiny:pictures",
        "space": _RULES,
        "graph": {"calibration": ["minmax"]},
        "recovery": ["none", {"method": "distill", "epochs": 1, "batch_size": 64, "mix": 1.0}],
        "budget": {"accuracy_drop": 0.9},
        "objective": "size",
        "search": {"algorithm": "auto", "trials": 16},
    }
    return workplace.write_spec(**{**spec, **parts})


def _records(run):
    lines = (run / "journal.jsonl").read_text().splitlines()
    return [record for line in lines if "id" in (record := json.loads(line))]


def test_a_search_of_all_techniques_trains_is_applied_resumed_and_verified(workplace, monkeypatch, tmp_path):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    assert workplace.call("search", _write(workplace)).exit_code == 0
    run = workplace.path / "runs" / "hybrid"
    records = _records(run)
    trained = [record for record in records if "recovery" in record["policy"]]
    assert trained
    assert any(record["origin"].startswith("baseline:hybrid") for record in records)
    assert {record["status"] for record in records} == {"COMPLETE"}
    policy = json.loads((run / "policy.json").read_text())
    used = {field for treatment in policy["groups"].values() for field in treatment}
    assert len(used & {"keep_channels", "clusters", "weight_dtype", "rank"}) > 1, "the smallest policy is a hybrid"
    assert policy["recovery"]["method"] == "distill"

    # what was trained is found again: the same bytes, from the cache and from nothing
    model = (run / "artifact" / "model.onnx").read_bytes()
    arguments = ("apply", run / "policy.json", "--model", "tiny:cnn", "--data", "tiny:pictures", "--out")
    assert workplace.call(*arguments, "cached").exit_code == 0
    assert (workplace.path / "cached" / "model.onnx").read_bytes() == model
    shutil.rmtree(tmp_path / "cache" / "trained")
    assert workplace.call(*arguments, "anew").exit_code == 0
    assert (workplace.path / "anew" / "model.onnx").read_bytes() == model
    assert workplace.call("verify", "anew", "--data", "tiny:pictures").exit_code == 0

    # a finished run is only finished again
    assert workplace.call("resume", run).exit_code == 0
    assert _records(run) == records

    without = workplace.call("apply", run / "policy.json", "--model", "tiny:cnn", "--out", "blind")
    assert without.exit_code == 2
    assert "the policy trains after compression, so it needs data" in without.stderr
    onnx = workplace.call(
        "apply", run / "policy.json", "--model", "tiny.onnx", "--data", "tiny:pictures", "--out", "no"
    )
    assert onnx.exit_code == 2


def test_a_teacher_of_a_policy_file_is_imported_only_when_it_is_named_again(workplace, monkeypatch, tmp_path):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    recovery = [{"method": "distill", "epochs": 1, "batch_size": 64, "teachers": ["tiny:cnn"]}]
    spec = _write(workplace, recovery=recovery, space=[{"layers": "first", "cluster": [4]}], search={"trials": 2})
    assert workplace.call("search", spec).exit_code in (0, 3)
    run = workplace.path / "runs" / "hybrid"
    if not (run / "policy.json").is_file():
        pytest.skip("four values for a weight are too few for this budget here")
    arguments = ("apply", run / "policy.json", "--model", "tiny:cnn", "--data", "tiny:pictures", "--out", "out")
    refused = workplace.call(*arguments)
    assert refused.exit_code == 2
    assert "the policy learns from the teacher tiny:cnn" in refused.stderr
    assert workplace.call(*arguments, "--teacher", "tiny:cnn").exit_code == 0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"data": "tiny:images"}, "recovery: the data have no train split"),
        ({"space": [{"layers": "first", "cluster": [4], "binarize": ["binary"]}]}, "no combination on offer is legal"),
        ({"space": [{"layers": "*", "prune": ["0.5 tailor"]}]}, "did you mean 'taylor'"),
        ({"space": [{"layers": "*", "sparsify": []}]}, "needs at least one option"),
        ({"recovery": ["distil"]}, "unknown method 'distil'; did you mean 'distill'"),
        ({"recovery": [{"method": "distill", "teachers": ["nowhere:net"]}]}, "teacher 'nowhere:net'"),
        ({"recovery": [{"method": "distill", "features": ["third"]}]}, "third"),
        ({"graph": {"rounding": ["up"]}}, "unknown rounding 'up'"),
        ({"search": {"scheduler": "asha", "trials": 3}}, "asha"),
    ],
)
def test_what_cannot_be_is_refused_before_any_trial(workplace, parts, message):
    ended = workplace.call("search", _write(workplace, **parts))
    assert ended.exit_code == 2, ended
    assert message in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert not (workplace.path / "runs").exists()

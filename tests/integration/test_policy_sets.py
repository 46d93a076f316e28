"""From a run to a set of its policies in service."""

import json
import shutil

import numpy as np
import pytest
import trimtab
from trimtab.core.errors import SpecError
from trimtab.experiments.manifest import read_manifest
from trimtab.experiments.run_folder import RunFolder
from trimtab.experiments.serving.policy_set import read_policy_set
from trimtab.experiments.serving.run_policies import choose_policies, read_pareto

#: options that lose accuracy, so that there is something to trade
SPACE = [{"layers": "*", "quantize": ["none", "int8", "int4_weight"], "cluster": ["none", 2, 4]}]


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_workplace):
    """The workplace of a finished run of two linear layers on the simulated device."""
    place = make_workplace(tmp_path_factory.mktemp("searched"))
    search = {"algorithm": "random", "trials": 30}
    ended = place.run("search", place.write_spec(space=SPACE, budget={"accuracy_drop": 0.9}, search=search))
    assert ended.exit_code == 0, ended.stderr
    return place


@pytest.fixture
def searched(workplace, run):
    """The current folder, with that run."""
    shutil.copytree(run.path / "runs", workplace.path / "runs")
    return workplace


def test_a_set_holds_policies_of_the_run_from_slow_to_fast_and_is_served(searched):
    ended = searched.call("policy-set", "runs/tiny", "--out", "set", "--json")
    assert ended.exit_code == 0, (ended.stderr, ended.bug)
    trials = {record.id: record for record in read_pareto(RunFolder.open(searched.path / "runs" / "tiny"))}
    folders = read_policy_set(searched.path / "set")
    written = json.loads(ended.stdout)["policies"]
    assert [folder.name for folder in folders] == [entry["name"] for entry in written]
    assert len(folders) >= 2
    medians_s = [read_manifest(folder).promise.measurement.latency.median_s for folder in folders]
    assert medians_s == sorted(medians_s, reverse=True)
    for folder, entry in zip(folders, written, strict=True):
        # the simulated device states the same time whenever it is asked
        assert read_manifest(folder).promise.measurement.latency.median_s == pytest.approx(
            trials[entry["trial"]].measurement.latency.median_s
        )
        assert trimtab.load_policy(folder / "policy.json").policy == trials[entry["trial"]].policy
    with trimtab.serve("set", p99_s=10.0, original="tiny.onnx") as model:
        outputs = model.run({"x": np.zeros((1, 1024), np.float32)})
        assert outputs[0].shape == (1, 3)
        assert "features of 'x'" in model.watched["inputs"]
        assert "not watched" not in model.watched["agreement"]


def test_the_artifact_of_a_search_says_how_often_it_agrees_with_the_original(searched):
    agreement = read_manifest(searched.path / "runs" / "tiny" / "artifact").agreement
    promised = read_manifest(searched.path / "runs" / "tiny" / "artifact").promise.measurement.accuracy
    assert agreement.n == 64  # the validation split
    # the metric of this run is agreement itself, on the test split
    assert agreement.mean == pytest.approx(
        promised.mean, abs=4 * promised.standard_error + 4 * agreement.standard_error
    )


def test_an_applied_artifact_says_what_its_inputs_looked_like(searched):
    ended = searched.call(
        "apply", "runs/tiny/policy.json", "--model", "tiny.onnx", "--data", "tiny:vectors", "--out", "made"
    )
    assert ended.exit_code == 0, (ended.stderr, ended.bug)
    made, found = (read_manifest(searched.path / name) for name in ("made", "runs/tiny/artifact"))
    assert made.input_statistics == found.input_statistics
    assert made.agreement == found.agreement


def test_policies_within_the_bound_on_accuracy_are_chosen_and_the_speed_they_span(searched):
    records = read_pareto(RunFolder.open(searched.path / "runs" / "tiny"))
    chosen = choose_policies(records, n_policies=2, accuracy_drop=None)
    latencies_s = [record.measurement.latency.median_s for record in records]
    drops = [record.measurement.accuracy_drop.mean for record in records]
    assert chosen[-1].measurement.latency.median_s == min(latencies_s)
    assert chosen[0].measurement.accuracy_drop.mean == min(drops)
    within = choose_policies(records, n_policies=2, accuracy_drop=0.05)
    assert [record.id for record in within] == [record.id for record in chosen]
    with pytest.raises(SpecError, match="accept a larger drop"):
        choose_policies(records, n_policies=3, accuracy_drop=-1.0)
    with pytest.raises(SpecError, match="at least 2"):
        choose_policies(records, n_policies=1, accuracy_drop=None)


def test_a_run_that_has_not_finished_makes_no_set(searched):
    (searched.path / "runs" / "tiny" / "pareto.json").unlink()
    ended = searched.call("policy-set", "runs/tiny", "--out", "set")
    assert (ended.exit_code, "has not finished" in ended.stderr) == (2, True)
    assert not (searched.path / "set").exists()

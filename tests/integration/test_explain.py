"""Why each layer got its treatment, from the files of a run alone; and what differs between two policies."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import trimtab
from trimtab.core.errors import RunError, SpecError
from trimtab.evaluators.testing import simulate_latency
from trimtab.experiments.policy_file import load_policy
from trimtab.experiments.preparation import prepare
from trimtab.experiments.spec_file import load_spec
from trimtab.search.journal import read_records
from trimtab.search.knowledge import Knowledge
from trimtab.spaces.layer import Group
from trimtab.spaces.policy import Policy
from trimtab.spaces.treatment import Treatment

GOLDEN = Path(__file__).parents[1] / "golden" / "policy-v1.json"
INT8 = Treatment(weight_dtype="int8", activation_dtype="int8")


@pytest.fixture(scope="module")
def run(make_workplace, tmp_path_factory):
    """The folder of a search with knowledge, in a workplace of its own."""
    place = make_workplace(tmp_path_factory.mktemp("explained"))
    spec = place.write_spec(
        model="tiny:cnn", data="tiny:images", space=[{"layers": "*", "quantize": ["none", "int8", "int8_weight"]}],
        graph={"calibration": ["minmax"], "quantized_ops": [[]]}, search={"algorithm": "auto", "trials": 12},
    )  # fmt: skip
    ended = place.run("search", spec)
    assert ended.exit_code == 0, ended.stderr
    return place.path / "runs" / "tiny"


@pytest.fixture(scope="module")
def explanation(run):
    return trimtab.explain(run)


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def test_there_is_a_row_for_every_group(explanation):
    assert [row.group for row in explanation.rows] == ["first", "second", "last"]
    assert [row.kind for row in explanation.rows] == ["conv", "conv", "linear"]


def test_the_answer_is_the_promise_of_the_artifact(run, explanation):
    manifest = json.loads((run / "artifact" / "manifest.json").read_text())
    assert explanation.promise.to_json() == manifest["promise"]["measurement"]


def test_what_a_treatment_saves_is_what_the_device_takes_more_without_it(run, explanation, workplace):
    """The simulated device states the same time for a model whenever it is asked: 30 % are for untried policies."""
    preparation = prepare(load_spec({**load_spec(run / "spec.yaml").to_json(), "model": "tiny:cnn"}))
    policy = load_policy(run / "policy.json").policy
    now = simulate_latency(preparation.build(policy).model, 1)
    treated = [row for row in explanation.rows if row.is_treated]
    assert treated
    for row in treated:
        without = Policy({n: t for n, t in policy.groups if n != row.group}, policy.graph)
        before = simulate_latency(preparation.build(without).model, 1)
        was_tried = any(a.trials for a in row.alternatives if a.treatment == "float32")
        assert row.latency_after_s == pytest.approx(now)
        assert row.latency_saved_s == pytest.approx(before - now, rel=1e-6 if was_tried else 0.3)


def test_trials_that_differ_in_one_group_are_named(run, explanation):
    records = {record.id: record for record in read_records(run / "journal.jsonl")}
    chosen = load_policy(run / "policy.json").policy
    named = [(row.group, a) for row in explanation.rows for a in row.alternatives if a.trials and not a.is_chosen]
    assert named
    for group, alternative in named:
        for trial in alternative.trials:
            assert {**dict(records[trial].policy.groups), group: None} == {**dict(chosen.groups), group: None}


def test_sizes_are_those_of_the_weights(explanation):
    first = explanation.rows[0]
    assert first.size_before_bytes == 4 * 16 * 3 * 3 * 3
    codes_scales_zero_points = 16 * 3 * 3 * 3 + 16 * (4 + 1)
    int8 = next(a for a in first.alternatives if a.treatment == "int8")
    assert int8.size_bytes == codes_scales_zero_points


def test_sensitivities_are_those_of_the_knowledge(run, explanation):
    influence = json.loads((run / "knowledge.json").read_text())["influence"]
    assert [[a.sensitivity for a in row.alternatives] for row in explanation.rows] == influence


def test_every_row_gives_a_reason(explanation):
    for row in explanation.rows:
        start = f"{row.treatment} saves" if row.is_treated else f"stays {row.treatment}: "
        assert row.reason.startswith(start), row


def test_a_policy_in_its_runs_folder_is_explained_from_the_run(run, explanation):
    assert trimtab.explain(run / "policy.json") == explanation
    assert trimtab.explain(run / "artifact").rows == explanation.rows


def test_a_policy_file_alone_says_what_it_does_and_nothing_that_it_does_not_know(run, tmp_path):
    shutil.copy(run / "policy.json", tmp_path / "policy.json")
    found = trimtab.explain(tmp_path / "policy.json")
    assert {row.reason for row in found.rows} == {"not known"}
    assert {row.latency_saved_s for row in found.rows} == {None}
    assert found.promise is None


def test_an_artifact_alone_knows_its_promise(run, tmp_path):
    artifact = shutil.copytree(run / "artifact", tmp_path / "artifact")
    assert trimtab.explain(artifact).promise.latency is not None


def test_a_search_that_goes_on_is_explained_by_its_best_so_far(copy):
    for name in ("policy.json", "result.json", "pareto.json"):
        (copy / name).unlink()
    assert any("the best so far" in note for note in trimtab.explain(copy).notes)


def test_a_run_without_knowledge_says_what_is_not_known(copy):
    (copy / "knowledge.json").write_text(json.dumps(Knowledge().to_json()))
    found = trimtab.explain(copy)
    assert any("sensitivities are not known" in note for note in found.notes)
    assert {row.sensitivity for row in found.rows} == {None}
    assert {row.size_after_bytes for row in found.rows if row.is_treated} == {None}


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(SpecError, match="must be a run"):
        trimtab.explain(tmp_path)


def test_a_run_that_has_measured_nothing_is_refused(copy):
    (copy / "original.json").unlink()
    with pytest.raises(RunError, match="measured nothing yet"):
        trimtab.explain(copy)


def test_the_terminal_shows_the_answer_first(run, workplace):
    shown = workplace.call("explain", run)
    assert shown.exit_code == 0
    assert shown.stdout.startswith("promise: ")
    assert "least latency wanted" in shown.stdout


def test_the_command_gives_json(run, workplace, explanation):
    shown = json.loads(workplace.call("explain", run, "--json").stdout)
    assert shown == json.loads(json.dumps(explanation.to_json()))


def test_notebooks_show_escaped_tables(run, explanation):
    wild = replace(explanation, notes=("<script>alert(1)</script>",))
    assert "<script>" not in wild._repr_html_()
    assert "&lt;script&gt;" in wild._repr_html_()
    assert "<td>first</td>" in explanation._repr_html_()
    assert "<table>" in load_policy(run / "policy.json")._repr_html_()


def change(run, path, **groups):
    """Writes the run's policy with other treatments to a file."""
    file = load_policy(run / "policy.json")
    chosen = {**dict(file.policy.groups), **groups}
    known = {group.name: group for group in file.groups}
    policy = Policy(chosen, file.policy.graph)
    members = tuple(known.get(name) or Group(name, (name,)) for name, _ in policy.groups)
    replace(file, policy=policy, groups=members).save(path)
    return path


def test_equal_policies_end_with_0(run, workplace):
    shown = workplace.call("diff", run, run / "artifact")
    assert shown.exit_code == 0
    assert "the policies are equal" in shown.stdout


def test_different_policies_end_with_1_and_name_the_layers(run, workplace, tmp_path):
    own = load_policy(run / "policy.json").policy
    other = Treatment(weight_dtype="int8") if own["last"] == INT8 else INT8
    path = change(run, tmp_path / "other.json", last=other)
    shown = workplace.call("diff", run / "policy.json", path, "--json")
    assert shown.exit_code == 1
    difference = json.loads(shown.stdout)
    assert [choice["name"] for choice in difference["layers"]] == ["last"]
    assert (difference["equal"], difference["graph"], difference["measured"]) == (False, [], [])


def test_what_was_measured_of_both_is_compared(run):
    found = trimtab.diff(run, run / "artifact")
    assert [pair.name for pair in found.measured] == ["latency", "accuracy", "accuracy drop", "size"]
    assert all(pair.first == pair.second for pair in found.measured)


def test_models_of_other_layers_are_compared_layer_by_layer(run):
    found = trimtab.diff(run, GOLDEN)
    assert {choice.name: choice.first for choice in found.layers if choice.first == "no such layer"} == dict.fromkeys(
        ("w1", "w2"), "no such layer"
    )
    assert {choice.second for choice in found.layers if choice.name in ("first", "second", "last")} == {"no such layer"}

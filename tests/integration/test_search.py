"""The whole path: a search, what it leaves behind, and what production does with it."""

import hashlib
import importlib
import json
import re
import shutil
import sys

import numpy as np
import onnxruntime
import pytest
import trimtab
from safetensors.numpy import load_file
from trimtab.core.errors import RunError
from trimtab.core.imports import import_object
from trimtab.evaluators.device import DEVICES

SIMULATED = "trimtab.evaluators.testing:SimulatedDevice"
#: one alternative for each choice of the graph, so that there are few baselines
PLAIN_GRAPH = {"fusion": ["none"], "calibration": ["minmax"], "quantized_ops": [[]], "precision": ["float32"]}
#: exit code, and how often to try again: other things run on the machine that runs the tests
TOO_UNQUIET, N_ATTEMPTS = 4, 3
ANY_DROP = {"accuracy_drop": 0.99}


def read_json(path):
    return json.loads(path.read_text())


def read_records(run):
    return {record["id"]: record for record in map(json.loads, (run / "journal.jsonl").read_text().splitlines()[1:])}


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def place(request, tmp_path_factory):
    """The workplace of a search for a convolutional network on a real runtime; not to be changed."""
    place = request.getfixturevalue("make_workplace")(tmp_path_factory.mktemp(request.param))
    place.write_spec(
        model="tiny:cnn", data="tiny:images", target={"runtime": request.param}, objective="size",
        space=[{"layers": "*", "quantize": ["none", "int8"]}], graph=PLAIN_GRAPH,
        budget=ANY_DROP, search={"trials": 5},
    )  # fmt: skip
    for attempt in range(N_ATTEMPTS):
        ended = when_quiet(place, "search", "spec.yaml", "--runs", f"runs{attempt}", "--json")
        assert ended.exit_code == 0, ended.stderr
        place.found = place.path / json.loads(ended.stdout)["run"]
        if all(record["status"] == "COMPLETE" for record in read_records(place.found).values()):
            return place
    return pytest.skip("this machine is too unquiet to time anything")


@pytest.fixture(scope="module")
def run(place):
    return place.found


def when_quiet(place, *arguments):
    """Runs a command that times something, again where the machine was too unquiet for it."""
    for _ in range(N_ATTEMPTS):
        ended = place.run(*arguments)
        if ended.exit_code != TOO_UNQUIET or "must repeat" not in ended.stderr:
            return ended
    return pytest.skip(f"this machine is too unquiet to time anything: {ended.stderr}")


@pytest.fixture
def artifact(run, tmp_path):
    """A copy of the artifact, to be altered."""
    return shutil.copytree(run / "artifact", tmp_path / "artifact")


def test_the_journal_holds_every_trial_once_by_consecutive_ids(run):
    lines = (run / "journal.jsonl").read_text().splitlines()[1:]
    assert sorted(json.loads(line)["id"] for line in lines) == list(range(5))


def test_the_winner_of_the_table_is_the_policy_of_its_trial(run):
    result, policy = read_json(run / "result.json"), read_json(run / "policy.json")
    best = next(row for row in result["rows"] if row["label"] == "best policy")
    record = read_records(run)[result["winner"]]
    assert (best["trial"], record["status"]) == (result["winner"], "COMPLETE")
    assert {"groups": policy["groups"], "graph": policy["graph"]} == record["policy"]
    assert best["final"]["size_bytes"] == record["measurement"]["size_bytes"]


def test_the_winner_is_the_smallest_model_within_the_budget(run):
    sizes = {key: record["measurement"]["size_bytes"] for key, record in read_records(run).items()}
    assert sizes[read_json(run / "result.json")["winner"]] == min(sizes.values())


def test_no_record_of_the_trade_off_is_beaten_by_another(run):
    def costs(record):
        measurement = record["measurement"]
        latency = measurement["latency"]["median_s"] / measurement["latency"]["reference_s"]
        return np.array([latency, measurement["accuracy_drop"]["mean"], measurement["size_bytes"]])

    front = read_json(run / "pareto.json")["records"]
    assert front
    for kept in front:
        assert not any((costs(other) < costs(kept)).all() for other in front)


def test_the_trade_off_consists_of_trials(run):
    def without_latency(record):
        return {**record, "measurement": {**record["measurement"], "latency": None}}

    # the latencies may be those of the final timing
    for record in read_json(run / "pareto.json")["records"]:
        assert without_latency(record) == without_latency(read_records(run)[record["id"]])


def test_the_manifest_promises_what_the_table_shows(run):
    manifest = read_json(run / "artifact" / "manifest.json")
    row = next(row for row in read_json(run / "result.json")["rows"] if row["label"] == "best policy")
    assert manifest["promise"]["measurement"] == {**row["final"], **row["test"]}


def test_the_manifest_describes_the_files(run):
    folder = run / "artifact"
    files = read_json(folder / "manifest.json")["files"]
    assert sorted(files) == ["model.onnx", "policy.json", "probe.safetensors"]
    for name, described in files.items():
        content = (folder / name).read_bytes()
        assert described == {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


def test_the_artifact_carries_the_policy_of_the_run(run):
    assert (run / "artifact" / "policy.json").read_bytes() == (run / "policy.json").read_bytes()


def test_the_artifact_computes_alike_in_plain_onnxruntime(run):
    session = onnxruntime.InferenceSession(run / "artifact" / "model.onnx", providers=["CPUExecutionProvider"])
    probe = load_file(run / "artifact" / "probe.safetensors")
    found = session.run(None, {"input": probe["input.0.input"]})[0]
    # OpenVINO rounds otherwise: a few steps of int8, of which the largest output has 127
    assert np.abs(found - probe["output.0.0"]).max() <= 0.05 * np.abs(probe["output.0.0"]).max()


def test_the_same_weights_give_the_same_bytes(place, run, tmp_path):
    ended = when_quiet(place, "apply", run / "policy.json", "--model", "tiny:cnn", "--out", tmp_path / "again")
    assert ended.exit_code == 0, ended.stderr
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (run / "artifact" / "model.onnx").read_bytes()


def test_retrained_weights_are_compressed_alike(place, run, tmp_path):
    ended = when_quiet(
        place, "apply", run / "policy.json", "--model", "tiny:retrained", "--data", "tiny:images",
        "--out", tmp_path / "retrained", "--json",
    )  # fmt: skip
    assert ended.exit_code == 0, ended.stderr
    policies = [read_json(folder / "policy.json") for folder in (run / "artifact", tmp_path / "retrained")]
    assert policies[0]["groups"] == policies[1]["groups"] != {}
    models = [(folder / "model.onnx").read_bytes() for folder in (run / "artifact", tmp_path / "retrained")]
    assert models[0] != models[1]
    assert len(models[0]) == pytest.approx(len(models[1]), rel=0.01)
    # 1 % of noise on the weights changes few of the answers
    assert json.loads(ended.stdout)["promise"]["accuracy"]["mean"] > 0.5


def test_an_artifact_keeps_its_promise(place, artifact):
    # ten times the time: the machine that runs the tests is not quiet
    ended = when_quiet(place, "verify", artifact, "--data", "tiny:images", "--tolerance", "10", "--json")
    assert ended.exit_code == 0, ended
    checks = json.loads(ended.stdout)["checks"]
    assert [check["name"] for check in checks] == ["files", "outputs", "latency", "size", "accuracy", "machine"]


def test_an_altered_byte_breaks_the_promise(place, artifact):
    content = bytearray((artifact / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (artifact / "model.onnx").write_bytes(bytes(content))
    assert place.run("verify", artifact).exit_code == 1


def test_a_promise_that_nothing_could_keep_is_broken(place, artifact):
    manifest = read_json(artifact / "manifest.json")
    manifest["promise"]["measurement"]["latency"]["median_s"] /= 100  # far beyond any noise
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    ended = when_quiet(place, "verify", artifact, "--json")
    assert ended.exit_code == 1, ended.stderr
    assert [check["name"] for check in json.loads(ended.stdout)["checks"] if not check["kept"]] == ["latency"]


# -- on the simulated device, whose times are exact ----------------------------------------------------


def test_half_the_promised_latency_is_broken(workplace, finished):
    artifact = shutil.copytree(finished.path / "runs" / "tiny" / "artifact", workplace.path / "artifact")
    manifest = read_json(artifact / "manifest.json")
    assert workplace.call("verify", artifact, "--tolerance", "0").exit_code == 0
    manifest["promise"]["measurement"]["latency"]["median_s"] /= 2
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    ended = workplace.call("verify", artifact)
    assert (ended.exit_code, ended.stderr) == (1, "")
    assert re.search(r"latency .* broken", ended.stdout)
    assert "a promise is broken" in ended.stdout


def test_outputs_that_are_not_numbers_break_the_promise(workplace, finished, monkeypatch):
    monkeypatch.setitem(DEVICES._factories, "broken", import_object("tiny:BrokenDevice", noun="runtime"))
    artifact = shutil.copytree(finished.path / "runs" / "tiny" / "artifact", workplace.path / "artifact")
    for name in ("policy.json", "manifest.json"):
        content = read_json(artifact / name)
        content["target"]["runtime"] = "broken"
        if "files" in content:
            digest = hashlib.sha256((artifact / "policy.json").read_bytes()).hexdigest()
            content["files"]["policy.json"]["sha256"] = digest
        (artifact / name).write_text(json.dumps(content))
    verification = trimtab.verify(artifact)
    assert [check.name for check in verification.checks if not check.is_kept] == ["outputs"]


def test_a_budget_out_of_reach_ends_in_the_nearest_point_and_the_smallest_relaxation(workplace):
    budget = {"latency": "0.01x", "accuracy_drop": 0.2}
    ended = workplace.call("search", workplace.write_spec(budget=budget, search={"trials": 12}), "--json")
    found = json.loads(ended.stdout)
    records = read_records(workplace.path / "runs" / "tiny").values()
    fastest_s = min(record["measurement"]["latency"]["median_s"] for record in records)
    assert ended.exit_code == 3
    assert (found["feasible"], found["policy"], found["artifact"]) == (False, None, None)
    assert found["nearest"]["measurement"]["latency"]["median_s"] >= fastest_s
    assert found["relaxations"]["latency_s"] >= fastest_s
    assert found["relaxations"]["accuracy_drop"] is None
    assert not (workplace.path / "runs" / "tiny" / "policy.json").exists()
    text = workplace.call("resume", "runs/tiny")
    assert text.exit_code == 3
    assert "No policy keeps the budget" in text.stdout
    assert "nearest reachable: trial" in text.stdout
    assert re.search(r"it would be kept with latency [\d.e-]+ ms \(now [\d.e-]+ ms\)", text.stdout)


def test_json_says_what_the_files_say(workplace):
    ended = workplace.run("search", workplace.write_spec(search={"trials": 6}), "--json")
    found = json.loads(ended.stdout)
    result = read_json(workplace.path / found["run"] / "result.json")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert (found["rows"], found["equals_uniform"]) == (result["rows"], result["equals_uniform"])
    assert found["trials"] == len(read_records(workplace.path / found["run"]))


def test_piped_output_has_whole_lines_and_nothing_for_terminals(workplace):
    runs = workplace.path / ("a long name " * 20) / "[1]"
    ended = workplace.run("search", workplace.write_spec(search={"trials": 6}), "--runs", runs)
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert not re.search("\x1b|\r|eta|searching|preparing", ended.stdout)
    artifact = runs / "tiny" / "artifact"
    assert f"artifact: {artifact}   check it: trimtab verify {artifact}" in ended.stdout.splitlines()


def test_a_finished_run_is_only_finished_again(workplace, finished):
    folder = shutil.copytree(finished.path / "runs" / "tiny", workplace.path / "tiny")
    names = ("journal.jsonl", "policy.json", "result.json", "pareto.json", "artifact/model.onnx")
    before = {name: (folder / name).read_bytes() for name in names}
    assert workplace.call("resume", folder).exit_code == 0
    assert {name: (folder / name).read_bytes() for name in names} == before


def test_a_second_search_takes_a_folder_of_its_own(workplace):
    spec = workplace.write_spec(search={"trials": 2})
    assert workplace.call("search", spec).exit_code == workplace.call("search", spec).exit_code == 0
    assert sorted(path.name for path in (workplace.path / "runs").iterdir()) == ["tiny", "tiny-2"]


def test_a_run_is_resumed_where_its_spec_is_not(workplace, tmp_path, monkeypatch):
    spec = workplace.write_spec(model=str(workplace.path / "tiny.onnx"), search={"trials": 2})
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert workplace.call("search", workplace.path / spec).exit_code == 0
    # as in a new process: what the search added is gone
    sys.path[:] = path
    del sys.modules["tiny"]
    assert workplace.call("resume", tmp_path / "runs" / "tiny").exit_code == 0


def test_a_run_over_the_default_space_is_resumed(workplace, monkeypatch):
    # the default space offers linear layers int4_weight, which no layer of this model can take
    import torch

    monkeypatch.syspath_prepend(workplace.path)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model.example_inputs = {"input": torch.zeros(2, 3, 16, 16)}
    images = importlib.import_module("tiny").images()
    splits = {
        name: trimtab.Split({"input": getattr(images, name).inputs["input"]})
        for name in ("calibration", "validation", "test")
    }
    parts = {"model": model, "data": trimtab.Dataset(**splits, metric="kl")}
    result = trimtab.search(
        **parts, target={"runtime": SIMULATED}, graph=PLAIN_GRAPH, search={"trials": 2}, workers={"address": "inline"}
    )
    assert trimtab.resume(result.run, **parts).records == result.records


def test_the_function_search_and_the_folder_search_share_a_name_in_peace(workplace):
    from trimtab.search.journal import Journal

    spec = workplace.write_spec(search={"trials": 2})
    results = [trimtab.search(spec), trimtab.search(spec, runs="others")]
    assert [len(result.records) for result in results] == [len(results[0].records)] * 2
    assert trimtab.search.journal.Journal is Journal


def test_objects_are_searched_and_resumed_like_a_spec(workplace, monkeypatch):
    monkeypatch.syspath_prepend(workplace.path)
    tiny = importlib.import_module("tiny")
    parts = {"model": tiny.cnn(), "data": tiny.images()}
    result = trimtab.search(
        **parts, name="objects", target={"runtime": SIMULATED}, graph=PLAIN_GRAPH, budget=ANY_DROP,
        search={"algorithm": "random", "trials": 8}, workers={"address": "inline"},
    )  # fmt: skip
    assert (result.is_feasible, [record.id for record in result.records]) == (True, list(range(8)))
    assert result.policy.policy == next(row.record for row in result.rows if row.label == "best policy").policy
    applied = trimtab.apply(result.policy, tiny.cnn(), out="applied")
    assert (applied.folder / "model.onnx").read_bytes() == (result.artifact / "model.onnx").read_bytes()

    with pytest.raises(RunError, match=r"given as an object; call trimtab.resume\(run, model=…, data=…\)"):
        trimtab.resume(result.run)
    again = trimtab.resume(result.run, **parts)
    assert (again.records, again.policy, again.rows) == (result.records, result.policy, result.rows)
    with pytest.raises(RunError, match=r"weights \("):
        trimtab.resume(result.run, model=tiny.retrained(), data=parts["data"])


def test_functions_are_searched_and_resumed_too(workplace, monkeypatch):
    monkeypatch.syspath_prepend(workplace.path)
    tiny = importlib.import_module("tiny")
    parts = {"model": tiny.cnn, "data": tiny.images}  # printed, they stand in angle brackets like the notes of objects
    result = trimtab.search(
        **parts, target={"runtime": SIMULATED}, graph=PLAIN_GRAPH, budget=ANY_DROP,
        search={"algorithm": "random", "trials": 4}, workers={"address": "inline"},
    )  # fmt: skip
    assert trimtab.resume(result.run, **parts).records == result.records


def test_the_plan_of_an_onnx_model_runs_no_trial(workplace):
    ended = workplace.call("plan", workplace.write_spec())
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert "w1" in ended.stdout
    assert not (workplace.path / "runs").exists()


def test_uniform_policies_that_lose_too_much_stand_in_the_table_all_the_same(workplace):
    crowd = "tiny:many_vectors"
    spec = workplace.write_spec(
        data=crowd, space=[{"layers": "*", "binarize": ["none", "binary"]}], graph=PLAIN_GRAPH, objective="size",
        budget={"accuracy_drop": 0.01}, search={"trials": 4},
    )  # fmt: skip
    found = json.loads(workplace.call("search", spec, "--json").stdout)
    records = read_records(workplace.path / found["run"])
    uniform = [record for record in records.values() if record["origin"].startswith("baseline:uniform")]
    assert {record["status"] for record in uniform} == {"PRUNED"}
    row = next(row for row in found["rows"] if row["label"] == "best uniform")
    assert (row["trial"], row["feasible"]) == (uniform[0]["id"], False)
    # the search stopped after a part; the table knows all of the validation split
    assert row["final"]["accuracy"]["n"] == 512 > uniform[0]["measurement"]["accuracy"]["n"]

"""Questions after a search, and starts of the next one: another budget, another device, what others found."""

import json

import pytest
from trimtab.experiments.pareto import answer_budget
from trimtab.search.journal import read_records

#: no choices for the whole graph, so that there are few baselines
PLAIN_GRAPH = {"fusion": ["none"], "calibration": ["minmax"], "quantized_ops": [[]], "precision": ["float32"]}
SPACE = [{"layers": "*", "quantize": ["none", "float16", "int8", "int8_weight"]}]


@pytest.fixture(scope="module")
def place(make_workplace, tmp_path_factory):
    """The workplace of a search on the simulated device; not to be changed."""
    place = make_workplace(tmp_path_factory.mktemp("questions"))
    place.write_spec(space=SPACE, graph=PLAIN_GRAPH, search={"algorithm": "auto", "trials": 12, "start": ["front"]})
    ended = place.run("search", "spec.yaml", "--json")
    assert ended.exit_code == 0, ended.stderr
    return place


@pytest.fixture(autouse=True)
def _in_the_workplace(place, monkeypatch):
    monkeypatch.chdir(place.path)


@pytest.fixture
def run(place):
    return place.path / "runs" / "tiny"


def latencies_within(run, max_drop, budget):
    """Trial → normalised seconds of the records whose drop keeps a bound, by hand."""
    found = {}
    for record in read_records(run / "journal.jsonl"):
        measurement = record.measurement
        if record.status == "COMPLETE" and measurement.accuracy_drop.mean <= max_drop:
            found[record.id] = measurement.latency.ratio * budget.reference_s
    return found


def test_a_search_starts_from_the_solvers_front(run):
    origins = [record.origin for record in read_records(run / "journal.jsonl")]
    starts = [position for position, origin in enumerate(origins) if origin.startswith("start:front")]
    baselines = [position for position, origin in enumerate(origins) if origin.startswith("baseline:")]
    assert starts, origins
    assert max(baselines) < min(starts)
    assert max(starts) < origins.index("auto")


@pytest.mark.parametrize("max_drop", [0.0, 0.01, 0.5])
def test_another_budget_is_answered_with_the_best_record_that_keeps_it(run, max_drop):
    found = answer_budget(run, {"accuracy_drop": max_drop, "latency": None})
    within = latencies_within(run, max_drop, found.budget)
    assert found.best.record.measurement.accuracy_drop.mean <= max_drop
    least_s = min(within.values())
    assert found.budget.normalised_latency_s(found.best.record.measurement) == pytest.approx(least_s, rel=0.02)
    assert 0.5 <= found.best.sureness <= 1.0


def test_untried_policies_are_policies_of_the_space_that_were_not_tried(run, place):
    records = read_records(run / "journal.jsonl")
    for max_drop in (0.0, 0.1):
        found = answer_budget(run, {"accuracy_drop": max_drop})
        assert not {untried.policy for untried in found.untried} & {record.policy for record in records}
        assert all(untried.sureness >= 0.5 for untried in found.untried)


def test_a_budget_out_of_reach_names_the_nearest_and_what_would_do(place):
    ended = place.call("pareto", "runs/tiny", "--budget", "latency=0.001x", "--json")
    assert ended.exit_code == 3
    found = json.loads(ended.stdout)
    assert found["best"] is None
    assert found["nearest"]["measurement"]["latency"]["median_s"] > 0
    assert found["relaxations"]["latency_s"] > found["budget"]["latency_s"]


def test_the_answer_is_printed_with_how_sure_it_is(place):
    ended = place.call("pareto", "runs/tiny", "--budget", "latency=none", "--budget", "size_mb=0.99x")
    assert ended.exit_code == 0, ended.stderr
    assert "trade-off, measured" in ended.stdout
    assert "size ≤" in ended.stdout
    assert "keeps the budget with" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "latency"], "must be a bound and its value"),
        (["--budget", "speed=3"], "unknown bound 'speed'"),
        (["--budget", "latency=fast"], "budget.latency"),
        (["--objective", "speed"], "unknown objective 'speed'"),
    ],
)
def test_a_bad_question_is_refused(place, arguments, message):
    ended = place.call("pareto", "runs/tiny", *arguments)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert message in ended.stderr


def test_a_folder_without_a_run_is_refused(place):
    ended = place.call("pareto", "nowhere")
    assert ended.exit_code == 2
    assert "is not a run folder" in ended.stderr


def test_a_search_starts_from_another_run_and_from_a_policy(place, run):
    place.write_spec(
        "again.yaml", name="again", space=SPACE, graph=PLAIN_GRAPH,
        search={"algorithm": "random", "trials": 12, "start": ["runs/tiny", "runs/tiny/policy.json"]},
    )  # fmt: skip
    ended = place.run("search", "again.yaml", "--json")
    assert ended.exit_code == 0, ended.stderr
    records = read_records(place.path / "runs" / "again" / "journal.jsonl")
    winner = json.loads((run / "policy.json").read_text())["groups"]
    first = [record for record in records if record.origin != "random"]
    assert any(record.origin.startswith("start:tiny #") for record in first)
    assert winner in [record.policy.to_json()["groups"] for record in first]


@pytest.mark.parametrize(
    ("start", "message"),
    [("elsewhere", "there is no such file"), ("tiny.py", "policy tiny.py"), ("..", "is not a run folder")],
)
def test_a_start_that_cannot_be_read_is_refused_before_any_trial(place, start, message):
    place.write_spec("bad.yaml", name="bad", search={"start": [start]})
    ended = place.run("search", "bad.yaml")
    assert ended.exit_code == 2
    assert message in ended.stderr
    assert not (place.path / "runs" / "bad").exists()


def test_a_policy_is_solved_anew_for_another_runtime(place):
    place.write_spec("ort.yaml", target={"runtime": "onnxruntime"}, space=SPACE, graph=PLAIN_GRAPH)
    ended = place.call("transfer", "runs/tiny/policy.json", "--target", "ort.yaml", "--out", "moved.json", "--json")
    assert ended.exit_code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["solved"]["influence"] <= found["kept"]["influence"] * (1 + 1e-9)
    moved = json.loads((place.path / "moved.json").read_text())
    assert moved["target"]["runtime"] == "onnxruntime"


def test_a_policy_that_moves_to_a_poorer_device_says_what_it_lost_and_can_be_applied(place):
    place.write_spec("poor.yaml", name="poor", space=[{"layers": "*", "quantize": ["none", "int8_weight"]}])
    policy = json.loads((place.path / "runs/tiny/policy.json").read_text())
    static = {"weight_dtype": "int8", "activation_dtype": "int8"}
    rich = {**policy, "groups": {name: dict(static) for name in policy["members"]}}
    (place.path / "rich.json").write_text(json.dumps(rich))
    ended = place.call("transfer", "rich.json", "--target", "poor.yaml", "--out", "poor.json")
    assert ended.exit_code == 0, ended.stderr
    assert "not on offer there" in ended.stdout
    ended = place.call("apply", "poor.json", "--model", "tiny.onnx", "--data", "tiny:vectors", "--out", "applied")
    assert ended.exit_code == 0, ended.stderr


def test_a_policy_without_names_of_its_model_needs_them(place, run):
    content = json.loads((run / "policy.json").read_text())
    content["origin"]["data"] = "<numpy.ndarray object>"
    (place.path / "nameless.json").write_text(json.dumps(content))
    ended = place.run("transfer", "nameless.json", "--target", "onnxruntime", "--out", "moved.json")
    assert ended.exit_code == 2
    assert "pass --data" in ended.stderr

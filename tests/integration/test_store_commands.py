"""A run in the store and in MLflow, from the command line."""

import json
import shutil
import sys

import pytest
import yaml
from trimtab import PolicyStore
from trimtab.core.errors import SpecError
from trimtab.experiments.store.mlflow_log import log_run


@pytest.fixture
def place(finished, workplace, monkeypatch):
    """A workplace with a run, in which there is no store yet."""
    monkeypatch.delenv("TRIMTAB_STORE", raising=False)
    shutil.copytree(finished.path / "runs", workplace.path / "runs")
    return workplace


@pytest.fixture
def run(place):
    return place.path / "runs" / "tiny"


def call(place, *arguments, code=0):
    ended = place.call(*arguments)
    assert (ended.exit_code, ended.bug) == (code, None), ended.stderr
    return ended


def test_a_run_is_published_under_the_name_in_its_spec(place, run):
    said = call(place, "publish", "runs/tiny", "--who", "ada", "--why", "a first try").stdout
    (version,) = PolicyStore(place.path / "store").shelf("tiny").versions
    assert f"published tiny@{version.short_id}" in said
    event = version.published
    assert (event.who, event.why, event.run) == ("ada", "a first try", "tiny")
    assert set(version.files) == {path.name for path in (run / "artifact").iterdir()}


def test_the_store_is_where_the_environment_says(place, monkeypatch):
    monkeypatch.setenv("TRIMTAB_STORE", str(place.path / "elsewhere"))
    call(place, "publish", "runs/tiny")
    assert not (place.path / "store").exists()
    call(place, "promote", "tiny", "--store", "store", code=2)
    call(place, "promote", "tiny")


def test_a_version_is_promoted_returned_from_and_listed(place, tmp_path):
    first = json.loads(call(place, "publish", "runs/tiny", "--json").stdout)["version"]
    call(place, "promote", "tiny", "--why", "good enough")
    second = json.loads(call(place, "publish", "runs/tiny/policy.json", "--name", "tiny", "--json").stdout)["version"]
    assert f"in production: tiny@{second[:12]}" in call(place, "promote", f"tiny@{second[:6]}").stdout
    assert f"in production: tiny@{first[:12]}" in call(place, "rollback", "tiny", "--why", "too slow").stdout
    listed = call(place, "list", "--history").stdout
    for word in (first[:12], second[:12], "production", "former", "good enough", "too slow"):
        assert word in listed
    (shelf,) = json.loads(call(place, "list", "--json").stdout)["shelves"]
    assert {v["version"]: v["stage"] for v in shelf["versions"]} == {first: "production", second: "former"}
    assert [e["action"] for e in shelf["history"]] == ["publish", "promote", "publish", "promote", "rollback"]
    call(place, "fetch", f"tiny@{second}", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "policy.json").read_bytes() == (place.path / "runs/tiny/policy.json").read_bytes()


def test_the_list_shows_what_is_promised(place, run):
    call(place, "publish", "runs/tiny")
    promised = json.loads((run / "artifact" / "manifest.json").read_text())["promise"]["measurement"]
    listed = call(place, "list").stdout
    assert f"{promised['latency']['median_s'] * 1e3:.3f} ms" in listed
    assert f"{promised['latency']['median_s'] * 1e3:.3f} ms" not in call(place, "list", "--no-check").stdout


def test_markup_in_a_reason_is_text(place):
    call(place, "publish", "runs/tiny", "--why", "[red]not[/red] [/]")
    assert "[red]not[/red] [/]" in call(place, "list").stdout


def test_what_keeps_its_promise_is_promoted_with_verify(place):
    call(place, "publish", "runs/tiny")
    ended = call(place, "promote", "tiny", "--verify", "--data", "tiny:vectors", "--json")
    assert json.loads(ended.stdout)["production"] is not None
    assert "every promise is kept" in ended.stderr


def test_what_breaks_its_promise_is_not_promoted_with_verify(place, run):
    """The manifest promises a smaller file than there is, and nothing was altered afterwards."""
    manifest = json.loads((run / "artifact" / "manifest.json").read_text())
    manifest["promise"]["measurement"]["size_bytes"] = 1
    (run / "artifact" / "manifest.json").write_text(json.dumps(manifest))
    call(place, "publish", "runs/tiny")
    assert "BROKEN" in call(place, "promote", "tiny", "--verify", code=1).stderr.upper()
    assert PolicyStore("store").shelf("tiny").production is None


def test_a_policy_alone_has_nothing_to_verify(place):
    call(place, "publish", "runs/tiny/policy.json", "--name", "tiny")
    assert "without an artifact" in call(place, "promote", "tiny", "--verify", code=2).stderr


def test_a_run_without_an_answer_is_not_published(place, run):
    shutil.rmtree(run / "artifact")
    assert "has no artifact" in call(place, "publish", "runs/tiny", code=2).stderr


@pytest.mark.parametrize("source", ["tiny.py", "nowhere", "."])
def test_what_is_no_policy_is_not_published(place, source):
    call(place, "publish", source, "--name", "tiny", code=2)
    assert not (place.path / "store").exists()


@pytest.mark.parametrize(
    ("url", "why"), [("s3://x", "s3fs"), ("nope://x", "not known"), ("tiny.onnx", "Not a directory")]
)
def test_a_store_that_cannot_be_opened_says_why(place, url, why):
    assert why in call(place, "publish", "runs/tiny", "--store", url, code=2).stderr


def test_fsspec_is_named_where_it_is_missing(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    assert "pip install 'trimtab[store]'" in call(place, "list", "--store", "memory://x", code=2).stderr


def test_a_file_system_that_fails_can_be_tried_again(place):
    # nothing listens on that port
    ended = call(place, "list", "--store", "ftp://127.0.0.1:9/policies", code=4)
    assert "try again" in ended.stderr


@pytest.fixture
def logged(place, monkeypatch):
    """A run that was published and logged: the version, and the folder that MLflow made, which is plain text."""
    # its database takes ten seconds to be made; that MLflow keeps this store for old users only is nothing to us
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    said = json.loads(call(place, "publish", "runs/tiny", "--mlflow", f"file://{place.path}/ml", "--json").stdout)
    (folder,) = (place.path / "ml").glob(f"*/{said['mlflow_run']}")
    return said["version"], folder


def read_metric(folder, name):
    """Step → value."""
    lines = (folder / "metrics" / name).read_text().splitlines()
    return {int(step): float(value) for _, value, step in map(str.split, lines)}


@pytest.mark.slow
def test_mlflow_holds_what_the_run_holds(logged, run):
    version, folder = logged
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()[1:]]
    for name, read in (
        ("latency_s", lambda m: m["latency"]["median_s"]),
        ("accuracy_drop", lambda m: m["accuracy_drop"]["mean"]),
        ("size_bytes", lambda m: m["size_bytes"]),
    ):
        wanted = {record["id"]: read(record["measurement"]) for record in records if record["status"] == "COMPLETE"}
        assert read_metric(folder, name).items() >= wanted.items()

    result = json.loads((run / "result.json").read_text())
    (row,) = (row for row in result["rows"] if row["label"] == "best policy")
    assert read_metric(folder, "final.latency_s") == {0: row["final"]["latency"]["median_s"]}
    assert read_metric(folder, "test.accuracy_drop") == {0: row["test"]["accuracy_drop"]["mean"]}

    spec = yaml.safe_load((run / "spec.yaml").read_text())
    asked = {path.name: path.read_text() for path in (folder / "params").iterdir()}
    assert (asked["model"], asked["search.algorithm"]) == (spec["model"], spec["search"]["algorithm"])
    assert asked["search.trials"] == str(spec["search"]["trials"])
    assert (folder / "tags" / "trimtab.version").read_text() == version
    assert yaml.safe_load((folder.parent / "meta.yaml").read_text())["name"] == "tiny"
    assert yaml.safe_load((folder / "meta.yaml").read_text())["end_time"] is not None

    kept = folder / "artifacts"
    for name in ("policy.json", "spec.yaml", "pareto.json", "result.json", "artifact/model.onnx"):
        assert (kept / name).read_bytes() == (run / name).read_bytes()


def test_only_runs_are_logged(place):
    ended = call(place, "publish", "runs/tiny/artifact", "--name", "x", "--mlflow", "sqlite:///mlflow.db", code=2)
    assert "not a run's folder" in ended.stderr
    assert not (place.path / "store").exists()


def test_mlflow_says_what_is_wrong_with_a_place(run):
    with pytest.raises(SpecError, match="cannot be logged to MLflow"):
        log_run(run, "./mlruns", "tiny")

"""What a run gives to others: an Optuna study, and the kernels with their prices."""

import json
import shutil
from pathlib import Path

import optuna
import pytest
from trimtab.core.cache import cache_folder
from trimtab.evaluators.measurement import Measurement
from trimtab.experiments.preparation import prepare
from trimtab.experiments.profiling.table_prices import open_prices
from trimtab.experiments.report.kernels import compare_kernels, kind_of
from trimtab.experiments.report.price_record import read_price_record, record_prices
from trimtab.experiments.report.promises import compare_promises
from trimtab.experiments.report.reading import read_run
from trimtab.experiments.run_folder import RunFolder
from trimtab.experiments.spec_file import load_spec
from trimtab.hw_profiles.kernels.kernel import KernelTiming
from trimtab.hw_profiles.kernels.shipped import user_table_path
from trimtab.hw_profiles.kernels.table_file import update_table
from trimtab.hw_profiles.kernels.table_identity import TableIdentity
from trimtab.hw_profiles.latency import Latency
from trimtab.search.journal import Journal
from trimtab.search.record import Record, Status
from trimtab.spaces.policy import Policy


@pytest.fixture
def run(finished, tmp_path):
    run = Path(shutil.copytree(finished.path / "runs" / "tiny", tmp_path / "tiny"))
    with Journal.open(run / "journal.jsonl") as journal:
        last = journal.records[-1]
        for i, status in enumerate((Status.FAILED, Status.PRUNED)):
            journal.append(Record(last.id + 1 + i, last.policy, status, Measurement(), 1.0, 0, "random", "boom"))
    return run


def load_study(path):
    if path.suffix == ".db":
        return optuna.load_study(study_name="tiny", storage=f"sqlite:///{path}")
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    return optuna.load_study(study_name="tiny", storage=optuna.storages.JournalStorage(backend))


@pytest.mark.parametrize("file", ["study.db", "study.journal"])
def test_optuna_loads_what_was_exported(workplace, run, tmp_path, file):
    ended = workplace.call("report", run, "--optuna", tmp_path / file)
    assert ended.exit_code == 0, ended.stderr
    study = load_study(tmp_path / file)
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()[1:]]
    finals = {row["trial"]: row["final"] for row in json.loads((run / "result.json").read_text())["rows"]}
    assert [trial.state.name for trial in study.trials[-2:]] == ["FAIL", "PRUNED"]
    assert len(study.trials) == len(lines)
    reference_s = json.loads((run / "original.json").read_text())["latency"]["median_s"]
    for line, trial in zip(lines[:-2], study.trials, strict=False):
        measured = finals.get(line["id"], line["measurement"])
        latency = measured["latency"]
        assert trial.values == pytest.approx([
            1e3 * latency["median_s"] / latency["reference_s"] * reference_s,
            100 * measured["accuracy_drop"]["mean"],
            measured["size_bytes"] / 1e6,
        ])  # fmt: skip
        assert all((value <= 0) == trial.user_attrs["keeps the budget"] for value in trial.constraints.values())
        groups = line["policy"]["groups"]
        for name, choice in trial.params.items():
            if not name.startswith("graph: "):
                assert (choice == "none") == (name not in groups)
    winner = json.loads((run / "result.json").read_text())["winner"]
    assert winner in [trial.number for trial in study.best_trials]


def test_a_study_that_stands_there_is_not_touched(workplace, run, tmp_path):
    (tmp_path / "study.db").write_text("mine")
    ended = workplace.call("report", run, "--optuna", tmp_path / "study.db")
    assert ended.exit_code == 2
    assert "exists already" in ended.stderr
    assert (tmp_path / "study.db").read_text() == "mine"


@pytest.fixture
def priced(workplace, tmp_path, monkeypatch):
    """Preparation on a real runtime, a table in which each kernel takes a microsecond more, and an empty run."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    spec = load_spec(workplace.write_spec(target={"runtime": "onnxruntime"},
                                          space=[{"layers": "*", "quantize": ["none", "int8"]}]))  # fmt: skip
    preparation = prepare(spec)
    int8 = preparation.space.uniform(preparation.space.options[0][1])
    graphs = [preparation.device.lower(preparation.build(policy)) for policy in (Policy({}), int8)]
    kernels = list(dict.fromkeys(kernel for graph in graphs for kernel in graph.kernels))
    seconds = {kernel: 1e-6 * (1 + i) for i, kernel in enumerate(kernels)}
    identity = TableIdentity.of(preparation.device.identify())

    def enter(table):
        table.add([KernelTiming(kernel, s, s / 10, 30) for kernel, s in seconds.items()], "another search")

    update_table(user_table_path(identity, cache_folder()), enter, identity=identity)
    folder = RunFolder.create(tmp_path / "runs", "priced")
    folder.write_spec(spec)
    original = Measurement(latency=Latency(2e-4, 1e-6, 30, reference_s=2e-4), size_bytes=1000)
    folder.write_original(original)
    records = [record(0, Policy({}), 2e-4), record(1, int8, 1e-4)]
    with Journal.create(folder.journal, {}) as journal:
        for made in records:
            journal.append(made)
    promising = open_prices(preparation, without_source="search priced")
    record_prices(preparation, folder, records, records[1], promising=promising)
    return folder, [sum(seconds[k] for k in graph.kernels) for graph in graphs], graphs


def record(number, policy, seconds):
    latency = Latency(seconds, 1e-6, 30, reference_s=2e-4)
    return Record(number, policy, Status.COMPLETE, Measurement(latency=latency, size_bytes=1000), 1000.0, 0, "random")


def test_kernels_before_and_after_are_those_of_the_runtime_with_the_tables_prices(priced):
    folder, sums_s, graphs = priced
    found = read_price_record(folder)
    assert found.trial == 1
    assert [len(found.before), len(found.after)] == [len(graph.kernels) for graph in graphs]
    assert sum(kernel.seconds for kernel in found.before) == pytest.approx(sums_s[0])
    assert sum(kernel.seconds for kernel in found.after) == pytest.approx(sums_s[1])
    assert {kernel.source for kernel in (*found.before, *found.after)} == {"table"}


def test_the_page_adds_kernels_up_by_kind(priced):
    folder, _, graphs = priced
    shown = compare_kernels(read_run(folder.path))
    counts = {line.cells[0]: line.cells[1::2][:2] for line in shown.kinds.lines}
    kernels = read_price_record(folder)
    for name, (before, after) in counts.items():
        n_before = sum(kind_of(kernel) == name for kernel in kernels.before)
        n_after = sum(kind_of(kernel) == name for kernel in kernels.after)
        assert (before, after) == (str(n_before) if n_before else "–", str(n_after) if n_after else "–")
    assert len(shown.before.lines) == len(graphs[0].kernels)


def test_a_promise_is_the_tables_ratio_times_what_the_original_takes(priced):
    folder, sums_s, _ = priced
    shown = compare_promises(read_run(folder.path))
    cells = {line.cells[0]: line.cells for line in shown.table.lines}
    # the overhead of a call and of each kernel has a mean of zero until a whole graph was measured
    promised_ms = 0.2 * sums_s[1] / sums_s[0]
    assert cells["#1"][1].startswith(f"{promised_ms:.3f} ±")
    assert cells["#1"][2].startswith("0.100 ±")
    assert cells["#1"][3] == f"{promised_ms / 0.1 - 1:+.1%}"


def test_kernels_of_a_device_without_a_table_have_no_prices(finished):
    shown = compare_kernels(read_run(finished.path / "runs" / "tiny"))
    assert shown.figure is None
    assert "no kernel table of this device" in shown.notes[0]
    assert {cell for line in shown.kinds.lines for cell in (line.cells[2], line.cells[4], line.cells[5])} == {"–"}


def test_a_run_of_before_says_how_to_get_them(finished, tmp_path):
    run = Path(shutil.copytree(finished.path / "runs" / "tiny", tmp_path / "tiny"))
    (run / "prices.json").unlink()
    assert "resume the run" in compare_kernels(read_run(run)).notes[0]

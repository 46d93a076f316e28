"""A search whose trials train and compete is killed in the middle of a training, and goes on from there."""

import json
import os
import signal
import time

import psutil
import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow

PATIENCE_S = 120.0
#: 8 epochs of 512 samples, 64 at a time
N_STEPS = 64
PRUNED_STEPS = {"stopped after 25%": N_STEPS // 4, "stopped after 50%": N_STEPS // 2}
SPEC = {
    "model": "tiny:mlp",
    "data": "tiny:lessons",
    "space": [{"layers": "*", "sparsify": [0.5, 0.97]}],
    "graph": {"fusion": ["none"]},
    "recovery": [{"method": "finetune", "epochs": 8, "batch_size": 64}],
    "objective": "size",
    "budget": {"accuracy_drop": 0.3},
    "search": {"algorithm": "random", "trials": 3, "batch": 3, "scheduler": "asha"},
    # one after the other, so that who is stopped does not depend on time
    "workers": {"address": "local", "count": 1},
}


def count_steps(place):
    path = place.path / "steps.log"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_in_training(process, bank):
    """Kills the search, and waits for its workers to follow, once the state of a training has been kept."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not list(bank.glob("*.state.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s, "the search does not get on"
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    # Ray's own agents notice only after a minute
    workers = [child for child in children if "ray::" in child.name() and "Agent" not in child.name()]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []


def steps_of(record):
    """How many steps the training of a trial took, by its record."""
    if "recovery" not in record["policy"]:
        return 0
    return next((n for text, n in PRUNED_STEPS.items() if record["error"].startswith(text)), N_STEPS)


def read_pareto(place):
    return json.loads((place.path / "runs" / "tiny" / "pareto.json").read_text())["records"]


def test_a_killed_search_goes_on_with_its_trainings_and_stops_the_worse_ones(workplace, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    bank = tmp_path / "cache" / "trained"
    kill_in_training(workplace.start("search", workplace.write_spec(**SPEC)), bank)
    states = set(bank.glob("*.state.safetensors"))
    n_finished = len(set(bank.glob("*.safetensors")) - states)
    n_kept = N_STEPS * n_finished + sum(int(load_file(path)["step"]) for path in states)
    assert n_kept >= N_STEPS // 4
    n_before = count_steps(workplace)

    ended = workplace.run("resume", "runs/tiny", "--json")
    assert (ended.exit_code, ended.stderr) == (0, ""), ended.stderr
    result = json.loads(ended.stdout)  # Tune adds nothing to it
    lines = (workplace.path / "runs" / "tiny" / "journal.jsonl").read_text().splitlines()[1:]
    records = sorted(map(json.loads, lines), key=lambda record: record["id"])
    assert [record["id"] for record in records] == [0, 1, 2]
    # the original, which is not trained; half of the weights; hardly any
    assert [record["status"] for record in records] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert "below the median" in records[2]["error"]

    # what had been trained before the kill was not trained again
    assert count_steps(workplace) - n_before == sum(map(steps_of, records)) - n_kept

    best = next(row for row in result["rows"] if row["label"] == "best policy")
    assert (best["trial"], [point["id"] for point in read_pareto(workplace)]) == (1, [0, 1])
    assert len(list((tmp_path / "cache" / "races").iterdir())) <= 1  # that of the killed one

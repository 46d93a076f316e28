"""A search that is killed, again and again, ends as one that was left alone."""

import json
import os
import random
import signal
import time

import pytest

pytestmark = pytest.mark.slow

N_TRIALS, N_MANY_TRIALS, N_KILLS = 24, 72, 20
#: a search that has not come so far by then never will
PATIENCE_S = 60.0


def read_journal(path):
    """The records by id, without the seconds that they took; a torn last line counts as not written."""
    lines = path.read_bytes().splitlines(keepends=True)[1:]
    records = [json.loads(line) for line in lines if line.endswith(b"\n")]
    ids = [record["id"] for record in records]
    assert len(ids) == len(set(ids)), f"a trial stands there twice: {ids}"
    return {record["id"]: {**record, "cost_s": None} for record in sorted(records, key=lambda record: record["id"])}


def count_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(process, path, n_lines):
    """Returns when the journal has so many lines, or the process has ended."""
    deadline_s = time.monotonic() + PATIENCE_S
    while count_lines(path) < n_lines and process.poll() is None:
        assert time.monotonic() < deadline_s, "the search does not get on"
        time.sleep(0.005)


def kill(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def write_spec(place, n_trials):
    place.write_spec(
        target={"runtime": "tiny:SlowDevice"}, search={"algorithm": "tpe", "trials": n_trials, "seed": 3},
        space=[{"layers": "*", "quantize": ["none", "float16", "int8", "int8_dynamic", "int8_weight"]}],
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _children_hear_ctrl_c():
    """A shell ignores SIGINT for what it runs in the background, and what is started here would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def place(workplace):
    write_spec(workplace, N_TRIALS)
    return workplace


def test_a_search_killed_twenty_times_ends_as_one_that_was_not(place):
    alone = place.run("search", "spec.yaml", "--runs", "alone", "--json")
    assert alone.exit_code == 0, alone.stderr
    expected = read_journal(place.path / "alone" / "tiny" / "journal.jsonl")
    assert len(expected) >= N_TRIALS

    rng = random.Random(0)
    run = place.path / "runs" / "tiny"
    journal = run / "journal.jsonl"
    n_kills = n_before = 0
    while n_kills < N_KILLS:
        is_begun = (run / "spec.yaml").exists()
        process = place.start(*(["resume", run] if is_begun else ["search", "spec.yaml"]))
        if rng.random() < 0.5:  # somewhere during the start, or the first trials
            time.sleep(rng.uniform(0.0, 2.0))
        else:  # right after a trial, or a moment later
            wait_for_lines(process, journal, count_lines(journal) + rng.randint(1, 2))
            time.sleep(rng.choice([0.0, 0.0, 0.02]))
        was_running = process.poll() is None
        kill(process)
        assert was_running or process.returncode == 0
        n_kills += was_running
        if not journal.exists():
            continue
        kept = read_journal(journal)
        assert len(kept) >= n_before, "a record was lost"
        assert kept == {key: expected[key] for key in kept}
        n_before = len(kept)

    ended = place.run("resume", run, "--json")
    assert ended.exit_code == 0, ended.stderr
    assert read_journal(journal) == expected
    found, wanted = json.loads(ended.stdout), json.loads(alone.stdout)
    assert [row["trial"] for row in found["rows"]] == [row["trial"] for row in wanted["rows"]]
    models = [
        (folder / "tiny" / "artifact" / "model.onnx").read_bytes() for folder in (run.parent, place.path / "alone")
    ]
    assert models[0] == models[1]


def test_ctrl_c_says_how_to_go_on(place):
    # on a busy machine the signal may come seconds late: the search must not be over by then
    write_spec(place, N_MANY_TRIALS)
    process = place.start("search", "spec.yaml")
    journal = place.path / "runs" / "tiny" / "journal.jsonl"
    wait_for_lines(process, journal, 4)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (130, "")
    assert stderr == "\ninterrupted; go on with: trimtab resume runs/tiny\n"
    n_kept = len(read_journal(journal))
    assert 3 <= n_kept < N_MANY_TRIALS

    ended = place.run("resume", "runs/tiny", "--json")
    assert ended.exit_code == 0, ended.stderr
    assert len(read_journal(journal)) == json.loads(ended.stdout)["trials"] > n_kept

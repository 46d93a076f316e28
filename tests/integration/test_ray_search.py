"""A search through Ray proposes and finds what the same search finds in one process."""

import json
import os
import signal
import time

import psutil
import pytest

pytestmark = pytest.mark.slow

PATIENCE_S = 120.0
SPEC = {
    "target": {"runtime": "tiny:SlowDevice"},
    "search": {"algorithm": "tpe", "trials": 20, "seed": 3},
    "space": [{"layers": "*", "quantize": ["none", "float16", "int8", "int8_weight"]}],
}


def read_journal(path):
    records = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return [{**record, "cost_s": None} for record in sorted(records, key=lambda record: record["id"])]


def search(place, workers, runs):
    ended = place.run("search", place.write_spec(**SPEC, workers=workers), "--runs", runs, "--json")
    assert ended.exit_code == 0, ended.stderr
    return read_journal(place.path / runs / "tiny" / "journal.jsonl")


@pytest.fixture
def expected(workplace):
    return search(workplace, {"address": "inline"}, "inline")


def test_one_worker_and_four_find_what_none_finds(workplace, expected):
    assert len(expected) >= 20
    assert search(workplace, {"address": "local", "count": 1}, "one") == expected
    assert search(workplace, {"address": "local", "count": 4}, "four") == expected


def test_a_killed_search_ends_its_workers_and_can_be_resumed(workplace, expected):
    process = workplace.start("search", workplace.write_spec(**SPEC, workers={"address": "local", "count": 2}))
    journal = workplace.path / "runs" / "tiny" / "journal.jsonl"
    deadline_s = time.monotonic() + PATIENCE_S
    while not journal.exists() or journal.read_bytes().count(b"\n") < 8:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s, "the search does not get on"
        time.sleep(0.02)
    # Ray's own agents notice after a minute that nobody needs them; what measures has to be gone at once
    workers = [child for child in psutil.Process(process.pid).children(recursive=True) if "Actor" in child.name()]
    os.kill(process.pid, signal.SIGKILL)  # the search alone: what Ray started has to notice
    process.wait(PATIENCE_S)
    process.stdout.close(), process.stderr.close()
    assert len(workers) == 3  # two that compress, one that measures
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    n_kept = len(read_journal(journal))

    ended = workplace.run("resume", "runs/tiny", "--json")
    assert ended.exit_code == 0, ended.stderr
    assert 7 <= n_kept < len(expected)
    assert read_journal(journal) == expected

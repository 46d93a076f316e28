import json
import logging
import subprocess
import sys

import pytest
from trimtab.core.errors import RunError
from trimtab.search.journal import MAX_LINE_BYTES, Journal
from trimtab.search.record import Record, Status
from trimtab.search.testing import fake_measurement, policy_of, small_space
from trimtab.spaces.policy import Policy

FINGERPRINTS = {"model": "aaaa", "data": "bbbb"}


def make_record(record_id, error=""):
    policy = policy_of(small_space(), [record_id % 4, 1, 0, 2])
    status = Status.FAILED if error else Status.COMPLETE
    return Record(record_id, policy, status, fake_measurement(small_space(), policy), 0.5, 7, "random", error)


@pytest.fixture
def path(tmp_path):
    with Journal.create(tmp_path / "run" / "journal.jsonl", FINGERPRINTS) as journal:
        for record_id in (0, 2, 1):
            journal.append(make_record(record_id))
    return journal.path


def test_records_come_back_sorted_by_id_whatever_the_order_of_the_lines(path):
    with Journal.open(path) as journal:
        assert journal.records == [make_record(0), make_record(1), make_record(2)]


def test_create_refuses_an_existing_journal(path):
    with pytest.raises(RunError, match="exists already"):
        Journal.create(path, FINGERPRINTS)


def test_open_refuses_a_missing_journal(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        Journal.open(tmp_path / "journal.jsonl")


@pytest.mark.parametrize("n_kept", [1, 50, -1])
def test_torn_last_line_is_cut_off_with_a_warning(path, caplog, n_kept):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:n_kept])
    with caplog.at_level(logging.WARNING), Journal.open(path) as journal:
        assert [record.id for record in journal.records] == [0, 2]
        journal.append(make_record(3))
    assert "torn" in caplog.text
    with Journal.open(path) as journal:
        assert [record.id for record in journal.records] == [0, 2, 3]


def test_last_line_of_garbage_is_cut_off(path):
    path.write_bytes(path.read_bytes() + b"\0" * 100 + b"\n")
    with Journal.open(path) as journal:
        assert len(journal.records) == 3


def test_damaged_line_before_the_last_is_named(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b'{"id": 2, garbage\n', lines[3]]))
    with pytest.raises(RunError, match=r"journal\.jsonl, line 3 is damaged"):
        Journal.open(path)


def test_line_that_is_json_but_no_record_is_never_thrown_away(path):
    path.write_bytes(path.read_bytes() + b'{"id": 3}\n')
    with pytest.raises(RunError, match="line 5 is damaged: not a trial record"):
        Journal.open(path)


def test_duplicate_id_is_named(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[1]]))
    with pytest.raises(RunError, match="line 5: trial 0 stands there twice"):
        Journal.open(path)


def test_append_refuses_a_taken_id(path):
    with Journal.open(path) as journal, pytest.raises(RunError, match="holds trial 1 already"):
        journal.append(make_record(1))


def test_append_refuses_a_line_that_is_too_long(path):
    with Journal.open(path) as journal:
        with pytest.raises(RunError, match="a line may have"):
            journal.append(make_record(3, error="x" * MAX_LINE_BYTES))
        assert len(journal.records) == 3


def test_line_that_is_too_long_is_damage(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b'"' + b"x" * MAX_LINE_BYTES + b'"\n', *lines[2:]]))
    with pytest.raises(RunError, match="line 3 is damaged"):
        Journal.open(path)


@pytest.mark.parametrize(
    "header", [b"", b"{}\n", b"[]\n", b"null\n", b"garbage\n", b'{"schema": 1, "fingerprints": {}}']
)
def test_file_without_header_is_no_journal(tmp_path, header):
    (tmp_path / "journal").write_bytes(header)
    with pytest.raises(RunError, match="line 1 is not the header"):
        Journal.open(tmp_path / "journal")


def test_newer_schema_is_refused(tmp_path):
    (tmp_path / "journal").write_text(json.dumps({"schema": 99, "fingerprints": {}}) + "\n")
    with pytest.raises(RunError, match="schema 99; this version of Trimtab reads schema 1"):
        Journal.open(tmp_path / "journal")


def test_unchanged_fingerprints_pass(path):
    with Journal.open(path) as journal:
        journal.check_fingerprints(FINGERPRINTS, allow=False)


def test_changed_fingerprints_are_all_named(path):
    with Journal.open(path) as journal, pytest.raises(RunError) as caught:
        journal.check_fingerprints({"model": "cccc", "target": "dddd"}, allow=False)
    assert str(caught.value) == (
        "changed since this run began: data (bbbb → absent), model (aaaa → cccc), target (absent → dddd); "
        "start a new search, or pass --force to go on"
    )


def test_changed_fingerprints_are_allowed_with_a_warning(path, caplog):
    with caplog.at_level(logging.WARNING), Journal.open(path) as journal:
        journal.check_fingerprints({**FINGERPRINTS, "model": "cccc"}, allow=True)
    assert "model (aaaa → cccc)" in caplog.text


def test_second_holder_is_refused_in_this_process_and_in_another(path):
    script = f"from pathlib import Path; from trimtab.search.journal import Journal; Journal.open(Path({str(path)!r}))"
    with Journal.open(path):
        with pytest.raises(RunError, match="in use by another process"):
            Journal.open(path)
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "RunError" in other.stderr
    Journal.open(path).close()


def test_record_of_the_untouched_policy_survives(tmp_path):
    record = Record(0, Policy({}), Status.INFEASIBLE, fake_measurement(small_space(), Policy({})), 0.0, 1, "x", "why…")
    with Journal.create(tmp_path / "j", {}) as journal:
        journal.append(record)
    with Journal.open(tmp_path / "j") as journal:
        assert journal.records == [record]

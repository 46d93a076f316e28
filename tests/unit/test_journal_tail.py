"""The tail of a journal: each whole line once, whatever the writer is doing."""

import json

import pytest
from trimtab.core.errors import RunError
from trimtab.evaluators.measurement import Measurement
from trimtab.experiments.report.journal_tail import JournalTail
from trimtab.hw_profiles.latency import Latency
from trimtab.search.journal import Journal
from trimtab.search.record import Record, Status
from trimtab.spaces.policy import Policy


def record(number, *, size_bytes=10):
    return Record(number, Policy({}), Status.COMPLETE, Measurement(size_bytes=size_bytes), 1.0, 0, "random")


def line(number, **more):
    return json.dumps({**record(number).to_json(), **more}).encode() + b"\n"


@pytest.fixture
def journal(tmp_path):
    with Journal.create(tmp_path / "journal.jsonl", {"seed": "0"}) as journal:
        yield journal


def test_what_is_appended_is_read_once(journal):
    tail = JournalTail(journal.path)
    journal.append(record(1))
    assert tail.read()
    assert not tail.read()
    journal.append(record(0))
    assert tail.read()
    assert tail.records == (record(0), record(1))
    assert tail.fingerprints == {"seed": "0"}


def test_a_line_that_is_being_written_waits_until_it_is_whole(journal):
    tail, whole = JournalTail(journal.path), line(3)
    for end in range(0, len(whole) - 1, 7):
        with journal.path.open("ab") as file:
            file.write(whole[end : end + 7])
        tail.read()
        is_whole = end + 7 >= len(whole)
        assert tail.records == ((record(3),) if is_whole else ())


def test_a_torn_last_line_that_is_cut_off_and_written_again_is_read(journal):
    tail = JournalTail(journal.path)
    sound = journal.path.stat().st_size
    with journal.path.open("ab") as file:
        file.write(b'{"torn": \n')
    tail.read()
    assert tail.records == ()
    with journal.path.open("r+b") as file:
        file.truncate(sound)
    journal.append(record(0))
    tail.read()
    assert tail.records == (record(0),)


def test_a_journal_that_was_replaced_is_read_anew(journal, tmp_path):
    tail = JournalTail(journal.path)
    journal.append(record(0))
    tail.read()
    other = tmp_path / "other.jsonl"
    with Journal.create(other, {"seed": "1"}) as fresh:
        fresh.append(record(5))
    other.replace(journal.path)
    tail.read()
    assert tail.records == (record(5),)
    assert tail.fingerprints == {"seed": "1"}


def test_there_may_be_no_journal_yet(tmp_path):
    assert not JournalTail(tmp_path / "journal.jsonl").read()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b'{"schema":1}\n', "not the header"),
        (b'{"schema":99,"fingerprints":{}}\n', "schema 99"),
        (b"[" * 100_000 + b"\n" + line(0), "nested too deeply|damaged"),
        (b'{"schema":1,"fingerprints":{}}\n' + b"x" * (1 << 21), "longer than"),
        (b'{"schema":1,"fingerprints":{}}\nnonsense\n' + line(0), "damaged"),
        (b'{"schema":1,"fingerprints":{}}\n' + line(0) + line(0), "twice"),
        (b'{"schema":1,"fingerprints":{}}\n' + line(0, cost_s=-1.0) + line(1), "cost_s"),
    ],
)
def test_a_damaged_journal_is_refused(tmp_path, lines, message):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(lines)
    with pytest.raises(RunError, match=message):
        JournalTail(path).read()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "<b>fast</b>", True, [1]])
def test_a_measurement_that_is_no_finite_number_is_refused(tmp_path, number):
    latency = {**Latency(0.001, 0.0, 30).to_json(), "median_s": number}
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"schema":1,"fingerprints":{}}\n' + line(0, measurement={"latency": latency}) + line(1))
    with pytest.raises(RunError, match="median_s must be a finite number"):
        JournalTail(path).read()

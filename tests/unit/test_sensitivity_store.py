"""What is kept of sensitivity: added to by several processes at once, and never believed when it is damaged."""

import json
import multiprocessing

import pytest
from trimtab.experiments.sensitivity_store import SensitivityStore

HERE = {"model": "m", "data": "d"}


@pytest.fixture
def store(tmp_path):
    store = SensitivityStore(HERE, folder=tmp_path)
    store.add({"fc int8": 0.25, "fc ternary": "it cannot be had"})
    return store


def test_what_was_added_is_read_by_the_next(store, tmp_path):
    assert SensitivityStore(HERE, folder=tmp_path).read() == {"fc int8": 0.25, "fc ternary": "it cannot be had"}


def test_what_is_added_later_leaves_what_is_there(store):
    store.add({"conv int8": 0.0})
    assert set(store.read()) == {"fc int8", "fc ternary", "conv int8"}


def test_other_circumstances_have_their_own_file(store, tmp_path):
    assert SensitivityStore({**HERE, "data": "other"}, folder=tmp_path).read() == {}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"scores": {"fc int8": 1.0}}'])
def test_a_damaged_file_is_nothing_and_is_written_anew(store, content):
    store.path.write_bytes(content)
    assert store.read() == {}
    store.add({"fc int8": 0.5})
    assert store.read() == {"fc int8": 0.5}


def test_a_file_of_other_circumstances_is_nothing(store, tmp_path):
    other = SensitivityStore({**HERE, "model": "other"}, folder=tmp_path)
    store.path.rename(other.path)
    assert other.read() == {}


@pytest.mark.parametrize("score", [-0.1, True, None, [1.0], 1, "NaN", "Infinity", "1e999"])
def test_what_is_no_score_is_left_out(store, score):
    text = json.dumps({"circumstances": HERE, "scores": {"a": "MARK", "b": 0.5}})
    is_number = isinstance(score, str)
    store.path.write_text(text.replace('"MARK"', score if is_number else json.dumps(score)))
    assert store.read() == {"b": 0.5}


def _add(folder, name):
    for number in range(10):
        SensitivityStore(HERE, folder=folder).add({f"{name} {number}": 0.5})


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add, args=(tmp_path, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(SensitivityStore(HERE, folder=tmp_path).read()) == 30

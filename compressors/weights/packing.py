"""Constants in fewer bytes than their elements: codes of a codebook, or a mask and what it leaves."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: weights in one row of a mask; the file says how many weights are kept before each row
ROW = 256
#: more values than this have no code of a byte
MAX_VALUES = 256
#: what nodes and their constants add to the file, about; a constant is only packed where it saves more
_NODE_BYTES = {"dense": 0, "coded": 300, "grouped": 400, "masked": 600, "masked_coded": 800}


def digits_per_byte(n_values: int) -> int:
    """Returns how many codes of 0 … n_values - 1 a byte holds: the largest d with n_values ** d ≤ 256.

    >>> [digits_per_byte(k) for k in (2, 3, 4, 6, 16, 17)]
    [8, 5, 4, 3, 2, 1]
    """
    return next(d for d in range(8, 0, -1) if max(n_values, 2) ** d <= 256)


@dataclass(frozen=True, slots=True)
class Content:
    """What decides in how few bytes an array can be stored."""

    n_elements: int
    #: bytes of one element
    itemsize: int
    #: different values in all of it; more than `MAX_VALUES` are as good as any number
    n_values: int
    #: elements that are not 0
    n_kept: int
    #: different values in that of several codebooks which has most; 0: there is one codebook
    n_group_values: int = 0
    n_groups: int = 1
    #: how many outputs choose one of the codebooks
    n_outputs: int = 0

    @property
    def form(self) -> str:
        """The smallest: ``dense``, ``coded``, ``grouped`` (several codebooks), ``masked`` or ``masked_coded``."""
        sizes = self.forms
        return min(sizes, key=lambda form: sizes[form] + _NODE_BYTES[form])

    @property
    def size_bytes(self) -> int:
        """Bytes of the codes, codebooks, masks and values of that form."""
        return self.forms[self.form]

    @property
    def forms(self) -> dict[str, int]:
        """The forms that can hold it, and the bytes of each."""
        n, rows = self.n_elements, -(-self.n_elements // ROW)
        mask = rows * (ROW // 8 + 4)
        grouped = None
        if 0 < self.n_group_values <= MAX_VALUES:
            books = self.n_groups * self.n_group_values * self.itemsize
            grouped = -(-n // digits_per_byte(self.n_group_values)) + books + 4 * self.n_outputs
        kept = self._coded(self.n_kept + 1)
        sizes = {
            "dense": n * self.itemsize,
            "coded": self._coded(n),
            "grouped": grouped,
            "masked": mask + (self.n_kept + 1) * self.itemsize,
            "masked_coded": None if kept is None else mask + kept,
        }
        return {form: size for form, size in sizes.items() if size is not None}

    def _coded(self, n: int) -> int | None:
        if self.n_values > MAX_VALUES:
            return None
        return -(-n // digits_per_byte(self.n_values)) + self.n_values * self.itemsize


@dataclass(frozen=True)
class Coded:
    """Codes of a codebook; or of several, of which each output has one."""

    shape: tuple[int, ...]
    #: (n_bytes,) uint8; the first code has the lowest weight: c_0 + c_1 · base + c_2 · base² …
    packed: np.ndarray
    base: int
    #: (n_groups × base,) the values
    codebook: np.ndarray
    #: int32, broadcasts to the shape: where the codebook of an output starts; None where there is one
    offsets: np.ndarray | None = None


@dataclass(frozen=True)
class Masked:
    """A mask of one bit for each element, and the elements that are not 0."""

    shape: tuple[int, ...]
    #: (n_rows × ROW / 8,) uint8; the first element is the lowest bit
    bits: np.ndarray
    #: (n_rows, 1) int32: elements that are kept before each row
    starts: np.ndarray
    #: (n_kept + 1,) the elements in order, after a 0; or their codes, which may be followed by more
    values: "np.ndarray | Coded"


#: an array is stored as it is, or packed
Packed = np.ndarray | Coded | Masked


def pack(array: np.ndarray, *, axis: int = 0, groups: np.ndarray | None = None, form: str | None = None) -> Packed:
    """Returns the smallest form of an array; every form gives it back bit for bit.

    Args:
        array: any shape, of a dtype with 1, 2 or 4 bytes.
        axis: the axis of the outputs.
        groups: (n_outputs,) which outputs may share a codebook; None: all of them.
        form: one of `Content.forms`; None: the smallest.
    """
    reader = _Reader(np.ascontiguousarray(array), axis, groups)
    form = form or reader.content.form
    if form == "dense":
        return array
    if form == "grouped":
        return _pack_groups(reader)
    if form == "coded":
        return _pack_codes(reader.bits, reader.distinct, array)
    return _pack_mask(reader, is_coded=form == "masked_coded")


class _Reader:
    """Counts what is in an array; elements are compared as bits, so that -0.0 is not 0.0."""

    def __init__(self, array: np.ndarray, axis: int, groups: np.ndarray | None) -> None:
        self.array = array
        self.axis = axis
        self.bits = array.view(f"u{array.itemsize}")
        #: (n_outputs,) 0 … n_groups - 1; None where there is one group
        self.groups: np.ndarray | None = None
        if groups is not None and len(np.unique(groups)) > 1:
            self.groups = np.unique(groups, return_inverse=True)[1]

    @cached_property
    def distinct(self) -> np.ndarray:
        """Different elements as bits, ascending."""
        return _distinct(self.bits.ravel())

    @cached_property
    def books(self) -> list[np.ndarray]:
        """The different elements of each group."""
        if self.groups is None:
            return []
        rows = np.moveaxis(self.bits, self.axis, 0)
        return [_distinct(rows[self.groups == group].ravel()) for group in range(self.groups.max() + 1)]

    @property
    def content(self) -> Content:
        return Content(
            n_elements=self.array.size,
            itemsize=self.array.itemsize,
            n_values=len(self.distinct),
            n_kept=int(np.count_nonzero(self.bits)),
            n_group_values=max(map(len, self.books), default=0),
            n_groups=max(len(self.books), 1),
            n_outputs=0 if self.groups is None else len(self.groups),
        )


def _distinct(bits: np.ndarray) -> np.ndarray:
    """Returns the different elements, ascending; of a great many a part that is more than has codes."""
    if bits.itemsize == 1:
        return np.flatnonzero(np.bincount(bits, minlength=256)).astype(np.uint8)
    some = np.unique(bits[: 16 * MAX_VALUES])
    return some if len(some) > MAX_VALUES else np.unique(bits)


def _pack_codes(bits: np.ndarray, distinct: np.ndarray, array: np.ndarray) -> Coded:
    codes = np.searchsorted(distinct, bits.ravel())
    return Coded(array.shape, _pack_digits(codes, len(distinct)), len(distinct), distinct.view(array.dtype))


def _pack_groups(reader: _Reader) -> Coded:
    base = max(map(len, reader.books))
    rows = np.moveaxis(reader.bits, reader.axis, 0)
    codes = np.empty(rows.shape, np.uint8)
    codebook = np.zeros((len(reader.books), base), reader.bits.dtype)
    groups = reader.groups if reader.groups is not None else np.zeros(len(rows), np.int64)
    for group, distinct in enumerate(reader.books):
        codes[groups == group] = np.searchsorted(distinct, rows[groups == group])
        codebook[group, : len(distinct)] = distinct
    others = tuple(axis for axis in range(reader.array.ndim) if axis != reader.axis)
    packed = _pack_digits(np.moveaxis(codes, 0, reader.axis).ravel(), base)
    offsets = np.expand_dims((groups * base).astype(np.int32), others)
    return Coded(reader.array.shape, packed, base, codebook.ravel().view(reader.array.dtype), offsets)


def _pack_digits(codes: np.ndarray, base: int) -> np.ndarray:
    """Returns (n_bytes,) uint8 with as many codes in each as it holds; zeros fill the last."""
    digits = digits_per_byte(base)
    n_bytes = -(-codes.size // digits)
    padded = np.zeros(n_bytes * digits, np.int64)
    padded[: codes.size] = codes
    weights = max(base, 2) ** np.arange(digits)
    return (padded.reshape(n_bytes, digits) @ weights).astype(np.uint8)


def _pack_mask(reader: _Reader, *, is_coded: bool) -> Masked:
    flat = reader.bits.ravel()
    n_rows = -(-flat.size // ROW)
    mask = np.zeros(n_rows * ROW, bool)
    mask[: flat.size] = flat != 0
    counts = mask.reshape(n_rows, ROW).sum(1)
    starts = np.append(0, np.cumsum(counts)[:-1]).astype(np.int32)[:, None]
    bits = np.append(flat.dtype.type(0), flat[flat != 0])
    kept = bits.view(reader.array.dtype)
    values = _pack_codes(bits, _distinct(bits), kept) if is_coded else kept
    return Masked(reader.array.shape, np.packbits(mask, bitorder="little"), starts, values)

"""Kernel tables from CSV files: one measured operator a line, as vendors' profilers write them.

Nothing in a cell is evaluated. The columns and the forms of their cells are described in docs/lut-format.md.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ...core.errors import TableError, TrimtabError
from ...core.files import read_text
from ..boards.board import LUT_RUNTIME
from .chain_kernel import CHAIN_ATTRIBUTES, make_chain_kernel
from .kernel import DTYPE_BYTES, Kernel, Tensor
from .kernel_table import KernelTable, Observation
from .table_identity import TableIdentity

_NOUN = "CSV"
#: files and lines beyond this are a mistake
MAX_CSV_BYTES, MAX_ROWS, MAX_CELL = 16 * 1024 * 1024, 200_000, 4000
#: refusals that a message shows
_MAX_SHOWN = 5

#: column → other names of it; compared in lower case, without blanks, hyphens and underscores
ALIASES: Mapping[str, tuple[str, ...]] = {
    "op": ("ops", "operator", "operators", "optype", "kernel", "layertype"),
    "input_shapes": ("input_shape", "inputs", "input", "in_shape", "ishape", "input_dims"),
    "weight_shapes": ("weight_shape", "weights", "weight", "filter_shape", "constants"),
    "output_shapes": ("output_shape", "outputs", "output", "out_shape", "oshape", "output_dims"),
    "dtypes": ("dtype", "type", "types", "data_type", "datatypes", "precision"),
    "attributes": ("attribute", "attrs", "attr", "params", "parameters"),
    "runs": ("n_runs", "repeats", "iterations", "count", "samples"),
}
_LATENCIES = ("latency", "median", "time", "duration")
_SPREADS = ("iqr", "latency_iqr", "spread")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}
_REQUIRED = ("op", "input_shapes", "output_shapes", "dtypes", "latency")

_OPERATOR = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_SHAPE = re.compile(r"\d{1,9}(x\d{1,9}){0,9}")
_DTYPES = {"fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16",
           "i8": "int8", "u8": "uint8", "i4": "int4", "s8": "int8", "i32": "int32", "i64": "int64"}  # fmt: skip


@dataclass(frozen=True)
class CsvTable:
    """A table read from a CSV file, and what became of its lines."""

    table: KernelTable
    #: lines that gave an observation
    n_read: int
    #: of these, those whose kernel an earlier line had given already
    n_merged: int
    #: why other lines were refused, each with its number
    refused: tuple[str, ...]

    def describe(self) -> str:
        """Says in one line how many lines were read, merged and refused."""
        return (
            f"{self.n_read} lines read, {self.n_merged} of them merged as duplicates of earlier kernels, "
            f"{len(self.refused)} refused; {len(self.table)} kernels"
        )


def read_csv_table(path: Path, *, device: str, threads: int | None = None, keep_going: bool = False) -> CsvTable:
    """Reads a table of operators.

    Args:
        path: the CSV file; its first line names the columns.
        device: the name of the board, as its board file states it.
        threads: what the operators were measured with; None where that has no meaning.
        keep_going: leave bad lines out instead of refusing the file.

    Raises:
        TableError: the file cannot be read, a column is missing, unknown or given twice, or a line is bad; the
            message says which line and why.
    """
    if path.is_file() and path.stat().st_size > MAX_CSV_BYTES:
        raise TableError(f"{_NOUN} {path} has more than {MAX_CSV_BYTES} bytes; split it and merge the tables")
    text = read_text(path, noun=_NOUN, error=TableError).removeprefix("\ufeff")
    settings = {} if threads is None else {"threads": threads}
    table = KernelTable(TableIdentity(device, (), LUT_RUNTIME, "1", settings))
    n_read = n_merged = 0
    refused: list[str] = []
    for number, cells in _read_rows(path, text):
        try:
            kernel, observation = _read_row(cells, f"{path.name[:100]} line {number}")
        except (TrimtabError, ValueError) as error:
            refused.append(f"line {number}: {error}")
            continue
        n_read += 1
        n_merged += kernel in table
        table.insert(kernel, [observation])
    if refused and not keep_going:
        more = f" (and {len(refused) - _MAX_SHOWN} more)" if len(refused) > _MAX_SHOWN else ""
        raise TableError(f"{_NOUN} {path}: {'; '.join(refused[:_MAX_SHOWN])}{more}; nothing was imported")
    if not n_read:
        raise TableError(f"{_NOUN} {path} has no line with an operator")
    return CsvTable(table, n_read, n_merged, tuple(refused))


@dataclass(frozen=True)
class _Row:
    """The cells of a line by column; latencies with their unit in seconds."""

    cells: Mapping[str, str]
    units_s: Mapping[str, float]


def _read_rows(path: Path, text: str) -> Iterator[tuple[int, _Row]]:
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        header = next(reader, [])
        columns = _read_header(path, header)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if reader.line_num > MAX_ROWS:
                raise TableError(f"{_NOUN} {path} has more than {MAX_ROWS} lines; split it and merge the tables")
            if len(cells) != len(header) or max(map(len, cells)) > MAX_CELL:
                raise TableError(
                    f"{_NOUN} {path}: line {reader.line_num}: has {len(cells)} cells where the header names "
                    f"{len(header)}, or one of more than {MAX_CELL} characters; quote cells that hold commas"
                )
            by_column = {name: cells[place].strip() for name, (place, _) in columns.items()}
            yield reader.line_num, _Row(by_column, {name: unit_s for name, (_, unit_s) in columns.items()})
    except csv.Error as error:
        raise TableError(f"{_NOUN} {path}: line {reader.line_num}: is not CSV: {error}") from error


def _read_header(path: Path, header: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Returns column → (its place, seconds in its unit); the unit says nothing where the column is no time."""
    columns: dict[str, tuple[int, float]] = {}
    for place, title in enumerate(header):
        name, unit_s = _find_column(path, title)
        if name in columns:
            raise TableError(f"{_NOUN} {path}: line 1: the column {name} is given twice ('{title:.80}')")
        columns[name] = (place, unit_s)
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        named = ", ".join("latency_us (or _ms, _s)" if name == "latency" else name for name in missing)
        raise TableError(f"{_NOUN} {path}: line 1: lacks the columns: {named}")
    return columns


def _find_column(path: Path, title: str) -> tuple[str, float]:
    flat = _flatten(title)
    for name, others in ALIASES.items():
        if flat in (_flatten(name), *map(_flatten, others)):
            return name, 1.0
    for name, titles in (("latency", _LATENCIES), ("iqr", _SPREADS)):
        for other in titles:
            rest = flat.removeprefix(_flatten(other)).strip("()[]")
            if flat.startswith(_flatten(other)) and rest in _UNITS:
                return name, _UNITS[rest]
            if flat == _flatten(other):
                raise TableError(
                    f"{_NOUN} {path}: line 1: '{title:.80}' needs its unit: {name}_us, {name}_ms or {name}_s"
                )
    known = [*ALIASES, "latency_us", "latency_ms", "latency_s", "iqr_us"]
    near = get_close_matches(title.strip().lower(), known, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise TableError(f"{_NOUN} {path}: line 1: unknown column '{title:.80}'; {hint}known: {', '.join(known)}")


def _flatten(title: str) -> str:
    return re.sub(r"[\s_-]", "", title).lower()


def _read_row(row: _Row, source: str) -> tuple[Kernel, Observation]:
    """Reads one line.

    Raises:
        ValueError: (or TableError) a cell has another form; the message names the column.
    """
    cells = row.cells
    chain = [part.strip() for part in re.split(r"[+>]", cells["op"])]
    for operator in chain:
        if not _OPERATOR.fullmatch(operator):
            raise ValueError(f"op: '{operator:.80}' is not an operator's name; write Conv, or Conv+Add+Relu")
    shapes = [
        *((shape, is_constant) for shape, is_constant in _parse_shapes("input_shapes", cells["input_shapes"])),
        *((shape, True) for shape, _ in _parse_shapes("weight_shapes", cells.get("weight_shapes", ""))),
    ]
    outputs = _parse_shapes("output_shapes", cells["output_shapes"])
    if not shapes or not outputs:
        raise ValueError("input_shapes and output_shapes must name at least one shape each, such as 1x32x56x56")
    dtypes = _parse_dtypes(cells["dtypes"], len(shapes) + len(outputs))
    inputs = [Tensor(dtype, *shape) for dtype, shape in zip(dtypes, shapes, strict=False)]
    written = [Tensor(dtype, shape) for dtype, (shape, _) in zip(dtypes[len(shapes) :], outputs, strict=True)]
    kernel = make_chain_kernel(chain, inputs, written, _parse_attributes(cells.get("attributes", "")))
    latency_s = _parse_number("latency", cells["latency"]) * row.units_s["latency"]
    if latency_s <= 0:
        raise ValueError(f"latency must be more than 0, got '{cells['latency']:.80}'")
    iqr_s = _parse_number("iqr", cells.get("iqr", "") or "0") * row.units_s.get("iqr", 1.0)
    runs = cells.get("runs", "") or "1"
    if not re.fullmatch(r"\d{1,9}", runs):
        raise ValueError(f"runs must be a whole number from 1, got '{runs:.80}'")
    return kernel, Observation(latency_s, iqr_s, int(runs), source)


def _parse_shapes(column: str, text: str) -> list[tuple[tuple[int, ...], bool]]:
    """Reads ``1x32x56x56; 64x32x1x1!``: shapes, and whether each is marked as a constant."""
    found = []
    for part in filter(None, (part.strip() for part in re.split(r"[;|]", text))):
        body = part.removesuffix("!").strip()
        if body and body[0] in "[(" and body[-1] in "])":
            body = body[1:-1]
        sides = re.sub(r"\s*[x×*,]\s*|\s+", "x", body.strip()).rstrip("x")
        if not _SHAPE.fullmatch(sides):
            raise ValueError(f"{column}: '{part:.80}' is not a shape such as 1x32x56x56; separate shapes by ';'")
        found.append((tuple(map(int, sides.split("x"))), part.endswith("!")))
    return found


def _parse_dtypes(text: str, n_tensors: int) -> list[str]:
    """Reads one dtype for all tensors, or as many as there are tensors."""
    names = [part.strip().lower() for part in re.split(r"[;|>/,]", text)]
    names = [_DTYPES.get(name, name) for name in names]
    for name in names:
        if name not in DTYPE_BYTES:
            raise ValueError(f"dtypes: '{name:.80}' is not known; known: {', '.join(DTYPE_BYTES)}")
    if len(names) not in (1, n_tensors):
        raise ValueError(
            f"dtypes must be one, or one for each of the {n_tensors} inputs, weights and outputs; got {text:.80}"
        )
    return names * n_tensors if len(names) == 1 else names


def _parse_attributes(text: str) -> dict[str, Any]:
    """Reads ``strides=2x2; group=32; mode=linear``."""
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in re.split(r"[;|]", text))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not re.fullmatch(r"\w+", name) or not value:
            raise ValueError(f"attributes: '{part:.80}' does not read like strides=2x2; separate them by ';'")
        if name in found or name in CHAIN_ATTRIBUTES:
            raise ValueError(f"attributes: '{name}' is given twice, or follows from op")
        found[name] = _parse_value(value)
    return found


def _parse_value(text: str) -> Any:
    body = text.strip("[]()")
    is_list = body != text
    parts = [part for part in re.split(r"\s*[x×,]\s*|\s+", body) if part]
    numbers = [_parse_scalar(part) for part in parts]
    if parts and all(isinstance(number, int | float) for number in numbers):
        return numbers if is_list or len(numbers) > 1 else numbers[0]
    return text


def _parse_scalar(text: str) -> int | float | str:
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    if re.fullmatch(r"[+-]?\d*\.?\d+([eE][+-]?\d{1,3})?", text):
        return float(text)
    return text


def _parse_number(column: str, text: str) -> float:
    if not re.fullmatch(r"\d*\.?\d+([eE][+-]?\d{1,3})?|\d+\.", text):
        raise ValueError(f"{column} must be a number from 0, got '{text:.80}'")
    return float(text)

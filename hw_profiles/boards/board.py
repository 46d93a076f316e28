"""Board files: a device that is known by a kernel table, a declared fusion rule and a list of capabilities.

The file may come from anywhere. It is read as plain YAML (JSON is YAML), names no code, and its table must lie in its
own folder. The reference is docs/lut-format.md.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import SpecError
from ...core.files import read_bytes
from ...core.names import describe_unknown
from ...core.yaml_file import read_yaml
from ..kernels.kernel_table import KernelTable
from ..kernels.table_file import read_table
from ..target import OPTION_KINDS, TECHNIQUE_KINDS, Capabilities
from .fusion_rule import FusionRule, parse_rule
from .strict_mapping import StrictMapping

#: the runtime that tables of such devices name
LUT_RUNTIME = "lut"
SCHEMA = 1
#: a board file larger than this is a mistake
MAX_BOARD_BYTES = 1024 * 1024
_KEYS = ("schema", "name", "table", "capabilities", "fusion", "constants", "error", "max_predicted_share")
_CAPABILITY_KEYS = (
    "quantize", "precisions", "default_precision", "activation_codes", "quantize_conv_outputs", "dynamic_form",
    "size_only", "channel_multiple",
)  # fmt: skip
_PRECISIONS = ("float32", "bfloat16", "float16")
_CODES = ("asymmetric", "symmetric", "symmetric_signed")
_KIND = re.compile(r"[a-z_]+")
_OPTION = re.compile(r"[a-z0-9_]+")
#: Why a board cannot offer these: its outputs are computed by ONNX Runtime, and its kernels hold one float type.
_REFUSED = {
    "float8": "ONNX Runtime, which computes the outputs, runs no float8 layers",
    "float32": "a board's kernels hold one type of floats; state its precisions instead",
}
#: what a board may call size only
_NAMES = (*TECHNIQUE_KINDS, *(option for option in OPTION_KINDS if option not in ("none", *_REFUSED)))
#: channel counts beyond this are no multiple that pruning could keep
_MOST_CHANNELS = 1024


@dataclass(frozen=True)
class Board:
    """The content of a board file, and its table."""

    name: str
    table: KernelTable
    capabilities: Capabilities
    rule: FusionRule
    #: of the file and of the table, 16 hex digits
    digest: str
    #: seconds of every inference, and of every kernel, that no entry of the table holds
    inference_s: float = 0.0
    kernel_s: float = 0.0
    #: standard error of a price as a share of it; None: what the table's spread tells
    error: float | None = None
    #: share of the time that may be predicted before a warning is logged
    max_predicted_share: float = 0.2


def load_board(path: Path) -> Board:
    """Reads a board file and its table.

    Raises:
        SpecError: (or TableError) a file is missing, too large or damaged, or says something that cannot be; the
            message says where.
    """
    where = f"board {path}"
    mapping = _open(path)
    schema = mapping.number("schema", default=SCHEMA, maximum=1e6)
    if schema != SCHEMA:
        raise SpecError(f"{where} has schema {schema:g}; this version reads schema {SCHEMA}")
    name = mapping.text("name")
    table_path = find_table(path, mapping.text("table"))
    constants = StrictMapping(mapping.mapping("constants"), ("inference_us", "kernel_us"), f"{where}: constants")
    error = mapping.number("error", default=0.0, maximum=10.0)
    return Board(
        name=name,
        table=_read_table(table_path, name, where),
        capabilities=_parse_capabilities(mapping.mapping("capabilities"), f"{where}: capabilities"),
        rule=parse_rule(mapping.mapping("fusion"), where=f"{where}: fusion"),
        digest=_digest(path, table_path),
        inference_s=constants.number("inference_us", default=0.0, maximum=1e9) * 1e-6,
        kernel_s=constants.number("kernel_us", default=0.0, maximum=1e9) * 1e-6,
        error=error or None,
        max_predicted_share=mapping.number("max_predicted_share", default=0.2, maximum=1.0),
    )


def read_board_name(path: Path) -> str:
    """Returns the name that a board file states; its table need not be there yet.

    Raises:
        SpecError: the file is missing, too large or no board file.
    """
    return _open(path).text("name")


def _open(path: Path) -> StrictMapping:
    _check_file(path)
    return StrictMapping(read_yaml(path, noun="board"), _KEYS, f"board {path}")


def _check_file(path: Path) -> None:
    try:
        if path.exists() and not path.is_file():
            raise SpecError(f"board {path} is not a file")
        if path.is_file() and path.stat().st_size > MAX_BOARD_BYTES:
            raise SpecError(f"board {path} has more than {MAX_BOARD_BYTES} bytes; tables stand in a file of their own")
    except (OSError, ValueError) as error:
        raise SpecError(f"board {path} cannot be read: {error}") from error


def find_table(board: Path, name: str) -> Path:
    """Returns the path of a board's table.

    Raises:
        SpecError: it leads out of the board's folder, or there is no such file.
    """
    folder = board.resolve().parent
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise SpecError(f"board {board}: table '{name}' must lie in the board's own folder; copy it there")
    if not path.is_file():
        raise SpecError(f"board {board}: its table {path} does not exist, or is not a file")
    return path


def _read_table(path: Path, name: str, where: str) -> KernelTable:
    table = read_table(path)
    identity = table.identity
    if identity.runtime != LUT_RUNTIME:
        raise SpecError(
            f"{where}: table {path.name} holds kernels of {identity.runtime}, not of a fusion rule; its runtime must "
            f"be '{LUT_RUNTIME}', as trimtab table import-csv writes it"
        )
    if identity.device != name:
        raise SpecError(
            f"{where} is named '{name}', and its table {path.name} is of '{identity.device}'; make them agree"
        )
    if not len(table):
        raise SpecError(f"{where}: table {path.name} holds no timed kernel")
    return table


def _parse_capabilities(content: dict[str, Any], where: str) -> Capabilities:
    mapping = StrictMapping(content, _CAPABILITY_KEYS, where)
    precisions = tuple(mapping.names("precisions", re.compile("|".join(_PRECISIONS)))) or ("float32",)
    if precisions[0] != "float32" or len(set(precisions)) < len(precisions):
        raise SpecError(f"{where}.precisions must begin with float32 and name none twice, got {', '.join(precisions)}")
    return Capabilities(
        quantize=_parse_options(mapping.mapping("quantize"), f"{where}.quantize"),
        precisions=precisions,
        default_precision=mapping.choice("default_precision", precisions, default=precisions[0]),
        activation_codes=mapping.choice("activation_codes", _CODES, default="asymmetric"),
        quantize_conv_outputs=mapping.boolean("quantize_conv_outputs", default=True),
        dynamic_form=mapping.choice("dynamic_form", ("operators", "weights"), default="operators"),
        size_only=_parse_size_only(mapping.names("size_only", _OPTION), f"{where}.size_only"),
        channel_multiple=_parse_multiple(mapping, where),
    )


def _parse_size_only(names: list[str], where: str) -> frozenset[str]:
    for name in names:
        if name not in _NAMES:
            raise SpecError(f"{where}: {describe_unknown('technique or quantize option', name, _NAMES)}")
    return frozenset(names)


def _parse_multiple(mapping: StrictMapping, where: str) -> int:
    value = mapping.number("channel_multiple", default=1.0, maximum=_MOST_CHANNELS)
    if value != int(value) or value < 1:
        raise SpecError(f"{where}.channel_multiple must be a whole number from 1 to {_MOST_CHANNELS}, got {value:g}")
    return int(value)


def _parse_options(content: dict[str, Any], where: str) -> dict[str, frozenset[str]]:
    options = {"none": OPTION_KINDS["none"]}
    mapping = StrictMapping(content, tuple(OPTION_KINDS), where)
    for option in content:
        if option in _REFUSED:
            raise SpecError(f"{where}.{option}: {_REFUSED[option]}")
        for kind in mapping.names(option, _KIND):
            if kind not in OPTION_KINDS[option]:
                raise SpecError(f"{where}.{option}: {describe_unknown('layer kind', kind, OPTION_KINDS[option])}")
        options[option] = frozenset(mapping.names(option, _KIND)) | options.get(option, frozenset())
    return options


def _digest(path: Path, table_path: Path) -> str:
    digest = hashlib.sha256()
    for file, noun in ((path, "board"), (table_path, "kernel table")):
        content = read_bytes(file, noun=noun)
        digest.update(f"{len(content)}|".encode())
        digest.update(content)
    return digest.hexdigest()[:16]

"""Kernel tables on disk: text, one JSON object a line, made for ``diff``, for crashes and for several writers.

A header with schema version and identity, a line per kernel by op and id, a line per graph by model and source, a
footer with the number of each and the sha256 of all that stands before it. Every line but the footer begins with the
CRC-32 of its own rest, so what is left of a damaged file can be told line by line. Another kernel changes its own
line and the footer, nothing else.
"""

import glob
import hashlib
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from ...core.errors import SpecError, TableError, TransientError
from ...core.files import MAX_TEXT_BYTES, canonical_json, read_bytes, write_bytes
from .kernel import Kernel
from .kernel_table import GraphObservation, KernelTable, Observation
from .table_identity import TableIdentity

_log = logging.getLogger(__name__)

#: version of the format; tests/golden keeps a file of every version that was ever released
SCHEMA = 1
#: how long a writer waits for the others
LOCK_TIMEOUT_S = 60.0
#: a temporary file of a writer that was killed goes away after this time
_STALE_S = 600.0
_NOUN = "kernel table"
#: a line starts with its check: ``{"check":"1a2b3c4d",``
_CHECK_START, _CHECK_END = b'{"check":"', b'",'
_HEADER = {"format": "trimtab kernel table", "observation": ["median_s", "iqr_s", "runs", "source"], "schema": SCHEMA}


@dataclass(frozen=True, slots=True)
class Salvage:
    """What is left of a table's file."""

    #: all intact lines
    table: KernelTable
    #: what is lost or wrong, with its line where it has one; empty when the file is sound
    losses: tuple[str, ...]

    def describe(self) -> str:
        """Says in one line what is intact and what is lost."""
        found = _describe_entries(len(self.table.known_kernels()), len(self.table.graphs))
        return f"{found} are intact; {'; '.join(self.losses) or 'nothing is lost'}"


def write_table(path: Path, table: KernelTable) -> None:
    """Writes a table atomically; equal tables give equal bytes.

    Raises:
        TableError: the table is too large to be read again, or the file cannot be written.
    """
    content = b"".join(_encode(table))
    footer = {**_count_entries(table), "sha256": hashlib.sha256(content).hexdigest()}
    content += canonical_json(footer).encode() + b"\n"
    if len(content) > MAX_TEXT_BYTES:
        raise TableError(
            f"{_NOUN} {path} would have {len(content)} bytes, at most {MAX_TEXT_BYTES} are read; "
            "split it, or leave out some sources"
        )
    _write(path, content)


def read_table(path: Path, *, expect: TableIdentity | None = None) -> KernelTable:
    """Reads a table.

    Args:
        path: the file.
        expect: the identity that the table must have; None takes any.

    Raises:
        TableError: the file is missing, too large, of another schema version or of another identity (the message
            says in what), or it is truncated, altered or malformed (the message says where, and what is intact).
    """
    scan = _scan(path)
    _check_identity(path, scan.table.identity, expect)
    problem = scan.problem()
    if problem:
        raise TableError(f"{_NOUN} {path} {problem}; keep what is intact with: trimtab table repair {path}")
    return scan.table


def salvage_table(path: Path) -> Salvage:
    """Reads all intact lines of a table's file, however damaged the rest is.

    Raises:
        TableError: the file is missing, too large or of another schema version, or its header is lost: nobody knows
            then to which device the rest belongs.
    """
    scan = _scan(path)
    return Salvage(scan.table, scan.losses())


def update_table(
    path: Path,
    change: Callable[[KernelTable], None],
    *,
    identity: TableIdentity,
    timeout_s: float = LOCK_TIMEOUT_S,
) -> KernelTable:
    """Reads a table, changes it and writes it back, with the other writers kept waiting; so no update is lost.

    A file that is not there begins empty. A damaged one is set aside as ``NAME.damaged-N``, with a warning in the log,
    and the update goes on with what is intact.

    Args:
        path: the file.
        change: adds to the table that it is given.
        identity: whose table it is.
        timeout_s: how long to wait for other writers.

    Returns:
        The table as it was written.

    Raises:
        TableError: the file is of another identity or schema version, is too large, or cannot be written.
        TransientError: other writers kept the file for the whole time.
    """
    with _locked(path, timeout_s):
        table = _read_for_update(path, identity)
        change(table)
        write_table(path, table)
        _remove_leftovers(path)
    return table


def repair_table(path: Path, *, timeout_s: float = LOCK_TIMEOUT_S) -> tuple[Salvage, Path | None]:
    """Writes a damaged table anew from its intact lines.

    Returns:
        What was intact and what was lost, and where the damaged file is kept; None when nothing was damaged.

    Raises:
        TableError: as in `salvage_table`, or the file cannot be written.
        TransientError: other writers kept the file for the whole time.
    """
    with _locked(path, timeout_s):
        salvage = salvage_table(path)
        if not salvage.losses:
            return salvage, None
        aside = _set_aside(path)
        write_table(path, salvage.table)
    return salvage, aside


class HeaderLostError(TableError):
    """The first line of a table's file is not a header."""


@dataclass
class _Scan:
    """A table's file, read line by line as far as possible."""

    table: KernelTable
    #: reasons, with their line
    bad_lines: list[str] = field(default_factory=list)
    #: None where it is missing
    footer: dict[str, Any] | None = None
    #: of what stands before the footer
    sha256: str = ""

    def problem(self) -> str | None:
        """Returns what is wrong, the worst first; None when nothing is."""
        losses = self.losses()
        if not losses:
            return None
        verb = "is truncated" if self.footer is None else "is damaged" if self.bad_lines else "was altered"
        more = f" (and {len(losses) - 1} more)" if len(losses) > 1 else ""
        return f"{verb}: {losses[0]}{more}; {_describe_entries(**_count_entries(self.table))} are intact"

    def losses(self) -> tuple[str, ...]:
        """Returns all that is wrong, the worst first."""
        if self.footer is None:
            return ("the footer is missing", *self.bad_lines)
        losses = list(self.bad_lines)
        expected = {name: self.footer.get(name) for name in ("kernels", "graphs")}
        if expected != _count_entries(self.table):
            losses.append(f"the footer counts {_describe_entries(**expected)}")
        if self.footer["sha256"] != self.sha256:
            losses.append("the footer's sha256 is another")
        return tuple(losses)


def _scan(path: Path) -> _Scan:
    lines = read_bytes(path, noun=_NOUN, error=TableError).split(b"\n")
    if not lines[-1]:
        lines.pop()
    scan = _Scan(KernelTable(_read_header(path, lines[0] if lines else b"")))
    digest = hashlib.sha256(lines[0] + b"\n" if lines else b"")
    for number, line in enumerate(lines[1:], start=2):
        try:
            if scan.footer is not None:
                raise ValueError("stands after the footer")
            if number == len(lines) and not line.startswith(_CHECK_START):
                scan.footer, scan.sha256 = _read_footer(line), digest.hexdigest()
            else:
                digest.update(line + b"\n")
                _enter(scan.table, _unseal(line))
        except json.JSONDecodeError as error:
            scan.bad_lines.append(f"line {number} is not JSON: {error.msg}")
        except UnicodeDecodeError:
            scan.bad_lines.append(f"line {number} is not UTF-8")
        except SpecError as error:
            scan.bad_lines.append(f"line {number} is malformed: {error}")
        except (ValueError, RecursionError) as error:
            scan.bad_lines.append(f"line {number} {error}")
    return scan


def _read_header(path: Path, line: bytes) -> TableIdentity:
    try:
        header = _parse(line)
        if header.get("format") == _HEADER["format"] and header.get("schema") != SCHEMA:
            raise TableError(
                f"{_NOUN} {path} has schema version {header.get('schema')}, this Trimtab reads {SCHEMA}; "
                "measure anew with: trimtab profile"
            )
        return TableIdentity.from_json(_unseal(line).get("identity"))
    except (ValueError, RecursionError) as cause:
        raise HeaderLostError(
            f"{_NOUN} {path} does not begin with the header of a kernel table ({cause}), so nobody knows to which "
            "device the rest belongs; measure anew with: trimtab profile"
        ) from cause


def _read_footer(line: bytes) -> dict[str, Any]:
    footer = _parse(line)
    if not isinstance(footer.get("sha256"), str):
        raise ValueError("is neither an entry nor the footer")
    return footer


def _parse(text: bytes) -> dict[str, Any]:
    value = json.loads(text, parse_constant=_refuse_constant)
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _seal(value: dict[str, Any]) -> bytes:
    body = canonical_json(value).encode()[1:]
    return b"%s%08x%s%s\n" % (_CHECK_START, zlib.crc32(body), _CHECK_END, body)


def _unseal(line: bytes) -> dict[str, Any]:
    start, end = len(_CHECK_START), len(_CHECK_START) + 8
    body = line[end + len(_CHECK_END) :]
    if line[:start] != _CHECK_START or line[start:end] != b"%08x" % zlib.crc32(body):
        raise ValueError("is not as it was written: its check does not fit")
    return _parse(b"{" + body)


def _encode(table: KernelTable) -> Iterator[bytes]:
    yield _seal({**_HEADER, "identity": table.identity.to_json()})
    for kernel in table.known_kernels():
        rows = [[each.median_s, each.iqr_s, each.runs, each.source] for each in table.observations(kernel)]
        yield _seal({"id": kernel.id, "kernel": kernel.to_json(), "observations": rows})
    for graph in table.graphs:
        values = {name: getattr(graph, name) for name in ("latency_s", "iqr_s", "runs", "model", "source")}
        yield _seal({**values, "counts": dict(graph.counts)})


def _enter(table: KernelTable, value: dict[str, Any]) -> None:
    if "kernel" not in value:
        table.add_graph(_decode_graph(value))
        return
    kernel = Kernel.from_json(value["kernel"])
    if kernel.id != value.get("id"):
        raise ValueError(f"has a wrong id: the kernel's is {kernel.id}, it says {value.get('id')!r:.40}")
    try:
        observations = [Observation(*row) for row in value["observations"]]
    except (KeyError, TypeError) as cause:
        raise ValueError("has observations that are not lists of median_s, iqr_s, runs and source") from cause
    table.insert(kernel, observations)


def _decode_graph(value: dict[str, Any]) -> GraphObservation:
    fields = {name: value.get(name) for name in ("latency_s", "iqr_s", "runs", "model", "source")}
    counts = value.get("counts")
    if not isinstance(counts, dict):
        raise ValueError("is neither a kernel nor a graph")
    return GraphObservation(tuple(counts.items()), **fields)  # type: ignore[arg-type]  # it checks them


def _count_entries(table: KernelTable) -> dict[str, int]:
    return {"kernels": len(table.known_kernels()), "graphs": len(table.graphs)}


def _describe_entries(kernels: Any, graphs: Any) -> str:
    return f"{kernels} kernels and {graphs} graphs"


def _check_identity(path: Path, found: TableIdentity, expect: TableIdentity | None) -> None:
    difference = expect.describe_difference(found) if expect else ""
    if difference:
        raise TableError(f"{_NOUN} {path} is stale: {difference}; measure anew with: trimtab profile")


def _read_for_update(path: Path, identity: TableIdentity) -> KernelTable:
    if not path.exists():
        return KernelTable(identity)
    try:
        salvage = salvage_table(path)
    except HeaderLostError as error:
        _log.warning("%s; it is kept as %s, a new table begins", error, _set_aside(path))
        return KernelTable(identity)
    _check_identity(path, salvage.table.identity, identity)
    if salvage.losses:
        _log.warning("%s %s: %s; the file is kept as %s", _NOUN, path, salvage.describe(), _set_aside(path))
    return salvage.table


def _set_aside(path: Path) -> Path:
    """Copies a file to the first free ``NAME.damaged-N``: a crash before the new one is written must lose nothing."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    _write(aside, read_bytes(path, noun=_NOUN, error=TableError))
    return aside


def _write(path: Path, content: bytes) -> None:
    try:
        write_bytes(path, content)
    except OSError as cause:
        raise TableError(f"{_NOUN} {path} cannot be written: {cause}") from cause


@contextmanager
def _locked(path: Path, timeout_s: float) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise TableError(f"{_NOUN} {path} cannot be written: {cause}") from cause
    try:
        with FileLock(f"{path}.lock", timeout=timeout_s):
            yield
    except Timeout as cause:
        raise TransientError(f"others kept writing {_NOUN} {path} for {timeout_s:g} s; try again later") from cause


def _remove_leftovers(path: Path) -> None:
    """Deletes the temporary files of writers that were killed."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        try:
            if time.time() - leftover.stat().st_mtime > _STALE_S:
                leftover.unlink()
        except FileNotFoundError:
            continue

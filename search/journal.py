"""The single truth of a run: an append-only file of JSON lines, one per finished trial.

The first line is a header with the schema version and the fingerprints of what the run depends on. A record is
written, flushed and fsynced as soon as its trial ends, in whatever order the workers finish: a crash can cost
the line that was being written and nothing else. `Journal.records` sorts by id, so the order in which the
lines stand in the file has no meaning.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from ..core.errors import RunError
from ..core.files import canonical_json, write_bytes
from .record import Record

_log = logging.getLogger(__name__)

#: version of the journal's format; tests/golden keeps a file of every version that was ever released
SCHEMA = 1
#: a line longer than this is refused, on writing and on reading: a record has a few kilobytes
MAX_LINE_BYTES = 1 << 20


class Journal:
    """The journal of one run, held exclusively by one process from `create` or `open` until `close`."""

    def __init__(self, path: Path, lock: FileLock, fingerprints: dict[str, str], records: list[Record]) -> None:
        self.path = path
        self.fingerprints = fingerprints
        self._lock = lock
        self._records = {record.id: record for record in records}
        self._file = path.open("ab", buffering=0)

    @classmethod
    def create(cls, path: Path, fingerprints: Mapping[str, str]) -> Self:
        """Starts a journal.

        Raises:
            RunError: the file exists already, or another process holds it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path)
        try:
            if path.exists():
                raise RunError(f"journal {path} exists already; resume that run, or choose another folder")
            header = canonical_json({"schema": SCHEMA, "fingerprints": dict(fingerprints)})
            write_bytes(path, header.encode() + b"\n")
            return cls(path, lock, dict(fingerprints), [])
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a journal to go on with it; a torn last line is cut off, with a warning in the log.

        Raises:
            RunError: the file is missing, damaged before its last line, of an unknown schema, or held by
                another process.
        """
        if not path.is_file():
            raise RunError(f"journal {path} does not exist")
        lock = _acquire(path)
        try:
            fingerprints, records, n_sound_bytes = _read(path)
            if n_sound_bytes < path.stat().st_size:
                _log.warning("journal %s: the last line was torn by a crash and is cut off", path)
                _truncate(path, n_sound_bytes)
            return cls(path, lock, fingerprints, records)
        except BaseException:
            lock.release()
            raise

    @property
    def records(self) -> list[Record]:
        """All records, by id."""
        return [self._records[record_id] for record_id in sorted(self._records)]

    def append(self, record: Record) -> None:
        """Adds a record; on return it survives a crash.

        Raises:
            RunError: the id is taken, the line is too long, or the file cannot be written.
        """
        if record.id in self._records:
            raise RunError(f"journal {self.path} holds trial {record.id} already")
        line = canonical_json(record.to_json()).encode() + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise RunError(f"trial {record.id} needs {len(line)} bytes; a line may have {MAX_LINE_BYTES}")
        n_sound_bytes = self._file.tell()
        try:
            n_written = self._file.write(line)
            if n_written != len(line):
                raise OSError(f"{n_written} of {len(line)} bytes fitted")
            os.fsync(self._file.fileno())
        except OSError as cause:
            self._undo(n_sound_bytes)
            raise RunError(f"journal {self.path} cannot be written: {cause}; free some space and resume") from cause
        self._records[record.id] = record

    def check_fingerprints(self, current: Mapping[str, str], *, allow: bool) -> None:
        """Compares what the run began with and what is there now.

        Args:
            current: fingerprints of the present model, data and so on, by name.
            allow: go on in spite of differences, with a warning in the log.

        Raises:
            RunError: something changed and ``allow`` is False; the message names everything that changed.
        """
        changes = [
            f"{name} ({self.fingerprints.get(name, 'absent')} → {current.get(name, 'absent')})"
            for name in sorted({*self.fingerprints, *current})
            if self.fingerprints.get(name) != current.get(name)
        ]
        if not changes:
            return
        message = f"changed since this run began: {', '.join(changes)}"
        if not allow:
            raise RunError(f"{message}; start a new search, or pass --force to go on")
        _log.warning("%s; going on as told", message)

    def close(self) -> None:
        """Lets go of the file; may be called twice."""
        if not self._file.closed:
            self._file.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _undo(self, n_sound_bytes: int) -> None:
        try:
            os.ftruncate(self._file.fileno(), n_sound_bytes)
        except OSError:
            _log.warning("journal %s: half a line may remain at its end; it is cut off on resume", self.path)


def read_records(path: Path) -> list[Record]:
    """Returns the records of a journal by id, without holding it: another process may be writing.

    Raises:
        RunError: the file is missing, damaged before its last line, or of an unknown schema.
    """
    if not path.is_file():
        raise RunError(f"journal {path} does not exist")
    _, records, _ = _read(path)
    return sorted(records, key=lambda record: record.id)


def _acquire(path: Path) -> FileLock:
    lock = FileLock(str(path) + ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as cause:
        raise RunError(f"journal {path} is in use by another process; wait for it to end") from cause
    except OSError as cause:
        raise RunError(f"journal {path} cannot be locked: {cause}") from cause
    return lock


def _read(path: Path) -> tuple[dict[str, str], list[Record], int]:
    """Returns the fingerprints, the records, and how many bytes from the start are sound."""
    records: dict[int, Record] = {}
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        fingerprints = read_header(path, file.readline(MAX_LINE_BYTES + 1))
        n_sound_bytes, number = file.tell(), 1
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            is_last = file.tell() == size_bytes
            if is_last and not line.endswith(b"\n"):
                break
            try:
                record = Record.from_json(parse_line(line))
            except ValueError as cause:
                if is_last:
                    break
                raise RunError(f"journal {path}, line {number} is damaged: {cause}") from cause
            except RunError as cause:
                raise RunError(f"journal {path}, line {number} is damaged: {cause}") from cause
            if record.id in records:
                raise RunError(f"journal {path}, line {number}: trial {record.id} stands there twice")
            records[record.id] = record
            n_sound_bytes = file.tell()
    return fingerprints, list(records.values()), n_sound_bytes


def read_header(path: Path, line: bytes) -> dict[str, str]:
    """Returns the fingerprints in a journal's first line.

    Raises:
        RunError: it is no header, or one of another schema.
    """
    try:
        header = parse_line(line if line.endswith(b"\n") else b"")
        schema, fingerprints = header["schema"], header["fingerprints"]
        fingerprints = {str(name): str(value) for name, value in fingerprints.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise RunError(f"journal {path}, line 1 is not the header of a journal: {cause!r}") from cause
    if schema != SCHEMA:
        raise RunError(f"journal {path} has schema {schema}; this version of Trimtab reads schema {SCHEMA}")
    return fingerprints


def parse_line(line: bytes) -> Any:
    """Returns the JSON value of a line.

    Raises:
        ValueError: it is none, or too long or too deep to be believed.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
    try:
        return json.loads(line)
    except RecursionError as cause:
        raise ValueError("nested too deeply") from cause


def _truncate(path: Path, n_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(n_bytes)
        os.fsync(file.fileno())

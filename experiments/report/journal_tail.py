"""Follows the journal of a run while another process may be writing it: each line is read once."""

from pathlib import Path

from ...core.errors import RunError
from ...search.journal import MAX_LINE_BYTES, parse_line, read_header
from ...search.record import Record

#: a journal that is larger is refused: a record has a few kilobytes
_MAX_BYTES = 1 << 29


class JournalTail:
    r"""The records of a journal so far, by id; `read` adds what was written since.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "journal.jsonl"
    >>> _ = path.write_text('{"schema": 1, "fingerprints": {"seed": "0"}}\n{"id": 0, "pol')
    >>> tail = JournalTail(path)
    >>> tail.read(), tail.records, tail.fingerprints
    (True, (), {'seed': '0'})
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fingerprints: dict[str, str] = {}
        self._records: dict[int, Record] = {}
        self._offset = 0
        self._inode: int | None = None

    @property
    def records(self) -> tuple[Record, ...]:
        """What was read so far, by id."""
        return tuple(self._records[key] for key in sorted(self._records))

    def read(self) -> bool:
        """Reads the whole lines that came since; returns whether there were any.

        A last line that is torn, or not whole yet, waits for the next call. A journal that was replaced, or is shorter
        than it was, is read anew.

        Raises:
            RunError: the journal is damaged before its last line, of an unknown schema, or too large.
        """
        if not self.path.is_file():
            return False
        with self.path.open("rb") as file:
            status = self.path.stat()
            if status.st_size > _MAX_BYTES:
                raise RunError(f"journal {self.path} has {status.st_size} bytes; at most {_MAX_BYTES} are read")
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._inode, self._offset, self._records = status.st_ino, 0, {}
            start = self._offset
            file.seek(start)
            while self._take(file.readline(MAX_LINE_BYTES + 1), file.tell(), status.st_size):
                self._offset = file.tell()
        return self._offset != start

    def _take(self, line: bytes, end: int, size_bytes: int) -> bool:
        """Reads one line; returns False where it is not whole, or the last one and torn."""
        is_last = end >= size_bytes
        if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
            return False
        try:
            if self._offset == 0:
                self.fingerprints = read_header(self.path, line)
                return True
            record = Record.from_json(parse_line(line))
        except (ValueError, RunError) as cause:
            if is_last and self._offset:
                return False
            raise RunError(f"journal {self.path} is damaged after {self._offset} bytes: {cause}") from cause
        if record.id in self._records:
            raise RunError(f"journal {self.path}: trial {record.id} stands there twice")
        self._records[record.id] = record
        return True

"""Files that survive a crash: atomic writes, bounded reads, digests, canonical JSON."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import SpecError

#: JSON and YAML files larger than this are refused: nothing that Trimtab writes comes near it.
MAX_TEXT_BYTES = 64 * 1024 * 1024


def canonical_json(value: Any) -> str:
    """Returns one line of JSON with sorted keys; equal values give equal text.

    Raises:
        ValueError: the value holds NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def short_digest(value: Any) -> str:
    """Returns the first 16 hex digits of the sha256 of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """Returns the sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically: temporary file in the same folder, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename or a creation inside ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to be filled, which then stands where another may stand already.

    Readers see the old one or the new one whole; where filling fails, the old one stays.

    Args:
        folder: where it is to stand.

    Raises:
        OSError: nothing can be written beside it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield staging
        staging.chmod(0o755)
        _put_in_place(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _put_in_place(staging: Path, folder: Path) -> None:
    old = folder.with_name(f"{staging.name}.old")
    if folder.exists():
        folder.rename(old)
    try:
        staging.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with sorted keys, atomically."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def read_bytes(path: Path, *, noun: str, error: type[SpecError] = SpecError) -> bytes:
    """Reads a file that a user named.

    Raises:
        SpecError: (or ``error``) the file is missing, a folder or too large.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_TEXT_BYTES:
            raise error(f"{noun} {path} has {size_bytes} bytes; at most {MAX_TEXT_BYTES} are read")
        return path.read_bytes()
    except FileNotFoundError as cause:
        raise error(f"{noun} {path} does not exist") from cause
    except OSError as cause:
        raise error(f"{noun} {path} cannot be read: {cause}") from cause


def read_text(path: Path, *, noun: str, error: type[SpecError] = SpecError) -> str:
    """Reads a UTF-8 file that a user named; every end of line becomes a newline.

    Raises:
        SpecError: (or ``error``) the file is missing, a folder, too large or not UTF-8.
    """
    content = read_bytes(path, noun=noun, error=error)
    try:
        return content.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as cause:
        raise error(f"{noun} {path} cannot be read: {cause}") from cause


def read_json(path: Path, *, noun: str, error: type[SpecError] = SpecError) -> Any:
    """Reads JSON that a user named; see `read_text`.

    Raises:
        SpecError: (or ``error``) the file cannot be read or is not JSON.
    """
    try:
        return json.loads(read_text(path, noun=noun, error=error))
    except (ValueError, RecursionError) as cause:  # ValueError: JSON's own, and numbers of too many digits
        raise error(f"{noun} {path} is not JSON: {cause}") from cause

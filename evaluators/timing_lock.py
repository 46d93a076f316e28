"""One timing at a time on a machine, whatever the number of searches."""

import getpass
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..core.errors import MeasurementError


def timing_lock_path() -> Path:
    """Returns the lock file: one per user, since the temporary folder lets no one open another user's files."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = "unknown"  # a container may run under a number that has no name
    return Path(tempfile.gettempdir()) / f"trimtab-timing-{hashlib.sha256(user.encode()).hexdigest()[:8]}.lock"


@contextmanager
def hold_timing_lock(timeout_s: float) -> Iterator[None]:
    """Holds the machine's timing lock; the operating system frees it when the process dies.

    Args:
        timeout_s: how long to wait for whoever holds it.

    Raises:
        MeasurementError: it stayed taken, or its file cannot be opened.
    """
    path = timing_lock_path()
    lock = FileLock(path, timeout=timeout_s)
    try:
        lock.acquire()
    except Timeout as error:
        raise MeasurementError(
            f"another process has been timing on this machine for more than {timeout_s:g} s (it holds {path}); "
            "wait for it or stop it"
        ) from error
    except OSError as error:
        raise MeasurementError(f"the timing lock {path} cannot be opened: {error}; remove it") from error
    try:
        yield
    finally:
        lock.release()

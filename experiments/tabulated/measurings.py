"""The journal of a measuring: what was seen of every policy and every artifact, line by line, so that a kill loses one.

A policy names its artifact by a digest: policies of equal artifacts share what was measured of it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ...core.errors import RunError
from ...core.files import canonical_json, read_text

#: an original that takes longer than this, as a multiple of its tenth percentile, was disturbed
QUIET = 1.05

Vector = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Timing:
    """One timing of an artifact in turns with the original."""

    median_s: float
    iqr_s: float
    runs: int
    reference_s: float

    @property
    def ratio(self) -> float:
        """The latency as a multiple of the original's."""
        return self.median_s / self.reference_s


@dataclass
class Measurings:
    """Everything that a journal holds.

    >>> Measurings().n_policies
    0
    """

    header: dict[str, Any] = field(default_factory=dict)
    #: vector → digest of its artifact
    artifacts: dict[Vector, str] = field(default_factory=dict)
    #: vector → why it could not be built
    refused: dict[Vector, str] = field(default_factory=dict)
    #: digest → bytes of the artifact
    sizes: dict[str, int] = field(default_factory=dict)
    #: digest → (accuracy, mean drop, its standard error)
    scores: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    #: digest → timings, oldest first
    timings: dict[str, list[Timing]] = field(default_factory=dict)
    #: digest → why the runtime failed
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def n_policies(self) -> int:
        """Policies of which something is known."""
        return len(self.artifacts) + len(self.refused)

    @property
    def quiet_s(self) -> float:
        """Seconds of the original up to which a timing counts as undisturbed; infinite where nothing was timed."""
        references = [timing.reference_s for timings in self.timings.values() for timing in timings]
        return QUIET * float(np.percentile(references, 10)) if references else float("inf")

    def quiet(self, digest: str, limit_s: float) -> list[Timing]:
        """Returns the undisturbed timings of an artifact, oldest first."""
        return [timing for timing in self.timings.get(digest, ()) if timing.reference_s <= limit_s]

    def add(self, line: Mapping[str, Any]) -> None:
        """Takes a line of the journal in.

        Raises:
            RunError: the line is of no known kind, or lacks something.
        """
        try:
            self._add(str(line["kind"]), line)
        except (KeyError, TypeError, ValueError) as cause:
            raise RunError(f"not a line of a measuring: {cause!r}") from cause

    def _add(self, kind: str, line: Mapping[str, Any]) -> None:
        if kind == "header":
            self.header = dict(line)
        elif kind == "policy":
            self.artifacts[tuple(line["vector"])] = line["artifact"]
            self.sizes[line["artifact"]] = int(line["size_bytes"])
        elif kind == "refused":
            self.refused[tuple(line["vector"])] = str(line["error"])
        elif kind == "score":
            self.scores[line["artifact"]] = (float(line["accuracy"]), float(line["drop"]), float(line["error"]))
        elif kind == "timing":
            timing = Timing(line["median_s"], line["iqr_s"], int(line["runs"]), line["reference_s"])
            self.timings.setdefault(line["artifact"], []).append(timing)
        elif kind == "failure":
            self.failures[line["artifact"]] = str(line["error"])
        else:
            raise ValueError(f"unknown kind '{kind}'")


def read_measurings(path: Path) -> Measurings:
    """Reads a journal; a torn last line is left out.

    Raises:
        RunError: the file cannot be read, or a line in its midst is damaged.
    """
    found = Measurings()
    for line in _lines(path):
        found.add(line)
    return found


class MeasuringJournal:
    """Appends lines and keeps what they say."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Opens a journal, or begins one.

        Raises:
            RunError: the journal is of something else, or another process writes it.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _take(path)
        try:
            self.known = _read_known(path, header)
        except RunError:
            self._lock.release()
            raise
        _cut_torn_line(path)
        self._file = path.open("a", encoding="utf-8")
        if not self.known.header:
            self.append({"kind": "header", **header})

    def append(self, line: Mapping[str, Any]) -> None:
        """Writes a line and hands it to the operating system."""
        self.known.add(line)
        self._file.write(canonical_json(dict(line)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Makes all lines durable."""
        os.fsync(self._file.fileno())
        self._file.close()
        self._lock.release()


def _lines(path: Path) -> Iterator[Any]:
    lines = read_text(path, noun="measuring", error=RunError).split("\n")
    for number, line in enumerate(lines[:-1]):
        try:
            yield json.loads(line)
        except ValueError as cause:
            raise RunError(f"{path}: line {number + 1} is damaged: {cause}") from cause


def _read_known(path: Path, header: Mapping[str, Any]) -> Measurings:
    known = read_measurings(path) if path.exists() else Measurings()
    if known.header and known.header["fingerprints"] != header["fingerprints"]:
        raise RunError(f"{path} was measured of another model, space, machine or version; remove it to begin anew")
    return known


def _take(path: Path) -> FileLock:
    """Returns the lock of a journal, held; the operating system frees it when the process dies."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as cause:
        raise RunError(f"another process is writing {path}; wait for it or stop it") from cause
    return lock


def _cut_torn_line(path: Path) -> None:
    """Takes away what stands behind the last end of line."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)

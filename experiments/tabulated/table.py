"""A table: what was measured of every policy of a small space, in one compact file that holds no code.

The file is numpy's ``.npz`` without objects: columns over the policies, and a header of JSON as bytes, in which the
space, the machine and what is known beforehand stand.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import RunError, SpecError
from ...core.files import canonical_json, read_bytes, write_bytes
from ...evaluators.measurement import Estimate, Measurement
from ...hw_profiles.latency import Latency
from ...search.knowledge import Knowledge
from ...search.record import Status
from ...spaces.space import Space
from ...spaces.space_json import space_from_json, space_to_json

#: raised by hand when what a column says changes
SCHEMA_VERSION = 1
#: how `Status` is stored
_STATUSES = (Status.COMPLETE, Status.INFEASIBLE, Status.FAILED)
#: column → (dtype, unit); all have one entry a policy
_COLUMNS = {
    "status": np.uint8,
    "ratio": np.float32,
    "ratio_error": np.float32,
    "runs": np.uint16,
    "drop": np.float32,
    "drop_error": np.float32,
    "size_bytes": np.uint32,
}
#: an array of a table is never larger: a damaged file must not fill the memory
_MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Noise:
    """How well latency repeats: artifacts that were loaded and timed twice."""

    #: standard deviation of the logarithm of one ratio: that of differences of pairs over √2
    deviation: float
    #: the same by the median of the absolute differences, which a few disturbed timings do not move
    robust_deviation: float
    n_pairs: int

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {"deviation": self.deviation, "robust_deviation": self.robust_deviation, "n_pairs": self.n_pairs}


@dataclass(frozen=True)
class Original:
    """The untouched model, as it was measured beside all policies."""

    #: median of the undisturbed timings, in seconds
    latency_s: float
    accuracy: Estimate
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {"latency_s": self.latency_s, "accuracy": self.accuracy.to_json(), "size_bytes": self.size_bytes}


@dataclass(frozen=True)
class Table:
    """Every policy of a space with its measurement."""

    name: str
    space: Space
    original: Original
    noise: Noise
    #: (n_policies, n_dimensions) uint8, as `Space.encode` gives them
    vectors: np.ndarray
    #: column → (n_policies,) array, see the module; 0 where a policy has no measurement
    columns: Mapping[str, np.ndarray]
    #: recipe's fingerprints, machine, date
    provenance: Mapping[str, Any] = field(default_factory=dict)
    #: what a search would know beforehand; nothing of it comes from these measurements
    knowledge: Knowledge = field(default_factory=Knowledge)

    def __len__(self) -> int:
        return len(self.vectors)

    def __post_init__(self) -> None:
        sizes = np.array(list(self.space.dimensions.values()))
        if self.vectors.ndim != 2 or self.vectors.shape[1] != len(sizes) or not (self.vectors < sizes).all():
            raise RunError(f"table {self.name}: vectors must lie within {sizes.tolist()}")
        for name, column in self.columns.items():
            if column.shape != (len(self.vectors),) or not np.isfinite(column).all():
                raise RunError(f"table {self.name}: column {name} must have {len(self.vectors)} finite entries")
        if set(self.columns) != set(_COLUMNS):
            raise RunError(f"table {self.name}: columns must be {', '.join(_COLUMNS)}")

    @cached_property
    def rows(self) -> dict[tuple[int, ...], int]:
        """Vector → row."""
        return {tuple(vector): row for row, vector in enumerate(self.vectors.tolist())}

    @cached_property
    def is_complete(self) -> np.ndarray:
        """(n_policies,) bool: whether a policy has a measurement."""
        complete: np.ndarray = self.columns["status"] == 0
        return complete

    def status(self, row: int) -> Status:
        """Returns how the measuring of a policy ended."""
        return _STATUSES[int(self.columns["status"][row])]

    def measurement(self, row: int) -> Measurement:
        """Returns what was measured of a policy: the spread of its latency is that of the timing."""
        value = {name: column[row] for name, column in self.columns.items()}
        if self.status(row) is not Status.COMPLETE:
            return Measurement()
        original, runs = self.original, int(value["runs"])
        # the interquartile range of which `Latency.error_s` makes the stored standard error
        iqr_s = float(value["ratio_error"]) * original.latency_s * runs**0.5 / 0.93
        drop, n = float(value["drop"]), original.accuracy.n
        return Measurement(
            accuracy=Estimate(original.accuracy.mean - drop, _binomial_error(original.accuracy.mean - drop, n), n),
            accuracy_drop=Estimate(drop, float(value["drop_error"]), n),
            latency=Latency(
                float(value["ratio"]) * original.latency_s, iqr_s, runs, reference_s=original.latency_s
            ),
            size_bytes=int(value["size_bytes"]),
        )  # fmt: skip

    def with_knowledge(self, knowledge: Knowledge) -> "Table":
        """Returns the same with what is known beforehand."""
        return replace(self, knowledge=knowledge)


def write_table(path: Path, table: Table) -> None:
    """Writes a table; equal tables give equal bytes."""
    header = {
        "schema_version": SCHEMA_VERSION,
        "name": table.name,
        "space": space_to_json(table.space),
        "original": table.original.to_json(),
        "noise": table.noise.to_json(),
        "provenance": dict(table.provenance),
        "knowledge": None if table.knowledge.is_empty else table.knowledge.to_json(),
    }
    arrays: dict[str, Any] = {name: table.columns[name].astype(dtype) for name, dtype in _COLUMNS.items()}
    text = np.frombuffer(canonical_json(header).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, header=text, vectors=table.vectors.astype(np.uint8), **arrays)
    write_bytes(path, buffer.getvalue())


def read_table(path: Path) -> Table:
    """Reads what `write_table` wrote.

    Raises:
        RunError: the file is missing, damaged or of a later version.
    """
    content = read_bytes(path, noun="table", error=RunError)
    try:
        arrays = _read_arrays(content)
        header = json.loads(arrays.pop("header").astype(np.uint8).tobytes())
        if header["schema_version"] != SCHEMA_VERSION:
            raise RunError(f"{path} has schema version {header['schema_version']}, this is {SCHEMA_VERSION}")
        return _to_table(header, arrays)
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile, SpecError) as cause:
        raise cause if isinstance(cause, RunError) else RunError(f"{path} is not a table: {cause!r}") from cause


def _read_arrays(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            if entry.file_size > _MAX_BYTES:
                raise ValueError(f"{entry.filename} would take {entry.file_size} bytes")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ("header", "vectors", *_COLUMNS)}


def _to_table(header: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> Table:
    original, noise, knowledge = header["original"], header["noise"], header["knowledge"]
    vectors = arrays.pop("vectors")
    return Table(
        name=str(header["name"]),
        space=space_from_json(header["space"]),
        original=Original(
            float(original["latency_s"]), Estimate.from_json(original["accuracy"]), int(original["size_bytes"])
        ),
        noise=Noise(float(noise["deviation"]), float(noise["robust_deviation"]), int(noise["n_pairs"])),
        vectors=vectors,
        columns=arrays,
        provenance=header["provenance"],
        knowledge=Knowledge() if knowledge is None else Knowledge.from_json(knowledge),
    )


def _binomial_error(share: float, n: int) -> float:
    """Returns the standard error of a mean of n zeros and ones: std(ddof=1) / √n."""
    return float(np.sqrt(max(share * (1.0 - share), 0.0) / max(n - 1, 1)))

"""From the journal of a measuring to its table."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...core.errors import RunError
from ...evaluators.measurement import Estimate
from ...hw_profiles.latency import Latency
from ...spaces.space import Space
from .measurings import Measurings, Timing, Vector
from .table import Noise, Original, Table

#: 1.4826 median absolute deviations are the standard deviation of a normal distribution (Rousseeuw and Croux 1993)
_NORMAL = 1.4826


def assemble_table(name: str, space: Space, vectors: Sequence[Vector], found: Measurings) -> Table:
    """Returns the table of a finished measuring.

    The latency of an artifact is the mean over its undisturbed timings; where all were disturbed it is the one in which
    the original was fastest.

    Raises:
        RunError: policies are missing.
    """
    missing = [v for v in vectors if v not in found.artifacts and v not in found.refused]
    if missing:
        raise RunError(f"{len(missing)} of {len(vectors)} policies are not measured yet; go on measuring {name}")
    ordered = sorted(vectors)
    limit_s = found.quiet_s
    rows = [_row(found, vector, limit_s) for vector in ordered]
    header = found.header
    n_disturbed = sum(not found.quiet(digest, limit_s) for digest in found.timings)
    return Table(
        name=name,
        space=space,
        original=Original(_original_s(found, limit_s), Estimate.from_json(header["accuracy"]), header["size_bytes"]),
        noise=measure_noise([found.quiet(digest, limit_s) for digest in found.timings]),
        vectors=np.array(ordered, np.uint8),
        columns={key: np.array([row[key] for row in rows]) for key in rows[0]},
        provenance={
            "fingerprints": header["fingerprints"],
            "profile": header["profile"],
            "date": header["date"],
            "n_artifacts": len(found.timings),
            "n_disturbed": n_disturbed,
        },
    )


def measure_noise(timings: Sequence[Sequence[Timing]]) -> Noise:
    """Returns how much the ratio of one artifact differs between two loadings of it.

    Args:
        timings: per artifact its undisturbed timings, oldest first; the last two are compared where there are two,
            because artifacts are timed again where the first timing made them look fast.
    """
    pairs = [(found[-2].ratio, found[-1].ratio) for found in timings if len(found) > 1]
    if not pairs:
        return Noise(0.0, 0.0, 0)
    differences = np.array([np.log(first / second) for first, second in pairs]) / np.sqrt(2.0)
    robust = _NORMAL * float(np.median(np.abs(differences)))
    return Noise(float(np.sqrt((differences**2).mean())), robust, len(pairs))


def _row(found: Measurings, vector: Vector, limit_s: float) -> dict[str, Any]:
    empty = {"ratio": 0.0, "ratio_error": 0.0, "runs": 0, "drop": 0.0, "drop_error": 0.0, "size_bytes": 0}
    if vector in found.refused:
        return {"status": 1, **empty}
    digest = found.artifacts[vector]
    known = found.quiet(digest, limit_s) or sorted(found.timings.get(digest, ()), key=lambda t: t.reference_s)[:1]
    if digest not in found.scores or not known:
        return {"status": 2, **empty}
    latencies = [Latency(t.median_s, t.iqr_s, t.runs, reference_s=t.reference_s) for t in known]
    errors = np.array([latency.error_s / timing.reference_s for latency, timing in zip(latencies, known, strict=True)])
    _, drop, error = found.scores[digest]
    return {
        "status": 0,
        "ratio": float(np.mean([timing.ratio for timing in known])),
        "ratio_error": float(np.sqrt((errors**2).sum()) / len(errors)),
        "runs": sum(timing.runs for timing in known),
        "drop": drop,
        "drop_error": error,
        "size_bytes": found.sizes[digest],
    }


def _original_s(found: Measurings, limit_s: float) -> float:
    quiet = [timing.reference_s for digest in found.timings for timing in found.quiet(digest, limit_s)]
    return float(np.median(quiet))

"""An explanation in words: the answer in a few lines, and what stands in the columns of its table."""

from collections.abc import Iterator

from ...evaluators.measurement import Estimate, Measurement
from ...search.budget import BOUNDS
from .explanation import Explanation, LayerRow
from .words import UNKNOWN, kilobytes, milliseconds, percent

#: of the columns that `describe_row` fills
HEADINGS = ("group", "kind", "treatment", "saved", "sensitivity", "weights", "why")


def summarise(found: Explanation) -> tuple[str, ...]:
    """Returns the lines that come before the rows: promise, budget, target, graph, origin."""
    file = found.policy
    n_treated = sum(row.is_treated for row in found.rows)
    return (
        f"promise: {_describe_promise(found.promise, found.original)}",
        *_describe_budget(found),
        f"target:  {file.target.name}",
        f"policy:  {n_treated} of {len(found.rows)} groups are treated",
        *(f"         {line}" for line in found.graph),
        f"origin:  {', '.join(f'{name} {value}' for name, value in file.origin.items()) or UNKNOWN}",
    )


def _describe_promise(promise: Measurement | None, original: Measurement | None) -> str:
    if promise is None:
        return f"{UNKNOWN}: a policy file holds none; explain the run or the artifact"
    return ", ".join(_promised(promise, original)) or "nothing was measured"


def _promised(promise: Measurement, original: Measurement | None) -> Iterator[str]:
    latency = promise.latency
    if latency is not None:
        ratio = f" ({latency.ratio:.2f} of the original's)" if latency.ratio else ""
        yield f"{milliseconds(latency.median_s)} ± {latency.iqr_s * 1e3:.2g}{ratio}"
    if promise.accuracy is not None:
        yield f"accuracy {_describe(promise.accuracy)}"
    if promise.accuracy_drop is not None:
        yield f"drop {_describe(promise.accuracy_drop)}"
    if promise.size_bytes is not None:
        before = "" if original is None or not original.size_bytes else f" of {kilobytes(original.size_bytes)}"
        yield f"{kilobytes(promise.size_bytes)}{before}"
    if promise.energy_j is not None:
        yield f"{promise.energy_j * 1e3:.4g} mJ"


def _describe(value: Estimate) -> str:
    return f"{percent(value.mean)} ± {100 * value.standard_error:.2g}"


def _describe_budget(found: Explanation) -> tuple[str, ...]:
    budget = found.budget
    if budget is None:
        return ()
    parts = [
        f"{label} ≤ {getattr(budget, name) * factor:.4g} {unit}".rstrip()
        for name, label, factor, unit in BOUNDS
        if getattr(budget, name) is not None
    ]
    return (f"budget:  {', '.join(parts) or 'none'}; least {found.objective} wanted",)


def describe_row(row: LayerRow) -> tuple[str, ...]:
    """Returns the texts of a row, a column each; see `HEADINGS`."""
    sizes = [row.size_before_bytes, row.size_after_bytes] if row.is_treated else [row.size_before_bytes]
    return (
        row.group,
        row.kind,
        row.treatment,
        milliseconds(row.latency_saved_s) if row.is_treated else "–",
        UNKNOWN if row.sensitivity is None else f"{row.sensitivity:.1e}",
        " → ".join(map(kilobytes, sizes)),
        row.reason,
    )

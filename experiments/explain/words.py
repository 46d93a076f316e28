"""Treatments and numbers as a person says them."""

from ...spaces.policy import GraphTreatment, Policy
from ...spaces.recovery import Recovery
from ...spaces.treatment import Treatment

UNTOUCHED = "float32"
UNKNOWN = "not known"

_QUANTIZED = {
    ("int8", "int8", "static"): "int8",
    ("int8", "int8", "dynamic"): "int8, ranges from each input",
    ("int8", "float32", "static"): "int8 weights",
    ("int4", "float32", "static"): "int4 weights",
    ("float8", "float8", "static"): "float8",
    ("float16", "float32", "static"): "float16 weights",
}


def describe_treatment(treatment: Treatment) -> str:
    """Returns a treatment in words, its techniques in the order in which they are applied.

    >>> describe_treatment(Treatment(rank=0.25, weight_dtype="int8", activation_dtype="int8"))
    'low rank with 25 % of the elements, int8'
    """
    parts = [
        *_describe_shape(treatment),
        *_describe_values(treatment),
        *_describe_numbers(treatment),
        *(["kept in full precision"] if treatment.compute_dtype == "float32" else []),
    ]
    return ", ".join(parts) or UNTOUCHED


def _describe_shape(treatment: Treatment) -> list[str]:
    parts = []
    if treatment.keep_channels == 0.0:
        parts.append("removed")
    elif treatment.keep_channels < 1.0:
        parts.append(f"{percent(treatment.keep_channels)} stays (by {treatment.importance.replace('_', ' ')})")
    if treatment.rank < 1.0:
        kept = percent(treatment.rank)
        parts.append(f"low rank with {kept} of the {'energy' if treatment.rank_by == 'energy' else 'elements'}")
    return parts


def _describe_values(treatment: Treatment) -> list[str]:
    parts = []
    if treatment.clusters:
        scope = " in each group of channels" if treatment.cluster_scope == "group" else ""
        parts.append(f"{treatment.clusters} different weights{scope}")
    if treatment.binary != "none":
        parts.append(f"{treatment.binary} weights")
    if treatment.activation_dtype == "binary":
        parts.append("binary inputs")
    if treatment.sparsity:
        pattern = "" if treatment.pattern == "unstructured" else f" ({treatment.pattern})"
        parts.append(f"{percent(treatment.sparsity)} zeros{pattern}")
    return parts


def _describe_numbers(treatment: Treatment) -> list[str]:
    if treatment.weight_dtype == "float32":
        return []
    activation = "float32" if treatment.activation_dtype == "binary" else treatment.activation_dtype
    key = (treatment.weight_dtype, activation, treatment.activation_range)
    word = _QUANTIZED.get(key, f"{treatment.weight_dtype} weights")
    if treatment.granularity == "tensor":
        return [f"{word} with one scale"]
    blocks = treatment.granularity.removeprefix("block")
    return [f"{word} in blocks of {blocks}" if blocks != treatment.granularity else word]


def describe_graph(policy: Policy) -> tuple[str, ...]:
    """Returns what happens to the graph as a whole and after compression, a line for each choice that is made."""
    graph, default = policy.graph, GraphTreatment()
    lines = [
        (graph.fusion, default.fusion, f"fusion before quantising: {graph.fusion}"),
        (graph.precision, default.precision, f"what stays floating point is computed in {graph.precision}"),
        (graph.quantized_ops, (), f"quantised beside the layers: {', '.join(graph.quantized_ops)}"),
        (graph.rounding, default.rounding, f"rounding: {graph.rounding}"),
        (graph.equalization, default.equalization, f"equalisation: {graph.equalization.replace('_', ' ')}"),
        (graph.correction, default.correction, f"correction: {graph.correction}"),
        (policy.recovery, Recovery(), f"recovery: {policy.recovery.label}"),
    ]
    calibrated = any(treatment.is_static for _, treatment in policy.groups)
    ranges = [f"activation ranges: {graph.calibration}"] if calibrated else []
    return (*(line for value, usual, line in lines if value != usual), *ranges)


def percent(share: float) -> str:
    """Returns a share in percent, three digits of it: ``2.5 %``."""
    return f"{100 * share:.3g} %"


def milliseconds(seconds: float | None) -> str:
    """Returns milliseconds, four digits of them; ``not known`` for None."""
    return UNKNOWN if seconds is None else f"{seconds * 1e3:.4g} ms"


def kilobytes(n_bytes: float | None) -> str:
    """Returns kilobytes, three digits of them; ``not known`` for None."""
    return UNKNOWN if n_bytes is None else f"{n_bytes / 1e3:.3g} kB"

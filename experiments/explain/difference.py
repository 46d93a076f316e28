"""What differs between two policies, and between what was measured of them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...evaluators.measurement import Estimate, Measurement
from ...spaces.treatment import Treatment
from ..policy_file import PolicyFile
from .explain import explain
from .explanation import Explanation
from .words import describe_treatment

_ABSENT = "no such layer"


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing that two policies settle differently, in words."""

    #: a layer, a structure, or what is chosen for the graph, the recovery or the target
    name: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class MeasuredPair:
    """One quantity that was measured of both."""

    name: str
    first: float
    second: float
    #: standard error of ``second - first``; None where the quantity has none
    error: float | None
    #: unit of the numbers; empty for shares
    unit: str


@dataclass(frozen=True)
class PolicyDifference:
    """What differs between two policies; empty parts where nothing does.

    >>> from trimtab.hw_profiles.target import Target
    >>> from trimtab.spaces.policy import Policy
    >>> file = PolicyFile(Policy({}), (), (), Target("onnxruntime"), {}, {})
    >>> compare_explanations(Explanation(file, rows=()), Explanation(file, rows=())).is_equal
    True
    """

    #: layers and structures, in the order of the first model
    layers: tuple[Choice, ...]
    #: choices for the graph as a whole
    graph: tuple[Choice, ...]
    recovery: tuple[Choice, ...]
    target: tuple[Choice, ...]
    #: what was measured of both; it makes no policy another
    measured: tuple[MeasuredPair, ...]

    @property
    def is_equal(self) -> bool:
        """Whether both do the same to the same layers for the same target."""
        return not (self.layers or self.graph or self.recovery or self.target)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        return {"equal": self.is_equal, **asdict(self)}


def diff(first: str | Path, second: str | Path) -> PolicyDifference:
    """Compares two policies; each is a policy file, an artifact's folder or a run's folder.

    Raises:
        SpecError: (or RunError, ArtifactError) one of them is none of these, or cannot be read.
    """
    return compare_explanations(explain(first), explain(second))


def compare_explanations(first: Explanation, second: Explanation) -> PolicyDifference:
    """Compares two policies, and what was measured of them where both have a promise."""
    a, b = first.policy, second.policy
    return PolicyDifference(
        layers=tuple(_compare_layers(a, b)),
        graph=tuple(_compare_fields(a.policy.graph, b.policy.graph)),
        recovery=tuple(_compare_fields(a.policy.recovery, b.policy.recovery)),
        target=tuple(_compare_fields(a.target, b.target)),
        measured=_compare_promises(first.promise, second.promise),
    )


def _compare_layers(a: PolicyFile, b: PolicyFile) -> Iterator[Choice]:
    treatments = a.layer_treatments, b.layer_treatments
    known = [{layer.name for layer in file.layers} | set(t) for file, t in zip((a, b), treatments, strict=True)]
    names = dict.fromkeys([*(layer.name for file in (a, b) for layer in file.layers), *treatments[0], *treatments[1]])
    for name in names:
        # a structure that one policy does not prune has no line in its file
        is_layer = any(layer.name == name for file in (a, b) for layer in file.layers)
        words = [
            describe_treatment(t.get(name, Treatment())) if name in k or not is_layer else _ABSENT
            for t, k in zip(treatments, known, strict=True)
        ]
        if words[0] != words[1]:
            yield Choice(name, words[0], words[1])


def _compare_fields(first: Any, second: Any) -> Iterator[Choice]:
    for field in fields(first):
        values = getattr(first, field.name), getattr(second, field.name)
        if values[0] != values[1]:
            yield Choice(field.name, *(_say(value) for value in values))


def _say(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "not set" if value is None else str(value)


def _compare_promises(a: Measurement | None, b: Measurement | None) -> tuple[MeasuredPair, ...]:
    if a is None or b is None:
        return ()
    found = [
        _compare_latency(a, b),
        _compare_estimates("accuracy", a, b, lambda measurement: measurement.accuracy),
        _compare_estimates("accuracy drop", a, b, lambda measurement: measurement.accuracy_drop),
        _compare_numbers("size", "bytes", a.size_bytes, b.size_bytes),
        _compare_numbers("peak memory", "bytes", a.peak_memory_bytes, b.peak_memory_bytes),
        _compare_numbers("peak activations", "bytes", a.peak_activation_bytes, b.peak_activation_bytes),
        _compare_numbers("energy", "J", a.energy_j, b.energy_j),
    ]
    return tuple(pair for pair in found if pair is not None)


def _compare_latency(a: Measurement, b: Measurement) -> MeasuredPair | None:
    """Compares ratios to the originals where both have one: they hold across machines and minutes, seconds do not."""
    if a.latency is None or b.latency is None:
        return None
    if a.latency.ratio is None or b.latency.ratio is None:
        error = math.hypot(a.latency.error_s, b.latency.error_s)
        return MeasuredPair("latency", a.latency.median_s, b.latency.median_s, error, "s")
    errors = [part.ratio * part.error_s / part.median_s for part in (a.latency, b.latency) if part.ratio is not None]
    return MeasuredPair("latency", a.latency.ratio, b.latency.ratio, math.hypot(*errors), "of the original's")


def _compare_estimates(
    name: str, a: Measurement, b: Measurement, read: Callable[[Measurement], Estimate | None]
) -> MeasuredPair | None:
    first, second = read(a), read(b)
    if first is None or second is None:
        return None
    return MeasuredPair(name, first.mean, second.mean, math.hypot(first.standard_error, second.standard_error), "")


def _compare_numbers(name: str, unit: str, first: float | None, second: float | None) -> MeasuredPair | None:
    return None if first is None or second is None else MeasuredPair(name, first, second, None, unit)

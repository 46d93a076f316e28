"""Budgets of a spec in absolute numbers."""

from collections.abc import Callable

from ..evaluators.measurement import Measurement
from ..search.budget import Budget
from .quantities import Bound, parse_energy, parse_latency, parse_size
from .spec import Spec


def resolve_budget(spec: Spec, original: Measurement) -> Budget:
    """Turns relative bounds into absolute ones."""
    bounds = spec.budget
    reference_s = original.latency.median_s if original.latency else None
    return Budget(
        latency_s=_resolve(bounds.latency, parse_latency, reference_s),
        accuracy_drop=bounds.accuracy_drop,
        size_bytes=_resolve(bounds.size_mb, parse_size, original.size_bytes),
        peak_memory_bytes=_resolve(bounds.peak_memory_mb, parse_size, original.peak_memory_bytes),
        peak_activation_bytes=_resolve(bounds.peak_activation_mb, parse_size, original.peak_activation_bytes),
        energy_j=_resolve(bounds.energy_mj, parse_energy, original.energy_j),
        confidence=bounds.confidence,
        latency_confidence=bounds.latency_confidence,
        reference_s=reference_s,
        energy_source=None if original.energy is None else original.energy.source,
    )


def _resolve(bound: object, parse: Callable[[object], Bound], original: float | None) -> float | None:
    return None if bound is None else parse(bound).resolve(float(original or 0))

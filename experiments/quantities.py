"""Quantities as people write them: ``3ms``, ``0.5x``, ``20m``, ``2GB``."""

import math
import re
from dataclasses import dataclass

_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Zµ]*)\s*")

_LATENCY_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "": 1e-3}
_SIZE_UNITS = {"": 1e6, "mb": 1e6, "kb": 1e3, "gb": 1e9, "b": 1.0, "mib": 2.0**20, "gib": 2.0**30}
_ENERGY_UNITS = {"j": 1.0, "mj": 1e-3, "uj": 1e-6, "µj": 1e-6, "": 1e-3}
_TIME_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Bound:
    """An upper bound: absolute in SI units, or relative to the original."""

    value: float
    is_relative: bool

    def resolve(self, original: float) -> float:
        """Returns the absolute bound."""
        return self.value * original if self.is_relative else self.value


def parse_latency(text: object) -> Bound:
    """Reads ``0.5x``, ``3ms``, ``300us`` or a number of milliseconds.

    Raises:
        ValueError: it is none of these, or not positive.
    """
    return _parse_bound(text, _LATENCY_UNITS, "a latency such as 0.5x, 3ms or 300us (a bare number is in ms)")


def parse_size(text: object) -> Bound:
    """Reads ``0.5x``, ``200kB`` or a number of megabytes (10⁶ bytes).

    Raises:
        ValueError: it is none of these, or not positive.
    """
    return _parse_bound(text, _SIZE_UNITS, "a size such as 0.5x, 200kB or 1.5 (a bare number is in MB)")


def parse_energy(text: object) -> Bound:
    """Reads ``0.5x``, ``2mJ``, ``300uJ`` or a number of millijoules.

    Raises:
        ValueError: it is none of these, or not positive.
    """
    return _parse_bound(text, _ENERGY_UNITS, "an energy such as 0.5x, 2mJ or 300uJ (a bare number is in mJ)")


def parse_duration(text: object) -> float:
    """Reads ``20m``, ``90s``, ``1h`` or a number of seconds; returns seconds.

    Raises:
        ValueError: it is none of these, or not positive.
    """
    return _parse_bound(text, _TIME_UNITS, "a duration such as 90s, 20m or 1h", may_be_relative=False).value


def parse_bytes(text: object) -> int:
    """Reads ``2GB``, ``512MiB`` or a number of megabytes; returns bytes.

    Raises:
        ValueError: it is none of these, or not positive.
    """
    return int(_parse_bound(text, _SIZE_UNITS, "a size such as 2GB or 512MiB", may_be_relative=False).value)


def _parse_bound(text: object, units: dict[str, float], wanted: str, *, may_be_relative: bool = True) -> Bound:
    match = None if isinstance(text, bool) else _NUMBER.fullmatch(str(text))
    if match is None:
        raise ValueError(f"must be {wanted}, got {text!r}")
    number, unit = float(match[1]), match[2]
    if not 0 < number < math.inf:
        raise ValueError(f"must be more than 0 and finite, got {text!r}")
    if unit.lower() == "x" and may_be_relative:
        return Bound(number, is_relative=True)
    if unit.lower() not in units:
        raise ValueError(f"must be {wanted}, got {text!r}")
    return Bound(number * units[unit.lower()], is_relative=False)

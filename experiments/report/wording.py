"""Numbers and names as the page writes them; the final table's are the terminal's."""

import re
from dataclasses import dataclass

from ...evaluators.measurement import Estimate, Measurement
from ...hw_profiles.latency import Latency
from ...search.budget import BOUNDS, Budget
from ...search.record import Record

#: a space at which no line ends
_TIED = "\u00a0"
#: what stands where nothing is known
NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Quantity:
    """An objective as axes and sentences name it."""

    objective: str
    label: str
    unit: str
    #: from the unit of the code to the person's
    factor: float


QUANTITIES = {
    quantity.objective: quantity
    for quantity in (
        Quantity("latency", "latency", "ms", 1e3),
        Quantity("accuracy", "accuracy drop", "points", 1e2),
        Quantity("size", "file size", "MB", 1e-6),
        Quantity("peak_memory", "peak memory", "MB", 1e-6),
        Quantity("peak_activation", "peak of activations", "MB", 1e-6),
        Quantity("energy", "energy", "mJ", 1e3),
    )
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    heading: str
    is_number: bool = True


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table; its first cell is its heading."""

    cells: tuple[str, ...]
    #: ``winner``, ``bad`` or nothing
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page."""

    caption: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]


def write_ms(latency: Latency | None) -> str:
    """Returns median ± interquartile range in milliseconds."""
    return NOTHING if latency is None else f"{latency.median_s * 1e3:.3f} ± {latency.iqr_s * 1e3:.3f}"


def write_speed_up(latency: Latency | None) -> str:
    """Returns how many times as fast as the original."""
    return NOTHING if latency is None or not latency.ratio else f"{1 / latency.ratio:.2f}×"


def write_percent(estimate: Estimate | None, *, sign: str = "") -> str:
    """Returns mean ± standard error in percent (of a drop: in points)."""
    if estimate is None:
        return NOTHING
    return f"{100 * estimate.mean:{sign}.2f} ± {100 * estimate.standard_error:.2f}"


def write_megabytes(size_bytes: float | None) -> str:
    """Returns megabytes."""
    return NOTHING if size_bytes is None else f"{size_bytes / 1e6:.3f}"


def write_microseconds(seconds: float | None, error_s: float | None = None) -> str:
    """Returns microseconds, with an error where there is one."""
    if seconds is None:
        return NOTHING
    return f"{seconds * 1e6:.2f}" + ("" if error_s is None else f" ± {error_s * 1e6:.2f}")


def write_duration(seconds: float) -> str:
    """Returns a duration as a person says it.

    >>> write_duration(75), write_duration(7320)
    ('1 min 15 s', '2 h 2 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def write_bound(name: str, value: float) -> str:
    """Returns the value of a bound of a `Budget` in the person's unit."""
    if name == "accuracy_drop":
        return "1 point" if value == 0.01 else f"{100 * value:.3g} points"
    factor, unit = next((factor, unit) for bound, _, factor, unit in BOUNDS if bound == name)
    return f"{value * factor:.4g} {unit}"


def bound_label(name: str) -> str:
    """Returns how a person calls a bound."""
    return next(label for bound, label, *_ in BOUNDS if bound == name).replace("_", " ")


def write_origin(record: Record) -> str:
    """Returns why a policy was tried."""
    return record.origin.removeprefix("baseline:").removeprefix("start:")


def is_baseline(record: Record) -> bool:
    """Whether the policy was tried as a bar to beat."""
    return record.origin.startswith("baseline:")


def write_brief(measurement: Measurement, budget: Budget) -> str:
    """Returns latency, drop and size in one line."""
    parts = []
    if (pair := budget.normalised_latency(measurement)) is not None:
        parts.append(f"{pair[0] * 1e3:.3f}{_TIED}±{_TIED}{pair[1] * 1e3:.3f}{_TIED}ms")
    if measurement.accuracy_drop is not None:
        parts.append(f"drop {write_percent(measurement.accuracy_drop, sign='+').replace(' ', _TIED)}{_TIED}points")
    if measurement.size_bytes is not None:
        parts.append(f"{write_megabytes(measurement.size_bytes)}{_TIED}MB")
    if measurement.energy is not None:
        parts.append(f"{measurement.energy.joules * 1e3:.4g} mJ")
    return " · ".join(parts) or "nothing measured"


def kind_of_error(text: str) -> str:
    """Returns an error without the numbers that differ from trial to trial, so that equal ones can be counted."""
    return re.sub(r"0x[0-9a-fA-F]+|\d+(\.\d+)?(e[+-]?\d+)?", "#", text)[:300]

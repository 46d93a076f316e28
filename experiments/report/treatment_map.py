"""What happens to every layer: technique by technique in one policy, and side by side over the front."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...search.record import Record
from ...spaces.options import TECHNIQUES, describe_option
from ...spaces.policy import Policy
from ...spaces.recovery import Recovery
from ...spaces.treatment import Treatment
from .reading import Reading
from .wording import write_megabytes, write_percent

#: policies of the front that stand side by side
_MOST_POLICIES = 12
#: tints of the style
_N_TINTS = 8
_GRAPH_FIELDS = ("fusion", "calibration", "quantized_ops", "precision", "rounding", "equalization", "correction")


@dataclass(frozen=True, slots=True)
class Cell:
    """What happens to one layer; the tint repeats what the text says."""

    text: str
    #: 0: left as it is
    tint: int


@dataclass(frozen=True, slots=True)
class MapLine:
    """One group, or one choice for the whole graph."""

    name: str
    #: kind and shape of its weight
    note: str
    #: the chosen policy by technique; empty for choices of the whole graph
    techniques: tuple[Cell, ...]
    #: one for each policy of the front
    policies: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class TreatmentMap:
    """The whole map."""

    #: whose techniques are shown
    chosen: str
    techniques: tuple[str, ...]
    #: (trial, its numbers) of the front; the chosen one is marked
    policies: tuple[tuple[str, str, bool], ...]
    groups: tuple[MapLine, ...]
    graph: tuple[MapLine, ...]
    #: policies of the front that did not fit
    n_more: int = 0


def map_treatments(reading: Reading) -> TreatmentMap | None:
    """Lays out the chosen policy and the front, groups in the order of the graph; None before there is a policy."""
    chosen, found, space = reading.chosen, reading.answer, reading.space
    if chosen is None or found is None:
        return None
    front = [record for record in found.pareto if record.id != chosen.id]
    shown = [chosen, *front[: _MOST_POLICIES - 1]]
    if space is not None:
        groups = [group.name for group in space.groups]
        offered = [option for options in space.options for option in options]
    else:
        groups = sorted({name for record in shown for name, _ in record.policy.groups})
        offered = [treatment for record in shown for _, treatment in record.policy.groups]
    techniques = tuple(t for t in TECHNIQUES if any(describe_option(t, option) != "none" for option in offered))
    tints = _Tints()
    return TreatmentMap(
        chosen=f"#{chosen.id}",
        techniques=techniques,
        policies=tuple(_head(record, reading, is_chosen=record.id == chosen.id) for record in shown),
        groups=tuple(_group_line(name, shown, techniques, reading, tints) for name in groups),
        graph=tuple(_graph_lines(shown, reading, tints)),
        n_more=len(front) - len(shown) + 1,
    )


class _Tints:
    """Gives each text a tint, in the order in which they come."""

    def __init__(self) -> None:
        self._found: dict[str, int] = {}

    def cell(self, text: str, *, is_default: bool) -> Cell:
        if is_default:
            return Cell(text, 0)
        return Cell(text, 1 + self._found.setdefault(text, len(self._found)) % _N_TINTS)


def _head(record: Record, reading: Reading, *, is_chosen: bool) -> tuple[str, str, bool]:
    budget, measurement = reading.budget, record.measurement
    pair = None if budget is None else budget.normalised_latency(measurement)
    parts = [
        *([f"{pair[0] * 1e3:.3f} ms"] if pair else []),
        *([f"{write_percent(measurement.accuracy_drop, sign='+').split(' ')[0]} pt"]
          if measurement.accuracy_drop else []),
        *([f"{write_megabytes(measurement.size_bytes)} MB"] if measurement.size_bytes is not None else []),
    ]  # fmt: skip
    return f"#{record.id}", " · ".join(parts), is_chosen


def _group_line(
    name: str, shown: Sequence[Record], techniques: Sequence[str], reading: Reading, tints: _Tints
) -> MapLine:
    own = shown[0].policy[name]
    cells = [describe_option(technique, own) for technique in techniques]
    return MapLine(
        name=name,
        note=_describe_group(name, reading),
        techniques=tuple(tints.cell(text if text != "none" else "·", is_default=text == "none") for text in cells),
        policies=tuple(_policy_cell(record.policy, name, tints) for record in shown),
    )


def _policy_cell(policy: Policy, name: str, tints: _Tints) -> Cell:
    treatment = policy[name]
    is_default = treatment == Treatment()
    return tints.cell("·" if is_default else treatment.label, is_default=is_default)


def _describe_group(name: str, reading: Reading) -> str:
    space, layers = reading.space, reading.layers
    group = next((group for group in space.groups if group.name == name), None) if space else None
    if group is None:
        return ""
    if group.kind != "layers":
        return f"{group.kind} of {len(group.layers)} layers"
    kind, shape = layers.get(group.layers[0], ("", ()))
    text = f"{kind} {'×'.join(map(str, shape))}".strip()
    return text if len(group.layers) == 1 else f"{text}, {len(group.layers)} layers tied"


def _graph_lines(shown: Sequence[Record], reading: Reading, tints: _Tints) -> list[MapLine]:
    """Returns the choices for the whole graph that are on offer, or differ from their default."""
    lines = []
    default = Policy({}).graph
    for name in _GRAPH_FIELDS:
        texts = [_say(getattr(record.policy.graph, name)) for record in shown]
        n_offered = 1 if reading.space is None else len(getattr(reading.space.graph, name))
        usual = _say(getattr(default, name))
        if n_offered > 1 or any(text != usual for text in texts):
            cells = tuple(tints.cell(text, is_default=text == usual) for text in texts)
            lines.append(MapLine(name.replace("_", " "), "whole graph", (), cells))
    recoveries = [record.policy.recovery for record in shown]
    if any(recovery.trains for recovery in recoveries):
        cells = tuple(tints.cell(recovery.label, is_default=recovery == Recovery()) for recovery in recoveries)
        lines.append(MapLine("recovery", "whole graph", (), cells))
    return lines


def _say(value: object) -> str:
    return ("+".join(value) or "none") if isinstance(value, tuple) else str(value)

"""The rows of an explanation: of a run, which knows much, and of a policy file, which knows little."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...compressors.weights.accounting import account_layer
from ...spaces.layer import Group, Layer
from ...spaces.treatment import Treatment
from ..policy_file import PolicyFile
from .explanation import Alternative, LayerRow
from .outlook import Change, Outlook
from .reasons import Case, Option, give_reason
from .words import UNKNOWN, describe_treatment

_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Own:
    """What the policy itself achieves; None where it was not measured."""

    latency_s: float | None
    #: on validation
    accuracy_drop: float | None


def explain_group(outlook: Outlook, position: int, layers: Mapping[str, Layer], own: Own) -> LayerRow:
    """Makes the row of a group from all that a run knows.

    Args:
        outlook: what is expected around the policy.
        position: of the group in the space.
        layers: name → layer of the model.
        own: what the policy achieves.
    """
    space, chosen = outlook.problem.space, int(outlook.vector[position])
    group, treatments = space.groups[position], space.options[position]
    options = [Option(describe_treatment(t), outlook.change(position, o)) for o, t in enumerate(treatments)]
    untouched = outlook.untouched(position)
    is_treated, before = treatments[chosen] != Treatment(), weight_bytes(group, layers)
    without = options[untouched].change if is_treated and untouched is not None else None
    after = _plus(before, None if untouched is None else options[untouched].change.size_bytes, sign=-1)
    case = Case(
        chosen=options[chosen].words,
        is_treated=is_treated,
        untouched=without,
        others=[option for o, option in enumerate(options) if o != chosen],
        latency_s=own.latency_s,
        size_bytes=before,
        budget=outlook.problem.budget,
        objective=outlook.problem.objective,
    )
    return LayerRow(
        group=group.name,
        layers=group.layers,
        kind=kind_of(group, layers),
        treatment=case.chosen,
        is_treated=is_treated,
        latency_before_s=_plus(own.latency_s, _value(without)) if is_treated else own.latency_s,
        latency_after_s=own.latency_s,
        sensitivity=_sensitivity(options, chosen, untouched),
        size_before_bytes=before,
        size_after_bytes=None if after is None else round(after),
        reason=give_reason(case),
        alternatives=tuple(_describe(option, own, after, is_chosen=o == chosen) for o, option in enumerate(options)),
    )


def _describe(option: Option, own: Own, size_bytes: float | None, *, is_chosen: bool) -> Alternative:
    change = option.change
    size = _plus(size_bytes, change.size_bytes)
    return Alternative(
        treatment=option.words,
        is_chosen=is_chosen,
        latency_s=_plus(own.latency_s, _value(change)),
        accuracy_drop=_plus(own.accuracy_drop, None if change.drop is None else change.drop.value),
        sureness=change.sureness,
        sensitivity=change.sensitivity,
        size_bytes=None if size is None else round(size),
        trials=change.trials,
    )


def _value(change: Change | None) -> float | None:
    return None if change is None or change.latency_s is None else change.latency_s.value


def _plus(value: float | None, change: float | None, *, sign: int = 1) -> float | None:
    return None if value is None or change is None else value + sign * change


def _sensitivity(options: list[Option], chosen: int, untouched: int | None) -> float | None:
    """Returns that of the treatment; where there is none, that of the gentlest on offer."""
    if chosen != untouched:
        return options[chosen].change.sensitivity
    known = [o.change.sensitivity for i, o in enumerate(options) if i != untouched]
    return min((score for score in known if score is not None), default=None)


def explain_file(file: PolicyFile) -> tuple[LayerRow, ...]:
    """Makes the rows of a policy file: what it treats, then every layer that it leaves alone."""
    layers = {layer.name: layer for layer in file.layers}
    treatments = dict(file.policy.groups)
    treated = [group for group in file.groups if group.name in treatments]
    members = {name for group in treated if group.kind == "layers" for name in group.layers}
    rest = [Group(name, (name,)) for name in layers if name not in members]
    order = {name: position for position, name in enumerate(layers)}
    groups = sorted([*treated, *rest], key=lambda group: order.get(group.layers[0], len(order)))
    return tuple(_file_row(group, treatments.get(group.name, Treatment()), layers) for group in groups)


def _file_row(group: Group, treatment: Treatment, layers: Mapping[str, Layer]) -> LayerRow:
    before = weight_bytes(group, layers)
    is_treated = treatment != Treatment()
    return LayerRow(
        group=group.name,
        layers=group.layers,
        kind=kind_of(group, layers),
        treatment=describe_treatment(treatment),
        is_treated=is_treated,
        latency_before_s=None,
        latency_after_s=None,
        sensitivity=None,
        size_before_bytes=before,
        size_after_bytes=_treated_bytes(group, treatment, layers) if is_treated else before,
        reason=UNKNOWN,
    )


def _treated_bytes(group: Group, treatment: Treatment, layers: Mapping[str, Layer]) -> int | None:
    """Returns the bytes of the group's weights as they are stored; None where the shapes depend on the model."""
    if group.kind != "layers" or treatment.keep_channels < 1.0 or treatment.rank < 1.0:
        return None
    return sum(account_layer(layers[name], treatment) for name in group.layers)


def kind_of(group: Group, layers: Mapping[str, Layer]) -> str:
    """Returns the kinds of a group's layers, joined; of a structure its own kind."""
    if group.kind != "layers":
        return group.kind
    kinds = dict.fromkeys(layers[name].kind for name in group.layers if name in layers)
    return " and ".join(kind.replace("_", " ") for kind in kinds) or "layer"


def weight_bytes(group: Group, layers: Mapping[str, Layer]) -> int | None:
    """Returns the bytes of the group's weights in float32; None where a layer is not known."""
    if not all(name in layers for name in group.layers):
        return None
    return sum(_FLOAT_BYTES * math.prod(layers[name].weight_shape) for name in group.layers)

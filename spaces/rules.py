"""Rules of a spec applied to the layers of a model: what each layer may choose from, and what fell away."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..core.errors import SpecError
from .layer import LAYER_KINDS, STRUCTURE_KINDS, Group, Layer, Structure
from .options import TECHNIQUES, combine_options, describe_option, parse_option
from .treatment import Treatment

#: an option as a spec writes it: a number, or words
Option = str | float | int


@dataclass(frozen=True, slots=True)
class Rule:
    """Options for the layers that a pattern matches; a later rule replaces an earlier one, technique by technique.

    None leaves what earlier rules said of a technique.
    """

    #: a glob over layer names, or ``kind:`` and a kind of layers or structures
    layers: str
    #: names from `QUANTIZE_OPTIONS`
    quantize: tuple[str, ...] | None = None
    #: options stay although they were measured to be slower than none
    force: bool = False
    #: shares that are removed, with the importance that decides: ``0.5``, ``0.25 taylor``; 1 drops a block
    prune: tuple[Option, ...] | None = None
    #: shares that are kept: ``0.5``, ``energy 0.9 tucker``
    low_rank: tuple[Option, ...] | None = None
    #: numbers of values: ``16``, ``16 group sensitivity``
    cluster: tuple[Option, ...] | None = None
    #: ``binary``, ``ternary``, ``binary activations``
    binarize: tuple[Option, ...] | None = None
    #: shares of zeros: ``0.5``, ``0.7 wanda``, ``2:4``
    sparsify: tuple[Option, ...] | None = None

    def matches(self, layer: Layer) -> bool:
        """Whether the rule speaks of this layer."""
        return self._matches(layer.kind, layer.name)

    def matches_structure(self, structure: Structure) -> bool:
        """Whether the rule speaks of this structure: of its kind, its own name, or a layer that makes its channels."""
        names = (structure.name.partition(":")[2], *structure.layers[: structure.n_producers])
        return any(self._matches(structure.kind, name) for name in names)

    def _matches(self, kind: str, name: str) -> bool:
        if self.layers.startswith("kind:"):
            return kind == self.layers.removeprefix("kind:")
        return fnmatchcase(name, self.layers)


@dataclass(frozen=True, slots=True)
class Dropped:
    """An option that a rule offered and that this layer or structure cannot take here."""

    layer: str
    option: str
    reason: str


#: (quantize option or technique, layer kind) → why the target cannot run it, or None
Refusal = Callable[[str, str], str | None]


def _no_doubt(option: object, layer: Layer) -> None:
    """Every option is worth trying where nothing was measured."""


@dataclass(frozen=True, slots=True)
class Doubts:
    """What is known against an option on one layer; each returns the reason, or None."""

    #: (quantize option, layer) → it was measured to be slower; rules with ``force`` do not ask, and a layer never loses
    #: its last option to it: who offers one thing only means it
    why_slow: Callable[[str, Layer], str | None] = _no_doubt
    #: (treatment of one technique, layer) → it cannot come to anything, such as factors that cost more
    why_vain: Callable[[Treatment, Layer], str | None] = _no_doubt


def resolve_options(
    layers: Sequence[Layer],
    rules: Sequence[Rule],
    why_not: Refusal,
    *,
    is_default: bool = False,
    doubts: Doubts = Doubts(),
) -> tuple[dict[str, tuple[Treatment, ...]], tuple[Dropped, ...]]:
    """Returns the treatments on offer per layer, and the options that fell away with the reason.

    What several techniques offer is combined: every legal combination is a treatment of its own.

    Args:
        layers: the layers of the model.
        rules: in the order of the spec; the last rule that matches a layer and speaks of a technique wins.
        why_not: what the target says of (option, layer kind).
        is_default: the rules are not the user's own, so nothing in them is an error.
        doubts: what speaks against an option on a layer.

    Raises:
        SpecError: a rule matches no layer, offers what none of its layers can take, or options that are never legal
            together.
    """
    for position, rule in enumerate(rules):
        matched = [layer for layer in layers if rule.matches(layer)]
        if not is_default and not (rule.prune is not None and _offers_only_pruning(rule)):
            _check_rule(position, rule, matched, layers)
            _check_options(position, rule, matched, why_not)
    options: dict[str, tuple[Treatment, ...]] = {}
    dropped: list[Dropped] = []
    for layer in layers:
        parts: dict[str, list[Treatment]] = {}
        for technique in TECHNIQUES[1:]:
            parts[technique], lost = _offers(layer, technique, rules, why_not, doubts)
            dropped += lost
        options[layer.name], refused = combine_options(parts)
        dropped += [Dropped(layer.name, label, reason) for label, reason in refused.items()]
        if not options[layer.name]:
            raise SpecError(f"layer {layer.name}: no combination on offer is legal: {'; '.join(refused.values())}")
    return options, tuple(dropped)


def resolve_structures(
    structures: Sequence[Structure], rules: Sequence[Rule]
) -> tuple[dict[str, tuple[Treatment, ...]], tuple[Dropped, ...]]:
    """Returns the prunings on offer per structure, untouched first, and what fell away; those without any are left out.

    Args:
        structures: of the model.
        rules: in the order of the spec; the last rule that matches and speaks of pruning wins.

    Raises:
        SpecError: a rule with pruning matches no structure.
    """
    options: dict[str, tuple[Treatment, ...]] = {}
    dropped: list[Dropped] = []
    for position, rule in enumerate(rules):
        if rule.prune is not None and not any(rule.matches_structure(structure) for structure in structures):
            known = ", ".join(structure.name for structure in structures[:8]) or "nothing at all"
            raise SpecError(f"space.{position}.prune: '{rule.layers}' matches nothing that can be pruned; "
                            f"in this model that is {known}")  # fmt: skip
    for structure in structures:
        rule_ = _last(rules, lambda rule, s=structure: rule.prune is not None and rule.matches_structure(s))  # type: ignore[misc]
        found = [Treatment()]
        for text in (rule_.prune or ()) if rule_ is not None else ():
            option = parse_option("prune", text)
            is_whole = option.keep_channels == 0.0
            if option == Treatment() or is_whole == (structure.kind == "block"):
                found.append(option)
            elif rule_ is not None and not _fits_others(rule_, structures, is_whole=is_whole):
                reason = "a block goes as a whole: prune 1" if structure.kind == "block" else "only a block goes whole"
                dropped.append(Dropped(structure.name, f"prune {describe_option('prune', option)}", reason))
        if len(found) > 1:
            options[structure.name] = tuple(dict.fromkeys(found))
    return options, tuple(dropped)


def tie_layers(layers: Sequence[Layer]) -> tuple[Group, ...]:
    """Returns the groups: layers stored from one torch parameter (``name``, ``name#2`` …) are treated alike."""
    members: dict[str, list[str]] = {}
    for layer in layers:
        members.setdefault(layer.name.partition("#")[0], []).append(layer.name)
    return tuple(Group(name, tuple(names)) for name, names in members.items())


def tie_structures(structures: Sequence[Structure], offered: Mapping[str, object]) -> tuple[Group, ...]:
    """Returns a group for each structure on which something is offered."""
    return tuple(Group(s.name, s.layers, s.kind) for s in structures if s.name in offered)


def _offers(
    layer: Layer, technique: str, rules: Sequence[Rule], why_not: Refusal, doubts: Doubts
) -> tuple[list[Treatment], list[Dropped]]:
    """Returns what a layer may choose from one technique, and what fell away."""
    rule = _last(rules, lambda rule: _texts(rule, technique) is not None and rule.matches(layer))
    texts = (_texts(rule, technique) or ()) if rule is not None else ()
    able: dict[str, Treatment] = {}
    refused: dict[str, str] = {}
    for text in texts:
        option = parse_option(technique, text)
        label = _label(technique, option)
        asked = describe_option(technique, option) if technique == "quantize" else technique
        reason = None if option == Treatment() and technique != "quantize" else why_not(asked, layer.kind)
        reason = reason if reason is not None or option == Treatment() else doubts.why_vain(option, layer)
        if reason is None:
            able[label] = option
        else:
            refused[label] = reason
    if technique == "quantize" and rule is not None and not rule.force:
        slow = {label: why for label in able if (why := doubts.why_slow(label, layer)) is not None}
        refused |= slow if len(slow) < len(able) else {}
    kept = [option for label, option in able.items() if label not in refused]
    return kept or [Treatment()], [Dropped(layer.name, label, reason) for label, reason in refused.items()]


def _label(technique: str, option: Treatment) -> str:
    text = describe_option(technique, option)
    return text if technique == "quantize" else f"{technique} {text}"


def _texts(rule: Rule, technique: str) -> tuple[Option, ...] | None:
    found: tuple[Option, ...] | None = getattr(rule, technique)
    return found


def _last(rules: Sequence[Rule], holds: Callable[[Rule], bool]) -> Rule | None:
    return next((rule for rule in reversed(rules) if holds(rule)), None)


def _offers_only_pruning(rule: Rule) -> bool:
    return all(_texts(rule, technique) is None for technique in TECHNIQUES[1:])


def _fits_others(rule: Rule, structures: Sequence[Structure], *, is_whole: bool) -> bool:
    """Whether the rule speaks of other structures too, which can take the option: then it was meant for those."""
    return any((s.kind == "block") == is_whole and rule.matches_structure(s) for s in structures)


def _check_rule(position: int, rule: Rule, matched: Sequence[Layer], layers: Sequence[Layer]) -> None:
    if matched:
        return
    kinds = sorted({layer.kind for layer in layers})
    if rule.layers.startswith("kind:") and rule.layers.removeprefix("kind:") not in (*LAYER_KINDS, *STRUCTURE_KINDS):
        raise SpecError(
            f"space.{position}.layers: there is no kind '{rule.layers.removeprefix('kind:')}'; "
            f"this model has {', '.join(kinds)}"
        )
    names = [layer.name for layer in layers]
    shown = ", ".join(names[:8]) + (f" … ({len(names)} layers)" if len(names) > 8 else "")
    raise SpecError(
        f"space.{position}.layers: '{rule.layers}' matches no layer; the model has the kinds "
        f"{', '.join(kinds)} and the layers {shown}"
    )


def _check_options(position: int, rule: Rule, matched: Sequence[Layer], why_not: Refusal) -> None:
    for technique in TECHNIQUES[1:]:
        for text in _texts(rule, technique) or ():
            option = parse_option(technique, text)
            if option == Treatment() and technique != "quantize":
                continue
            asked = describe_option(technique, option) if technique == "quantize" else technique
            reasons = {layer.kind: why_not(asked, layer.kind) for layer in matched}
            if all(reason is not None for reason in reasons.values()):
                raise SpecError(
                    f"space.{position}.{technique}: {text} cannot be used on any layer that '{rule.layers}' matches: "
                    f"{'; '.join(str(reason) for reason in reasons.values())}; remove it, or choose another target"
                )

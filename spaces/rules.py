"""Rules of a spec applied to the layers of a model: what each layer may choose from, and what fell away."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..core.errors import SpecError
from .layer import LAYER_KINDS, Group, Layer
from .treatment import QUANTIZE_OPTIONS, Treatment


@dataclass(frozen=True, slots=True)
class Rule:
    """Options for the layers that a pattern matches; a later rule replaces an earlier one."""

    #: a glob over layer names, or ``kind:`` and a layer kind
    layers: str
    #: names from `QUANTIZE_OPTIONS`; None leaves what earlier rules said
    quantize: tuple[str, ...] | None = None
    #: options stay although they were measured to be slower than none
    force: bool = False

    def matches(self, layer: Layer) -> bool:
        """Whether the rule speaks of this layer."""
        if self.layers.startswith("kind:"):
            return layer.kind == self.layers.removeprefix("kind:")
        return fnmatchcase(layer.name, self.layers)


@dataclass(frozen=True, slots=True)
class Dropped:
    """An option that a rule offered and that this layer cannot take here."""

    layer: str
    option: str
    reason: str


#: (option, layer kind) → why the target cannot run it, or None
Refusal = Callable[[str, str], str | None]

#: (option, layer) → why it is not worth trying on this target, or None
Doubt = Callable[[str, Layer], str | None]


def _no_doubt(option: str, layer: Layer) -> None:
    """Every option is worth trying where nothing was measured."""


def resolve_options(
    layers: Sequence[Layer],
    rules: Sequence[Rule],
    why_not: Refusal,
    *,
    is_default: bool = False,
    why_slow: Doubt = _no_doubt,
) -> tuple[dict[str, tuple[Treatment, ...]], tuple[Dropped, ...]]:
    """Returns the treatments on offer per layer, and the options that fell away with the reason.

    Args:
        layers: the layers of the model.
        rules: in the order of the spec; the last rule that matches a layer and says something wins.
        why_not: what the target says of (option, layer kind).
        is_default: the rules are not the user's own, so nothing in them is an error.
        why_slow: what measurements say of (option, layer); rules with ``force`` do not ask. A layer never loses its
            last option to it: who offers one thing only means it.

    Raises:
        SpecError: a rule matches no layer, or offers an option that none of its layers can take.
    """
    chosen: dict[str, Rule] = {}
    for position, rule in enumerate(rules):
        matched = [layer for layer in layers if rule.matches(layer)]
        if not is_default:
            _check_rule(position, rule, matched, layers)
            _check_options(position, rule, matched, why_not)
        if rule.quantize is not None:
            chosen.update({layer.name: rule for layer in matched})
    options: dict[str, tuple[Treatment, ...]] = {}
    dropped: list[Dropped] = []
    for layer in layers:
        offered = chosen[layer.name].quantize or () if layer.name in chosen else ()
        refused = {option: reason for option in offered if (reason := why_not(option, layer.kind)) is not None}
        able = [option for option in offered if option not in refused]
        if layer.name in chosen and not chosen[layer.name].force:
            slow = {option: reason for option in able if (reason := why_slow(option, layer)) is not None}
            refused |= slow if len(slow) < len(able) else {}
        dropped += [Dropped(layer.name, option, reason) for option, reason in refused.items()]
        kept = [QUANTIZE_OPTIONS[option] for option in offered if option not in refused]
        options[layer.name] = tuple(kept) or (Treatment(),)
    return options, tuple(dropped)


def tie_layers(layers: Sequence[Layer]) -> tuple[Group, ...]:
    """Returns the groups: layers stored from one torch parameter (``name``, ``name#2`` …) are treated alike."""
    members: dict[str, list[str]] = {}
    for layer in layers:
        members.setdefault(layer.name.partition("#")[0], []).append(layer.name)
    return tuple(Group(name, tuple(names)) for name, names in members.items())


def _check_rule(position: int, rule: Rule, matched: Sequence[Layer], layers: Sequence[Layer]) -> None:
    if matched:
        return
    kinds = sorted({layer.kind for layer in layers})
    if rule.layers.startswith("kind:") and rule.layers.removeprefix("kind:") not in LAYER_KINDS:
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
    for option in rule.quantize or ():
        reasons = {layer.kind: why_not(option, layer.kind) for layer in matched}
        if all(reason is not None for reason in reasons.values()):
            raise SpecError(
                f"space.{position}.quantize: {option} cannot be used on any layer that '{rule.layers}' matches: "
                f"{'; '.join(str(reason) for reason in reasons.values())}; remove it, or choose another target"
            )

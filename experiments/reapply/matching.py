"""Which layer of a model is which layer of the one that a policy was found for."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ...core.errors import PolicyError, SpecError
from ...core.names import describe_unknown
from ...spaces.layer import Layer
from .alignment import Gains, align

#: how far a model may differ: not at all, in the names of its layers, or in the layers themselves
MATCHES = ("exact", "renamed", "changed")

#: what speaks for a pair: same weight shape, names that share words, the same neighbours before and behind
_SAME_SHAPE, _SAME_WORDS, _SAME_NEIGHBOUR = 2.0, 2.0, 0.5
#: what any pair of one kind is worth
_SAME_KIND = 1.0
#: names that an error lists
_N_NAMED = 5


@dataclass(frozen=True)
class Matching:
    """Pairs of layers, and what has no partner.

    >>> Matching({"fc": "head.fc"}).is_identity
    False
    """

    #: layer of the policy's model → layer of this model, in the order of the policy's model
    pairs: Mapping[str, str]
    #: layers of the policy's model that this one lacks
    missing: tuple[str, ...] = ()
    #: layers of this model that the policy's lacks
    added: tuple[str, ...] = ()
    #: layer of the policy's model → layers of this one that it may be, where no one of them is the likeliest
    ambiguous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: layers of the policy's model whose partner has a weight of another shape
    reshaped: tuple[str, ...] = ()

    @property
    def is_identity(self) -> bool:
        """Whether every layer has itself as its partner, and its shape."""
        same = all(old == new for old, new in self.pairs.items())
        return same and not (self.missing or self.added or self.ambiguous or self.reshaped)

    @property
    def lines(self) -> tuple[str, ...]:
        """What a person has to know: one line for each layer that is not as it was."""
        return tuple(self._describe())

    def _describe(self) -> Iterator[str]:
        for old, new in self.pairs.items():
            note = " (another shape)" if old in self.reshaped else ""
            if old != new or note:
                yield f"{old} → {new}{note}"
        for old, candidates in self.ambiguous.items():
            yield f"{old} → none: it may be {' or '.join(candidates)}"
        yield from (f"{old} → none: this model has no such layer" for old in self.missing)
        yield from (f"none → {new}: new, stays untreated" for new in self.added)


def match_layers(wanted: Sequence[Layer], layers: Sequence[Layer], *, match: str) -> Matching:
    """Finds the partner of each layer: by its name, by its name but for a common prefix, then by structure.

    Structure is kind, weight shape, order in the graph, neighbours that are known already, and words that the names
    share; of all ways to pair the layers in their order, the one for which most speaks is taken. A pair is ambiguous
    where another way is as good.

    Args:
        wanted: of the model that the policy was found for, in the order of its graph.
        layers: of this model, likewise.
        match: ``exact`` takes equal names, kinds and shapes only; ``renamed`` other names, ``changed`` other layers,
            too.

    Raises:
        PolicyError: what ``match`` does not allow; the message names the layers and the way out.
        SpecError: ``match`` is not known.
    """
    if match not in MATCHES:
        raise SpecError(describe_unknown("match", match, MATCHES))
    found = _match(wanted, layers, may_change=match == "changed")
    if match == "exact" and not found.is_identity:
        raise PolicyError(_refuse_exact(wanted, layers, found))
    if match == "renamed":
        _check_renamed(wanted, layers, found)
    return found


def _match(wanted: Sequence[Layer], layers: Sequence[Layer], *, may_change: bool) -> Matching:
    pairs = _by_name(wanted, layers, may_change=may_change)
    taken = set(pairs.values())
    old = [layer for layer in wanted if layer.name not in pairs]
    new = [layer for layer in layers if layer.name not in taken]
    aligned = align(_gains(old, new, (wanted, layers, pairs), may_change=may_change), may_skip=may_change)
    pairs |= {old[i].name: new[j].name for i, j in aligned.pairs.items()}
    taken |= set(pairs.values())
    ambiguous = {old[i].name: tuple(new[j].name for j in js) for i, js in aligned.ambiguous.items()}
    shapes = {layer.name: layer.weight_shape for layer in layers}
    return Matching(
        pairs={layer.name: pairs[layer.name] for layer in wanted if layer.name in pairs},
        missing=tuple(layer.name for layer in wanted if layer.name not in pairs and layer.name not in ambiguous),
        added=tuple(layer.name for layer in layers if layer.name not in taken),
        ambiguous=ambiguous,
        reshaped=tuple(w.name for w in wanted if w.name in pairs and shapes[pairs[w.name]] != w.weight_shape),
    )


def _by_name(wanted: Sequence[Layer], layers: Sequence[Layer], *, may_change: bool) -> dict[str, str]:
    """Pairs equal names, then names that are equal but for the one prefix that explains most of them."""
    by_name = {layer.name: layer for layer in layers}
    pairs = {w.name: w.name for w in wanted if w.name in by_name and _fit(w, by_name[w.name], may_change=may_change)}
    rest = [w for w in wanted if w.name not in pairs]
    rename = _common_prefix(rest, [layer for layer in layers if layer.name not in pairs.values()])
    for layer in rest:
        name = rename(layer.name)
        if name in by_name and name not in pairs.values() and _fit(layer, by_name[name], may_change=may_change):
            pairs[layer.name] = name
    return pairs


class _Prefix:
    """Puts a prefix before names, or takes one away."""

    def __init__(self, added: str = "", removed: str = "") -> None:
        self.added, self.removed = added, removed

    def __call__(self, name: str) -> str:
        return f"{self.added}{name.removeprefix(self.removed)}"


def _common_prefix(wanted: Sequence[Layer], layers: Sequence[Layer]) -> _Prefix:
    """Returns the prefix by which most names differ; it must explain more than half of them."""
    counts: Counter[tuple[str, str]] = Counter()
    for old in wanted:
        for new in layers:
            if new.name.endswith(f".{old.name}"):
                counts[new.name.removesuffix(old.name), ""] += 1
            elif old.name.endswith(f".{new.name}"):
                counts["", old.name.removesuffix(new.name)] += 1
    if not counts:
        return _Prefix()
    (added, removed), n = counts.most_common(1)[0]
    return _Prefix(added, removed) if 2 * n > len(wanted) else _Prefix()


def _fit(old: Layer, new: Layer, *, may_change: bool) -> bool:
    """Whether a layer may be another at all."""
    if old.kind != new.kind or len(old.weight_shape) != len(new.weight_shape):
        return False
    return may_change or old.weight_shape == new.weight_shape


def _gains(
    old: Sequence[Layer],
    new: Sequence[Layer],
    known: tuple[Sequence[Layer], Sequence[Layer], Mapping[str, str]],
    *,
    may_change: bool,
) -> Gains:
    """Returns what speaks for each pair of those that have no partner yet; None where it is out of the question."""
    wanted, layers, pairs = known
    partners = {new_name: old_name for old_name, new_name in pairs.items()}
    around_old = _neighbours(wanted, dict.fromkeys(pairs, "") | {name: name for name in pairs})
    around_new = _neighbours(layers, partners)
    return [[_gain(a, b, (around_old[a.name], around_new[b.name])) if _fit(a, b, may_change=may_change) else None
             for b in new] for a in old]  # fmt: skip


def _gain(old: Layer, new: Layer, around: tuple[tuple[str, str], tuple[str, str]]) -> float:
    shared = sum(_SAME_NEIGHBOUR for a, b in zip(*around, strict=True) if a == b)
    shape = _SAME_SHAPE if old.weight_shape == new.weight_shape else 0.0
    return _SAME_KIND + shape + shared + _SAME_WORDS * _likeness(old.name, new.name)


def _neighbours(layers: Sequence[Layer], known: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Returns layer → the nearest known layers before and behind it, by the names of the policy's model."""
    before, last = {}, "the start"
    for layer in layers:
        before[layer.name] = last
        last = known.get(layer.name, last)
    behind, last = {}, "the end"
    for layer in reversed(layers):
        behind[layer.name] = last
        last = known.get(layer.name, last)
    return {layer.name: (before[layer.name], behind[layer.name]) for layer in layers}


def _words(name: str) -> frozenset[str]:
    return frozenset(re.split(r"[._/#:]+", name.lower()))


def _likeness(old: str, new: str) -> float:
    """Returns the share of words that two names have in common, 0 to 1."""
    a, b = _words(old), _words(new)
    return len(a & b) / len(a | b)


def _check_renamed(wanted: Sequence[Layer], layers: Sequence[Layer], found: Matching) -> None:
    """Refuses what is more than other names.

    Raises:
        PolicyError: a layer has no partner, or more than one, or the order speaks against the names.
    """
    if found.ambiguous:
        name, candidates = next(iter(found.ambiguous.items()))
        raise PolicyError(f"layers cannot be matched: {name} may be {' or '.join(candidates)}; rename them alike, or "
                          f"leave such layers untreated with --match changed")  # fmt: skip
    if found.missing or found.added:
        raise PolicyError(f"the model differs in more than names: {_differences(found)}; --match changed drops the "
                          f"treatments of missing layers and leaves new ones untreated")  # fmt: skip
    crossed = _crossed(wanted, layers, found)
    if crossed:
        raise PolicyError(f"layers cannot be matched: by their names and by their order in the graph "
                          f"{' and '.join(crossed)} have other partners; rename them alike")  # fmt: skip


def _crossed(wanted: Sequence[Layer], layers: Sequence[Layer], found: Matching) -> tuple[str, ...]:
    """Returns two layers, one of them paired by its place, whose places say one thing and whose names another."""
    here = {layer.name: place for place, layer in enumerate(layers)}
    there = {layer.name: place for place, layer in enumerate(wanted)}
    for a in (layer for layer in wanted if not _ends_alike(layer.name, found.pairs[layer.name])):
        for b in (layer for layer in wanted if layer is not a and _fit(a, layer, may_change=False)):
            partners = found.pairs[a.name], found.pairs[b.name]
            is_turned = (here[partners[0]] < here[partners[1]]) != (there[a.name] < there[b.name])
            names_turn = _last(a.name) != _last(b.name) and (_last(a.name), _last(b.name)) == (
                _last(partners[1]), _last(partners[0])
            )  # fmt: skip
            if is_turned or names_turn:
                return a.name, b.name
    return ()


def _ends_alike(old: str, new: str) -> bool:
    return old == new or old.endswith(f".{new}") or new.endswith(f".{old}")


def _last(name: str) -> str:
    return re.split(r"[._/]+", name)[-1]


def _refuse_exact(wanted: Sequence[Layer], layers: Sequence[Layer], found: Matching) -> str:
    """Says what differs, and which match would do."""
    have = {layer.name: layer for layer in layers}
    want = {layer.name: layer for layer in wanted}
    other = [n for n in want if n in have and not _fit(want[n], have[n], may_change=False)]
    parts = [
        *_list("the model lacks", sorted(set(want) - set(have))),
        *_list("the policy does not know", sorted(set(have) - set(want))),
        *(f"{n} is {_shape(have[n])}, the policy wants {_shape(want[n])}" for n in sorted(other)[:_N_NAMED]),
    ]
    return f"the policy does not fit this model: {'; '.join(parts)}; {_way_out(wanted, layers, found)}"


def _way_out(wanted: Sequence[Layer], layers: Sequence[Layer], found: Matching) -> str:
    try:
        _check_renamed(wanted, layers, found)
    except PolicyError:
        return "if it is the same model with other layers, --match changed treats those that are still there"
    return "the layers are the same but for their names: --match renamed"


def _differences(found: Matching) -> str:
    parts = [*_list("it lacks", found.missing), *_list("it has besides", found.added)]
    return "; ".join(parts)


def _list(verb: str, names: Sequence[str]) -> list[str]:
    more = f" and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""
    return [f"{verb} {', '.join(names[:_N_NAMED])}{more}"] if names else []


def _shape(layer: Layer) -> str:
    return f"{layer.kind} {'×'.join(map(str, layer.weight_shape))}"

"""The space: the treatments on offer per group, and the choices for the whole graph."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..core.errors import PolicyError
from .layer import Group
from .policy import GraphTreatment, Policy
from .recovery import Recovery
from .treatment import Treatment


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """The alternatives on offer for each graph-wide choice; the first of each is the default."""

    fusion: tuple[str, ...] = ("none",)
    calibration: tuple[str, ...] = ("minmax",)
    quantized_ops: tuple[tuple[str, ...], ...] = ((),)
    precision: tuple[str, ...] = ("float32",)
    rounding: tuple[str, ...] = ("nearest",)
    equalization: tuple[str, ...] = ("none",)
    correction: tuple[str, ...] = ("none",)
    #: what may be trained afterwards
    recovery: tuple[Recovery, ...] = (Recovery(),)


@dataclass(frozen=True)
class Space:
    """An ordered choice per group, then the graph-wide choices.

    Encoded as an integer vector: one entry a group (index of its treatment), then one for each field of
    `GraphOptions`. Several vectors may mean one policy (see `Policy`); `size` counts policies.

    >>> space = Space((Group("fc", ("fc",)),), ((Treatment(), Treatment(weight_dtype="int8")),), GraphOptions())
    >>> space.size
    2
    """

    groups: tuple[Group, ...]
    options: tuple[tuple[Treatment, ...], ...]
    graph: GraphOptions

    @cached_property
    def dimensions(self) -> dict[str, int]:
        """Name → number of alternatives, in the order of the vector; what Optuna is given."""
        names = {f"group:{group.name}": len(options) for group, options in zip(self.groups, self.options, strict=True)}
        graph = {f"graph:{name}": len(getattr(self.graph, name)) for name in _GRAPH_CHOICES}
        return {**names, **graph}

    @cached_property
    def size(self) -> int:
        """The number of different policies."""
        every = math.prod(len(options) for options in self.options)
        not_static = math.prod(sum(not option.is_static for option in options) for options in self.options)
        plain = [[option for option in options if not option.is_quantized] for options in self.options]
        not_quantized = math.prod(len(options) for options in plain)
        neither = math.prod(sum(not option.is_static for option in options) for options in plain)
        untouched = math.prod(options.count(Treatment()) for options in self.options)
        choices = {name: len(set(getattr(self.graph, name))) for name in _GRAPH_CHOICES}
        static = choices["calibration"] * len({tuple(sorted(ops)) for ops in self.graph.quantized_ops})
        quantized = choices["rounding"] * choices["equalization"] * choices["correction"]
        both = every - not_static - not_quantized + neither
        treated = (
            neither - untouched
            + (not_static - neither) * quantized
            + (not_quantized - neither) * static
            + both * static * quantized
        )  # fmt: skip
        return choices["fusion"] * choices["precision"] * (untouched + treated * choices["recovery"])

    def decode(self, vector: Sequence[int] | np.ndarray) -> Policy:
        """Returns the policy of a vector.

        Args:
            vector: (n_dimensions,) int, each within its dimension.

        Raises:
            PolicyError: an entry is out of range or the length is wrong.
        """
        sizes = list(self.dimensions.values())
        entries = [int(entry) for entry in vector]
        if len(entries) != len(sizes) or any(not 0 <= e < n for e, n in zip(entries, sizes, strict=True)):
            raise PolicyError(f"a vector must have {len(sizes)} entries within {sizes}, got {entries}")
        n_groups = len(self.groups)
        chosen = {g.name: o[e] for g, o, e in zip(self.groups, self.options, entries[:n_groups], strict=True)}
        graph = {name: getattr(self.graph, name)[e] for name, e in zip(_GRAPH_CHOICES, entries[n_groups:], strict=True)}
        recovery = graph.pop("recovery")
        return Policy(chosen, GraphTreatment(**graph), recovery)

    def encode(self, policy: Policy) -> np.ndarray:
        """Returns the vector of a policy: (n_dimensions,) int64. Inverse of `decode`.

        Graph choices that have no effect in the policy are encoded as their first alternative.

        Raises:
            PolicyError: the policy is not in this space; the message names the group.
        """
        chosen = dict(policy.groups)
        unknown = sorted(set(chosen) - {group.name for group in self.groups})
        if unknown:
            raise PolicyError(f"the space has no group {', '.join(unknown)}")
        entries = [
            _index(options, chosen.get(group.name, Treatment()), f"group {group.name}")
            for group, options in zip(self.groups, self.options, strict=True)
        ]
        has_static = any(treatment.is_static for treatment in chosen.values())
        has_quantized = any(treatment.is_quantized for treatment in chosen.values())
        idle = {*(() if has_static else _STATIC_CHOICES), *(() if has_quantized else _QUANTIZED_CHOICES)}
        for name in _GRAPH_CHOICES:
            if name in idle or (name == "recovery" and not chosen):
                entries.append(0)
            elif name == "recovery":
                entries.append(_index(self.graph.recovery, policy.recovery, name))
            elif name == "quantized_ops":
                alternatives = [tuple(sorted(set(ops))) for ops in self.graph.quantized_ops]
                entries.append(_index(alternatives, policy.graph.quantized_ops, name))
            else:
                entries.append(_index(getattr(self.graph, name), getattr(policy.graph, name), name))
        return np.array(entries, dtype=np.int64)

    def canonical(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n, n_dimensions) int64: of each policy the vector that `encode` gives.

        Args:
            vectors: (n, n_dimensions) integers, each within its dimension.
        """
        found = np.array(vectors, np.int64)
        n_groups = len(self.groups)
        is_static = self._any_group(found, lambda option: option.is_static)
        is_quantized = self._any_group(found, lambda option: option.is_quantized)
        is_treated = self._any_group(found, lambda option: option != _DEFAULT)
        for position, name in enumerate(_GRAPH_CHOICES, n_groups):
            for names, is_used in ((_STATIC_CHOICES, is_static), (_QUANTIZED_CHOICES, is_quantized)):
                if name in names:
                    found[~is_used, position] = 0
            if name == "quantized_ops":  # alternatives that differ in their order only are one
                alternatives = [tuple(sorted(set(ops))) for ops in self.graph.quantized_ops]
                found[:, position] = np.array([alternatives.index(ops) for ops in alternatives])[found[:, position]]
            if name == "recovery":
                found[~is_treated, position] = 0
        return found

    def _any_group(self, vectors: np.ndarray, holds: Callable[[Treatment], bool]) -> np.ndarray:
        """Returns (n,) bool: whether some group's option has a property."""
        found = np.zeros(len(vectors), bool)
        for group, options in enumerate(self.options):
            found |= np.array([holds(option) for option in options])[vectors[:, group]]
        return found

    def contains(self, policy: Policy) -> bool:
        """Whether the policy can be made from this space."""
        try:
            self.encode(policy)
        except PolicyError:
            return False
        return True

    def sample(self, rng: np.random.Generator) -> Policy:
        """Draws every choice independently and uniformly."""
        return self.decode(rng.integers(0, list(self.dimensions.values())))

    def neighbours(self, policy: Policy) -> Iterator[Policy]:
        """Yields every other policy that differs in one choice, each once, in the order of the vector."""
        start = self.encode(policy)
        seen = {policy}
        for position, n_alternatives in enumerate(self.dimensions.values()):
            for entry in range(n_alternatives):
                vector = start.copy()
                vector[position] = entry
                neighbour = self.decode(vector)
                if neighbour not in seen:
                    seen.add(neighbour)
                    yield neighbour

    def uniform(
        self, treatment: Treatment, graph: GraphTreatment | None = None, recovery: Recovery | None = None
    ) -> Policy:
        """Gives the treatment to every group that offers it and leaves the others untouched."""
        chosen = {g.name: treatment for g, o in zip(self.groups, self.options, strict=True) if treatment in o}
        return Policy(chosen, graph or self.default_graph, recovery)

    @cached_property
    def default_graph(self) -> GraphTreatment:
        """The first alternative of each graph-wide choice."""
        return GraphTreatment(**{name: getattr(self.graph, name)[0] for name in _GRAPH_CHOICES if name != "recovery"})

    def layer_treatments(self, policy: Policy) -> dict[str, Treatment]:
        """Returns name → treatment of the layers, and of the structures, that are not left as they are."""
        return spread_groups(self.groups, policy)


def build_space(groups: Sequence[Group], options: Mapping[str, Sequence[Treatment]], graph: GraphOptions) -> Space:
    """Makes a space from the options on offer per layer: a group offers what all of its layers offer."""
    per_group = []
    for group in groups:
        if group.kind != "layers":
            per_group.append(tuple(dict.fromkeys(options[group.name])))
            continue
        shared = [o for o in options[group.layers[0]] if all(o in options[layer] for layer in group.layers)]
        per_group.append(tuple(dict.fromkeys(shared)) or (Treatment(),))
    return Space(tuple(groups), tuple(per_group), graph)


def spread_groups(groups: Sequence[Group], policy: Policy) -> dict[str, Treatment]:
    """Returns name → treatment of the layers, and of the structures, that a policy does not leave as they are."""
    members = {group.name: group.members for group in groups}
    return {name: treatment for group, treatment in policy.groups for name in members[group]}


_DEFAULT = Treatment()
_GRAPH_CHOICES = (
    "fusion", "calibration", "quantized_ops", "precision", "rounding", "equalization", "correction", "recovery"
)  # fmt: skip
_STATIC_CHOICES = ("calibration", "quantized_ops")
_QUANTIZED_CHOICES = ("rounding", "equalization", "correction")


def _index(alternatives: Sequence[object], value: object, where: str) -> int:
    if value not in alternatives:
        raise PolicyError(f"{where} does not offer {getattr(value, 'label', value)}")
    return list(alternatives).index(value)

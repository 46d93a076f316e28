"""Edges between groups: pairs and chains whose treatments share kernels in the lowered graph."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product

import onnx
import onnx_ir as ir

from ..hw_profiles.surrogate.surrogate_terms import Edges
from ..spaces.layer import Group
from .prepared import PreparedModel

#: Nodes with several computed inputs that may stand between the two ends of an edge. A residual stream runs through
#: every block of a network; with 1 an edge reaches over one addition and ends there.
MAX_JOINS = 1

#: group index → the fewest joins between it and a value
_Reach = dict[int, int]


def find_edges(prepared: PreparedModel, groups: Sequence[Group], *, max_joins: int = MAX_JOINS) -> Edges:
    """Returns which groups share kernels in a model, and which are alike; see `edges_of_graph`."""
    model: ir.Model = ir.from_proto(onnx.load_model_from_string(prepared.variants["none"]))
    edges = edges_of_graph(model.graph, groups, max_joins=max_joins)
    shapes = {layer.name: (layer.kind, layer.weight_shape, layer.output_shape) for layer in prepared.layers}
    return replace(edges, labels=tuple(tuple(shapes[layer] for layer in group.layers) for group in groups))


def edges_of_graph(graph: ir.Graph, groups: Sequence[Group], *, max_joins: int = MAX_JOINS) -> Edges:
    """Returns pairs of positions in ``groups``, nearest pairs first, and the chains of three.

    Two groups are adjacent in one of three ways, each with only nodes without a weight of their own in between:

    - one produces what the other consumes: between int8 and float stands a quantize, dequantize or layout kernel;
    - both consume one value (query, key and value): they share the kernel that quantises it;
    - a node joins what both produce (a residual addition): its kernel depends on what arrives.

    A join is a node in which values of different layers meet; up to ``max_joins`` of them may lie between. A chain is
    a group with two others that are adjacent to it without a join.

    Args:
        graph: a float graph whose layer weights are called ``<layer>.weight``, as in a base graph.
        groups: the groups of the space, in its order.
        max_joins: the joins that an edge reaches over.
    """
    owners = {f"{layer}.weight": i for i, group in enumerate(groups) for layer in group.layers}
    found: dict[tuple[int, int], int] = {}
    for first, second, n_joins in _Walk(graph, owners, max_joins).pairs():
        key = (min(first, second), max(first, second))
        if first != second and n_joins <= max_joins:
            found[key] = min(n_joins, found.get(key, n_joins))
    pairs = tuple(sorted(found, key=lambda pair: (found[pair], pair)))
    return Edges(pairs, _chains([pair for pair in pairs if found[pair] == 0]))


def _chains(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int, int], ...]:
    adjacent: dict[int, set[int]] = {}
    for first, second in pairs:
        adjacent.setdefault(first, set()).add(second)
        adjacent.setdefault(second, set()).add(first)
    chains = {_ascending(middle, *ends) for middle in adjacent for ends in combinations(adjacent[middle], 2)}
    return tuple(sorted(chains))


def _ascending(*groups: int) -> tuple[int, int, int]:
    first, second, third = sorted(groups)
    return first, second, third


class _Walk:
    """Which groups reach a value from above and from below, and over how many joins."""

    def __init__(self, graph: ir.Graph, owners: Mapping[str, int], max_joins: int) -> None:
        self._nodes = list(graph)
        self._owners = owners
        self._max_joins = max_joins
        self._producers: dict[ir.Value, _Reach] = {}
        self._consumers: dict[ir.Value, _Reach] = {}
        #: value → every layer that it comes from, however many joins ago
        self._origins: dict[ir.Value, frozenset[int]] = {}
        for node in self._nodes:
            self._note_producers(node)
        for node in reversed(self._nodes):
            self._note_consumers(node)

    def pairs(self) -> Iterator[tuple[int, int, int]]:
        """Yields (group, group, joins between them)."""
        for value in dict.fromkeys((*self._producers, *self._consumers)):
            above, below = self._producers.get(value, {}), self._consumers.get(value, {})
            for (first, n), (second, m) in product(above.items(), below.items()):
                yield first, second, n + m
            for (first, n), (second, m) in combinations(below.items(), 2):
                yield first, second, n + m
        for node in self._nodes:
            inputs = self._computed(node)
            if self._owner(node) is None and len(inputs) > 1:
                for left, right in combinations(inputs, 2):
                    above, other = self._producers.get(left, {}), self._producers.get(right, {})
                    for (first, n), (second, m) in product(above.items(), other.items()):
                        yield first, second, n + m + 1

    def _owner(self, node: ir.Node) -> int | None:
        names = (str(value.name) for value in node.inputs if value is not None)
        return next((self._owners[name] for name in names if name in self._owners), None)

    def _computed(self, node: ir.Node) -> list[ir.Value]:
        """The inputs that depend on the model's own inputs, each once."""
        values = dict.fromkeys(value for value in node.inputs if value is not None)
        return [v for v in values if v.producer() is not None or (v.is_graph_input() and not v.is_initializer())]

    def _cost(self, node: ir.Node) -> int:
        """1 where values of different layers meet; a mask, or a value and its own mean, join nothing."""
        origins = {self._origins.get(value, frozenset()) for value in self._computed(node)} - {frozenset()}
        return int(len(origins) > 1)

    def _note_producers(self, node: ir.Node) -> None:
        owner = self._owner(node)
        reach: _Reach = {} if owner is None else {owner: 0}
        origins = frozenset(reach)
        if owner is None:
            cost = self._cost(node)
            for value in self._computed(node):
                _merge(reach, self._producers.get(value, {}), cost)
                origins |= self._origins.get(value, frozenset())
        for output in node.outputs:
            self._producers[output] = self._near(reach)
            self._origins[output] = origins

    def _note_consumers(self, node: ir.Node) -> None:
        owner = self._owner(node)
        reach: _Reach = {} if owner is None else {owner: 0}
        if owner is None:
            cost = self._cost(node)
            for output in node.outputs:
                _merge(reach, self._consumers.get(output, {}), cost)
        for value in self._computed(node):
            _merge(self._consumers.setdefault(value, {}), self._near(reach), 0)

    def _near(self, reach: _Reach) -> _Reach:
        return {group: n for group, n in reach.items() if n <= self._max_joins}


def _merge(into: _Reach, other: _Reach, cost: int) -> None:
    for group, n_joins in other.items():
        into[group] = min(n_joins + cost, into.get(group, n_joins + cost))

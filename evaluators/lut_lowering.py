"""A declared fusion rule applied to an ONNX graph: what a device without a runtime here would make of it.

Every node is covered once: it is part of one kernel, or it is free. Free are the operators that the rule calls so,
what depends on constants alone, and dequantisations that integer kernels do themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..hw_profiles.boards.fusion_rule import FusionRule, Pattern, Stage
from ..hw_profiles.kernels.chain_kernel import is_counted, make_chain_kernel
from ..hw_profiles.kernels.kernel import LoweredGraph, Step, Tensor
from .graph_values import DEQUANTIZE, QUANTIZE, GraphValues, Node


@dataclass(frozen=True)
class Lowering:
    """A lowered graph, and what became of each node."""

    graph: LoweredGraph
    #: per step, the indices of its nodes
    members: tuple[tuple[int, ...], ...]
    #: the indices of nodes that cost nothing
    free: frozenset[int]


def lower_by_rule(model: bytes, rule: FusionRule, *, batch_size: int, precision: str = "float32") -> Lowering:
    """Lowers a model by a rule.

    Args:
        model: a serialised ONNX model.
        rule: what the device fuses.
        batch_size: for inputs whose first side is open.
        precision: the dtype in which float32 values are held.

    Raises:
        MeasurementError: the model cannot be read, or a shape is not known; the message names the node.
    """
    values = GraphValues(model, rule, batch_size=batch_size, precision=precision)
    return _Lowerer(values, rule).lower()


@dataclass(frozen=True)
class _Chain:
    """The nodes of one kernel, in their order."""

    nodes: tuple[Node, ...]
    #: values whose dequantisation the kernel does itself
    absorbed: frozenset[str] = frozenset()
    #: the QuantizeLinear that the kernel does itself
    quantize: Node | None = None
    #: the device quantises constant weights when it loads the model
    quantizes_weights: bool = False

    @property
    def members(self) -> frozenset[int]:
        return frozenset(node.index for node in (*self.nodes, *([self.quantize] if self.quantize else [])))


class _Lowerer:
    def __init__(self, values: GraphValues, rule: FusionRule) -> None:
        self._values, self._rule = values, rule
        self._claimed: set[int] = set()

    def lower(self) -> Lowering:
        chains = [self._resolve_integers(nodes) for nodes in self._find_chains()]
        taken = {chain.quantize.index for chain in chains if chain.quantize}
        quantizes = [_Chain((node,)) for node in self._of(QUANTIZE) if node.index not in taken]
        needed = {name for chain in (*chains, *quantizes) for name in self._read_as_floats(chain)} | self._values.kept
        free = set(self._values.free)
        for node in self._of(DEQUANTIZE):
            if self._values.root(node.outputs[0]) in needed:
                quantizes.append(_Chain((node,)))
            else:
                free.add(node.index)
        ordered = sorted((*chains, *quantizes), key=lambda chain: chain.nodes[0].index)
        graph = LoweredGraph(
            steps=tuple(self._step(chain) for chain in ordered),
            inputs={name: self._values.tensor(name) for name in self._values.inputs},
            outputs=tuple(self._values.root(name) for name in self._values.outputs),
        )
        return Lowering(graph, tuple(tuple(sorted(chain.members)) for chain in ordered), frozenset(free))

    def _of(self, op: str) -> list[Node]:
        return [node for node in self._values.nodes if node.op == op and node.index not in self._values.free]

    # -- chains -----------------------------------------------------------------------------------

    def _find_chains(self) -> Iterator[tuple[Node, ...]]:
        """Yields the nodes of each kernel: patterns in their order, then what no pattern took."""
        self._claimed = {*self._values.free, *(node.index for op in (QUANTIZE, DEQUANTIZE) for node in self._of(op))}
        for pattern in (*self._rule.patterns, None):
            for node in self._values.nodes:
                chain = self._match(node, pattern) if node.index not in self._claimed else None
                if chain:
                    self._claimed.update(member.index for member in chain)
                    yield chain

    def _match(self, node: Node, pattern: Pattern | None) -> tuple[Node, ...] | None:
        if pattern is None:
            return (node,)
        if node.op not in pattern.stages[0].operators:
            return None
        return self._extend((node,), pattern.stages[1:])

    def _extend(self, chain: tuple[Node, ...], stages: Sequence[Stage]) -> tuple[Node, ...] | None:
        """Returns the chain with as many of the stages as fit, early ones first; None where one is missing."""
        if not stages:
            return chain if self._is_closed(chain) else None
        for node in self._values.readers.get(self._values.root(chain[-1].outputs[0]), ()):
            if node.op in stages[0].operators and self._may_join(node, chain):
                found = self._extend((*chain, node), stages[1:])
                if found:
                    return found
        return self._extend(chain, stages[1:]) if stages[0].is_optional else None

    def _may_join(self, node: Node, chain: tuple[Node, ...]) -> bool:
        """Whether all else that a node reads is there before the chain begins, so that it can be done in its kernel."""
        members = {member.index for member in chain}
        producers = [self._values.producer(name) for name in node.inputs if name and not self._values.is_constant(name)]
        return node.index not in self._claimed | members and all(
            producer is None or producer.index in members or producer.index < chain[0].index for producer in producers
        )

    def _is_closed(self, chain: tuple[Node, ...]) -> bool:
        """Whether nobody outside reads what the chain computes on its way."""
        members = frozenset(node.index for node in chain)
        return all(self._values.is_private(name, members) for node in chain[:-1] for name in node.outputs if name)

    # -- integers ---------------------------------------------------------------------------------

    def _resolve_integers(self, nodes: tuple[Node, ...]) -> _Chain:
        """Decides whether a kernel runs as integers, and which conversions it then does itself."""
        need = self._rule.integer_need([node.op for node in nodes])
        if need == "never":
            return _Chain(nodes)
        anchor = [name for name in nodes[0].inputs if name and self._is_large(name)]
        live = [name for name in anchor if not self._is_weight(name)]
        weights = [name for name in anchor if self._is_weight(name)]
        has_weights = all(map(self._is_dequantized, weights))
        others = [name for node in nodes[1:] for name in node.inputs if name and self._is_operand(name, nodes)]
        has_live = bool(live) and all(map(self._is_dequantized, (*live, *others)))
        reader = self._values.sole_reader(nodes[-1].outputs[0])
        quantize = reader if reader is not None and reader.op == QUANTIZE and has_live else None
        fits = {
            "weight": has_weights and bool(weights),
            "inputs": has_weights and has_live,
            "activations": quantize is not None,
            "all": has_weights and quantize is not None,
        }
        if not fits[need]:
            return _Chain(nodes)
        every = [name for node in nodes for name in node.inputs if name and self._is_dequantized(name)]
        absorbed = frozenset(name for name in every if has_live or self._is_weight(name))
        return _Chain(nodes, absorbed, quantize, quantizes_weights=need == "activations" and bool(weights))

    def _is_operand(self, name: str, nodes: tuple[Node, ...]) -> bool:
        """Whether a chain reads a value from outside that is computed while the model runs."""
        producer = self._values.producer(name)
        return not self._is_weight(name) and producer not in nodes

    def _is_large(self, name: str) -> bool:
        return not self._is_weight(name) or is_counted(self._values.tensor(name))

    def _is_weight(self, name: str) -> bool:
        """Whether a value is constant, or made of a constant by a dequantisation."""
        node = self._values.producer(name)
        is_unpacked = node is not None and node.op == DEQUANTIZE and self._values.is_constant(node.inputs[0])
        return is_unpacked or self._values.is_constant(name)

    def _is_dequantized(self, name: str) -> bool:
        node = self._values.producer(name)
        return node is not None and node.op == DEQUANTIZE

    def _read_as_floats(self, chain: _Chain) -> Iterator[str]:
        for node in chain.nodes:
            yield from (self._values.root(name) for name in node.inputs if name and name not in chain.absorbed)

    # -- kernels ----------------------------------------------------------------------------------

    def _step(self, chain: _Chain) -> Step:
        made = {self._values.root(name) for node in chain.nodes for name in node.outputs if name}
        read = [
            self._read(name, chain)
            for node in chain.nodes
            for name in node.inputs
            if name and self._values.root(name) not in made
        ]
        counted = [(name, tensor) for name, tensor in read if is_counted(tensor)]
        written = [name for name in (chain.quantize or chain.nodes[-1]).outputs if name]
        kernel = make_chain_kernel(
            [node.op for node in chain.nodes],
            [tensor for _, tensor in counted],
            [self._values.tensor(name) for name in written],
            self._values.attributes(chain.nodes[0]),
        )
        return Step(chain.nodes[0].name, kernel, tuple(name for name, _ in counted), tuple(written))

    def _read(self, name: str, chain: _Chain) -> tuple[str, Tensor]:
        """Returns the value that is really read (empty for constants) and its tensor, with the shape that is seen."""
        producer = self._values.producer(name)
        if name not in chain.absorbed or producer is None:
            tensor = self._values.tensor(name)
            if chain.quantizes_weights and tensor.is_constant and name in chain.nodes[0].inputs:
                tensor = replace(tensor, dtype="int8")
            return "" if tensor.is_constant else self._values.root(name), tensor
        source = self._values.tensor(producer.inputs[0])
        tensor = Tensor(source.dtype, self._values.tensor(name).shape, source.is_constant)
        return "" if source.is_constant else self._values.root(producer.inputs[0]), tensor

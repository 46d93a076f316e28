"""Steps and values of a float graph: what works in place behind a node, or only renames its output, belongs to it."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ..compressors.graph import weight_of
from .activation_flow import IN_PLACE, VIEWS, Flow, FlowStep, HeldValue, Rules

#: channels in a block of the layout that ONNX Runtime gives float convolutions where there is AVX512; elsewhere 8
_BLOCK = 16


def read_flow(
    graph: ir.Graph, groups: Mapping[str, int], arrays: Mapping[str, np.ndarray], rules: Rules, *, depth_first: bool
) -> Flow:
    """Reads steps and values from a float graph.

    Args:
        graph: a graph whose layer weights are called ``<layer>.weight``.
        groups: layer name → group.
        arrays: value name → array that was seen in a run, for every value that depends on the inputs.
        rules: how the runtime holds values.
        depth_first: the order of ONNX Runtime's executor, as `evaluators/onnxruntime_kernels.py` has it; else the
            graph's own.
    """
    nodes = _depth_first(list(graph)) if depth_first else list(graph)
    reader = _Reader(groups, arrays)
    for value in graph.inputs:
        if str(value.name) in arrays and not value.is_initializer():
            reader.add_value(value, -1, frozenset())
    for node in nodes:
        reader.add_node(node)
    return Flow(tuple(reader.steps), reader.values, rules)


class _Reader:
    """Collects steps; a value that is written in place, or only renamed, is the same buffer."""

    def __init__(self, groups: Mapping[str, int], arrays: Mapping[str, np.ndarray]) -> None:
        self._groups, self._arrays = groups, arrays
        self._home: dict[str, str] = {}
        self.steps: list[FlowStep] = []
        self.values: dict[str, HeldValue] = {}

    def add_value(self, value: ir.Value, written: int, origins: frozenset[str]) -> None:
        name, array = str(value.name), self._arrays[str(value.name)]
        self._home[name] = name
        self.values[name] = HeldValue(
            name,
            array.size,
            written,
            other_bytes=0 if array.dtype == np.float32 else array.dtype.itemsize,
            is_output=value.is_graph_output(),
            n_padded=_pad_channels(array.shape),
            origins=origins,
        )

    def add_node(self, node: ir.Node) -> None:
        names = [str(value.name) for value in node.inputs if value is not None]
        reads = tuple(dict.fromkeys(self._home[name] for name in names if name in self._home))
        outputs = [value for value in node.outputs if str(value.name) in self._arrays]
        if not reads or not outputs:
            return
        weight = weight_of(node)
        layer = None if weight is None else str(weight.name).removesuffix(".weight")
        if layer is None and len(reads) == 1 and self._stays(node, reads[0], outputs[0]):
            self._rename(reads[0], outputs[0])
            return
        position = len(self.steps)
        for name in reads:
            self.values[name] = replace(self.values[name], readers=(*self.values[name].readers, position))
        origins = frozenset().union(*(self.values[name].origins for name in reads)) if layer is None else {layer}
        for value in outputs:
            self.add_value(value, position, frozenset(origins))
        group = None if layer is None else self._groups.get(layer)
        self.steps.append(FlowStep(node.op_type, group, reads, tuple(str(value.name) for value in outputs)))

    def _stays(self, node: ir.Node, name: str, output: ir.Value) -> bool:
        held, array = self.values[name], self._arrays[str(output.name)]
        has_size = (held.n_elements, held.other_bytes or 4) == (array.size, array.dtype.itemsize)
        if node.op_type in VIEWS:
            return has_size
        source = next(value for value in node.inputs if value is not None and str(value.name) in self._home)
        is_free = len(list(source.uses())) == 1 and not source.is_graph_output() and held.written >= 0
        return node.op_type in IN_PLACE and has_size and is_free

    def _rename(self, name: str, output: ir.Value) -> None:
        self._home[str(output.name)] = name
        if output.is_graph_output():
            self.values[name] = replace(self.values[name], is_output=True)


def _pad_channels(shape: tuple[int, ...]) -> int:
    """Returns the elements of an image (batch, channels, h, w) with its channels filled up to blocks.

    >>> _pad_channels((1, 24, 2, 2))
    128
    """
    return 0 if len(shape) != 4 else shape[0] * -(-shape[1] // _BLOCK) * _BLOCK * shape[2] * shape[3]


def _depth_first(nodes: list[ir.Node]) -> list[ir.Node]:
    """Returns the nodes depth first from the leaves, against the arrows, later ones first."""
    position = {node: i for i, node in enumerate(nodes)}
    sources = {node: sorted(set(node.predecessors()) & set(nodes), key=position.__getitem__) for node in nodes}
    read = {source for found in sources.values() for source in found}
    stack = [(node, False) for node in nodes if node not in read]
    visited: set[ir.Node] = set()
    order = []
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif node not in visited:
            visited.add(node)
            stack.append((node, True))
            stack.extend((source, False) for source in sources[node] if source not in visited)
    return order

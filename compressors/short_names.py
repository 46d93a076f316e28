"""Short names for what the writers added: in a small model the names take as many bytes as the weights."""

from collections.abc import Collection

import onnx


def shorten_names(model: onnx.ModelProto, kept: Collection[str]) -> None:
    """Renames values and nodes in place, and leaves out the shapes of inner values, which every runtime infers.

    Inputs, outputs, the values of the float graph and all constants of layer weights (``LAYER.weight…``, by which
    devices find their layers) keep their names.

    Args:
        model: whose names are unique.
        kept: names of values and nodes of the float graph.
    """
    graph = model.graph
    del graph.value_info[:]
    kept = {*kept, *(value.name for value in (*graph.input, *graph.output))}
    taken = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output} | kept
    names = _Names(kept, taken)
    for node in graph.node:
        node.name = names.short(node.name) if node.name else ""
        for values in (node.input, node.output):
            for position, name in enumerate(values):
                values[position] = names.short(name)
    for tensor in graph.initializer:
        tensor.name = names.short(tensor.name)


class _Names:
    """Gives each name that may go a number, in the order in which they come."""

    def __init__(self, kept: Collection[str], taken: Collection[str]) -> None:
        self._kept = kept
        self._taken = taken
        self._found: dict[str, str] = {}
        self._n = 0

    def short(self, name: str) -> str:
        if name in self._kept or ".weight" in name or len(name) < 4:
            return name
        if name not in self._found:
            self._found[name] = self._next()
        return self._found[name]

    def _next(self) -> str:
        while True:
            self._n += 1
            name = f"q{self._n:x}"
            if name not in self._taken:
                return name

"""How much memory the activations of a lowered graph need at once, by liveness over the executed order."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .kernels.kernel import LoweredGraph, Step, Tensor


@dataclass(frozen=True, slots=True)
class Liveness:
    """Bytes of activations at each step; constants are not among them.

    The inputs belong to the caller, who keeps them for the whole run: they are counted apart, once, at every step.
    Outputs live from the step that writes them to the end.

    >>> relu = Kernel("Relu", inputs=(Tensor("float32", (1, 8)),), outputs=(Tensor("float32", (1, 8)),))
    >>> graph = LoweredGraph((Step("r", relu, ("x",), ("y",)),), {"x": Tensor("float32", (1, 8))}, ("y",))
    >>> measure_liveness(graph).peak_bytes
    64
    """

    #: what the runtime has to hold while each step runs, without the inputs of the graph
    step_bytes: tuple[int, ...]
    #: the inputs of the graph, and values that no step writes
    input_bytes: int
    #: values whose size is not known before the run; they count as nothing
    unknown: tuple[str, ...] = ()

    @property
    def allocated_bytes(self) -> int:
        """The most that the runtime's own allocator has to hold at once: no inputs, no constants."""
        return max(self.step_bytes, default=0)

    @property
    def peak_bytes(self) -> int:
        """The most that is held at once, the inputs included."""
        return self.input_bytes + self.allocated_bytes

    @property
    def peak_step(self) -> int | None:
        """The position of the first step at which the peak is reached; None in an empty graph."""
        return self.step_bytes.index(self.allocated_bytes) if self.step_bytes else None


@dataclass(slots=True)
class _Buffer:
    """Memory that one value, or several in turn, live in."""

    n_bytes: int
    first: int
    last: int
    #: constants and inputs are not the runtime's activations
    is_given: bool = False


def measure_liveness(graph: LoweredGraph, *, alignment: int = 1) -> Liveness:
    """Returns what is live while each step runs.

    A value lives from the step that writes it to the last that reads it, at least for the one step. Where a step
    works in place, its first output and that input are one buffer, which lives as long as either.

    Args:
        graph: the steps in the order of execution.
        alignment: every buffer takes a multiple of so many bytes; runtimes align to 64 at the least.
    """
    buffers, home = _Buffers(graph, alignment).place()
    last = len(graph.steps) - 1
    for name in graph.outputs:
        if name in home:
            home[name].last = last
    changes = [0] * (len(graph.steps) + 1)
    for buffer in buffers:
        if not buffer.is_given:
            changes[buffer.first] += buffer.n_bytes
            changes[buffer.last + 1] -= buffer.n_bytes
    step_bytes, held = [], 0
    for change in changes[:-1]:
        held += change
        step_bytes.append(held)
    given = sum(buffer.n_bytes for buffer in buffers if buffer.is_given)
    return Liveness(tuple(step_bytes), given, tuple(sorted(_unknown(graph))))


class _Buffers:
    """Places the values of a graph into buffers, step by step."""

    def __init__(self, graph: LoweredGraph, alignment: int) -> None:
        self._graph = graph
        self._alignment = alignment
        self._buffers: list[_Buffer] = []
        self._home: dict[str, _Buffer] = {}

    def place(self) -> tuple[list[_Buffer], dict[str, _Buffer]]:
        """Returns all buffers, and value → its buffer."""
        for name, tensor in self._graph.inputs.items():
            self._give(name, tensor)
        for position, step in enumerate(self._graph.steps):
            for name, tensor in reads_of(step):
                if name not in self._home:  # nobody wrote it, so it comes from outside
                    self._give(name, tensor)
                self._home[name].last = position
            self._write(position, step)
        return self._buffers, self._home

    def _write(self, position: int, step: Step) -> None:
        for place, (name, tensor) in enumerate(zip(step.writes, step.kernel.outputs, strict=False)):
            shared = self._taken_over(step) if place == 0 else None
            if shared is None:
                shared = _Buffer(0, position, position)
                self._buffers.append(shared)
            shared.n_bytes = max(shared.n_bytes, self._align(tensor.n_bytes))
            shared.last = position
            if name:
                self._home[name] = shared

    def _taken_over(self, step: Step) -> _Buffer | None:
        if step.in_place is None or step.in_place >= len(step.reads):
            return None
        source = step.reads[step.in_place]
        # a view of a constant takes no activation memory
        return self._home[source] if source in self._home else _Buffer(0, 0, 0, is_given=True)

    def _give(self, name: str, tensor: Tensor) -> None:
        self._home[name] = _Buffer(self._align(tensor.n_bytes), 0, 0, is_given=True)
        self._buffers.append(self._home[name])

    def _align(self, n_bytes: int) -> int:
        return -(-n_bytes // self._alignment) * self._alignment


def reads_of(step: Step) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) of every input that is neither left out nor a constant."""
    for name, tensor in zip(step.reads, step.kernel.inputs, strict=False):
        if name and not tensor.is_constant:
            yield name, tensor


def _unknown(graph: LoweredGraph) -> set[str]:
    pairs: Iterable[tuple[str, Tensor]] = (
        pair for step in graph.steps for pair in zip(step.writes, step.kernel.outputs, strict=False)
    )
    named = [*graph.inputs.items(), *pairs]
    return {name for name, tensor in named if name and any(side < 0 for side in tensor.shape)}

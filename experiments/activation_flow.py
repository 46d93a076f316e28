"""Which values a float graph holds while each of its steps runs, and in which form, by what its layers' groups choose.

A step is a node with everything that works in place behind it. The rules say what a runtime makes of the quantised
graphs that `compressors/quantization` writes; they were read off lowered graphs of ONNX Runtime and OpenVINO.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

#: runtimes lay activations out at multiples of this many bytes
ALIGNMENT = 64

#: operators that only give their input's memory another shape
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
#: operators that write over an input which nobody reads again, or run inside the kernel before them
IN_PLACE = frozenset({"Relu", "Clip", "Add", "Mul", "Sub", "Div", "Sigmoid", "Tanh", "Erf", "Gelu", "Softmax", "Sqrt"})
#: operators that move codes as they move numbers
_MOVES = frozenset({"Transpose", "MaxPool", "Slice", *VIEWS})
_POOLS = frozenset({"AveragePool", "GlobalAveragePool"})

#: group → whether it quantises its activations statically
IsStatic = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class Rules:
    """How a runtime holds values."""

    #: bytes of an element that is not quantised
    float_bytes: int = 4
    #: a static convolution writes codes whoever reads them (ONNX Runtime); else only where all readers take codes
    codes_leave_convolutions: bool = True
    #: a float convolution has a layout of its own, and what goes to or comes from it otherwise is copied
    has_own_layout: bool = True
    #: the policy's ``quantized_ops``
    quantized_ops: tuple[str, ...] = ()

    def float_size(self, n_elements: int) -> int:
        """Returns the bytes of a value that is not quantised."""
        return align(n_elements * self.float_bytes)


def align(n_bytes: int) -> int:
    """Returns the next multiple of `ALIGNMENT`.

    >>> align(1), align(64)
    (64, 64)
    """
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class HeldValue:
    """One buffer that a step writes.

    >>> HeldValue("y", 8, 0).is_output
    False
    """

    name: str
    n_elements: int
    #: the step that writes it; -1 for an input of the graph
    written: int
    #: bytes of an element that is no float32; 0 for float32
    other_bytes: int = 0
    is_output: bool = False
    #: elements in the layout of float convolutions, whose channels come in blocks; 0: no more than `n_elements`
    n_padded: int = 0
    #: the steps that read it, in order
    readers: tuple[int, ...] = ()
    #: names of the layers that it comes from, without another layer in between
    origins: frozenset[str] = frozenset()


@dataclass(frozen=True)
class FlowStep:
    """A node and what works in place behind it.

    >>> FlowStep("Conv", group=0).is_convolution
    True
    """

    op: str
    #: the group of the layer; None where the node has none
    group: int | None = None
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    @property
    def is_convolution(self) -> bool:
        """Whether this is a convolution with a weight."""
        return self.op == "Conv" and self.group is not None


@dataclass(frozen=True)
class Flow:
    """Steps in the order of execution, and the values between them.

    >>> x, y = HeldValue("x", 16, -1, readers=(0,)), HeldValue("y", 32, 0, is_output=True)
    >>> flow = Flow((FlowStep("Conv", 0, ("x",), ("y",)),), {"x": x, "y": y}, Rules())
    >>> flow.held(y, 0, lambda group: False)
    128
    """

    steps: tuple[FlowStep, ...]
    values: Mapping[str, HeldValue]
    rules: Rules = field(default_factory=Rules)

    @property
    def input_bytes(self) -> int:
        """Bytes of the graph's inputs, which the caller keeps."""
        inputs = [value for value in self.values.values() if value.written < 0]
        # inputs stay as they are whatever the graph computes in
        return sum(align(value.n_elements * (value.other_bytes or 4)) for value in inputs)

    def held(self, value: HeldValue, step: int, static: IsStatic) -> int:
        """Returns the bytes that a value takes while a step runs, its own copies in other bits or layouts included."""
        as_float, as_codes = self._forms(value, step, static)
        if self._is_overwritten(value, step, static):
            as_float = 0
        elif self._is_copied(value, step, static):
            as_float = 1 + self._is_left(value, step, static)
        return self._bytes(value, as_float, as_codes, static)

    def held_before(self, value: HeldValue, step: int, static: IsStatic) -> int:
        """Returns the bytes that a value takes when all is ready for a step, before that writes anything."""
        return 0 if value.written == step else self._bytes(value, *self._forms(value, step, static), static)

    def converted(self, value: HeldValue, step: int, static: IsStatic) -> int:
        """Returns the most bytes that a value takes while it is made ready for the step that reads it."""
        as_float, as_codes = self._forms(value, step, static)
        if value.written == step or value.other_bytes:
            return self.held_before(value, step, static)
        first_own = next((reader for reader in value.readers if self._wants_own(reader, static)), None)
        n_floats = 1 + (step == first_own and self._is_copied(value, step, static))
        if self.is_quantized(value, static):
            is_now = bool(as_float) and (step == value.written + 1 or not self._is_undone_early(value, static))
            if is_now and self.rules.has_own_layout and any(self._is_turned(r, static) for r in value.readers):
                n_floats = 2
            return max(
                self._bytes(value, as_float, max(as_codes, is_now), static),
                self._bytes(value, n_floats * as_float, as_codes, static),
            )
        coded = [reader for reader in value.readers if self._wants_codes(reader, static)]
        if coded[:1] != [step] or (value.written >= 0 and self._is_apart(value.written, static)):
            return self._bytes(value, n_floats * as_float, as_codes, static)
        if self.rules.has_own_layout and self._is_own(value, static):  # undone first, then made codes
            stays = any(reader >= step and self._wants_own(reader, static) for reader in value.readers)
            return max(self._bytes(value, 1 + stays, 1, static), self._bytes(value, 2, 0, static))
        return self._bytes(value, 1, 1, static)

    def is_quantized(self, value: HeldValue, static: IsStatic) -> bool:
        """Whether the step that writes a value writes codes."""
        if value.written < 0 or value.other_bytes or value.is_output:
            return False
        step = self.steps[value.written]
        if step.group is not None:
            is_enough = step.is_convolution and self.rules.codes_leave_convolutions
            return self._runs_in_codes(step, static) and (is_enough or self._all_want_codes(value, static))
        if self._moves(step):
            return self.is_quantized(self.values[step.reads[0]], static) and self._all_want_codes(value, static)
        if step.op == "Add":
            return self._adds_codes(step, value, static)
        # other kernels of OpenVINO end in the quantisation of what they write; those of ONNX Runtime do not
        return not self.rules.codes_leave_convolutions and step.op != "MatMul" and self._all_want_codes(value, static)

    def _forms(self, value: HeldValue, step: int, static: IsStatic) -> tuple[int, int]:
        """Returns how many times a value is there in float, and in codes.

        Codes are made for their first reader.
        """
        coded = [reader for reader in value.readers if self._wants_codes(reader, static)]
        plain = [reader for reader in value.readers if reader not in coded]
        if value.is_output:
            plain.append(len(self.steps))
        last_coded, last_plain = max(coded, default=-1), max(plain, default=-1)
        if step <= value.written:
            is_quantized = self.is_quantized(value, static)
            both = value.written >= 0 and self._is_apart(value.written, static)
            return (not is_quantized, is_quantized or (both and bool(coded))) if step == value.written else (0, 0)
        if self.is_quantized(value, static):
            if self._is_undone_early(value, static):
                return step <= last_plain, step <= last_coded
            return step in plain, step <= last_coded or step < last_plain
        if value.written >= 0 and self._is_apart(value.written, static):
            return step <= last_plain, step <= last_coded
        return step <= last_plain or step < min(coded, default=-1), min(coded, default=step + 1) <= step <= last_coded

    def _is_undone_early(self, value: HeldValue, static: IsStatic) -> bool:
        """Whether codes are turned into float as soon as they are there, not just before each float reader.

        ONNX Runtime runs depth first. What has one reader is made ready before another branch begins; of what two
        branches read, the copy for an addition is made early only where the sum is quantised again.
        """
        plain = [reader for reader in value.readers if not self._wants_codes(reader, static)]
        return len(value.readers) == len(plain) == 1 or any(self._ends_in_codes(reader, static) for reader in plain)

    def _ends_in_codes(self, position: int, static: IsStatic) -> bool:
        """Whether a float addition has a reader that takes codes."""
        step = self.steps[position]
        readers = self.values[step.writes[0]].readers if step.op == "Add" else ()
        return any(self._wants_codes(reader, static) for reader in readers)

    def _is_turned(self, position: int, static: IsStatic) -> bool:
        """Whether ONNX Runtime changes the layout in front of an addition in float instead of in codes."""
        written = [self.steps[w] for name in self.steps[position].reads if (w := self.values[name].written) >= 0]
        is_mixed = any(step.is_convolution and not self._runs_in_codes(step, static) for step in written)
        return is_mixed and self._ends_in_codes(position, static)

    def _is_apart(self, position: int, static: IsStatic) -> bool:
        """Whether OpenVINO runs an addition as a kernel of its own, instead of within the layer in codes before it.

        It does where that layer is fed codes by a kernel, the sum is quantised, or others read what is added.
        """
        step = self.steps[position]
        written = self.values[step.reads[0]].written
        if self.rules.codes_leave_convolutions or step.op != "Add" or written < 0:
            return False
        above = self.steps[written]
        if above.group is None or not static(above.group):
            return False
        is_shared = any(len(self.values[name].readers) > 1 for name in step.reads)
        is_fed = self.is_quantized(self.values[above.reads[0]], static)
        return is_shared or is_fed or self._ends_in_codes(position, static)

    def _bytes(self, value: HeldValue, n_floats: int, n_codes: int, static: IsStatic) -> int:
        if value.written < 0:
            n_floats -= min(n_floats, 1)  # the caller's own, which is counted apart
        if value.other_bytes:
            return align(value.n_elements * value.other_bytes) * n_floats
        n_own = int(n_floats > 0 and value.n_padded > value.n_elements and self._is_own(value, static))
        floats = (
            self.rules.float_size(value.n_elements) * (n_floats - n_own) + self.rules.float_size(value.n_padded) * n_own
        )
        return floats + align(value.n_elements) * n_codes

    def _is_copied(self, value: HeldValue, position: int, static: IsStatic) -> bool:
        """Whether a float convolution reads the value in a layout of its own, and nothing wrote it so."""
        step = self.steps[position]
        is_reader = self.rules.has_own_layout and step.is_convolution and value.name in step.reads
        if not is_reader or value.written < 0 or self._wants_codes(position, static):
            return False
        return self.is_quantized(value, static) or not self._is_own(value, static)

    def _is_own(self, value: HeldValue, static: IsStatic, *, depth: int = 2) -> bool:
        """Whether a value is in the layout of float convolutions."""
        if value.written < 0 or not self.rules.has_own_layout:
            return False
        step = self.steps[value.written]
        if step.group is not None:
            return step.is_convolution and not self._runs_in_codes(step, static)
        reaches = depth > 0 and step.op in ("Add", "MaxPool", *_POOLS)
        return reaches and all(self._is_own(self.values[name], static, depth=depth - 1) for name in step.reads)

    def _wants_own(self, position: int, static: IsStatic) -> bool:
        step = self.steps[position]
        if step.group is not None:
            return step.is_convolution and not self._runs_in_codes(step, static)
        return self._is_own(self.values[step.writes[0]], static)

    def _is_left(self, value: HeldValue, step: int, static: IsStatic) -> bool:
        """Whether the float that a step copies is needed after it, and not in the layout of float convolutions."""
        if self.is_quantized(value, static) and not self._is_undone_early(value, static):
            return False
        return any(r > step and not self._wants_own(r, static) for r in value.readers) or value.is_output

    def _is_overwritten(self, value: HeldValue, position: int, static: IsStatic) -> bool:
        """Whether a step puts its float output into this input: the first that fits and is not needed again."""
        step = self.steps[position]
        if step.op not in IN_PLACE or value.name not in step.reads or step.group is not None:
            return False
        output = self.values[step.writes[0]]
        if self.is_quantized(output, static) or self._is_apart(position, static):
            return False
        return next((name for name in step.reads if self._fits(self.values[name], output)), None) == value.name

    def _fits(self, value: HeldValue, output: HeldValue) -> bool:
        is_free = value.written >= 0 and not value.is_output and value.readers == (output.written,)
        return is_free and (value.n_elements, value.other_bytes) == (output.n_elements, output.other_bytes)

    def _wants_codes(self, position: int, static: IsStatic) -> bool:
        step = self.steps[position]
        if step.group is not None:
            return step.op != "Gather" and self._runs_in_codes(step, static)
        output = self.values[step.writes[0]]
        if self._moves(step):
            return not output.is_output and self._all_want_codes(output, static)
        is_coded = step.op == "Add" and (self.rules.codes_leave_convolutions or "add" in self.rules.quantized_ops)
        return is_coded and self.is_quantized(output, static)

    def _runs_in_codes(self, step: FlowStep, static: IsStatic) -> bool:
        """Whether a layer computes with codes: by its treatment, or as a convolution between two static layers.

        ONNX Runtime quantises the weight of a float convolution that reads and writes codes (WeightBiasQuantization).
        """
        if step.group is None or static(step.group):
            return step.group is not None
        if not step.is_convolution or not self.rules.codes_leave_convolutions:
            return False
        written, readers = self.values[step.reads[0]].written, self.values[step.writes[0]].readers
        if written < 0 or not readers or (not self.steps[written].is_convolution and self.steps[written].op != "Add"):
            return False
        return all(self._is_coded(position, static) for position in (written, *readers))

    def _is_coded(self, position: int, static: IsStatic) -> bool:
        """Whether a policy itself makes a layer or an addition compute with codes."""
        step = self.steps[position]
        if step.group is not None:
            return static(step.group)
        is_coded = step.op == "Add" and "add" in self.rules.quantized_ops
        return is_coded and self._adds_codes(step, self.values[step.writes[0]], static)

    def _all_want_codes(self, value: HeldValue, static: IsStatic) -> bool:
        return bool(value.readers) and all(self._wants_codes(reader, static) for reader in value.readers)

    def _moves(self, step: FlowStep) -> bool:
        return step.op in _MOVES or (step.op in _POOLS and "pool" in self.rules.quantized_ops)

    def _adds_codes(self, step: FlowStep, output: HeldValue, static: IsStatic) -> bool:
        """Whether an addition runs on codes, or (OpenVINO) ends in the quantisation of its sum."""
        above = [self._group_above(name) for name in step.reads]
        below = [self.steps[reader].group for reader in output.readers]
        if "add" in self.rules.quantized_ops:
            return any(static(group) for group in (*above, *below) if group is not None)
        if not below or not all(group is not None and static(group) for group in below):
            return False
        if not self.rules.codes_leave_convolutions:
            return above[0] is not None and static(above[0])
        layers = [self.steps[max(self.values[name].written, 0)] for name in step.reads]
        return all(
            layer.is_convolution and group is not None and static(group)
            for layer, group in zip(layers, above, strict=True)
        )

    def _group_above(self, name: str) -> int | None:
        written = self.values[name].written
        return None if written < 0 else self.steps[written].group

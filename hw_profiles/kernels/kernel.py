"""Kernels: one fused operation as a runtime really executes it, and a whole graph lowered to them."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ...core.errors import SpecError
from ...core.files import short_digest

#: bytes of one element; types below a byte count as the fraction that they take
DTYPE_BYTES: Mapping[str, float] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "int4": 0.5, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "uint4": 0.5, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a kernel."""

    #: a name from `DTYPE_BYTES`, or the runtime's own where it has no other
    dtype: str
    #: -1 where a side is not known before the run
    shape: tuple[int, ...]
    #: known when the model is loaded: weights, scales
    is_constant: bool = False
    #: the runtime's own name of the memory format; empty for plain row-major
    layout: str = ""

    @property
    def n_elements(self) -> int:
        """The number of elements; 0 when a side is not known."""
        return 0 if any(side < 0 for side in self.shape) else math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """The bytes that the elements take; 0 when a side is not known, 4 bytes an element for an unknown dtype."""
        return math.ceil(self.n_elements * DTYPE_BYTES.get(self.dtype, 4))

    def to_json(self) -> str:
        """Returns one short text: ``uint8[1,32,112,112]``, then ``@layout``, then ``!`` for constants."""
        sides = ",".join(map(str, self.shape))
        return f"{self.dtype}[{sides}]{'@' + self.layout if self.layout else ''}{'!' if self.is_constant else ''}"

    @classmethod
    def from_json(cls, text: str) -> "Tensor":
        """Reads what `to_json` wrote.

        Raises:
            SpecError: the text has another form.
        """
        rest = text.removesuffix("!") if isinstance(text, str) else ""
        body, _, layout = rest.partition("@")
        dtype, bracket, sides = body.removesuffix("]").partition("[")
        try:
            shape = tuple(int(side) for side in sides.split(",")) if sides else ()
        except ValueError:
            bracket = ""
        if not bracket or not dtype or not body.endswith("]"):
            raise SpecError(f"a tensor must read like uint8[1,32,112,112], got {text!r:.80}")
        return cls(dtype, shape, text.endswith("!"), layout)


@dataclass(frozen=True)
class Kernel:
    """One operation as executed; equal kernels are expected to take equal time on one device.

    >>> kernel = Kernel("Relu", inputs=(Tensor("float32", (1, 8)),), outputs=(Tensor("float32", (1, 8)),))
    >>> Kernel.from_json(kernel.to_json()) == kernel
    True
    """

    #: the runtime's operator, with its domain unless that is the default one (``com.microsoft.nchwc.Conv``)
    op: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    #: which of its kernels the runtime chose (``brgemm_avx512_amx_i8``); empty where it does not say
    implementation: str = ""
    #: (name, canonical JSON of the value), sorted by name
    attributes: tuple[tuple[str, str], ...] = ()

    @cached_property
    def id(self) -> str:
        """A digest of all fields: the key in tables."""
        return short_digest(self.to_json())

    @cached_property
    def attribute_values(self) -> dict[str, Any]:
        """The attributes as JSON values."""
        return {name: json.loads(text) for name, text in self.attributes}

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values; empty ones are left out."""
        value: dict[str, Any] = {
            "op": self.op,
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
        }
        if self.implementation:
            value["implementation"] = self.implementation
        if self.attributes:
            value["attributes"] = self.attribute_values
        return value

    @classmethod
    def from_json(cls, value: Any) -> "Kernel":
        """Reads what `to_json` wrote.

        Raises:
            SpecError: the value is not a kernel.
        """
        try:
            return cls(
                op=str(value["op"]),
                inputs=tuple(Tensor.from_json(text) for text in value["inputs"]),
                outputs=tuple(Tensor.from_json(text) for text in value["outputs"]),
                implementation=str(value.get("implementation", "")),
                attributes=pack_attributes(value.get("attributes", {})),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise SpecError(f"a kernel must be an object with op, inputs and outputs, got {value!r:.120}") from error


def pack_attributes(attributes: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Returns attributes (JSON values) in the form that `Kernel` holds."""
    return tuple((str(name), json.dumps(attributes[name], sort_keys=True)) for name in sorted(attributes))


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel at its place in a graph."""

    #: the runtime's name of the node
    name: str
    kernel: Kernel
    #: names of the values read, beside ``kernel.inputs``; empty for constants and for inputs left out
    reads: tuple[str, ...]
    #: names of the values written, beside ``kernel.outputs``
    writes: tuple[str, ...]
    #: which input's memory the first output takes over; None: it has its own
    in_place: int | None = None
    #: the runtime only gives its input's memory another shape: there is nothing to run, and nothing to price
    is_view: bool = False


@dataclass(frozen=True)
class LoweredGraph:
    """A model as the runtime executes it."""

    #: in the order of execution
    steps: tuple[Step, ...]
    #: graph input name → tensor
    inputs: Mapping[str, Tensor]
    #: names of the graph's outputs
    outputs: tuple[str, ...]

    @cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that take time, in the order of execution, equal ones repeated."""
        return tuple(step.kernel for step in self.steps if not step.is_view)

    @cached_property
    def counts(self) -> dict[Kernel, int]:
        """Kernel → how often it runs."""
        counts: dict[Kernel, int] = {}
        for kernel in self.kernels:
            counts[kernel] = counts.get(kernel, 0) + 1
        return counts

    @cached_property
    def constant_bytes(self) -> int:
        """Bytes of all constants that kernels read; one that is read twice counts twice."""
        return sum(tensor.n_bytes for step in self.steps for tensor in step.kernel.inputs if tensor.is_constant)


@dataclass(frozen=True, slots=True)
class KernelTiming:
    """One kernel timed in its place in a graph."""

    kernel: Kernel
    median_s: float
    iqr_s: float
    runs: int

    def scaled(self, factor: float) -> "KernelTiming":
        """Returns this timing on a machine that takes ``factor`` times as long."""
        return replace(self, median_s=self.median_s * factor, iqr_s=self.iqr_s * factor)


#: what is done between two runs of a graph whose kernels are timed
Between = Callable[[], object]


def do_nothing() -> None:
    """Lets run follow run."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """How kernels are timed.

    Small models get more runs: kernels of a network of 0.1 ms took half as long again in its first dozen runs as later.
    """

    #: timed runs at the least
    runs: int = 20
    #: called before each run
    between: Between = do_nothing
    #: go on until the timed runs took this long, in seconds
    min_time_s: float = 0.1
    #: and end here at the latest, unless `runs` asks for more
    max_runs: int = 100

    def warm_up(self, run: Callable[[], object]) -> int:
        """Runs without timing; returns how often."""
        return self._repeat(run, max(2, self.runs // 5), self.min_time_s / 3)

    def repeat(self, run: Callable[[], object]) -> int:
        """Runs as often as is to be timed; returns how often."""
        return self._repeat(run, self.runs, self.min_time_s)

    def _repeat(self, run: Callable[[], object], n_least: int, least_s: float) -> int:
        started_s, n_done = time.perf_counter(), 0
        while n_done < n_least or (time.perf_counter() - started_s < least_s and n_done < self.max_runs):
            self.between()
            run()
            n_done += 1
        return n_done

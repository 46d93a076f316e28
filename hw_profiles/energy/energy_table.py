"""Energy priced from a table of joules per operation and per byte, for devices that count none."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import SpecError
from ...core.files import read_json
from ..kernels.kernel import DTYPE_BYTES, Kernel, LoweredGraph
from ..kernels.kernel_features import KernelWork, measure_work, short_op
from ..liveness import measure_liveness
from .energy import Energy

#: the table that ships with the package
DEFAULT_TABLE = Path(__file__).with_name("energy_horowitz_2014.json")

#: what stands in for a type that a table does not have: the one whose arithmetic is nearest
_STAND_INS: Mapping[str, str] = {
    "uint8": "int8", "int4": "int8", "uint4": "int8", "bool": "int8", "int16": "int32", "uint16": "int32",
    "uint32": "int32", "int64": "int32", "uint64": "int32", "bfloat16": "float16", "float64": "float32",
}  # fmt: skip

#: operators that turn float inputs into 8-bit codes themselves and multiply those
_QUANTISES_ITSELF = frozenset({"DynamicQuantizeMatMul", "QAttention"})

#: families whose operations come in pairs, one multiplication and one addition
_MULTIPLYING = frozenset({"conv", "matmul", "attention"})


@dataclass(frozen=True)
class EnergyTable:
    """Picojoules per operation by type, and per byte by the size of the memory that it comes from.

    >>> table = load_energy_table()
    >>> round(table.byte_pj(4096)[0], 2), table.name
    (1.25, 'Horowitz 2014, 45 nm')
    """

    name: str
    #: where the numbers come from
    reference: str
    add_pj: Mapping[str, float]
    multiply_pj: Mapping[str, float]
    #: (size of the memory in bytes or None for any, least and most picojoules per byte), ascending
    memories: tuple[tuple[int | None, float, float], ...]

    @property
    def source(self) -> str:
        """As in `Energy.source`."""
        return f"table: {self.name}"

    def byte_pj(self, resident_bytes: float) -> tuple[float, float]:
        """Returns the least and the most picojoules for a byte out of so many that are used in turn."""
        for size, least, most in self.memories:
            if size is None or resident_bytes <= size:
                return least, most
        raise SpecError(f"energy table {self.name}: the last memory must be without a size")

    def estimate(self, graph: LoweredGraph, *, note: str = "") -> Energy:
        """Prices one run of a lowered graph.

        Each kernel reads its inputs and constants once and writes its outputs once. Between two uses of a constant lies
        the whole model, between writing and reading an activation about one kernel; so constants come from the
        smallest memory that holds all constants and the activations, activations from the one that holds the kernel.

        Args:
            graph: as the runtime executes it.
            note: why nothing was measured; see `Energy.note`.
        """
        model_bytes = graph.constant_bytes + measure_liveness(graph).peak_bytes
        least_pj = most_pj = 0.0
        for kernel in graph.kernels:
            work = measure_work(kernel)
            here, far = self.byte_pj(work.moved_bytes), self.byte_pj(model_bytes)
            live_bytes = work.read_bytes + work.written_bytes
            arithmetic_pj = self._arithmetic_pj(kernel, work)
            least_pj += arithmetic_pj + live_bytes * here[0] + work.constant_bytes * far[0]
            most_pj += arithmetic_pj + live_bytes * here[1] + work.constant_bytes * far[1]
        middle_j = (least_pj + most_pj) / 2 * 1e-12
        return Energy(middle_j, (most_pj - least_pj) * 1e-12, 0, self.source, note=note)

    def _arithmetic_pj(self, kernel: Kernel, work: KernelWork) -> float:
        dtype = arithmetic_dtype(kernel)
        if work.family not in _MULTIPLYING:
            return work.flops * self._price(self.add_pj, dtype)
        # products of 8 bits are summed in 32
        sums = "int32" if _is_integer(dtype) else dtype
        return work.flops / 2 * (self._price(self.multiply_pj, dtype) + self._price(self.add_pj, sums))

    def _price(self, prices: Mapping[str, float], dtype: str) -> float:
        name = dtype if dtype in prices else _STAND_INS.get(dtype, "float32")
        return prices.get(name, prices["float32"])


def load_energy_table(path: Path | None = None) -> EnergyTable:
    """Reads a table; without a path the one that ships with the package (Horowitz, ISSCC 2014).

    Raises:
        SpecError: the file cannot be read, or is no table; the message names what is missing.
    """
    source = path or DEFAULT_TABLE
    content = read_json(source, noun="energy table")
    try:
        table = EnergyTable(
            name=str(content["name"]),
            reference=str(content["reference"]),
            add_pj=_read_prices(content["add_pj"]),
            multiply_pj=_read_prices(content["multiply_pj"]),
            memories=tuple(_read_memory(entry, content["access_bits"]) for entry in content["access_pj"]),
        )
    except KeyError as error:
        raise SpecError(f"energy table {source} misses {error}") from error
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise SpecError(f"energy table {source} is damaged: {error}") from error
    sizes = [size for size, *_ in table.memories]
    if not sizes or sizes[-1] is not None or None in sizes[:-1] or sizes[:-1] != sorted(sizes[:-1]):  # type: ignore[type-var]
        raise SpecError(f"energy table {source}: access_pj must ascend in up_to_bytes and end with null, got {sizes}")
    return table


def arithmetic_dtype(kernel: Kernel) -> str:
    """Returns the type in which a kernel multiplies, or adds where it does not: that of its widest large input.

    Scales, zero points and biases are small beside what they belong to, and weights of weight-only kernels are unpacked
    to the type of the activations first.
    """
    if short_op(kernel) in _QUANTISES_ITSELF or _quantises_to_8_bits(kernel):
        return "int8"
    tail = kernel.implementation.rpartition("_")[2]
    if tail in _OPENVINO_DTYPES:
        return _OPENVINO_DTYPES[tail]
    computed = [tensor for tensor in kernel.inputs if not tensor.is_constant] or list(kernel.inputs)
    if not computed:
        return kernel.outputs[0].dtype if kernel.outputs else "float32"
    largest = max(tensor.n_elements for tensor in computed)
    candidates = [tensor.dtype for tensor in computed if 2 * tensor.n_elements >= largest]
    return max(candidates, key=lambda dtype: DTYPE_BYTES.get(dtype, 4))


#: endings of OpenVINO's names of implementations, for example ``brgemm_avx512_amx_i8``
_OPENVINO_DTYPES: Mapping[str, str] = {
    "i8": "int8", "u8": "uint8", "f32": "float32", "f16": "float16", "bf16": "bfloat16",
}  # fmt: skip


def _quantises_to_8_bits(kernel: Kernel) -> bool:
    # level 4 of MatMulNBits (com.microsoft): the activations become 8 bits, too
    return short_op(kernel) == "MatMulNBits" and kernel.attribute_values.get("accuracy_level") == 4


def _is_integer(dtype: str) -> bool:
    return dtype.startswith(("int", "uint", "bool"))


def _read_prices(content: Any) -> dict[str, float]:
    prices = {str(name): float(price) for name, price in content.items()}
    if "float32" not in prices or not all(0 <= price < float("inf") for price in prices.values()):
        raise ValueError("prices must be numbers of picojoules, 0 or more, float32 among them")
    return prices


def _read_memory(entry: Any, access_bits: Any) -> tuple[int | None, float, float]:
    size = entry["up_to_bytes"]
    least, most = (float(price) / (float(access_bits) / 8) for price in entry["pj"])
    if not 0 <= least <= most < float("inf"):
        raise ValueError(f"pj must be [least, most], got {entry['pj']}")
    return None if size is None else int(size), least, most

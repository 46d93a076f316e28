"""Synthetic kernel tables, for tests here and in other packages."""

from .kernels.kernel import Kernel, KernelTiming, Tensor, pack_attributes
from .kernels.kernel_table import GraphObservation, KernelTable
from .kernels.table_identity import TableIdentity
from .latency import Latency


def synthetic_identity(runtime_version: str = "1.31.1") -> TableIdentity:
    """Returns the identity of a device that does not exist."""
    features = ("avx2", "avx512f")
    return TableIdentity("Imaginary CPU", features, "onnxruntime", runtime_version, {"device": "cpu", "threads": 1})


def synthetic_kernel(n_channels: int, op: str = "QLinearConv") -> Kernel:
    """Returns a 3×3 convolution; another number of channels is another kernel."""
    shape = (1, n_channels, 28, 28)
    inputs = (Tensor("uint8", shape), Tensor("int8", (n_channels, n_channels, 3, 3), is_constant=True))
    attributes = pack_attributes({"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})
    return Kernel(op, inputs, (Tensor("uint8", shape),), "brgemm", attributes)


def synthetic_table(n_kernels: int = 6, n_graphs: int = 3, identity: TableIdentity | None = None) -> KernelTable:
    """Returns a table of kernels with two observations each, and graphs of up to three of them."""
    table = KernelTable(identity or synthetic_identity())
    kernels = [synthetic_kernel(number + 1) for number in range(n_kernels)]
    for run in (1, 2):
        timings = [KernelTiming(each, (place + run) * 1e-5, 1e-7, 30) for place, each in enumerate(kernels)]
        table.add(timings, f"profile imaginary #{run}")
    for number in range(n_graphs):
        first = number % n_kernels
        counts = dict.fromkeys(kernels[first : first + 3], 1 + number)
        latency = Latency((number + 1) * 1e-3, 1e-5, 50)
        table.add_graph(GraphObservation.of(counts, latency, model="imaginary", source=f"profile imaginary #{number}"))
    return table

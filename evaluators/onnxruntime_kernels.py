"""What ONNX Runtime makes of a model: its optimised graph as kernels, without a run, and their times, with some.

The graph is read from the file that the session itself writes in ORT format: unlike the ONNX form, it holds the types
and shapes of all values, and the node indices from which the order of execution follows.
"""

import importlib
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..core.errors import MeasurementError, SpecError
from ..hw_profiles.kernels.kernel import Kernel, KernelTiming, LoweredGraph, Rounds, Step, Tensor, pack_attributes

#: element types of ORT format (onnxruntime/core/flatbuffers/schema/ort.fbs, TensorDataType; the numbers are ONNX's)
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16", 21: "uint4", 22: "int4",
}  # fmt: skip

#: attribute kinds of ORT format that may change what a kernel costs: name of the accessor by AttributeType
_SCALARS, _LISTS = {1: "F", 2: "I", 3: "S"}, {6: "Floats", 7: "Ints", 8: "Strings"}

_EVENT_SUFFIX = "_kernel_time"

#: kernel types whose output takes the memory of their first input where nobody else reads it
_IN_PLACE = frozenset({"Relu", "Clip", "Add", "Mul", "Sub", "Div", "Sigmoid", "Tanh", "Erf", "Gelu", "Softmax"})
#: and where it does so always: only the shape changes
_ALIASES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})


def lower_onnxruntime(onnxruntime: Any, model: bytes, options: Any) -> LoweredGraph:
    """Lets the runtime optimise a model, without running it.

    Args:
        onnxruntime: the module.
        model: a serialised ONNX model.
        options: session options as they are used for real; they are changed, so pass fresh ones.

    Raises:
        MeasurementError: the runtime refuses the model.
    """
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        path = Path(folder) / "lowered.ort"
        # packing weights changes no kernel, and takes time
        options.add_session_config_entry("session.disable_prepacking", "1")
        _open(onnxruntime, model, options, path)
        return _OrtFile.read(path).lower()


def time_onnxruntime_kernels(
    onnxruntime: Any, model: bytes, options: Any, *, inputs: Mapping[str, np.ndarray], rounds: Rounds
) -> list[KernelTiming]:
    """Runs a model with the runtime's profiler on; returns one timing per node, in the order of execution.

    The profiler counts whole microseconds; both ends are cut off, so the error is symmetric and the median of grouped
    data (class width 1 µs) is used. What the profiler itself adds to every kernel is taken off.

    Raises:
        MeasurementError: the runtime refuses the model, or fails to run it.
    """
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        path = Path(folder) / "lowered.ort"
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = _open(onnxruntime, model, options, path)
        try:
            n_warm_up = rounds.warm_up(lambda: session.run(None, inputs))
            rounds.repeat(lambda: session.run(None, inputs))
        except Exception as error:
            raise MeasurementError(f"onnxruntime fails to run the model: {error}") from error
        events = json.loads(Path(session.end_profiling()).read_text())
        nodes = _OrtFile.read(path).nodes
    added_us = measure_profiler(onnxruntime)
    return [
        _summarise(nodes[index].kernel, times_us[n_warm_up:], added_us)
        for index, times_us in _times_by_node(events).items()
        if index in nodes
    ]


def _open(onnxruntime: Any, model: bytes, options: Any, path: Path) -> Any:
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 4  # a file that fits this processor only is what is wanted here
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise MeasurementError(f"onnxruntime refuses the model: {error}") from error


def _fast_folder() -> str | None:
    """Returns a folder in memory where there is one; the files are as large as the model."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108


def _times_by_node(events: Sequence[Mapping[str, Any]]) -> dict[int, list[float]]:
    """Returns node index → microseconds per run, in the order of the first run."""
    times_us: dict[int, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith(_EVENT_SUFFIX):
            times_us.setdefault(int(event["args"]["node_index"]), []).append(float(event["dur"]))
    return times_us


#: microseconds that no kernel is faster than: a tiny one takes about twice as long
_LEAST_US = 0.1
_N_TINY, _N_TINY_RUNS = 64, 200


@lru_cache(1)
def measure_profiler(onnxruntime: Any) -> float:
    """Returns the microseconds that the profiler adds to every kernel: it describes shapes before it stops the clock.

    About 2.2 on a 2.6 GHz Xeon, whatever the number of inputs. Found with a chain of tiny kernels: what the profiler
    says of each, less what a longer chain takes longer than a short one when nobody looks.
    """
    long, short = _time_chain(onnxruntime, _N_TINY + 1), _time_chain(onnxruntime, 1)
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        options = _plain_options(onnxruntime)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(_chain(_N_TINY), options, providers=["CPUExecutionProvider"])
        for _ in range(_N_TINY_RUNS):
            session.run(None, _TINY)
        times = _times_by_node(json.loads(Path(session.end_profiling()).read_text()))
    profiled_us = float(np.mean([times_us[_N_TINY_RUNS // 4 :] for times_us in times.values()]))
    return max(profiled_us - (long - short) / _N_TINY, 0.0)


_TINY = {"v0": np.ones((1, 8), np.float32)}


def _time_chain(onnxruntime: Any, n_kernels: int) -> float:
    """Returns the median microseconds of a run."""
    options = _plain_options(onnxruntime)
    session = onnxruntime.InferenceSession(_chain(n_kernels), options, providers=["CPUExecutionProvider"])
    times_ns = []
    for _ in range(_N_TINY_RUNS):
        start_ns = time.perf_counter_ns()
        session.run(None, _TINY)
        times_ns.append(time.perf_counter_ns() - start_ns)
    return float(np.median(times_ns)) / 1e3


def _plain_options(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return options


def _chain(n_kernels: int) -> bytes:
    nodes = [onnx.helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(n_kernels)]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 8]) for name in ("v0", f"v{n_kernels}")
    ]
    graph = onnx.helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def _summarise(kernel: Kernel, times_us: Sequence[float], added_us: float) -> KernelTiming:
    low, high = np.percentile(times_us, [25, 75])
    median_us = max(statistics.median_grouped(times_us, interval=1.0) - added_us, _LEAST_US)
    return KernelTiming(kernel, median_us * 1e-6, float(high - low) * 1e-6, len(times_us))


@dataclass(frozen=True)
class _Node:
    index: int
    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kernel: Kernel


class _OrtFile:
    """The graph of a file in ORT format."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._constants = {_text(graph.Initializers(i).Name()) for i in range(graph.InitializersLength())}
        self._values = {
            _text(value.Name()): value for value in (graph.NodeArgs(i) for i in range(graph.NodeArgsLength()))
        }
        self._tensors: dict[str, Tensor] = {}

    @classmethod
    def read(cls, path: Path) -> "_OrtFile":
        """Reads the file at once; nothing keeps it open."""
        session = _import_ort_format("InferenceSession")
        return cls(session.GetRootAs(path.read_bytes(), 0).Model().Graph())

    @cached_property
    def nodes(self) -> dict[int, _Node]:
        """Node index → node."""
        found = (self._graph.Nodes(i) for i in range(self._graph.NodesLength()))
        return {int(node.Index()): self._read_node(node) for node in found}

    def lower(self) -> LoweredGraph:
        """Returns the graph as kernels in the order of execution."""
        inputs = [_text(self._graph.Inputs(i)) for i in range(self._graph.InputsLength())]
        outputs = tuple(_text(self._graph.Outputs(i)) for i in range(self._graph.OutputsLength()))
        readers: dict[str, int] = {}
        for node in self.nodes.values():
            for name in node.inputs:
                readers[name] = readers.get(name, 0) + 1
        kept = set(inputs) | set(outputs)
        return LoweredGraph(
            steps=tuple(self._step(node, readers, kept) for node in _order(self.nodes)),
            inputs={name: self._tensor(name) for name in inputs if name not in self._constants},
            outputs=outputs,
        )

    def _step(self, node: _Node, readers: Mapping[str, int], kept: set[str]) -> Step:
        reads = tuple("" if name in self._constants else name for name in node.inputs)
        in_place = next(
            (i for i, name in enumerate(reads) if name and self._may_take_over(node, i, readers, kept)), None
        )
        return Step(node.name, node.kernel, reads, node.outputs, in_place)

    def _may_take_over(self, node: _Node, position: int, readers: Mapping[str, int], kept: set[str]) -> bool:
        name = node.inputs[position]
        if node.op in _ALIASES:
            return position == 0
        fits = node.kernel.inputs[position].n_bytes == node.kernel.outputs[0].n_bytes
        return node.op in _IN_PLACE and fits and readers[name] == 1 and name not in kept

    def _read_node(self, node: Any) -> _Node:
        inputs = tuple(_text(node.Inputs(i)) for i in range(node.InputsLength()))
        outputs = tuple(_text(node.Outputs(i)) for i in range(node.OutputsLength()))
        domain, op = _text(node.Domain()), _text(node.OpType())
        kernel = Kernel(
            op=f"{domain}.{op}" if domain else op,
            inputs=tuple(self._tensor(name) for name in inputs),
            outputs=tuple(self._tensor(name) for name in outputs if name),
            attributes=pack_attributes(dict(_attributes(node))),
        )
        return _Node(int(node.Index()), _text(node.Name()), op, inputs, tuple(name for name in outputs if name), kernel)

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            self._tensors[name] = self._read_tensor(name)
        return self._tensors[name]

    def _read_tensor(self, name: str) -> Tensor:
        value = self._values.get(name)
        value_type = None if value is None else value.Type()
        if not name or value_type is None or value_type.Value() is None:
            return Tensor("none", (), is_constant=True)  # an input that was left out
        tensor, table = _import_ort_format("TensorTypeAndShape")(), value_type.Value()
        tensor.Init(table.Bytes, table.Pos)
        dtype, shape = _DTYPES.get(tensor.ElemType(), f"type{tensor.ElemType()}"), tensor.Shape()
        sides = () if shape is None else tuple(_side(shape.Dim(i)) for i in range(shape.DimLength()))
        return Tensor(dtype, sides, is_constant=name in self._constants)


@lru_cache
def _import_ort_format(noun: str) -> Any:
    """Imports a class of ``ort_flatbuffers_py``, ONNX Runtime's reader of its own files, under its own name.

    The package around it, ``onnxruntime.tools``, would import torch, which takes longer than lowering a model, and set
    up logging for everybody.
    """
    import onnxruntime

    package = "ort_flatbuffers_py"
    if package not in sys.modules:
        folder = Path(onnxruntime.__file__).parent / "tools" / "ort_format_model" / package
        spec = importlib.util.spec_from_file_location(
            package, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None or not folder.is_dir():
            raise SpecError(f"onnxruntime {onnxruntime.__version__} comes without {folder}; install another version")
        sys.modules[package] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return getattr(importlib.import_module(f"{package}.fbs.{noun}"), noun)


def _order(nodes: Mapping[int, _Node]) -> list[_Node]:
    """Returns the nodes as the sequential executor runs them: depth first from the leaves, against the arrows.

    The order of onnxruntime/core/graph/graph_viewer.cc (GraphViewer) and Graph::ReverseDFSFrom: larger indices first.
    """
    producers = {name: node.index for node in nodes.values() for name in node.outputs}
    sources = {
        node.index: sorted({producers[name] for name in node.inputs if name in producers}) for node in nodes.values()
    }
    has_reader = {source for found in sources.values() for source in found}
    stack = [(index, False) for index in sorted(nodes) if index not in has_reader]
    visited: set[int] = set()
    order = []
    while stack:
        index, is_done = stack.pop()
        if is_done:
            order.append(nodes[index])
        elif index not in visited:
            visited.add(index)
            stack.append((index, True))
            stack.extend((source, False) for source in sources[index] if source not in visited)
    return order


def _attributes(node: Any) -> Iterator[tuple[str, Any]]:
    for i in range(node.AttributesLength()):
        attribute = node.Attributes(i)
        name, kind = _text(attribute.Name()), attribute.Type()
        if kind in _SCALARS:
            yield name, _plain(getattr(attribute, _SCALARS[kind])())
        elif kind in _LISTS:
            length = getattr(attribute, f"{_LISTS[kind]}Length")()
            yield name, [_plain(getattr(attribute, _LISTS[kind])(j)) for j in range(length)]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _side(dimension: Any) -> int:
    value = dimension.Value()
    return -1 if value is None or value.DimParam() else int(value.DimValue())


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode(errors="replace")

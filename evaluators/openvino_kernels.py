"""What OpenVINO makes of a model: its runtime model as kernels, without a run, and their times, with some."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..core.errors import MeasurementError
from ..hw_profiles.kernels.kernel import Kernel, KernelTiming, LoweredGraph, Rounds, Step, Tensor, pack_attributes

#: the plugin's names of element types → ours; others stay as they are
_DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64", "i32": "int32",
    "i16": "int16", "i8": "int8", "u8": "uint8", "u64": "uint64", "u32": "uint32", "u16": "uint16", "i4": "int4",
    "u4": "uint4", "boolean": "bool",
    "float": "float32", "float16": "float16", "bfloat16": "bfloat16", "int8_t": "int8", "uint8_t": "uint8",
    "int32_t": "int32", "int64_t": "int64", "double": "float64",
}  # fmt: skip

#: layers of the runtime model that execute nothing
_NOT_KERNELS = frozenset({"Input", "Output", "Const", "Parameter", "Result", "Constant"})

#: layers that only rename their input's memory
_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
#: what the plugin calls a change of layout that moves no byte (``jit_uni_f32`` and the like are those that do)
_IN_PLACE_REORDER = "reorder_"

#: runs of one compilation: the plugin reports one mean for each, and the spread is between them
_RUNS_EACH = 6


def lower_openvino(compiled: Any) -> LoweredGraph:
    """Reads the kernels of a compiled model, in the order of execution; nothing is run."""
    model = compiled.get_runtime_model()
    nodes = sorted(((_facts(op), op) for op in model.get_ops()), key=lambda pair: int(pair[0].get("execOrder", -1)))
    constants = _find_constants(nodes)
    layouts = {op.get_friendly_name(): facts for facts, op in nodes}
    steps = [
        _step(facts, op, constants, layouts)
        for facts, op in nodes
        if facts.get("layerType") not in _NOT_KERNELS and op.get_friendly_name() not in constants
    ]
    return LoweredGraph(
        steps=tuple(steps),
        inputs={
            _value_name(op.output(0)): _tensor(op.output(0), facts, is_constant=False)
            for facts, op in nodes
            if op.get_type_name() == "Parameter"
        },
        outputs=tuple(_value_name(port) for op in model.get_results() for port in _sources(op)),
    )


def time_openvino_kernels(
    compile_model: Callable[[], Any], inputs: Mapping[str, np.ndarray], rounds: Rounds
) -> list[KernelTiming]:
    """Runs a model that was compiled with ``PERF_COUNT``; returns one timing per executed kernel.

    The plugin keeps one mean per kernel and compilation, over all runs: what the warm-up added is taken out again. The
    median and the spread are over compilations.

    Args:
        compile_model: compiles the model anew at each call.
        inputs: input name → (batch, …) array.
        rounds: timed runs in all, and what to do before each.

    Raises:
        MeasurementError: the runtime fails to run the model.
    """
    means_us: dict[str, list[float]] = {}
    n_compilations = max(1, rounds.runs // _RUNS_EACH)
    each = replace(rounds, runs=rounds.runs // n_compilations, min_time_s=rounds.min_time_s / n_compilations)
    n_timed = 0
    for _ in range(n_compilations):
        compiled = compile_model()
        request = compiled.create_infer_request()
        run = partial(request.infer, inputs, share_inputs=True)
        try:
            n_warm_up = each.warm_up(run)
            warm_us = _read_counters(request)
            n_runs = each.repeat(run)
        except Exception as error:
            raise MeasurementError(f"openvino fails to run the model: {error}") from error
        for name, mean_us in _read_counters(request).items():
            total_us = mean_us * (n_warm_up + n_runs) - warm_us[name] * n_warm_up
            means_us.setdefault(name, []).append(max(total_us / n_runs, 0.1))
        n_timed += n_runs
    return [
        _summarise(step.kernel, means_us[step.name], n_timed)
        for step in lower_openvino(compiled).steps
        if step.name in means_us and not step.is_view
    ]


def _read_counters(request: Any) -> dict[str, float]:
    """Returns node name → mean microseconds over all runs so far; half of what is cut off is added back."""
    return {entry.node_name: entry.real_time.total_seconds() * 1e6 + 0.5 for entry in request.get_profiling_info()}


def _summarise(kernel: Kernel, means_us: list[float], runs: int) -> KernelTiming:
    low, median, high = np.percentile(means_us, [25, 50, 75])
    return KernelTiming(kernel, float(median) * 1e-6, float(high - low) * 1e-6, runs)


def _find_constants(nodes: Sequence[tuple[Mapping[str, str], Any]]) -> set[str]:
    """Returns the constants, and what is computed from nothing else: the plugin does that once, when it compiles."""
    constants: set[str] = set()
    for facts, op in nodes:
        sources = [port.get_node().get_friendly_name() for port in _sources(op)]
        is_folded = bool(sources) and facts.get("layerType") not in _NOT_KERNELS and constants.issuperset(sources)
        if facts.get("layerType") in ("Const", "Constant") or is_folded:
            constants.add(op.get_friendly_name())
    return constants


def _step(facts: Mapping[str, str], op: Any, constants: set[str], layouts: Mapping[str, Mapping[str, str]]) -> Step:
    sources = list(_sources(op))
    names = [port.get_node().get_friendly_name() for port in sources]
    kernel = Kernel(
        op=facts.get("layerType", op.get_type_name()),
        inputs=tuple(
            _tensor(port, layouts.get(name, {}), is_constant=name in constants)
            for port, name in zip(sources, names, strict=True)
        ),
        outputs=tuple(_tensor(port, facts, is_constant=False) for port in op.outputs()),
        implementation=facts.get("primitiveType", ""),
        attributes=pack_attributes(_attributes(facts)),
    )
    reads = tuple("" if n in constants else _value_name(p) for p, n in zip(sources, names, strict=True))
    is_view = kernel.op in _VIEWS or (kernel.op == "Reorder" and kernel.implementation.startswith(_IN_PLACE_REORDER))
    in_place = 0 if is_view else None
    return Step(
        op.get_friendly_name(), kernel, reads, tuple(_value_name(port) for port in op.outputs()), in_place, is_view
    )


def _attributes(facts: Mapping[str, str]) -> dict[str, Any]:
    """Returns how many layers became this kernel, and in what it computes: all that the plugin tells of it."""
    found: dict[str, Any] = {}
    originals = [name for name in facts.get("originalLayersNames", "").split(",") if name]
    if len(originals) > 1:
        found["fused"] = len(originals)
    if facts.get("runtimePrecision"):
        found["precision"] = _DTYPES.get(facts["runtimePrecision"], facts["runtimePrecision"])
    return found


def _tensor(port: Any, facts: Mapping[str, str], *, is_constant: bool) -> Tensor:
    shape = port.get_partial_shape()
    sides = () if shape.rank.is_dynamic else tuple(-1 if s.is_dynamic else s.get_length() for s in shape)
    layouts = facts.get("outputLayouts", "").split(",")
    layout = layouts[port.get_index()] if port.get_index() < len(layouts) else layouts[0]
    dtype = port.get_element_type().get_type_name()
    return Tensor(_DTYPES.get(dtype, dtype), sides, is_constant, "" if _is_plain(layout, len(sides)) else layout)


def _is_plain(layout: str, n_axes: int) -> bool:
    return layout in ("", "x", "undef") or layout == "abcdefgh"[:n_axes]


def _sources(op: Any) -> Iterator[Any]:
    for port in op.inputs():
        yield port.get_source_output()


def _value_name(port: Any) -> str:
    return f"{port.get_node().get_friendly_name()}:{port.get_index()}"


def _facts(op: Any) -> dict[str, str]:
    return {
        key: str(value.value if hasattr(value, "value") else value) for key, value in dict(op.get_rt_info()).items()
    }

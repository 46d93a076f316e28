"""The worked example of docs/lut-format.md: ONNX Runtime's kernels as the table of a board, and how far off it is.

``python -m trimtab.experiments.benchmarks.board_example --board BOARD.yaml`` measures policies of some networks under
ONNX Runtime, books the time of each of its kernels on the kernel of the board's fusion rule that does the same work,
writes the table beside the board file, and compares prices with measured latencies of other policies.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from scipy.stats import kendalltau

from ...compressors.artifact import Artifact
from ...core.yaml_file import read_yaml
from ...evaluators.accuracy import take_batch
from ...evaluators.device import Executable
from ...evaluators.latency import TimingSettings, measure_latency
from ...evaluators.lut_device import LutDevice
from ...evaluators.lut_lowering import Lowering, lower_by_rule
from ...evaluators.onnxruntime_device import OnnxRuntimeDevice
from ...hw_profiles.boards.board import LUT_RUNTIME
from ...hw_profiles.boards.fusion_rule import FusionRule, parse_rule
from ...hw_profiles.kernels.kernel import KernelTiming, LoweredGraph
from ...hw_profiles.kernels.kernel_table import GraphObservation, KernelTable
from ...hw_profiles.kernels.table_file import write_table
from ...hw_profiles.kernels.table_identity import TableIdentity
from ...hw_profiles.latency import Latency
from ...hw_profiles.target import Target
from ...spaces.policy import GraphTreatment
from ..architectures import catalogue
from ..preparation import Preparation, prepare
from ..spec_file import load_spec

_TIMING = TimingSettings(min_runs=30, min_time_s=0.3, max_time_s=8.0)
#: everything runs in one thread, whose own time leaves out what others do on the core
_CLOCK = time.thread_time_ns
_KERNEL_RUNS, _N_ATTEMPTS = 20, 2


@dataclass(frozen=True)
class Subject:
    """One network with its policies."""

    name: str
    preparation: Preparation
    batch: Mapping[str, np.ndarray]
    #: the untouched model, all int8, and a few mixed ones: what the table is made of
    taught: tuple[Artifact, ...]
    #: mixed ones that the table has not seen
    tested: tuple[Artifact, ...]


def prepare_subject(name: str, *, n_taught: int, n_tested: int, seed: int = 0) -> Subject:
    """Builds the policies of a network of the catalogue; each layer is int8 or not with a share drawn per policy."""
    build, data = catalogue.MODELS[name]
    spec = load_spec({
        "name": name.replace("_", "-"), "model": build, "data": data, "target": {"runtime": "onnxruntime"},
        "space": [{"layers": "*", "quantize": ["none", "int8"]}],
        "graph": {"calibration": ["minmax"], "fusion": ["none"], "quantized_ops": [[], ["add", "pool"]]},
    })  # fmt: skip
    preparation = prepare(spec)
    rng = np.random.default_rng(seed)
    mixed = [_build(preparation, float(rng.uniform()), rng) for _ in range(n_taught + n_tested)]
    return Subject(
        name,
        preparation,
        take_batch(preparation.dataset.validation, 0, 1),
        (preparation.original, _build(preparation, 1.0, rng), *mixed[:n_taught]),
        tuple(mixed[n_taught:]),
    )


def _build(preparation: Preparation, share: float, rng: np.random.Generator) -> Artifact:
    """Builds a policy in which each group of layers is int8 with a probability."""
    space = preparation.space
    chosen = {
        layer: options[-1]
        for group, options in zip(space.groups, space.options, strict=True)
        if rng.uniform() < share
        for layer in group.layers
    }
    alternatives = space.graph.quantized_ops
    quantized_ops = alternatives[int(rng.integers(len(alternatives)))]
    return preparation.pipeline.build(chosen, GraphTreatment(quantized_ops=quantized_ops))


def book(
    lowering: Lowering, model: bytes, executed: LoweredGraph, timings: Sequence[KernelTiming]
) -> Iterator[KernelTiming]:
    """Books the time of executed kernels on the rule's kernels: by the nodes and values that both are named by.

    A kernel that the rule does not know (a change of layout) counts for the one that reads its output, and what none
    reads, for the one before it.

    Args:
        lowering: by the rule.
        model: the ONNX model that was lowered.
        executed: the same model, lowered by the runtime.
        timings: one per step of ``executed``.
    """
    place_of = _find_places(_name_places(lowering, model), executed)
    for place, step in enumerate(lowering.graph.steps):
        own = [timings[i] for i, at in enumerate(place_of) if at == place]
        if own:
            spread_s = float(np.linalg.norm([timing.iqr_s for timing in own]))
            median_s = sum(timing.median_s for timing in own)
            yield KernelTiming(step.kernel, median_s, spread_s, min(timing.runs for timing in own))


def _name_places(lowering: Lowering, model: bytes) -> dict[str, int]:
    """Returns node or value name → step of the rule's graph."""
    nodes = onnx.load_model_from_string(model).graph.node
    return {
        name: place
        for place, members in enumerate(lowering.members)
        for index in members
        for name in (nodes[index].name, *nodes[index].output)
        if name
    }


#: what ONNX Runtime adds to the name of a node that it fused
_SUFFIXES = ("_nchwc", "/MatMulAddFusion", "/duplicated")


def _find_places(places_by_name: Mapping[str, int], executed: LoweredGraph) -> list[int]:
    places: list[int | None] = []
    for step in executed.steps:
        name = step.name
        for suffix in _SUFFIXES:
            name = name.removesuffix(suffix)
        places.append(next((places_by_name[key] for key in (name, *step.writes) if key in places_by_name), None))
    for i in reversed(range(len(places))):
        if places[i] is None:
            made = set(executed.steps[i].writes)
            readers = (places[j] for j in range(i + 1, len(places)) if made & set(executed.steps[j].reads))
            places[i] = next((place for place in readers if place is not None), None)
    last = 0
    for i, place in enumerate(places):
        last = places[i] = last if place is None else place
    return [place for place in places if place is not None]


def teach(table: KernelTable, subject: Subject, rule: FusionRule) -> None:
    """Adds kernels and whole graphs of a subject's policies to a table."""
    runtime = OnnxRuntimeDevice(Target("onnxruntime"))
    original = runtime.load(subject.preparation.original)
    for number, artifact in enumerate(subject.taught):
        executable = runtime.load(artifact)
        latency = measure_latency(executable, original, subject.batch, _TIMING, clock=_CLOCK)
        executed = runtime.lower(artifact)
        timings = _time_kernels(runtime, artifact, original, subject.batch)
        if [timing.kernel for timing in timings] != list(executed.kernels):
            raise SystemExit("the profiler saw other kernels than the optimised graph has")
        lowering = lower_by_rule(artifact.model, rule, batch_size=1)
        source = f"{subject.name} #{number}"
        table.add(book(lowering, artifact.model, executed, _scale(timings, latency.median_s)), source)
        table.add_graph(
            GraphObservation.of(lowering.graph.counts, latency, model=subject.name, source=source),
            lowering.graph.counts,
        )
        print(f"  {source}: {latency.median_s * 1e3:.3f} ms, kernels {sum(t.median_s for t in timings) * 1e3:.3f} ms")


def _scale(timings: Sequence[KernelTiming], total_s: float) -> list[KernelTiming]:
    """Makes kernels add up to the whole: the profiler itself takes some microseconds for each."""
    factor = total_s / sum(timing.median_s for timing in timings)
    return [timing.scaled(factor) for timing in timings]


def _time_kernels(
    runtime: OnnxRuntimeDevice, artifact: Artifact, original: Executable, batch: Mapping[str, np.ndarray]
) -> list[KernelTiming]:
    """The profiler's clock runs on while others have the core, so the faster of a few attempts is kept."""
    attempts = [
        runtime.time_kernels(artifact, batch, runs=_KERNEL_RUNS, between=lambda: original.run(batch))
        for _ in range(_N_ATTEMPTS)
    ]
    return min(attempts, key=lambda timings: sum(timing.median_s for timing in timings))


def compare(board: Path, subject: Subject) -> None:
    """Prints how far the board's prices are from measured latencies."""
    device, runtime = LutDevice(Target(LUT_RUNTIME, str(board))), OnnxRuntimeDevice(Target("onnxruntime"))
    original = runtime.load(subject.preparation.original)
    rows = []
    for artifact in subject.tested:
        found: Latency = measure_latency(runtime.load(artifact), original, subject.batch, _TIMING, clock=_CLOCK)
        price = device.price(artifact)
        rows.append((price.seconds, found.median_s, price.standard_error_s, price.unseen_share))
        print(
            f"  price {price.seconds * 1e3:7.3f} ± {price.standard_error_s * 1e3:.3f} ms, measured "
            f"{found.median_s * 1e3:7.3f} ms, {price.seconds / found.median_s - 1:+6.1%}, "
            f"predicted {price.unseen_share:.0%}"
        )
    priced, measured, *_ = np.array(rows).T
    miss = priced / measured - 1
    near = np.mean(np.abs(miss) <= 0.1)
    print(
        f"{subject.name}: {len(rows)} policies, mean absolute error {np.abs(miss).mean():.1%}, "
        f"bias {miss.mean():+.1%}, worst {np.abs(miss).max():.1%}, within 10 % {near:.0%}, "
        f"Kendall tau {kendalltau(priced, measured).statistic:.2f}"
    )


def main() -> None:
    """Makes the table and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", type=Path, required=True, help="the board file; its table is written anew")
    parser.add_argument("--models", nargs="+", default=["resnet8", "mobilenet_v2"], help="networks of the catalogue")
    parser.add_argument("--taught", type=int, default=10, help="mixed policies that the table is made of, per network")
    parser.add_argument("--tested", type=int, default=12, help="mixed policies that it is compared with, per network")
    parser.add_argument("--keep", action="store_true", help="keep the table that is there, only compare")
    parser.add_argument("--graphs", action="store_true", help="write whole graphs into the table too")
    chosen = parser.parse_args()
    content = read_yaml(chosen.board, noun="board")
    rule = parse_rule(content["fusion"])
    subjects = [prepare_subject(name, n_taught=chosen.taught, n_tested=chosen.tested) for name in chosen.models]
    if not chosen.keep:
        table = KernelTable(TableIdentity(content["name"], (), LUT_RUNTIME, "1", {"threads": 1}))
        for subject in subjects:
            teach(table, subject, rule)
        if not chosen.graphs:
            table = table.without_graphs(lambda _: True)
        write_table(chosen.board.parent / content["table"], table)
    for subject in subjects:
        compare(chosen.board, subject)


if __name__ == "__main__":
    main()

"""The measurements behind ``make bench-latency``: one file per network and runtime."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...compressors.edges import find_edges
from ...compressors.pipeline import Pipeline
from ...compressors.prepared import prepare_model
from ...compressors.source import load_source
from ...core.files import write_bytes
from ...evaluators.accuracy import take_batch
from ...evaluators.device import Executable, KernelDevice, build_device
from ...evaluators.latency import measure_together
from ...hw_profiles.kernels.kernel import Kernel, KernelTiming
from ...hw_profiles.kernels.kernel_table import KernelTable
from ...hw_profiles.kernels.table_identity import TableIdentity
from ...hw_profiles.target import Target
from ...spaces.layer import Layer
from ...spaces.policy import GraphTreatment
from ..architectures import catalogue
from ..preparation import prepare
from ..profiling.collect import DEFAULT_TIMING, Collector, PolicyRun
from ..profiling.learn import Learner, LearningPlan
from ..profiling.teach import time_random_networks
from ..spec_file import load_spec


@dataclass(frozen=True)
class ModelRuns:
    """What was measured of one network under one runtime."""

    model: str
    #: what kernel tables call it
    table_name: str
    layers: tuple[Layer, ...]
    #: layer names of each group
    groups: dict[str, tuple[str, ...]]
    designed: tuple[PolicyRun, ...]
    tested: tuple[PolicyRun, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {
            "model": self.model,
            "table_name": self.table_name,
            "layers": [layer.to_json() for layer in self.layers],
            "groups": {name: list(layers) for name, layers in self.groups.items()},
            "designed": [run.to_json() for run in self.designed],
            "tested": [run.to_json() for run in self.tested],
        }

    @classmethod
    def from_json(cls, value: Any) -> "ModelRuns":
        """Reads what `to_json` wrote."""
        layers = [
            {**layer, "weight_shape": tuple(layer["weight_shape"]), "output_shape": tuple(layer["output_shape"])}
            for layer in value["layers"]
        ]
        return cls(
            model=value["model"],
            table_name=value["table_name"],
            layers=tuple(Layer(**layer) for layer in layers),
            groups={name: tuple(members) for name, members in value["groups"].items()},
            designed=tuple(PolicyRun.from_json(run) for run in value["designed"]),
            tested=tuple(PolicyRun.from_json(run) for run in value["tested"]),
        )


def identify(runtime: str) -> TableIdentity:
    """Returns the identity of tables made here under a runtime."""
    return TableIdentity.of(build_device(Target(runtime)).identify())


def obtain_runs(model: str, runtime: str, folder: Path, plan: LearningPlan) -> ModelRuns:
    """Reads the measurements where they are on disk, else makes and writes them."""
    path = folder / f"{runtime}-{model}.json"
    if path.is_file():
        return ModelRuns.from_json(json.loads(path.read_text()))
    runs = _measure(model, runtime, plan)
    write_bytes(path, json.dumps(runs.to_json()).encode())
    return runs


def obtain_originals(models: Sequence[str], runtime: str, folder: Path) -> dict[str, float]:
    """Reads or measures how long each network's original takes, in seconds, all within a minute or two.

    The networks themselves are measured over an hour, in which a shared machine changes its speed; see `at_speed`.
    """
    path = folder / f"originals-{runtime}.json"
    if path.is_file():
        found: dict[str, float] = json.loads(path.read_text())
        return found
    loaded = {model: _load_original(model, runtime) for model in models}
    seen: dict[str, list[float]] = {model: [] for model in models}
    for _ in range(_N_ROTATIONS):
        for model, (executable, batch) in loaded.items():
            # in turns with itself, as it was when it was the reference
            latencies = measure_together([executable, executable], batch, DEFAULT_TIMING)
            seen[model].append(latencies[0].median_s)
    medians = {model: float(np.median(times)) for model, times in seen.items()}
    write_bytes(path, json.dumps(medians).encode())
    return medians


_N_ROTATIONS = 3


def _load_original(model: str, runtime: str) -> tuple[Executable, Mapping[str, np.ndarray]]:
    build, data = catalogue.MODELS[model]
    batch = take_batch(data().validation, 0, 1)
    device = build_device(Target(runtime))
    prepared = prepare_model(load_source(build), batch)
    return device.load(Pipeline(prepared, device.capabilities).build({}, GraphTreatment())), batch


def at_speed(runs: ModelRuns, original_s: float) -> ModelRuns:
    """Returns the measurements of a machine on which the original takes this long."""
    then_s = float(np.median([run.latency.reference_s or original_s for run in runs.designed]))
    factor = original_s / then_s
    return replace(
        runs,
        designed=tuple(_scale(run, factor) for run in runs.designed),
        tested=tuple(_scale(run, factor) for run in runs.tested),
    )


def _scale(run: PolicyRun, factor: float) -> PolicyRun:
    timings = tuple(timing.scaled(factor) for timing in run.timings)
    return replace(run, latency=run.latency.scaled(factor), timings=timings)


def _measure(model: str, runtime: str, plan: LearningPlan) -> ModelRuns:
    build, data = catalogue.MODELS[model]
    precision = ["float32", "bfloat16"] if runtime == "openvino" else ["float32"]
    spec = load_spec(
        {
            "name": model.replace("_", "-"),
            "model": build,
            "data": data,
            "target": {"runtime": runtime},
            "space": [
                {"layers": "*", "quantize": ["none", "int8"]},
                *([{"layers": "kind:linear", "quantize": ["none", "int8", "int8_dynamic"]}]),
            ],
            "graph": {"precision": precision, "calibration": ["minmax"]},
        }
    )
    preparation = prepare(spec)
    device = preparation.device
    if not isinstance(device, KernelDevice):
        raise SystemExit(f"{runtime} does not tell its kernels")
    batch = take_batch(preparation.dataset.validation, 0, device.target.batch_size)
    collector = Collector(device, preparation.pipeline, preparation.space, batch, plan.timing)
    edges = find_edges(preparation.model, preparation.space.groups)

    def report(done: int, of: int) -> None:
        sys.stderr.write(f"\r{runtime} {model}: {done} of {of} policies ")
        sys.stderr.flush()

    learner = Learner(collector, edges, model, plan)
    designed = learner.measure_designed(KernelTable(TableIdentity.of(device.identify())), report=report)
    tested = learner.measure_test(designed, report=report)
    sys.stderr.write("\n")
    groups = {group.name: group.layers for group in preparation.space.groups}
    return ModelRuns(model, preparation.table_name, preparation.model.layers, groups, tuple(designed), tuple(tested))


@dataclass(frozen=True)
class Lesson:
    """The kernels of one random network under one policy: what everybody may learn from."""

    name: str
    timings: tuple[KernelTiming, ...]


def obtain_lessons(runtime: str, folder: Path, n_networks: int) -> tuple[Lesson, ...]:
    """Reads or measures random networks, kernel by kernel."""
    path = folder / f"lessons-{runtime}.json"
    if not path.is_file():
        device = build_device(Target(runtime))
        if not isinstance(device, KernelDevice):
            raise SystemExit(f"{runtime} does not tell its kernels")

        def report(done: int, of: int) -> None:
            sys.stderr.write(f"\r{runtime}: {done} of {of} random networks ")
            sys.stderr.flush()

        found = time_random_networks(device, n_networks, seed=0, report=report)
        value = [
            [name, [[t.kernel.to_json(), t.median_s, t.iqr_s, t.runs] for t in timings]] for name, timings in found
        ]
        write_bytes(path, json.dumps(value).encode())
    return tuple(
        Lesson(name, tuple(KernelTiming(Kernel.from_json(k), m, i, n) for k, m, i, n in timings))
        for name, timings in json.loads(path.read_text())
    )

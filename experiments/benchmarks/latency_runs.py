"""The measurements behind ``make bench-latency``: one file per network and runtime."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...compressors.edges import find_edges
from ...core.files import write_bytes
from ...evaluators.accuracy import take_batch
from ...evaluators.device import KernelDevice, build_device
from ...hw_profiles.kernels.kernel_table import KernelTable
from ...hw_profiles.kernels.table_identity import TableIdentity
from ...hw_profiles.target import Target
from ...spaces.layer import Layer
from ..architectures import catalogue
from ..preparation import prepare
from ..profiling.collect import Collector, PolicyRun
from ..profiling.learn import Learner, LearningPlan
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

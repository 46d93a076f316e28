"""Production: the same policy on the same or on retrained weights, without a search."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..compressors.artifact import Artifact
from ..compressors.pipeline import Pipeline
from ..compressors.prepared import prepare_model
from ..compressors.source import ModelSource, load_source
from ..core.errors import PolicyError, SpecError
from ..evaluators.accuracy import AccuracyEvaluator, take_batch
from ..evaluators.dataset import Dataset
from ..evaluators.device import Device, build_recorded_device
from ..evaluators.latency import TimingSettings
from ..evaluators.measurement import Measurement
from ..spaces.policy import GraphTreatment
from .artifact_folder import record_probe, write_artifact, write_openvino_ir
from .benches import compare_with_yardstick
from .manifest import Manifest, Promise
from .policy_file import PolicyFile, load_policy
from .preparation import check_batch, load_dataset


@dataclass(frozen=True)
class Applied:
    """What `apply` made."""

    #: the artifact's folder
    folder: Path
    #: what its manifest promises
    promise: Measurement


def apply(
    policy: str | Path | PolicyFile,
    model: Any,
    *,
    out: str | Path,
    data: Any = None,
    openvino_ir: bool = False,
) -> Applied:
    """Applies a policy to a model and writes an artifact folder.

    Without data, statically quantised activations take the ranges that stand in the policy, and the promise holds
    latency and size only. With data they are calibrated anew and the promise holds the accuracy on the test split.

    Args:
        policy: a policy file or its path.
        model: as in a spec.
        out: the folder to write; an artifact that stands there is replaced.
        data: as in a spec; None does without.
        openvino_ir: write ``model.xml`` and ``model.bin`` too.

    Raises:
        SpecError: a file or the model cannot be used, or ``out`` is a folder of something else.
        PolicyError: the policy does not fit the model; the message names the layers.
    """
    file = policy if isinstance(policy, PolicyFile) else load_policy(Path(policy))
    folder = Path(out)
    _check_out(folder)
    source = load_source(model)
    dataset = None if data is None else load_dataset(data)
    device = build_recorded_device(file.target)
    _check_precision(file, device)
    check_batch(source, device)
    calibration = source.sample if dataset is None else dataset.calibration.inputs
    prepared = prepare_model(source, calibration, fusions=("none", file.policy.graph.fusion))
    file.check_fit(prepared.layers)
    pipeline = Pipeline(prepared, device.capabilities)
    if dataset is None:
        _check_ranges(file, pipeline)
        pipeline.adopt_ranges(file.policy.graph, file.ranges)
    elif file.ranges:
        file = replace(file, ranges=pipeline.ranges(file.policy.graph))
    artifact = pipeline.build(file.layer_treatments, file.policy.graph)
    original = pipeline.build({}, GraphTreatment())
    batch = _example_batch(source, dataset, device)
    promise = _measure(device, original, artifact, batch, dataset)
    manifest = Manifest(
        target=file.target,
        precision=artifact.precision,
        dynamic_activations=artifact.dynamic_activations,
        promise=promise,
        profile=device.identify().to_json(),
    )
    write_artifact(folder, artifact, file, manifest, record_probe(device.load(artifact), [batch]))
    if openvino_ir:
        write_openvino_ir(folder, artifact)
    return Applied(folder, promise.measurement)


def _check_out(folder: Path) -> None:
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / "manifest.json").is_file())
    ):
        raise SpecError(f"--out {folder} exists and is not an artifact; choose another folder, or remove it")


def _check_precision(file: PolicyFile, device: Device) -> None:
    known, precision = device.capabilities.precisions, file.policy.graph.precision
    if precision not in known:
        raise PolicyError(f"the policy computes in {precision}, and {file.target.name} here in {', '.join(known)}; "
                          f"search again on this machine")  # fmt: skip


def _check_ranges(file: PolicyFile, pipeline: Pipeline) -> None:
    if not any(treatment.is_static for _, treatment in file.policy.groups):
        return
    missing = sorted(set(pipeline.prepared.statistics.get(file.policy.graph.fusion, ())) - set(file.ranges))
    if missing:
        raise PolicyError(f"the policy holds no activation range for {', '.join(missing[:5])}; give data to calibrate "
                          f"anew (--data)")  # fmt: skip


def _example_batch(source: ModelSource, dataset: Dataset | None, device: Device) -> Mapping[str, np.ndarray]:
    if dataset is not None:
        return take_batch(dataset.validation, 0, device.target.batch_size)
    return {name: np.repeat(array, device.target.batch_size, axis=0) for name, array in source.sample.items()}


def _measure(
    device: Device, original: Artifact, artifact: Artifact, batch: Mapping[str, np.ndarray], dataset: Dataset | None
) -> Promise:
    reference, executable = device.load(original), device.load(artifact)
    _, latency, yardstick = compare_with_yardstick([reference, executable], batch, TimingSettings())
    accuracy = drop = None
    if dataset is not None:
        evaluator = AccuracyEvaluator(
            reference, dataset.test, metric=dataset.metric, batch_size=device.target.batch_size
        )
        score = evaluator.score(executable)
        accuracy, drop = score.accuracy, score.accuracy_drop
    measurement = Measurement(accuracy, drop, latency, artifact.size_bytes)
    return Promise(measurement, "test", yardstick.median_s if latency.source == "measured" else None)

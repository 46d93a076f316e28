"""Production: the same policy on the same or on retrained weights, without a search."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..compressors.artifact import Artifact
from ..compressors.onnx_stage import OnnxStage
from ..compressors.pipeline import Pipeline
from ..compressors.prepared import PreparedModel, prepare_model
from ..compressors.source import ModelSource, load_source
from ..compressors.training import Training
from ..core.errors import PolicyError, SpecError
from ..evaluators.accuracy import AccuracyEvaluator, take_batch
from ..evaluators.dataset import Dataset
from ..evaluators.device import Device, Executable, build_recorded_device
from ..evaluators.latency import TimingSettings
from ..evaluators.measurement import Measurement
from ..spaces.policy import GraphTreatment
from .artifact_folder import record_probe, write_artifact, write_openvino_ir
from .benches import compare_with_yardstick
from .manifest import Manifest, Promise
from .policy_file import PolicyFile, load_policy
from .preparation import check_batch, load_dataset, make_training
from .reapply.drift import AppliedModel
from .reapply.mapped_policy import map_policy
from .reapply.matching import Matching, match_layers
from .reapply.range_order import move_ranges, order_ranges
from .reapply.suitability import Suitability, check_suitability
from .serving.record import Expectation, record_expectation

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Applied:
    """What `apply` made."""

    #: the artifact's folder
    folder: Path
    #: what its manifest promises
    promise: Measurement
    #: which layer of the model is which of the policy's
    matching: Matching
    #: what became of treatments that do not go on as they were, one line each
    notes: tuple[str, ...]
    #: whether the policy still suits, as far as that was checked
    suitability: Suitability
    #: False where the policy does not suit and ``strict`` was asked for: nothing was written then
    is_written: bool

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        return {
            "artifact": str(self.folder) if self.is_written else None,
            "promise": self.promise.to_json(),
            "mapping": list(self.matching.lines),
            "pairs": {} if self.matching.is_identity else dict(self.matching.pairs),
            "notes": list(self.notes),
            **self.suitability.to_json(),
        }


@dataclass(frozen=True)
class ApplyOptions:
    """What may be added to an artifact, what it may use, and how far the model may differ."""

    #: write ``model.xml`` and ``model.bin`` too
    openvino_ir: bool = False
    #: the teachers that a policy may import; a policy file may come from anywhere, so what it names is named again here
    teachers: tuple[str, ...] = ()
    #: how far the model may differ from the one that the policy was found for, see `match_layers`
    match: str = "exact"
    #: write nothing where the policy no longer suits
    strict: bool = False


def apply(
    policy: str | Path | PolicyFile,
    model: Any,
    *,
    out: str | Path,
    data: Any = None,
    options: ApplyOptions = ApplyOptions(),
) -> Applied:
    """Applies a policy to a model and writes an artifact folder.

    Without data, statically quantised activations take the ranges that stand in the policy, and the promise holds
    latency and size only. With data they are calibrated anew, the promise holds the accuracy on the test split, and
    what the treatments do to these weights is compared with what they did to those that the policy was found for.
    A policy with recovery trains again, on the train split; one whose choices depend on data needs them too.

    Args:
        policy: a policy file or its path.
        model: as in a spec.
        out: the folder to write; an artifact that stands there is replaced.
        data: as in a spec; None does without.
        options: what may be added, what may be used, and how far the model may differ.

    Raises:
        SpecError: a file or the model cannot be used, or ``out`` is a folder of something else.
        PolicyError: the policy does not fit the model; the message names the layers.
    """
    file = policy if isinstance(policy, PolicyFile) else load_policy(policy)
    folder = Path(out)
    _check_out(folder)
    source = load_source(model)
    dataset = None if data is None else load_dataset(data)
    device = build_recorded_device(file.target)
    _check_precision(file, device)
    check_batch(source, device)
    _check_data(file, dataset)
    calibration = source.sample if dataset is None else dataset.calibration.inputs
    prepared = prepare_model(source, calibration, fusions=("none", file.policy.graph.fusion))
    matching = match_layers(file.layers, prepared.layers, match=options.match)
    mapped = map_policy(file, prepared, matching)
    for line in (*matching.lines, *mapped.notes):
        _log.info("%s", line)
    pipeline = Pipeline(mapped.model, device.capabilities, _training(mapped.file, dataset, mapped.model, options))
    file = _settle_ranges(mapped.file, pipeline, matching, has_data=dataset is not None)
    artifact = pipeline.build(file.layer_treatments, file.policy.graph, file.policy.recovery)
    original = pipeline.build({}, GraphTreatment())
    loaded = _Loaded(device, artifact, device.load(original), device.load(artifact), dataset)
    batch = _example_batch(source, dataset, device)
    promise = _measure(loaded, batch)
    applied_model = None if dataset is None else AppliedModel(file, device, dataset, pipeline)
    suitability = check_suitability(applied_model, file, promise.measurement.accuracy_drop)
    for warning in suitability.warnings:
        _log.warning("%s", warning)
    applied = Applied(
        folder, promise.measurement, matching, mapped.notes, suitability, suitability.suits or not options.strict
    )
    if applied.is_written:
        _write(applied, file, loaded, promise, batch)
        if options.openvino_ir:
            write_openvino_ir(folder, artifact)
    return applied


@dataclass(frozen=True)
class _Loaded:
    """The artifact and the untouched model on the device, each loaded once."""

    device: Device
    artifact: Artifact
    reference: Executable
    executable: Executable
    dataset: Dataset | None


def _write(
    applied: Applied, file: PolicyFile, loaded: _Loaded, promise: Promise, batch: Mapping[str, np.ndarray]
) -> None:
    artifact, expected = loaded.artifact, _expect(loaded)
    manifest = Manifest(
        target=file.target,
        precision=artifact.precision,
        dynamic_activations=artifact.dynamic_activations,
        promise=promise,
        profile=loaded.device.identify().to_json(),
        input_statistics=expected.input_statistics,
        agreement=expected.agreement,
    )
    write_artifact(applied.folder, artifact, file, manifest, record_probe(loaded.executable, [batch]))


def _expect(loaded: _Loaded) -> Expectation:
    """Returns what service is to be compared with; nothing where there are no data."""
    if loaded.dataset is None:
        return Expectation()
    split, batch_size = loaded.dataset.validation, loaded.device.target.batch_size
    return record_expectation(loaded.executable, loaded.reference, split, batch_size=batch_size)


def _settle_ranges(file: PolicyFile, pipeline: Pipeline, matching: Matching, *, has_data: bool) -> PolicyFile:
    """Returns the policy with the ranges of this model's values: calibrated anew, or those of the file.

    Raises:
        PolicyError: the file's ranges do not fit, and there are no data to calibrate anew.
    """
    is_static = any(treatment.is_static for _, treatment in file.policy.groups)
    stage = pipeline.stage_of(pipeline.shape_of(file.layer_treatments, file.policy.recovery))
    graph = file.policy.graph
    if has_data:
        return replace(file, ranges=stage.ranges(graph), range_order=order_ranges(stage, graph)) if is_static else file
    if not is_static:
        return file
    if matching.missing or matching.added or matching.reshaped or matching.ambiguous:
        raise PolicyError("layers have changed, and with them what their activations are; give data to calibrate anew "
                          "(--data)")  # fmt: skip
    if not matching.is_identity:
        file = move_ranges(file, stage)
    _check_ranges(file, stage)
    stage.adopt_ranges(graph, file.ranges)
    return file


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


def _check_data(file: PolicyFile, dataset: Dataset | None) -> None:
    if dataset is None and file.policy.needs_data:
        what = "trains after compression" if file.policy.recovery.trains else "chooses by what data show"
        raise PolicyError(f"the policy {what}, so it needs data; give them (--data module:callable)")
    if file.policy.recovery.trains and dataset is not None and dataset.train is None:
        raise PolicyError("the policy trains after compression, and the data have no train split; add Dataset(train=…)")


def _training(
    file: PolicyFile, dataset: Dataset | None, prepared: PreparedModel, options: ApplyOptions
) -> Training | None:
    """Returns what recovery needs; None where nothing trains.

    Raises:
        PolicyError: the policy learns from a teacher that was not named again.
    """
    if dataset is None or dataset.train is None:
        return None
    unnamed = sorted(set(file.policy.recovery.teachers) - set(options.teachers))
    if unnamed:
        raise PolicyError(f"the policy learns from the teacher {', '.join(unnamed)}, which is code to import; "
                          f"allow it with --teacher {unnamed[0]}")  # fmt: skip
    seed = int(file.origin.get("seed", 0))
    return make_training(dataset, prepared, teachers=file.policy.recovery.teachers, seed=seed)


def _check_ranges(file: PolicyFile, stage: OnnxStage) -> None:
    missing = sorted(set(stage.prepared.statistics.get(file.policy.graph.fusion, ())) - set(file.ranges))
    if missing:
        raise PolicyError(f"the policy holds no activation range for {', '.join(missing[:5])}; give data to calibrate "
                          f"anew (--data)")  # fmt: skip


def _example_batch(source: ModelSource, dataset: Dataset | None, device: Device) -> Mapping[str, np.ndarray]:
    if dataset is not None:
        return take_batch(dataset.validation, 0, device.target.batch_size)
    return {name: np.repeat(array, device.target.batch_size, axis=0) for name, array in source.sample.items()}


def _measure(loaded: _Loaded, batch: Mapping[str, np.ndarray]) -> Promise:
    together, dataset = [loaded.reference, loaded.executable], loaded.dataset
    _, latency, yardstick = compare_with_yardstick(together, batch, TimingSettings())
    accuracy = drop = None
    if dataset is not None:
        batch_size = loaded.device.target.batch_size
        evaluator = AccuracyEvaluator(loaded.reference, dataset.test, metric=dataset.metric, batch_size=batch_size)
        score = evaluator.score(loaded.executable)
        accuracy, drop = score.accuracy, score.accuracy_drop
    measurement = Measurement(accuracy, drop, latency, loaded.artifact.size_bytes)
    return Promise(measurement, "test", yardstick.median_s if latency.source == "measured" else None)

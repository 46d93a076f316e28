"""From a spec to everything that a search needs, before any trial: paid once, checked once."""

import hashlib
import importlib.metadata
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from ..compressors.artifact import Artifact
from ..compressors.graph import check_inputs
from ..compressors.pipeline import Pipeline
from ..compressors.prepared import PreparedModel, prepare_model
from ..compressors.source import ModelSource, load_source
from ..compressors.training import Training
from ..core.cache import cache_folder
from ..core.errors import DataError, MeasurementError, ModelError, SpecError
from ..core.files import short_digest
from ..core.imports import import_object
from ..core.names import describe_unknown
from ..evaluators.accuracy import AccuracyEvaluator, take_batch
from ..evaluators.dataset import Dataset, Split
from ..evaluators.device import Device, DeviceElsewhere, build_device, find_address
from ..evaluators.latency import TimingSettings
from ..evaluators.metrics import find_metric
from ..evaluators.remote.believing import check_original
from ..evaluators.resources import WantedResources, check_resources
from ..hw_profiles.energy.energy_table import load_energy_table
from ..search.pools import check_scheduler
from ..search.searcher import SEARCHERS
from ..spaces.policy import GraphTreatment, Policy
from ..spaces.rules import Dropped
from ..spaces.space import Space
from ..spaces.treatment import QUANTIZE_OPTIONS
from .benches import SearchBenches
from .offer import Offer, make_offer
from .profiling.device_profiles import FoundProfile, find_profile
from .spec import Spec

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """A spec with its model, data, device and space."""

    spec: Spec
    device: Device
    dataset: Dataset
    model: PreparedModel
    #: the space, and what is not in it
    offer: Offer
    #: data and teachers of recovery; None where nothing needs them
    training: Training | None = None
    #: which measurements decided what does not pay here, in words
    profile_note: str = ""

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline for this model and target."""
        return Pipeline(self.model, self.device.capabilities, self.training)

    @property
    def space(self) -> Space:
        """What can be chosen."""
        return self.offer.space

    def build(self, policy: Policy) -> Artifact:
        """Builds the artifact of a policy of the space.

        Raises:
            PolicyError: it cannot be built.
        """
        return self.pipeline.build(self.space.layer_treatments(policy), policy.graph, policy.recovery)

    @property
    def table_name(self) -> str:
        """The model's name in kernel tables: equal after retraining, different after surgery."""
        return f"model {self.model.fingerprint}"

    @property
    def original(self) -> Artifact:
        """The untouched model."""
        return self.pipeline.build({}, GraphTreatment())

    @cached_property
    def validation(self) -> AccuracyEvaluator:
        """The evaluator on the validation split; see `_evaluate_on`."""
        return self._evaluate_on("validation")

    @cached_property
    def test(self) -> AccuracyEvaluator:
        """The evaluator on the test split; see `_evaluate_on`."""
        return self._evaluate_on("test")

    def _evaluate_on(self, name: str) -> AccuracyEvaluator:
        """Runs the original over a split and returns the evaluator that compares with it.

        Raises:
            DataError: the data do not fit the model or the metric.
            ModelError: the original fails on them.
        """
        split, batch_size = getattr(self.dataset, name), self.device.target.batch_size
        try:
            executable = self.device.load(self.original)
            check_original(self.device, executable, self.original, take_batch(split, 0, batch_size))
            evaluator = AccuracyEvaluator(executable, split, metric=self.dataset.metric, batch_size=batch_size)
            _log.info("the original scores %.4f on the %s split", evaluator.original.mean, name)
            return evaluator
        except DataError as error:
            raise DataError(f"the {name} split: {error}") from error
        except MeasurementError as error:
            raise ModelError(f"the original fails on the {name} split: {error}") from error

    def benches(self) -> SearchBenches:
        """Makes the factory that the workers receive."""
        spec = self.spec
        return SearchBenches(
            prepared=self.model,
            space=self.space,
            target=find_address(self.device),
            capabilities=self.device.capabilities,
            evaluator=self.validation,
            batch=take_batch(self.dataset.validation, 0, self.device.target.batch_size),
            timing=self.timing,
            wanted=want_resources(spec),
            training=self.training,
            enough_drop=None if spec.objective == "accuracy" else spec.budget.accuracy_drop,
            pins_cores=spec.workers.address != "inline" and not isinstance(self.device, DeviceElsewhere),
        )

    @property
    def timing(self) -> TimingSettings:
        """How long the spec lets an artifact be timed."""
        runs = self.spec.timing.runs
        return TimingSettings(min_runs=runs, max_runs=max(1000, runs))

    def with_space(self, space: Space, dropped: Sequence[Dropped] = ()) -> "Preparation":
        """Returns the same with a smaller space, and with what fell away."""
        if space == self.space and not dropped:
            return self
        offer = replace(self.offer, space=space, dropped=(*self.offer.dropped, *dropped))
        smaller = replace(self, offer=offer)
        # what was paid for does not depend on the space
        kept = {name: value for name, value in vars(self).items() if name in ("pipeline", "validation", "test")}
        vars(smaller).update(kept)
        return smaller

    def _can_run(self, drop: Dropped) -> bool:
        """Whether the option fell away for its speed only, by the device's profile."""
        kind = next((layer.kind for layer in self.model.layers if layer.name == drop.layer), "")
        return drop.option in QUANTIZE_OPTIONS and self.device.capabilities.why_not(drop.option, kind) is None

    def fingerprints(self) -> dict[str, str]:
        """Returns what a run depends on, by name: a resumed run has to find the same."""
        content = self.spec.to_json()
        for part in ("workers", "name"):
            content.pop(part, None)
        for part in ("trials", "time_limit", "patience"):
            content["search"].pop(part, None)
        packages = ("trimtab", "numpy", "onnx", "onnxruntime", "optuna")
        slow = [[drop.layer, drop.option] for drop in self.offer.dropped if self._can_run(drop)]
        return {
            **({"profile": short_digest(slow)} if slow else {}),
            "spec": short_digest(content),
            "model": self.model.fingerprint,
            "weights": digest_arrays(self.model.constants.items()),
            "data": _digest_dataset(self.dataset),
            **({"training": self.training.digest} if self.training is not None else {}),
            "target": self.device.identify().id,
            "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        }


def prepare(spec: Spec) -> Preparation:
    """Loads model, data and device, and makes the space.

    Raises:
        SpecError: (or ModelError, DataError) something does not fit; nothing was started.
    """
    if spec.search.algorithm not in SEARCHERS:
        SEARCHERS.get(spec.search.algorithm)
    check_scheduler(spec.search.scheduler, spec.workers.address)
    device = build_device(spec.target.to_target())
    _check_precisions(spec, device)
    check_resources(want_resources(spec), device)
    dataset = load_dataset(spec.data)
    find_metric(dataset.metric)
    source = load_source(spec.model)
    fusions = spec.graph.fusion or device.capabilities.fusions
    unknown = [fusion for fusion in fusions if fusion not in device.capabilities.fusions]
    if unknown:
        raise SpecError(f"graph.fusion: {spec.target.runtime} does not offer {', '.join(unknown)}; "
                        f"it offers {', '.join(device.capabilities.fusions)}")  # fmt: skip
    check_batch(source, device)
    model = prepare_model(source, dataset.calibration.inputs, fusions=("none", *fusions))
    _check_splits(model, dataset)
    if not model.layers:
        raise SpecError("the model has no layer that can be compressed (convolution, linear or embedding)")
    found = find_profile(device.identify(), spec.profile)
    offer, model = make_offer(spec, device, model, dataset, None if _wants_small(spec) else found.profile)
    _check_trains(spec, offer)
    names = tuple(name for recovery in offer.space.graph.recovery for name in recovery.teachers)
    training = make_training(dataset, model, teachers=names, seed=spec.search.seed) if offer.trains else None
    if training is not None:
        _check_recoveries(Pipeline(model, device.capabilities, training), offer)
    return Preparation(spec, device, dataset, model, offer, training, _note(spec, found))


def load_dataset(data: Any) -> Dataset:
    """Loads what ``data:`` of a spec names.

    Raises:
        DataError: it is not a `Dataset`, or the callable failed.
        SpecError: the name does not import.
    """
    found = import_object(data, noun="data") if isinstance(data, str) else data
    if callable(found) and not isinstance(found, Dataset):
        try:
            found = found()
        except SpecError:
            raise
        except Exception as error:
            raise DataError(f"the data's callable failed: {error!r}") from error
    if not isinstance(found, Dataset):
        raise DataError(f"data must be (or return) a trimtab.Dataset, got {type(found).__name__}")
    return found


def check_batch(source: ModelSource, device: Device) -> None:
    """Compares a batch that the model fixes with the target's; calibration runs single samples.

    Raises:
        ModelError: the model cannot run in this batch.
    """
    wanted = device.target.batch_size
    for value in onnx.load_from_string(source.onnx_bytes).graph.input:
        sides = value.type.tensor_type.shape.dim
        fixed = sides[0].dim_value if sides else 0
        if fixed > 1 or (fixed == 1 and wanted != 1):
            remedy = " or set target.batch_size: 1" if fixed == 1 else ""
            raise ModelError(f"target.batch_size is {wanted}, but the model fixes the batch of its input "
                             f"'{value.name}' to {fixed}; export it with an open batch{remedy}")  # fmt: skip


def _check_splits(model: PreparedModel, dataset: Dataset) -> None:
    graph = ir.from_proto(onnx.load_from_string(model.variants["none"]))
    for name, split in (("validation", dataset.validation), ("test", dataset.test)):
        try:
            check_inputs(graph, split.take(slice(1)).inputs)
        except DataError as error:
            raise DataError(f"the {name} split: {error}") from error


def _check_precisions(spec: Spec, device: Device) -> None:
    known = device.capabilities.precisions
    for precision in spec.graph.precision or ():
        if precision not in known:
            raise SpecError(
                f"graph.precision: {describe_unknown(f'precision of {spec.target.runtime}', precision, known)}; "
                f"remove it, or choose another target"
            )


def _check_trains(spec: Spec, offer: Offer) -> None:
    if spec.search.scheduler != "none" and not any(recovery.trains for recovery in offer.space.graph.recovery):
        raise SpecError(
            f"search.scheduler: {spec.search.scheduler} stops trainings early, and no recovery on offer trains; add "
            "finetune or distill to recovery, or set search.scheduler: none"
        )


def want_resources(spec: Spec) -> WantedResources:
    """Returns what the spec asks for, bounds or optimises.

    Raises:
        SpecError: the table of energies cannot be read.
    """
    budget, timing = spec.budget, spec.timing
    wants_energy = timing.energy or budget.energy_mj is not None or spec.objective == "energy"
    table = None if timing.energy_table is None else Path(timing.energy_table)
    return WantedResources(
        peak_memory=timing.peak_memory or budget.peak_memory_mb is not None or spec.objective == "peak_memory",
        peak_activation=budget.peak_activation_mb is not None or spec.objective == "peak_activation",
        energy_table=load_energy_table(table) if wants_energy else None,
    )


def _note(spec: Spec, found: FoundProfile) -> str:
    if found.profile is not None and _wants_small(spec):
        return f"{found.note}; size or memory counts, so options that only shrink the model stay"
    return found.note


def _wants_small(spec: Spec) -> bool:
    bounds = (spec.budget.size_mb, spec.budget.peak_memory_mb)
    return spec.objective in ("size", "peak_memory") or any(bound is not None for bound in bounds)


def digest_arrays(arrays: Any) -> str:
    """Returns 16 hex digits that depend on every name, dtype, shape and byte of (name, array) pairs."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays, key=lambda pair: str(pair[0])):
        digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()[:16]


def make_training(dataset: Dataset, model: PreparedModel, *, teachers: Sequence[str], seed: int) -> Training:
    """Returns what recovery trains on and learns from.

    Args:
        dataset: with a train split.
        model: whose weights decide, with the data, which trained models are found again.
        teachers: ``module:callable`` of each.
        seed: of everything that is drawn.

    Raises:
        SpecError: a teacher cannot be found, or is no ``nn.Module``.
        DataError: there is no train split.
    """
    train = dataset.train
    if train is None:
        raise DataError("an importance by gradients needs a train split; return one in Dataset(train=…)")
    labels = [] if train.labels is None else [("labels", train.labels)]
    return Training(
        inputs=train.inputs,
        labels=train.labels,
        loss=dataset.loss,
        digest=digest_arrays([*model.constants.items(), *train.inputs.items(), *labels]),
        seed=seed,
        folder=cache_folder() / "trained",
        teachers={name: load_teacher(name) for name in dict.fromkeys(teachers)},
    )


def _check_recoveries(pipeline: Pipeline, offer: Offer) -> None:
    """Sets every recovery up on the untouched model: loss, labels, features and teachers fit, or nothing is started.

    Raises:
        SpecError: they do not.
    """
    for recovery in offer.space.graph.recovery:
        if recovery.trains:
            pipeline.shaper.open_session(pipeline.shape_of({}, recovery))


def load_teacher(name: str) -> Any:
    """Returns the ``nn.Module`` that ``module:callable`` makes, in eval mode.

    Raises:
        SpecError: it cannot be found, or is something else.
    """
    found = import_object(name, noun="teacher")
    module = found() if callable(found) and not hasattr(found, "named_parameters") else found
    module = module[0] if isinstance(module, tuple) else module
    if not hasattr(module, "named_parameters"):
        raise SpecError(f"teacher '{name}' must be (or return) an nn.Module, got {type(module).__name__}")
    return module.eval()


def _digest_dataset(dataset: Dataset) -> str:
    splits: Sequence[tuple[str, Split]] = (
        ("calibration", dataset.calibration), ("validation", dataset.validation), ("test", dataset.test)
    )  # fmt: skip
    arrays = [(f"{name}.{key}", array) for name, split in splits for key, array in split.inputs.items()]
    labels = [(f"{name}.labels", split.labels) for name, split in splits if split.labels is not None]
    return digest_arrays([*arrays, *labels])

"""Artifacts of a recipe's policies: the model is prepared once, and every shape of it once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ...compressors.artifact import Artifact
from ...compressors.onnx_stage import OnnxStage
from ...compressors.pipeline import Pipeline
from ...compressors.prepared import PreparedModel, prepare_model
from ...compressors.source import load_source
from ...core.errors import SpecError
from ...core.files import short_digest
from ...evaluators.accuracy import take_batch
from ...evaluators.dataset import Dataset, Split
from ...evaluators.device import Device, build_device
from ...hw_profiles.target import Target
from ...spaces.policy import GraphTreatment, Policy
from ...spaces.space import Space
from ...spaces.space_json import space_to_json
from ..preparation import digest_arrays, load_dataset
from .table_recipes import TableRecipe


@dataclass
class TableBuilder:
    """Builds artifacts; unlike `Pipeline` it keeps the models of all shapes, because policies come in random order."""

    recipe: TableRecipe
    device: Device
    dataset: Dataset
    prepared: PreparedModel
    _stages: dict[str, OnnxStage] = field(default_factory=dict)

    @classmethod
    def open(cls, recipe: TableRecipe) -> "TableBuilder":
        """Loads model, data and runtime.

        Raises:
            SpecError: (or ModelError, DataError) something is missing.
        """
        device = build_device(Target(recipe.runtime))
        dataset = load_dataset(recipe.data)
        prepared = prepare_model(load_source(recipe.model), dataset.calibration.inputs, fusions=recipe.graph.fusion)
        if recipe.has_structures:
            prepared = _with_structures(prepared)
        return cls(recipe, device, dataset, prepared)

    @cached_property
    def space(self) -> Space:
        """The recipe's space."""
        return self.recipe.space

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline that prepares other shapes."""
        return Pipeline(self.prepared, self.device.capabilities)

    @property
    def original(self) -> Artifact:
        """The untouched model."""
        return self.pipeline.build({}, GraphTreatment())

    def build(self, policy: Policy) -> Artifact:
        """Builds the artifact of a policy of the space.

        Raises:
            PolicyError: it cannot be built.
        """
        shape = self.pipeline.shape_of(self.space.layer_treatments(policy))
        if shape.is_original:
            stage = self.pipeline.stage
        else:
            if shape.key not in self._stages:
                self._stages[shape.key] = OnnxStage(self.pipeline.shaper.make(shape), self.device.capabilities)
            stage = self._stages[shape.key]
        return stage.write(shape.remaining(stage.prepared.layers), policy.graph)

    @property
    def sample(self) -> Mapping[str, np.ndarray]:
        """One sample, which every latency is measured with."""
        return take_batch(self.dataset.validation, 0, 1)

    def fingerprints(self) -> dict[str, str]:
        """Returns what a table depends on, by name: a measuring that goes on has to find the same."""
        splits = (("calibration", self.dataset.calibration), ("validation", self.dataset.validation))
        arrays = [(f"{name}.{key}", array) for name, split in splits for key, array in _arrays_of(split)]
        return {
            "space": short_digest(space_to_json(self.space)),
            "model": self.prepared.fingerprint,
            "weights": digest_arrays(self.prepared.constants.items()),
            "data": digest_arrays(arrays),
            "target": self.device.identify().id,
        }


def _arrays_of(split: Split) -> list[tuple[str, np.ndarray]]:
    labels = [] if split.labels is None else [("labels", split.labels)]
    return [*split.inputs.items(), *labels]


def _with_structures(prepared: PreparedModel) -> PreparedModel:
    if prepared.origin is None:
        raise SpecError("pruning changes the torch model, and this one was given as an .onnx file")
    from ...compressors.pruning.structures import find_structures

    return replace(prepared, found=find_structures(prepared.origin.module, prepared.origin.example_inputs))

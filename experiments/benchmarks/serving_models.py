"""The models that `serving` is measured on, as members of a service."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...compressors.artifact import Artifact
from ...compressors.pipeline import Pipeline
from ...compressors.prepared import prepare_model
from ...compressors.source import load_source
from ...evaluators.device import Device, Executable
from ...evaluators.latency import TimingSettings
from ...evaluators.measurement import Measurement
from ...evaluators.onnxruntime_device import OnnxRuntimeDevice
from ...hw_profiles.latency import Latency
from ...hw_profiles.target import Target
from ...spaces.policy import GraphTreatment, Policy
from ...spaces.treatment import QUANTIZE_OPTIONS
from ..benches import compare_with_yardstick
from ..manifest import Manifest, Promise
from ..preparation import prepare
from ..serving.member import Member
from ..serving.record import Expectation, record_expectation
from ..spec_file import load_spec


@dataclass(frozen=True)
class ServedCase:
    """Policies of one model, the slowest first, and batches to send."""

    members: tuple[Member, ...]
    #: input name → (n_samples, …) array
    inputs: Mapping[str, np.ndarray]
    original: Executable

    def batch(self, index: int) -> dict[str, np.ndarray]:
        """Returns one sample, as a batch."""
        n_samples = len(next(iter(self.inputs.values())))
        at = index % n_samples
        return {name: array[at : at + 1] for name, array in self.inputs.items()}


def make_minilm() -> ServedCase:
    """Returns MiniLM's architecture with random weights, on which its speed does not depend, in three policies."""
    import torch

    from ..minilm import MiniLmClassifier

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    mask = (np.arange(128)[None] < rng.integers(20, 129, 64)[:, None]).astype(np.int64)
    inputs = {"input_ids": rng.integers(1, 30000, (64, 128)) * mask, "attention_mask": mask}
    example = {name: torch.from_numpy(array[:1]) for name, array in inputs.items()}
    prepared = prepare_model(load_source((MiniLmClassifier().eval(), example)), inputs, fusions=("none", "gelu"))
    device = OnnxRuntimeDevice(Target("onnxruntime"))
    pipeline = Pipeline(prepared, device.capabilities)
    linear = [layer.name for layer in prepared.layers if layer.kind == "linear"]
    artifacts = [
        pipeline.build(dict.fromkeys(names, QUANTIZE_OPTIONS["int8_dynamic"]), GraphTreatment())
        for names in ([], linear[: len(linear) // 2], linear)
    ]
    return _make_case(device, artifacts, inputs, Expectation(), names=("float32", "half int8", "int8"))


def make_digits() -> ServedCase:
    """Returns the recipe `digits` with all its layers in int8, and statistics of its validation split."""
    preparation = prepare(load_spec("digits"))
    device, space = preparation.device, preparation.space
    int8 = {
        group.name: option
        for group, options in zip(space.groups, space.options, strict=True)
        for option in options
        if option == QUANTIZE_OPTIONS["int8"]
    }
    artifact = preparation.build(Policy(int8, space.default_graph))
    expected = record_expectation(
        device.load(artifact), preparation.validation.reference, preparation.dataset.validation, batch_size=1
    )
    case = _make_case(
        device, [preparation.original, artifact], preparation.dataset.test.inputs, expected, ("-", "int8")
    )
    return ServedCase(case.members[1:], case.inputs, case.original)


def _make_case(
    device: Device, artifacts: list[Artifact], inputs: Mapping[str, np.ndarray], expected: Expectation, names: Any
) -> ServedCase:
    """Times the artifacts in turns; the first is the original."""
    executables = [device.load(artifact) for artifact in artifacts]
    batch = {name: array[:1] for name, array in inputs.items()}
    # what the load does to a service is to be seen on an unquiet machine, too
    timing = TimingSettings(min_runs=60, min_time_s=2.0, max_spread=9.0, max_uncertainty=9.0, max_drift=9.0)
    *latencies, yardstick = compare_with_yardstick(executables, batch, timing)
    members = tuple(
        Member(name, _promise(device, latency, yardstick, expected), executable)
        for name, latency, executable in zip(names, latencies, executables, strict=True)
    )
    return ServedCase(members, inputs, executables[0])


def _promise(device: Device, latency: Latency, yardstick: Latency, expected: Expectation) -> Manifest:
    return Manifest(
        target=device.target,
        precision="float32",
        dynamic_activations=False,
        promise=Promise(Measurement(latency=latency), "test", yardstick.median_s),
        profile={},
        input_statistics=expected.input_statistics,
        agreement=expected.agreement,
    )

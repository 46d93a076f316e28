"""Writes the folder that production takes: model, policy, probe, manifest."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ..compressors.artifact import Artifact
from ..core.errors import ArtifactError
from ..core.files import replaced_folder, write_bytes
from ..evaluators.device import Executable
from ..evaluators.openvino_precision import pin_layers
from .manifest import Manifest
from .policy_file import PolicyFile

#: batches of inputs and outputs kept in the probe
N_PROBES = 4


def write_artifact(
    folder: Path, artifact: Artifact, policy: PolicyFile, manifest: Manifest, probe: Mapping[str, np.ndarray]
) -> None:
    """Writes the folder as a whole or not at all; an existing one is replaced.

    Args:
        folder: where it is to stand.
        artifact: the model.
        policy: the policy that it was made with.
        manifest: promise and settings; the files are digested here.
        probe: see `record_probe`.
    """
    with replaced_folder(folder) as staging:
        write_bytes(staging / "model.onnx", artifact.model)
        policy.save(staging / "policy.json")
        arrays = {name: np.ascontiguousarray(array) for name, array in probe.items()}
        write_bytes(staging / "probe.safetensors", save(arrays))
        settings = replace(
            manifest,
            precision=artifact.precision,
            dynamic_activations=artifact.dynamic_activations,
            full_precision=artifact.full_precision,
        )
        settings.write(staging)


def write_openvino_ir(folder: Path, artifact: Artifact) -> None:
    """Adds ``model.xml`` and ``model.bin`` beside the ONNX file and digests the folder anew.

    Layers that stay in float32 are marked in the XML. The plugin overlooks the marks of small linear layers that follow
    each other on single rows; from ``model.onnx`` Trimtab loads those in float32 too.

    Raises:
        SpecError: OpenVINO is not installed.
        MeasurementError: OpenVINO cannot keep single layers in float32.
    """
    from ..core.errors import SpecError
    from .manifest import read_manifest

    try:
        import openvino
    except ImportError as error:
        raise SpecError("openvino is not installed; pip install 'trimtab[openvino]'") from error
    model = openvino.Core().read_model(artifact.model)
    if artifact.mixes_precisions:
        pin_layers(openvino, model, artifact.full_precision)
    openvino.save_model(model, str(folder / "model.xml"), compress_to_fp16=False)
    read_manifest(folder).write(folder)


def read_artifact(folder: Path, manifest: Manifest) -> Artifact:
    """Returns the model of a folder whose files were checked, with the settings that its manifest names."""
    return Artifact(
        (folder / "model.onnx").read_bytes(),
        manifest.precision,
        manifest.dynamic_activations,
        manifest.full_precision,
    )


def record_probe(executable: Executable, batches: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Runs a few batches and returns inputs and outputs, by which another machine can check that it computes alike.

    Returns:
        ``input.K.NAME`` and ``output.K.N`` → arrays of batch K.
    """
    probe: dict[str, np.ndarray] = {}
    for k, batch in enumerate(batches[:N_PROBES]):
        probe.update({f"input.{k}.{name}": array for name, array in batch.items()})
        probe.update({f"output.{k}.{n}": array for n, array in enumerate(executable.run(batch))})
    return probe


def read_probe(folder: Path) -> list[tuple[dict[str, np.ndarray], list[np.ndarray]]]:
    """Returns (inputs, outputs) per batch of the probe; empty where the artifact has none.

    Raises:
        ArtifactError: the file cannot be read.
    """
    path = folder / "probe.safetensors"
    if not path.is_file():
        return []
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    batches = []
    for k in range(N_PROBES):
        inputs = {n.removeprefix(f"input.{k}."): a for n, a in arrays.items() if n.startswith(f"input.{k}.")}
        outputs = sorted((n for n in arrays if n.startswith(f"output.{k}.")), key=lambda n: int(n.rsplit(".", 1)[1]))
        if inputs:
            batches.append((inputs, [arrays[name] for name in outputs]))
    return batches

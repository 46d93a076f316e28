"""One artifact, checked and loaded: what a service runs."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...compressors.artifact import Artifact
from ...core.errors import ArtifactError, SpecError
from ...core.files import read_bytes
from ...evaluators.device import Executable, build_recorded_device
from ...hw_profiles.boards.board import LUT_RUNTIME
from ...hw_profiles.target import Target
from ..artifact_folder import read_artifact, read_probe
from ..manifest import Manifest, check_files, read_manifest

#: runtimes whose executables may run in several threads at once (ONNX Runtime, InferenceSession::Run)
_THREAD_SAFE = frozenset({"onnxruntime"})


@dataclass(frozen=True)
class Member:
    """An artifact on its runtime."""

    #: the name of its folder, by which metrics and signals call it
    name: str
    manifest: Manifest
    executable: Executable


def load_member(folder: Path) -> Member:
    """Checks an artifact against its manifest, loads it and runs its probe: the first call is as fast as others then.

    Raises:
        ArtifactError: the folder is damaged or was altered, or is no artifact.
        SpecError: the runtime is not installed, or is a table, which runs nothing.
        MeasurementError: the runtime refuses the model.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if manifest.target.runtime == LUT_RUNTIME:
        raise SpecError(f"{folder} is for {manifest.target.device}, whose runtime is not here; serve it on the board")
    artifact = read_artifact(folder, manifest)
    executable = load_for_threads(artifact, manifest.target)
    for inputs, _ in read_probe(folder):
        executable.run(inputs)
    return Member(folder.resolve().name, manifest, executable)


def load_original(path: Path, beside: Member) -> Executable:
    """Loads the original, an ``.onnx`` file or an artifact's folder, for the target of an artifact.

    Raises:
        ArtifactError: the folder is damaged or was altered.
        SpecError: the file cannot be read, or is something else.
        MeasurementError: the runtime refuses the model.
    """
    if path.is_dir():
        return load_member(path).executable
    if path.suffix != ".onnx":
        raise ArtifactError(f"original {path} must be an .onnx file or an artifact's folder")
    return load_for_threads(Artifact(read_bytes(path, noun="original")), beside.manifest.target)


def load_for_threads(artifact: Artifact, target: Target) -> Executable:
    """Loads an artifact so that several threads may run it; where the runtime cannot, they take turns."""
    executable = build_recorded_device(target).load(artifact)
    return executable if target.runtime in _THREAD_SAFE and target.device == "cpu" else _TakingTurns(executable)


class _TakingTurns:
    """An executable that one thread runs at a time."""

    def __init__(self, executable: Executable) -> None:
        self._executable = executable
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch; see `Executable`."""
        with self._lock:
            return self._executable.run(inputs)

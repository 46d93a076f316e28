"""Peak memory of an artifact, measured in a process of its own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..compressors.artifact import Artifact
from ..core.errors import MeasurementError
from ..core.files import write_json
from ..hw_profiles.target import Target


def measure_peak_memory(
    target: Target, artifact: Artifact, inputs: Mapping[str, np.ndarray], *, timeout_s: float = 120.0
) -> int:
    """Returns by how many bytes a fresh process grows from before it loads the artifact to its peak while running it.

    The runtime itself, the model file and the inputs are in memory before counting starts; their cost is the same
    for every artifact, or is known from the file's size. Takes about half a second.

    Args:
        target: the runtime and its settings.
        artifact: what to load.
        inputs: input name → (batch, …) array; one batch.
        timeout_s: when to give up.

    Raises:
        MeasurementError: the process fails, is killed or takes too long; the message carries its last words.
    """
    with tempfile.TemporaryDirectory(prefix="trimtab-memory-") as folder:
        _write_job(Path(folder), target, artifact, inputs)
        # -P: the current folder must not shadow installed packages
        command = [sys.executable, "-P", "-m", f"{__package__}.memory_probe", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)  # noqa: S603 - our own module
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(f"peak memory took longer than {timeout_s:g} s to measure") from error
    if done.returncode != 0:
        raise MeasurementError(f"peak memory cannot be measured: {_describe_end(done)}")
    try:
        return int(json.loads(done.stdout.splitlines()[-1])["peak_memory_bytes"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise MeasurementError(f"peak memory cannot be measured: the probe said {done.stdout[-300:]!r}") from error


def _write_job(folder: Path, target: Target, artifact: Artifact, inputs: Mapping[str, np.ndarray]) -> None:
    job = {
        "target": target.to_json(),
        "precision": artifact.precision,
        "dynamic_activations": artifact.dynamic_activations,
        "full_precision": list(artifact.full_precision),
        "inputs": list(inputs),
    }
    write_json(folder / "job.json", job)
    (folder / "model.onnx").write_bytes(artifact.model)
    # numbered, because an input may be called as np.savez's own arguments are
    np.savez(folder / "inputs.npz", *inputs.values())


def _describe_end(done: "subprocess.CompletedProcess[str]") -> str:
    words = " ".join(done.stderr.split())[-500:]
    end = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return f"{end}, {words or 'without a word'}"

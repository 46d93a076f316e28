"""The child process of `trimtab.evaluators.memory`: loads one artifact, runs it, prints its peak memory as JSON."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..compressors.artifact import Artifact
from ..core.errors import MeasurementError, TrimtabError
from ..core.files import read_json
from ..hw_profiles.target import Target
from .device import build_device

#: Runtimes allocate their working memory in the first run or two.
_RUNS = 3


def main(folder: Path) -> int:
    """Runs the job in ``folder`` and writes one line of JSON to stdout; returns the exit code."""
    try:
        grown_bytes = probe(folder)
    except TrimtabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps({"peak_memory_bytes": grown_bytes}) + "\n")
    return 0


def probe(folder: Path) -> int:
    """Returns the growth in bytes from before the load to the peak.

    Raises:
        MeasurementError: the runtime refuses the model, or this system does not tell a process its peak.
        SpecError: the runtime is not there.
    """
    job = read_json(folder / "job.json", noun="job")
    model = (folder / "model.onnx").read_bytes()
    artifact = Artifact(model, job["precision"], job["dynamic_activations"], tuple(job["full_precision"]))
    with np.load(folder / "inputs.npz", allow_pickle=False) as arrays:
        inputs = {name: arrays[f"arr_{position}"] for position, name in enumerate(job["inputs"])}
    device = build_device(Target(**job["target"]))
    _forget_peak()
    before_bytes = read_peak_bytes()
    executable = device.load(artifact)
    for _ in range(_RUNS):
        executable.run(inputs)
    return read_peak_bytes() - before_bytes


def read_peak_bytes() -> int:
    """Returns the largest resident memory that this process ever had.

    Raises:
        MeasurementError: this system has neither /proc nor a getrusage that tells.
    """
    status = Path("/proc/self/status")
    if status.exists():
        # not getrusage: Linux carries its ru_maxrss over from the parent process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "darwin":
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    raise MeasurementError(f"the system {sys.platform} does not tell the peak memory of a process")


def _forget_peak() -> None:
    """Sets the peak to the present where Linux allows it; else an import's own peak hides a small model's growth."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

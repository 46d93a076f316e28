"""`trimtab.serve`: from a folder to a model in service."""

from collections.abc import Callable
from pathlib import Path

from ...core.errors import MeasurementError, SpecError
from ..artifact_folder import read_probe
from .drift import Drift
from .member import Member, load_member, load_original
from .policy_set import is_policy_set, read_policy_set
from .served_model import DEFAULT_OPTIONS, Original, ServedModel, ServeOptions


def serve(
    artifact: str | Path,
    *,
    p99_s: float | None = None,
    original: str | Path | None = None,
    on_drift: Callable[[Drift], None] | None = None,
    options: ServeOptions = DEFAULT_OPTIONS,
) -> ServedModel:
    """Loads an artifact, or a set of policies, and returns it ready to be called.

    Neither torch nor ray nor optuna is imported.

    Args:
        artifact: the folder of an artifact or of a policy set.
        p99_s: 99 of 100 calls are to be answered within so many seconds; a set needs it, an artifact may have it.
        original: an ``.onnx`` file, or an artifact, of the untouched model; it runs a fraction of the calls, too.
        on_drift: called with each `Drift`, in a thread of its own.
        options: how much is looked at, and what counts as drift.

    Raises:
        ArtifactError: the folder is damaged or was altered.
        SpecError: the runtime is not installed, or a set has no bound.
        MeasurementError: the runtime refuses the model or the original.
    """
    folder = Path(artifact)
    if is_policy_set(folder):
        if p99_s is None:
            raise SpecError(f"{folder} holds several policies, to be chosen among by the load; give the bound p99_s=…")
        folders = read_policy_set(folder)
    else:
        folders = (folder,)
    members = [load_member(one) for one in folders]
    shadowed = None if original is None else _load_original(Path(original), members[0], folders[0])
    return ServedModel(members, p99_s=p99_s, original=shadowed, on_drift=on_drift, options=options)


def _load_original(path: Path, member: Member, folder: Path) -> Original:
    """Loads the original, and runs the probe of an artifact on it: what does not fit is to be seen now."""
    executable = load_original(path, member)
    for inputs, outputs in read_probe(folder):
        try:
            shapes = [array.shape for array in executable.run(inputs)]
        except MeasurementError as error:
            raise SpecError(f"original {path} does not take the inputs of {folder}: {error}") from error
        if shapes[:1] != [array.shape for array in outputs[:1]]:
            raise SpecError(f"original {path} returns {shapes[:1]}, and {folder} {[a.shape for a in outputs[:1]]}; "
                            "they are of different models")  # fmt: skip
    return Original(executable)

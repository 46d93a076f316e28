"""``manifest.json``: what an artifact consists of, what it promises, and where that was measured."""

import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import ArtifactError
from ..core.files import read_json, sha256_file, write_json
from ..evaluators.measurement import Estimate, Measurement
from ..hw_profiles.target import Target
from .serving.input_statistics import InputStatistics, statistics_from_json, statistics_to_json
from .spec import read_target

#: version of the format; tests/golden keeps a file of every version that was ever released
SCHEMA = 1
_KIND = "trimtab-artifact"
#: a manifest naming more files than this is refused
_MAX_FILES = 64


@dataclass(frozen=True)
class Promise:
    """What was measured when the artifact was made; `verify` measures it again."""

    measurement: Measurement
    #: ``test`` or ``validation``: where the accuracy comes from
    split: str
    #: seconds of a `Yardstick` timed in turns with the artifact; None where the device states its own times
    yardstick_s: float | None


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    target: Target
    precision: str
    dynamic_activations: bool
    promise: Promise
    #: the machine and the runtime, see `HardwareProfile`
    profile: Mapping[str, Any]
    #: file name → sha256
    files: Mapping[str, str] = field(default_factory=dict)
    #: see `Artifact.full_precision`
    full_precision: tuple[str, ...] = ()
    #: what the inputs looked like when the artifact was made; empty where that was not recorded
    input_statistics: InputStatistics = field(default_factory=dict)
    #: how often, from 0 to 1, the artifact agreed with the original; None where that was not recorded
    agreement: Estimate | None = None

    def write(self, folder: Path) -> None:
        """Digests every file of the folder and writes manifest.json."""
        names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != "manifest.json")
        content = {
            "kind": _KIND,
            "schema": SCHEMA,
            "files": {name: {"sha256": sha256_file(folder / name), "size_bytes": (folder / name).stat().st_size}
                      for name in names},
            "target": self.target.to_json(),
            "runtime": {
                "precision": self.precision,
                "dynamic_activations": self.dynamic_activations,
                "full_precision": list(self.full_precision),
            },
            "profile": dict(self.profile),
            "promise": {
                "measurement": self.promise.measurement.to_json(),
                "split": self.promise.split,
                "yardstick_s": self.promise.yardstick_s,
            },
            "service": {
                "input_statistics": statistics_to_json(self.input_statistics),
                "agreement": self.agreement and self.agreement.to_json(),
            },
            "versions": {name: importlib.metadata.version(name) for name in ("trimtab", "numpy", "onnx")},
        }  # fmt: skip
        write_json(folder / "manifest.json", content)


def read_manifest(folder: Path) -> Manifest:
    """Reads manifest.json; the files that it names are not looked at yet, see `check_files`.

    Raises:
        ArtifactError: there is none, or it is not a manifest of this schema.
    """
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise ArtifactError(f"artifact {folder} is not a folder")
    content = read_json(path, noun="manifest", error=ArtifactError)
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise ArtifactError(f"{path} is not a manifest of Trimtab (kind must be '{_KIND}')")
    if content.get("schema") != SCHEMA:
        raise ArtifactError(f"{path} has schema {content.get('schema')!r}; this version reads schema {SCHEMA}")
    try:
        service = content.get("service", {})  # recorded since the runtime helper is there
        return Manifest(
            target=read_target(content["target"]),
            precision=str(content["runtime"]["precision"]),
            dynamic_activations=bool(content["runtime"]["dynamic_activations"]),
            promise=_parse_promise(content["promise"]),
            profile=dict(content["profile"]),
            files={str(name): str(entry["sha256"]) for name, entry in content["files"].items()},
            full_precision=_parse_names(content["runtime"].get("full_precision", [])),
            input_statistics=statistics_from_json(service.get("input_statistics", {})),
            agreement=_parse_agreement(service.get("agreement")),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtifactError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compares every file with its digest.

    Raises:
        ArtifactError: a file is missing, altered, or its name leads out of the folder.
    """
    if len(manifest.files) > _MAX_FILES:
        raise ArtifactError(f"the manifest names {len(manifest.files)} files; at most {_MAX_FILES} are accepted")
    for name in ("model.onnx", "policy.json"):
        if name not in manifest.files:
            raise ArtifactError(f"the manifest does not name {name}; it was altered")
    for name, digest in manifest.files.items():
        path = folder / name
        if Path(name).name != name or path.is_symlink():
            raise ArtifactError(f"the manifest names '{name}', which is not a plain file of the artifact's folder")
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; copy the whole folder, or apply the policy again")
        if sha256_file(path) != digest:
            raise ArtifactError(f"{path} was altered: its sha256 is not the manifest's; apply the policy again")


def _parse_names(content: Any) -> tuple[str, ...]:
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"full_precision must be a list of layers' names, got {content!r:.80}")
    return tuple(content)


def _parse_agreement(content: Any) -> Estimate | None:
    if content is None:
        return None
    agreement = Estimate.from_json(content)
    if not 0 <= agreement.mean <= 1 or agreement.standard_error < 0:
        raise ValueError(f"the agreement must be a share with its error, got {agreement}")
    return agreement


def _parse_promise(content: dict[str, Any]) -> Promise:
    yardstick_s = content["yardstick_s"]
    measurement = Measurement.from_json(content["measurement"])
    median_s = None if measurement.latency is None else measurement.latency.median_s
    for number in (median_s, measurement.size_bytes, measurement.energy_j, yardstick_s):
        if number is not None and not 0 < float(number) < math.inf:
            raise ValueError(f"a promised number must be more than 0 and finite, got {number}")
    return Promise(measurement, str(content["split"]), None if yardstick_s is None else float(yardstick_s))

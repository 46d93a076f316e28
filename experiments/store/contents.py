"""What is published: an artifact's folder, that of a run, or a policy's file; and the check of it, on either side."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import ArtifactError, SpecError
from ...core.files import sha256_file, short_digest
from ...hw_profiles.target import Target
from ..manifest import Manifest, check_files, read_manifest
from ..policy_file import PolicyFile, load_policy
from ..run_folder import RunFolder
from .event import MAX_FILE_BYTES, FileEntry

_MANIFEST, _POLICY = "manifest.json", "policy.json"


@dataclass(frozen=True)
class Contents:
    """The files of a version, read and checked."""

    files: Mapping[str, bytes]
    policy: PolicyFile
    #: None for a policy without an artifact
    manifest: Manifest | None

    @property
    def target(self) -> str:
        """The folder of the target that the files are for."""
        return target_folder(self.policy.target)

    @property
    def entries(self) -> dict[str, FileEntry]:
        """Name → what the file must be."""
        return {name: FileEntry.of(content) for name, content in self.files.items()}

    @property
    def run(self) -> str:
        """The run that found the policy; empty where the policy does not say."""
        return str(self.policy.origin.get("run", ""))


@dataclass(frozen=True)
class Source:
    """Where files to publish stand, and what is known beside them."""

    #: an artifact's folder, or a policy's file
    path: Path
    #: the model's name in the spec of the run; None where there is no run
    name: str | None = None
    #: sha256 of the run's spec.yaml; empty where there is no run
    spec_sha256: str = ""


def find_source(path: Path) -> Source:
    """Finds what a person means to publish.

    Args:
        path: a run's folder, an artifact's folder or a policy's file.

    Raises:
        SpecError: it is none of these, or the run found no policy.
    """
    if path.is_file() or (path / _MANIFEST).is_file():
        return Source(path)
    if not (path / "spec.yaml").is_file():
        raise SpecError(f"{path} must be a run's folder, an artifact's folder or a policy.json; it is none of these")
    from ..spec_file import read_spec

    run = RunFolder.open(path)
    if not (run.artifact / _MANIFEST).is_file():
        raise SpecError(
            f"run {path} has no artifact: it did not end, or nothing kept its budget; trimtab resume {path}"
        )
    return Source(run.artifact, read_spec(run.spec).name, sha256_file(run.spec))


def read_contents(path: Path) -> Contents:
    """Reads and checks an artifact's folder, or the file of a policy.

    Raises:
        ArtifactError: a file is missing, altered or too large, or the files do not belong together.
        SpecError: the policy cannot be read.
    """
    if path.is_file():
        _check_size(path)
        return Contents({_POLICY: path.read_bytes()}, load_policy(path), None)
    manifest = read_manifest(path)
    for name in manifest.files:
        if Path(name).name == name and (path / name).is_file():  # the others are refused next
            _check_size(path / name)
    check_files(path, manifest)
    policy = load_policy(path / _POLICY)
    if policy.target != manifest.target:
        raise ArtifactError(f"{path}: {_POLICY} and {_MANIFEST} name different targets")
    files = {name: (path / name).read_bytes() for name in (*sorted(manifest.files), _MANIFEST)}
    for name, digest in manifest.files.items():
        if FileEntry.of(files[name]).sha256 != digest:
            raise ArtifactError(f"{path / name} was altered while it was read")
    return Contents(files, policy, manifest)


def target_folder(target: Target) -> str:
    """Returns the target's name where it can be a folder's, else one made of it.

    >>> target_folder(Target("onnxruntime"))
    'onnxruntime-cpu-1t-b1'
    >>> target_folder(Target("lut", "boards/kria.yaml"))
    'lut-boards-kria.yaml-1t-b1-d6dba5d9'
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", target.name).lstrip(".-")[:100]
    return safe if safe == target.name else f"{safe}-{short_digest(target.name)[:8]}"


def _check_size(path: Path) -> None:
    size_bytes = path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise ArtifactError(f"{path} has {size_bytes} bytes; at most {MAX_FILE_BYTES} are read")

"""``set.json``: several policies of one model in one folder, for a service that changes them with the load."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import ArtifactError
from ...core.files import read_json, replaced_folder, sha256_file, write_json
from ..manifest import Manifest, check_files, read_manifest

#: version of the format
SCHEMA = 1
_KIND = "trimtab-policy-set"
_MAX_POLICIES = 16


def is_policy_set(folder: Path) -> bool:
    """Whether a folder holds a set of policies."""
    return (folder / "set.json").is_file()


def read_policy_set(folder: Path) -> tuple[Path, ...]:
    """Returns the artifacts' folders, the slowest first; every file of each is checked against its digest.

    Raises:
        ArtifactError: the set is damaged or was altered, or its policies are not of one model and target.
    """
    path = folder / "set.json"
    content = read_json(path, noun="policy set", error=ArtifactError)
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise ArtifactError(f"{path} is not a policy set of Trimtab (kind must be '{_KIND}')")
    if content.get("schema") != SCHEMA:
        raise ArtifactError(f"{path} has schema {content.get('schema')!r}; this version reads schema {SCHEMA}")
    try:
        entries = [(str(entry["folder"]), str(entry["manifest_sha256"])) for entry in content["policies"]]
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged: {error!r}; make the set again") from error
    if not 1 <= len(entries) <= _MAX_POLICIES or len(dict(entries)) != len(entries):
        raise ArtifactError(f"{path} must name 1 to {_MAX_POLICIES} different policies, got {len(entries)}")
    folders = tuple(_check_member(folder, name, digest) for name, digest in entries)
    _check_likeness(folder, folders)
    return folders


def write_policy_set(folder: Path, writers: Sequence[tuple[str, Callable[[Path], None]]]) -> None:
    """Writes a set as a whole or not at all; an existing one is replaced.

    Args:
        folder: where it is to stand.
        writers: (name, writes the artifact to the folder that it is given), the slowest policy first.

    Raises:
        ArtifactError: something else stands there.
    """
    if folder.exists() and not is_policy_set(folder):
        raise ArtifactError(f"{folder} exists and is not a policy set; choose another folder, or remove it")
    with replaced_folder(folder) as staging:
        for name, write in writers:
            write(staging / name)
        content = {
            "kind": _KIND,
            "schema": SCHEMA,
            "policies": [
                {"folder": name, "manifest_sha256": sha256_file(staging / name / "manifest.json")}
                for name, _ in writers
            ],
        }
        write_json(staging / "set.json", content)
        read_policy_set(staging)


def _check_member(folder: Path, name: str, digest: str) -> Path:
    member = folder / name
    if Path(name).name != name or name in ("", ".", "..") or member.is_symlink():
        raise ArtifactError(f"{folder} names '{name}', which is not a plain folder inside the set")
    manifest = read_manifest(member)
    if sha256_file(member / "manifest.json") != digest:
        raise ArtifactError(f"{member}/manifest.json was altered: its sha256 is not the set's; make the set again")
    check_files(member, manifest)
    return member


def _check_likeness(folder: Path, members: Sequence[Path]) -> None:
    manifests = [read_manifest(member) for member in members]
    if any(manifest.target != manifests[0].target for manifest in manifests):
        raise ArtifactError(f"the policies of {folder} are for different targets; make the set again")
    if len({_read_fingerprint(member) for member in members}) > 1:
        raise ArtifactError(f"the policies of {folder} are of different models; make the set again")
    latencies_s = [_promised_s(manifest) for manifest in manifests]
    if latencies_s != sorted(latencies_s, reverse=True):
        raise ArtifactError(f"the policies of {folder} must stand with the slowest first; make the set again")


def _promised_s(manifest: Manifest) -> float:
    latency = manifest.promise.measurement.latency
    if latency is None:
        raise ArtifactError("a policy of a set must promise a latency, by which the load chooses")
    return latency.median_s


def _read_fingerprint(member: Path) -> str:
    content: Any = read_json(member / "policy.json", noun="policy", error=ArtifactError)
    try:
        return str(content["model"]["fingerprint"])
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{member}/policy.json is damaged: {error!r}") from error

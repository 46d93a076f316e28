"""An event of a store's history: one object that is written once, named by its place in the order and its content."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

from ...core.errors import ArtifactError, SpecError
from ...core.files import canonical_json

#: version of the format; tests/golden keeps a history of every version that was ever released
SCHEMA = 1
_KIND = "trimtab-store-event"
#: an event larger than this is refused: one that publishes 64 files has 12 kB
MAX_EVENT_BYTES = 256 * 1024
#: protobuf's bound, which no ONNX file passes
MAX_FILE_BYTES = 2**31 - 1
#: a version of more files is refused, as a manifest of more is
MAX_FILES = 65
_MAX_TEXT = 2000
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"(\d{8})-([0-9a-f]{64})")
#: model's names, targets' folders and names of files: safe as a part of any path or URL
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")

Action = Literal["publish", "promote", "rollback"]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a file of a version must be."""

    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, content: bytes) -> "FileEntry":
        """Describes a file's content.

        >>> FileEntry.of(b"hello").size_bytes
        5
        """
        return cls(hashlib.sha256(content).hexdigest(), len(content))


@dataclass(frozen=True, slots=True)
class Event:
    """Who did what, when and why.

    Events form a graph as commits do: each names those that its writer saw and that none had named before. So an event
    stands behind all that its writer knew of, an altered or removed one is missed by those that name it, and writers
    need no lock. Events that did not know of each other are ordered by their digest, the same for every reader.
    """

    action: Action
    #: the model's name
    model: str
    #: the target's folder, see `target_folder`
    target: str
    #: what was published, promoted or returned to, see `version_id`
    version: str
    who: str
    #: by the clock of whoever wrote it, ISO 8601; the order does not depend on it
    when: str
    why: str
    #: names of the events that its writer saw last
    parents: tuple[str, ...]
    #: tells events apart that are equal in everything else
    nonce: str
    #: of what is published: name → what the file must be
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    #: of what is published: the run that found the policy; empty where that is not known
    run: str = ""
    #: of what is published: sha256 of that run's spec.yaml; empty where that is not known
    spec_sha256: str = ""

    @property
    def sequence(self) -> int:
        """One more than that of the latest event that its writer saw (Lamport, Comm. ACM 21(7), 1978, rule IR2)."""
        return 1 + max((int(name[:8]) for name in self.parents), default=0)

    @property
    def name(self) -> str:
        """The name of its file without ``.json``; names sort as the events do."""
        return _make_name(self.sequence, self.encode())

    def encode(self) -> bytes:
        """Returns the file's content."""
        return canonical_json(self.to_json()).encode()

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        published = {
            "files": {name: {"sha256": e.sha256, "size_bytes": e.size_bytes} for name, e in self.files.items()},
            "run": self.run,
            "spec_sha256": self.spec_sha256,
        }
        return {
            "kind": _KIND,
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in _TEXTS},
            "parents": list(self.parents),
            **(published if self.action == "publish" else {}),
        }


_TEXTS = ("action", "model", "target", "version", "who", "when", "why", "nonce")


def decode_event(name: str, content: bytes) -> Event:
    """Reads the event called ``name``.

    Raises:
        ArtifactError: the content is not that from which the name was made, or is no event.
    """
    try:
        event = _parse(json.loads(content))
        check_event(event)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, SpecError) as error:
        raise ArtifactError(f"event {name} is damaged: {type(error).__name__}: {error}") from error
    if event.encode() != content or _make_name(event.sequence, content) != name:
        raise ArtifactError(f"event {name} was altered: its content has another digest; bring the file back")
    return event


def _make_name(sequence: int, content: bytes) -> str:
    return f"{sequence:08d}-{hashlib.sha256(content).hexdigest()}"


def check_event(event: Event) -> None:
    """Checks an event before it is written, and after it was read.

    Raises:
        SpecError: something in it may not stand in a history.
    """
    check_name("a model's name", event.model)
    check_name("a target's folder", event.target)
    for noun, text in (("who", event.who), ("why", event.why), ("run", event.run)):
        if not (text.isprintable() and len(text) <= _MAX_TEXT):
            raise SpecError(f"{noun} must be one line of at most {_MAX_TEXT} printable characters, got {text!r:.80}")
    if event.action not in get_args(Action):
        raise SpecError(f"an event must be one of {', '.join(get_args(Action))}, got {event.action!r:.40}")
    if datetime.fromisoformat(event.when).tzinfo is None:
        raise SpecError(f"a time must have a time zone, got {event.when!r:.40}")
    if any(not is_event_name(parent) for parent in event.parents) or not 0 < event.sequence < 10**8:
        raise SpecError("an event must name events as its parents")
    _check_files(event)


def _check_files(event: Event) -> None:
    if event.action != "publish":
        if not _DIGEST.fullmatch(event.version):
            raise SpecError(f"a version must be 64 hex digits, got {event.version!r:.80}")
        return
    if not 0 < len(event.files) <= MAX_FILES:
        raise SpecError(f"a version must have 1 to {MAX_FILES} files, got {len(event.files)}")
    for name, entry in event.files.items():
        check_name("a file's name", name)
        if not (_DIGEST.fullmatch(entry.sha256) and 0 <= entry.size_bytes <= MAX_FILE_BYTES):
            raise SpecError(f"{name} must have a sha256 and at most {MAX_FILE_BYTES} bytes, got {entry!r:.120}")
    if version_id(event.files) != event.version:
        raise SpecError("the version's id is not the digest of its files")


def is_event_name(text: str) -> bool:
    """Whether an event may be called so."""
    return _NAME.fullmatch(text) is not None


def check_name(noun: str, text: str) -> None:
    """Checks a name that becomes a part of a path.

    Raises:
        SpecError: it has a character that may mean something else there.
    """
    if not (_SAFE.fullmatch(text) and PurePosixPath(text).name == text):
        raise SpecError(f"{noun} must be letters, digits, '.', '_' or '-', at most 128, and not begin with '.' or '-', "
                        f"got {text!r:.80}")  # fmt: skip


def version_id(files: Mapping[str, FileEntry]) -> str:
    """Returns the sha256 of a version's file names and their sha256: 64 hex digits."""
    digests = {name: entry.sha256 for name, entry in files.items()}
    return hashlib.sha256(canonical_json(digests).encode()).hexdigest()


def _parse(content: Any) -> Event:
    if content["kind"] != _KIND or content["schema"] != SCHEMA:
        raise ValueError(f"kind and schema must be {_KIND} and {SCHEMA}, "
                         f"got {content['kind']!r:.40} and {content['schema']!r:.40}")  # fmt: skip
    texts = {name: content[name] for name in (*_TEXTS, *(n for n in ("run", "spec_sha256") if n in content))}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"{name} must be text, got {text!r:.40}")
    files = {
        str(name): FileEntry(str(entry["sha256"]), _read_size(entry["size_bytes"]))
        for name, entry in content.get("files", {}).items()
    }
    return Event(**texts, parents=tuple(map(str, content["parents"])), files=files)


def _read_size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"size_bytes must be a whole number, got {value!r:.40}")
    return value

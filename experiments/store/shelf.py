"""The state of one model on one target: a fold over its events, the same for every reader of the same events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ...core.errors import SpecError
from .event import Event, FileEntry

#: hex digits of a version's id that people see
N_SHOWN_DIGITS = 12
_MIN_DIGITS = 4

Stage = Literal["candidate", "production", "former"]


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable set of files."""

    #: see `version_id`
    id: str
    #: name → what the file must be
    files: Mapping[str, FileEntry]
    #: the event that brought it; the first where it was published twice
    published: Event

    @property
    def short_id(self) -> str:
        """As much of the id as people need."""
        return self.id[:N_SHOWN_DIGITS]


@dataclass(frozen=True, slots=True)
class Shelf:
    """All versions of one model on one target, and which of them is in production."""

    model: str
    #: the target's folder, see `target_folder`
    target: str
    #: in the order in which they were first published
    versions: tuple[Version, ...] = ()
    #: ids of what was promoted and not rolled back; the last is in production
    promoted: tuple[str, ...] = ()
    #: name → event, in order
    events: Mapping[str, Event] = field(default_factory=dict)
    #: what is wrong with the history, one line each
    damages: tuple[str, ...] = ()

    @property
    def production(self) -> Version | None:
        """The version in production; None where none was promoted yet."""
        return self.version(self.promoted[-1]) if self.promoted else None

    @property
    def newest(self) -> Version:
        """What was published last.

        Raises:
            SpecError: nothing was.
        """
        published = [event.version for event in self.events.values() if event.action == "publish"]
        if not published:
            raise SpecError(f"{self.model} on {self.target} has no versions; publish one")
        return self.version(published[-1])

    def stage(self, version: Version) -> Stage:
        """Returns ``production``, ``former`` (promoted once, no longer) or ``candidate``."""
        if self.promoted and self.promoted[-1] == version.id:
            return "production"
        was_promoted = any(event.action == "promote" and event.version == version.id for event in self.events.values())
        return "former" if was_promoted else "candidate"

    def version(self, start: str) -> Version:
        """Returns the version whose id begins with ``start``.

        Raises:
            SpecError: none does, or several do, or ``start`` has fewer than four digits.
        """
        if len(start) < _MIN_DIGITS:
            raise SpecError(f"a version must be named by at least {_MIN_DIGITS} digits of its id, got '{start}'")
        found = [version for version in self.versions if version.id.startswith(start.lower())]
        if len(found) == 1:
            return found[0]
        known = ", ".join(version.short_id for version in found or self.versions[-10:])
        what = "more digits tell apart" if found else "the latest are"
        raise SpecError(f"{len(found) or 'no'} versions of {self.model} on {self.target} begin with '{start:.64}'; "
                        f"{what} {known or 'none'}")  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Returns the state as JSON values."""
        return {
            "model": self.model,
            "target": self.target,
            "production": self.promoted[-1] if self.promoted else None,
            "versions": [
                {"version": v.id, "stage": self.stage(v), "who": v.published.who, "when": v.published.when,
                 "why": v.published.why, "run": v.published.run, "spec_sha256": v.published.spec_sha256,
                 "files": {name: entry.sha256 for name, entry in v.files.items()}}
                for v in self.versions
            ],
            "history": [event.to_json() for event in self.events.values()],
            "damages": list(self.damages),
        }  # fmt: skip


def fold_events(empty: Shelf, events: Mapping[str, Event]) -> Shelf:
    """Returns the state to which the events lead, whatever their order in ``events``.

    Promoting puts a version on top of those promoted before. Rolling back names the version to which it returns and
    takes away what lies above it, so that two who roll back at once go back one step and not two.

    Args:
        empty: model, target and what was found damaged.
        events: name → event.
    """
    ordered = {name: events[name] for name in sorted(events)}
    versions: dict[str, Version] = {}
    promoted: list[str] = []
    damages = list(empty.damages)
    for name, event in ordered.items():
        if event.action == "publish":
            versions.setdefault(event.version, Version(event.version, event.files, event))
        elif event.version not in versions:
            damages.append(f"event {name} is of version {event.version[:N_SHOWN_DIGITS]}, "
                           f"which nobody published before")  # fmt: skip
        else:
            promoted = _move(promoted, event)
    return replace(
        empty, versions=tuple(versions.values()), promoted=tuple(promoted), events=ordered, damages=tuple(damages)
    )


def _move(promoted: Sequence[str], event: Event) -> list[str]:
    if promoted and promoted[-1] == event.version:
        return list(promoted)
    if event.action == "rollback" and event.version in promoted:
        n_kept = len(promoted) - list(reversed(promoted)).index(event.version)
        return list(promoted[:n_kept])
    return [*promoted, event.version]

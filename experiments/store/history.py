"""Reads a shelf's events from its place and adds to them; no object is ever written a second time."""

from dataclasses import replace

from ...core.errors import ArtifactError
from .event import MAX_EVENT_BYTES, Event, check_event, decode_event, is_event_name
from .places import Place
from .shelf import Shelf, fold_events

#: a history of more events is refused
_MAX_EVENTS = 100_000
_SUFFIX = ".json"


def read_shelf(place: Place, model: str, target: str) -> Shelf:
    """Returns the state of a model on a target; what is damaged there stands in its ``damages``.

    A folder that changes while it is listed may show an event and hide one from before it; what an event names is
    therefore read even where the listing lacks it.

    Raises:
        ArtifactError: there are more events than can be one model's.
    """
    folder = _events_folder(model, target)
    files = place.list_files(folder)
    strangers = {name for name, size in files.items() if not _may_be_event(name, size)}
    damages = [f"events/{name:.120} has not the name or the size of an event; remove it" for name in sorted(strangers)]
    events: dict[str, Event] = {}
    wanted = sorted(name.removesuffix(_SUFFIX) for name in set(files) - strangers)
    seen = set(wanted)
    while wanted:
        if len(seen) > _MAX_EVENTS:
            raise ArtifactError(f"{place.name}/{folder} has more than {_MAX_EVENTS} events; it was altered")
        contents = place.read(folder, {name + _SUFFIX: MAX_EVENT_BYTES for name in wanted})
        found, damaged = _decode(wanted, contents, (model, target))
        events |= found
        damages += damaged
        wanted = sorted({parent for event in found.values() for parent in event.parents} - seen)
        seen |= set(wanted)
    return fold_events(Shelf(model, target, damages=tuple(damages)), events)


def append_event(place: Place, shelf: Shelf, event: Event) -> Shelf:
    """Adds an event behind everything that the shelf knows, and returns that with it; others may have added more.

    Raises:
        SpecError: something in the event may not stand in a history.
        ArtifactError: the history is damaged.
    """
    check_undamaged(place, shelf)
    named = {parent for known in shelf.events.values() for parent in known.parents}
    event = replace(event, parents=tuple(name for name in shelf.events if name not in named))
    check_event(event)
    name = event.name
    place.write(f"{_events_folder(event.model, event.target)}/{name}{_SUFFIX}", event.encode())
    return fold_events(Shelf(event.model, event.target), {**shelf.events, name: event})


def check_undamaged(place: Place, shelf: Shelf) -> None:
    """Refuses a history that was tampered with: what is in production cannot be told from it.

    Raises:
        ArtifactError: it was; the message names the first damage.
    """
    if shelf.damages:
        more = f" (and {len(shelf.damages) - 1} more)" if len(shelf.damages) > 1 else ""
        raise ArtifactError(
            f"the history of {shelf.model} on {shelf.target} in {place.name} is damaged: {shelf.damages[0]}{more}"
        )


def _decode(names: list[str], contents: dict[str, bytes], home: tuple[str, str]) -> tuple[dict[str, Event], list[str]]:
    found: dict[str, Event] = {}
    damages = []
    for name in names:
        content = contents.get(name + _SUFFIX)
        if content is None:
            damages.append(f"event {name} is missing; bring the file back")
            continue
        try:
            event = decode_event(name, content)
        except ArtifactError as error:
            damages.append(str(error))
            continue
        if (event.model, event.target) != home:
            damages.append(f"event {name} belongs to {event.model} on {event.target}; remove it")
            continue
        found[name] = event
    return found, damages


def _may_be_event(file: str, size_bytes: int) -> bool:
    return file.endswith(_SUFFIX) and is_event_name(file.removesuffix(_SUFFIX)) and size_bytes <= MAX_EVENT_BYTES


def _events_folder(model: str, target: str) -> str:
    return f"{model}/{target}/events"

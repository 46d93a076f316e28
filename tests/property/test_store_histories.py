"""Histories of a policy store: the same events give the same state, whoever reads them in whatever order."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.core.errors import ArtifactError
from trimtab.experiments.store.event import Event, FileEntry, decode_event, version_id
from trimtab.experiments.store.history import read_shelf
from trimtab.experiments.store.places import open_place
from trimtab.experiments.store.shelf import Shelf, fold_events

MODEL, TARGET = "tiny", "onnxruntime-cpu-1t-b1"
N_WRITERS = 3
FILES = [{"policy.json": FileEntry.of(bytes([n]))} for n in range(4)]
IDS = [version_id(files) for files in FILES]
#: which writer acts, what it does with which version, and from whom it hears just before
steps = st.lists(
    st.tuples(
        st.integers(0, N_WRITERS - 1),
        st.sampled_from(["publish", "promote", "rollback"]),
        st.integers(0, len(IDS) - 1),
        st.sets(st.integers(0, N_WRITERS - 1)),
    ),
    max_size=30,
)
lines = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)


def make_event(action, version, *, parents, nonce):
    files = FILES[IDS.index(version)] if action == "publish" else {}
    when = "2026-01-02T03:04:05+00:00"
    return Event(action, MODEL, TARGET, version, "ada", when, "", tuple(sorted(parents)), nonce, files)


def play(taken):
    """Lets writers act on what each has heard of; returns every event, and what each writer knows at the end."""
    known = [{} for _ in range(N_WRITERS)]
    for n, (writer, action, version, heard) in enumerate(taken):
        for other in heard:
            known[writer] |= known[other]
        mine = known[writer]
        is_published = any(event.action == "publish" and event.version == IDS[version] for event in mine.values())
        named = {parent for event in mine.values() for parent in event.parents}
        event = make_event(action if is_published else "publish", IDS[version], parents=set(mine) - named, nonce=str(n))
        known[writer] = {**mine, event.name: event}
    return {name: event for events in known for name, event in events.items()}, known


def fold(events):
    return fold_events(Shelf(MODEL, TARGET), events)


def in_production(moves):
    """By itself: promoting puts on top, returning takes away what lies above (or puts on top what is absent)."""
    stack = []
    for action, version in moves:
        if action == "rollback" and version in stack:
            while stack[-1] != version:
                stack.pop()
        elif action != "publish" and stack[-1:] != [version]:
            stack.append(version)
    return stack


@given(steps, st.randoms())
def test_any_order_of_the_same_events_gives_the_same_state(taken, random):
    events, _ = play(taken)
    shuffled = list(events.items())
    random.shuffle(shuffled)
    assert fold(dict(shuffled)) == fold(events)


@given(steps)
def test_every_event_stands_in_the_history_behind_those_that_its_writer_knew(taken):
    events, _ = play(taken)
    order = list(fold(events).events)
    assert sorted(order) == sorted(events)
    assert len(order) == len(taken)
    for name, event in events.items():
        assert all(order.index(parent) < order.index(name) for parent in event.parents)


@given(steps)
def test_what_one_writer_knows_is_sound_and_so_is_the_whole(taken):
    events, known = play(taken)
    assert [fold(part).damages for part in (*known, events)] == [()] * (N_WRITERS + 1)


@given(steps)
def test_the_last_event_that_is_no_publication_decides_what_is_in_production(taken):
    shelf = fold(play(taken)[0])
    moves = [(event.action, event.version) for event in shelf.events.values()]
    assert list(shelf.promoted) == in_production(moves)
    last = [version for action, version in moves if action != "publish"][-1:]
    assert [version.id for version in [shelf.production] if version] == last


@settings(max_examples=20)  # each writes to the disk
@given(steps, st.randoms())
def test_a_listing_that_lacks_what_it_names_is_completed(tmp_path_factory, taken, random):
    events, _ = play(taken)
    place = open_place(tmp_path_factory.mktemp("store"))
    folder = f"{MODEL}/{TARGET}/events"
    for name, event in events.items():
        place.write(f"{folder}/{name}.json", event.encode())
    named = sorted({parent for event in events.values() for parent in event.parents})
    place.list_files = without(place.list_files, random.sample(named, random.randint(0, len(named))))
    assert read_shelf(place, MODEL, TARGET) == fold(events)


def without(list_files, names):
    """A listing that misses files, as one may that is taken while others write."""
    missed = {f"{name}.json" for name in names}
    return lambda folder: {name: size for name, size in list_files(folder).items() if name not in missed}


@settings(max_examples=20)
@given(steps.filter(lambda taken: len(taken) > 1), st.randoms())
def test_an_event_that_is_gone_is_missed_by_those_that_name_it(tmp_path_factory, taken, random):
    events, _ = play([(0, *rest) for _, *rest in taken])  # one writer: each event names the one before
    root = tmp_path_factory.mktemp("store")
    for name, event in events.items():
        open_place(root).write(f"{MODEL}/{TARGET}/events/{name}.json", event.encode())
    gone = random.choice(sorted(events)[:-1])
    (root / MODEL / TARGET / "events" / f"{gone}.json").unlink()
    assert any(f"event {gone} is missing" in damage for damage in read_shelf(open_place(root), MODEL, TARGET).damages)


@given(lines, lines, st.sampled_from(IDS), st.lists(st.integers(1, 10**7), max_size=3))
def test_an_event_survives_being_written(who, why, version, sequences):
    parents = sorted(f"{n:08d}-{'a' * 64}" for n in sequences)
    event = Event("promote", MODEL, TARGET, version, who, "2026-01-02T03:04:05+00:00", why, tuple(parents), "n")
    assert decode_event(event.name, event.encode()) == event
    assert int(event.name[:8]) == 1 + max(sequences, default=0)


@given(st.sampled_from(["publish", "promote"]), st.data())
def test_no_byte_of_an_event_can_be_altered(action, draw):
    event = make_event(action, IDS[0], parents=(), nonce="n")
    content = bytearray(event.encode())
    place = draw.draw(st.integers(0, len(content) - 1))
    content[place] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(ArtifactError, match=event.name):
        decode_event(event.name, bytes(content))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted(make_event("publish", IDS[0], parents=(), nonce="n").to_json())


@given(st.sampled_from(KEYS), values)
def test_nothing_else_than_an_event_is_read_as_one(key, value):
    content = make_event("publish", IDS[0], parents=(), nonce="n").to_json()
    content[key] = value
    try:
        event = decode_event("00000001-" + "0" * 64, json.dumps(content).encode())
    except ArtifactError:
        return
    raise AssertionError(f"{event} was read under a name that is not its own")

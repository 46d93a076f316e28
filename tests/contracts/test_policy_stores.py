"""What a policy store promises, on a folder, under a file URL and on an object store of fsspec."""

import json
import threading
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from trimtab import PolicyStore
from trimtab.core.errors import ArtifactError, SpecError
from trimtab.experiments.manifest import check_files, read_manifest
from trimtab.experiments.policy_file import load_policy
from trimtab.experiments.store.places import open_place

GOLDEN = Path(__file__).parent.parent / "golden" / "artifact-v1"
N_WRITERS, N_EACH = 3, 8


@pytest.fixture(params=["folder", "file", "memory"])
def where(request, tmp_path):
    """Where the store stands; every test has one of its own."""
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/policies"
    return f"file://{tmp_path}/store" if request.param == "file" else tmp_path / "store"


@pytest.fixture
def store(where):
    return PolicyStore(where, who="ada")


@pytest.fixture
def make_policy(tmp_path):
    """Makes the file of a policy that is like no other."""

    def make(n):
        path = tmp_path / f"policy-{n}.json"
        replace(load_policy(GOLDEN / "policy.json"), origin={"run": f"run-{n}"}).save(path)
        return path

    return make


@pytest.fixture
def ids(store, make_policy):
    """Three published versions."""
    return [store.publish(make_policy(n), name="tiny").id for n in range(3)]


def actions(shelf):
    return [(event.action, event.version) for event in shelf.events.values()]


def test_a_store_that_nobody_wrote_to_holds_nothing(store):
    assert store.shelves() == []


def test_what_is_fetched_is_what_was_published(store, tmp_path):
    published = store.publish(GOLDEN, name="tiny")
    assert store.fetch("tiny", published.id, out=tmp_path / "out") == published
    for path in GOLDEN.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    check_files(tmp_path / "out", read_manifest(tmp_path / "out"))


def test_what_was_fetched_earlier_is_replaced(store, ids, tmp_path):
    for n, version in enumerate(ids):
        store.fetch("tiny", version, out=tmp_path / "out")
        assert json.loads((tmp_path / "out" / "policy.json").read_text())["origin"] == {"run": f"run-{n}"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["policy.json"]


def test_another_folder_is_not_replaced(store, ids, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(SpecError, match="is not an artifact"):
        store.fetch("tiny", ids[0], out=tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_a_version_begins_as_a_candidate(store, ids):
    shelf = store.shelf("tiny")
    assert [version.id for version in shelf.versions] == ids
    assert {shelf.stage(version) for version in shelf.versions} == {"candidate"}
    assert shelf.production is None


def test_nothing_is_fetched_where_nothing_is_in_production(store, ids, tmp_path):
    with pytest.raises(SpecError, match="nothing in production"):
        store.fetch("tiny", out=tmp_path / "out")


def test_equal_files_are_one_version_and_two_events(store, make_policy):
    first, second = (store.publish(make_policy(0), name="tiny", why=why) for why in ("first", "second"))
    shelf = store.shelf("tiny")
    assert (first.id, len(shelf.versions)) == (second.id, 1)
    assert [event.why for event in shelf.events.values()] == ["first", "second"]
    assert shelf.versions[0].published.why == "first"


def test_what_was_published_last_is_promoted_where_none_is_named(store, ids):
    assert store.promote("tiny").production.id == ids[2]


def test_a_promotion_replaces_the_one_before(store, ids):
    store.promote("tiny", ids[0])
    shelf = store.promote("tiny", ids[1][:8])
    assert [shelf.stage(version) for version in shelf.versions] == ["former", "production", "candidate"]


def test_rolling_back_returns_step_by_step(store, ids):
    for version in ids:
        store.promote("tiny", version)
    assert [store.rollback("tiny").production.id for _ in range(2)] == [ids[1], ids[0]]
    with pytest.raises(SpecError, match="no version to return to"):
        store.rollback("tiny")


def test_a_promotion_after_a_return_stands_on_what_was_returned_to(store, ids):
    store.promote("tiny", ids[0])
    store.promote("tiny", ids[1])
    store.rollback("tiny")
    store.promote("tiny", ids[2])
    assert store.rollback("tiny").production.id == ids[0]


def test_a_version_can_be_promoted_again(store, ids):
    for version in (ids[0], ids[1], ids[0]):
        store.promote("tiny", version)
    assert [store.rollback("tiny").production.id for _ in range(2)] == [ids[1], ids[0]]


def test_promoting_what_is_in_production_changes_nothing_but_the_history(store, ids):
    store.promote("tiny", ids[0])
    store.promote("tiny", ids[1])
    store.promote("tiny", ids[1])
    assert store.rollback("tiny").production.id == ids[0]
    assert len(store.shelf("tiny").events) == len(ids) + 4


def test_the_history_says_who_did_what_and_why(where, store, ids):
    PolicyStore(where, who="bob").promote("tiny", ids[0], why="it is <b>fast</b>")
    event = list(store.shelf("tiny").events.values())[-1]
    assert (event.who, event.action, event.version, event.why) == ("bob", "promote", ids[0], "it is <b>fast</b>")
    assert store.shelf("tiny").versions[0].published.run == "run-0"


def test_models_do_not_see_each_other(store, make_policy):
    first = store.publish(make_policy(0), name="first")
    second = store.publish(make_policy(1), name="second")
    assert store.promote("first").production == first
    assert store.shelf("second").production is None
    assert [(shelf.model, [v.id for v in shelf.versions]) for shelf in store.shelves()] == [
        ("first", [first.id]),
        ("second", [second.id]),
    ]
    assert [shelf.model for shelf in store.shelves("second")] == ["second"]


def test_targets_of_a_model_are_told_apart(store, make_policy, tmp_path):
    store.publish(make_policy(0), name="tiny")
    policy = load_policy(GOLDEN / "policy.json")
    replace(policy, target=replace(policy.target, runtime="openvino", threads=4)).save(tmp_path / "other.json")
    store.publish(tmp_path / "other.json", name="tiny")
    with pytest.raises(SpecError, match="known: openvino-cpu-4t-b1, trimtab"):
        store.promote("tiny")
    assert store.promote("tiny", target="openvino-cpu-4t-b1").production is not None
    assert [shelf.production is None for shelf in store.shelves("tiny")] == [False, True]


@pytest.mark.parametrize("start", ["f", "0000000000", "zzzz", "../../etc"])
def test_a_version_that_cannot_be_told_is_refused(store, ids, start):
    with pytest.raises(SpecError):
        store.promote("tiny", start)


def test_the_nearest_model_is_named(store, ids):
    with pytest.raises(SpecError, match="did you mean 'tiny'"):
        store.promote("tinny")


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "-rf", "a b", "x" * 129, "naïve"])
def test_a_model_has_a_name_that_is_safe_in_paths(store, make_policy, name):
    with pytest.raises(SpecError):
        store.publish(make_policy(0), name=name)
    assert store.shelves() == []


@pytest.mark.parametrize("why", ["two\nlines", "bell\a", "x" * 2001])
def test_a_reason_is_one_printable_line(store, make_policy, why):
    with pytest.raises(SpecError, match="one line"):
        store.publish(make_policy(0), name="tiny", why=why)
    assert store.shelves() == []


def test_threads_that_publish_and_promote_at_once_lose_nothing(where, make_policy):
    paths = {(writer, n): make_policy(f"{writer}-{n}") for writer in range(N_WRITERS) for n in range(N_EACH)}
    done = []

    def work(writer):
        store = PolicyStore(where, who=str(writer))
        for n in range(N_EACH):
            version = store.publish(paths[writer, n], name="tiny").id
            store.promote("tiny", version)
            done.extend([("publish", version), ("promote", version)])

    threads = [threading.Thread(target=work, args=(writer,)) for writer in range(N_WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shelf = PolicyStore(where).shelf("tiny")
    assert len(done) == 2 * N_WRITERS * N_EACH
    assert sorted(actions(shelf)) == sorted(done)
    assert shelf.damages == ()
    assert shelf.production.id == [version for action, version in actions(shelf) if action == "promote"][-1]


def test_two_promotions_that_did_not_know_of_each_other_both_stand_and_one_wins(where, store, ids, monkeypatch):
    """The second reads the history before the first writes, and writes after it."""
    from trimtab.experiments.store import policy_store

    append, others = policy_store.append_event, []

    def append_behind_another(place, shelf, event):
        monkeypatch.setattr(policy_store, "append_event", append)
        others.append(PolicyStore(where, who="bob").promote("tiny", ids[1]))
        return append(place, shelf, event)

    monkeypatch.setattr(policy_store, "append_event", append_behind_another)
    shelf = store.promote("tiny", ids[0])
    assert others[0].production.id == ids[1]
    assert {action for action in actions(shelf) if action[0] == "promote"} == {("promote", ids[0]), ("promote", ids[1])}
    last_two = list(shelf.events)[-2:]
    assert [name[:8] for name in last_two] == ["00000004", "00000004"]
    # by the digest of the event, whoever reads it
    assert shelf.production.id == shelf.events[max(last_two)].version


def test_two_returns_that_did_not_know_of_each_other_go_back_one_step(where, store, ids, monkeypatch):
    from trimtab.experiments.store import policy_store

    for version in ids:
        store.promote("tiny", version)
    append = policy_store.append_event

    def append_behind_another(place, shelf, event):
        monkeypatch.setattr(policy_store, "append_event", append)
        PolicyStore(where, who="bob").rollback("tiny")
        return append(place, shelf, event)

    monkeypatch.setattr(policy_store, "append_event", append_behind_another)
    assert store.rollback("tiny").production.id == ids[1]
    assert [event.action for event in store.shelf("tiny").events.values()][-2:] == ["rollback", "rollback"]


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "policy.json", "probe.safetensors"])
def test_an_altered_file_is_refused_until_it_is_published_again(where, store, tmp_path, name):
    version = store.publish(GOLDEN, name="tiny")
    place, folder = open_place(where), f"tiny/{store.shelf('tiny').target}/versions/{version.id}"
    for altered in (b"", b"x" * version.files[name].size_bytes, b"x" * (version.files[name].size_bytes + 1)):
        place.write(f"{folder}/{name}", altered)
        with pytest.raises(ArtifactError, match=name):
            store.promote("tiny", version.id)
        with pytest.raises(ArtifactError, match=name):
            store.fetch("tiny", version.id, out=tmp_path / "out")
        with pytest.raises(ArtifactError, match=name):
            store.check(store.shelf("tiny"), version)
    assert not (tmp_path / "out").exists()
    store.publish(GOLDEN, name="tiny")
    assert store.promote("tiny", version.id).production == version


def test_an_altered_version_cannot_be_returned_to(where, store, ids):
    store.promote("tiny", ids[0])
    store.promote("tiny", ids[1])
    shelf = store.shelf("tiny")
    open_place(where).write(f"tiny/{shelf.target}/versions/{ids[0]}/policy.json", b"{}")
    with pytest.raises(ArtifactError, match="altered"):
        store.rollback("tiny")
    assert store.shelf("tiny").production.id == ids[1]


def test_an_altered_event_is_refused_everywhere(where, store, ids, make_policy, tmp_path):
    store.promote("tiny", ids[0])
    place, shelf = open_place(where), store.shelf("tiny")
    name, event = next(iter(shelf.events.items()))
    place.write(f"tiny/{shelf.target}/events/{name}.json", event.encode().replace(b'"ada"', b'"eve"'))
    attempts = (
        lambda: store.promote("tiny", ids[1]),
        lambda: store.rollback("tiny"),
        lambda: store.fetch("tiny", ids[1], out=tmp_path / "out"),
        lambda: store.publish(make_policy(9), name="tiny"),
    )
    for attempt in attempts:
        with pytest.raises(ArtifactError, match=f"{name} was altered"):
            attempt()
    assert name in store.shelf("tiny").damages[0]
    place.write(f"tiny/{shelf.target}/events/{name}.json", event.encode())
    assert store.promote("tiny", ids[1]).production.id == ids[1]


def test_what_another_process_wrote_is_seen(where, store, ids):
    again = PolicyStore(where)
    assert again.shelf("tiny") == store.shelf("tiny")
    store.promote("tiny", ids[0])
    assert again.shelf("tiny").production.id == ids[0]

"""A store, an artifact or a policy that somebody altered is refused, and the message says what to mend."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import trimtab
from trimtab import PolicyStore
from trimtab.core.errors import ArtifactError, SpecError
from trimtab.experiments.cli import app
from typer.testing import CliRunner

GOLDEN = Path(__file__).parent.parent / "golden" / "artifact-v1"
FILES = ("manifest.json", "model.onnx", "policy.json", "probe.safetensors")
EVENT = {
    "action": "publish", "kind": "trimtab-store-event", "schema": 1, "model": "tiny", "nonce": "", "parents": [],
    "when": "2026-01-02T03:04:05+00:00", "who": "eve", "why": "",
}  # fmt: skip
PROMOTE = {"action": "promote", "version": "0" * 64}


@pytest.fixture
def artifact(tmp_path):
    return shutil.copytree(GOLDEN, tmp_path / "artifact")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(root, artifact):
    """A store with one model, in production."""
    opened = PolicyStore(root, who="ada")
    opened.publish(artifact, name="tiny")
    opened.promote("tiny")
    return opened


@pytest.fixture
def events(store, root):
    """The folder of the events."""
    (folder,) = root.glob("tiny/*/events")
    return folder


def alter(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def forge(events, **replaced):
    """Writes an event as anybody could who knows the format, and returns the id of its version."""
    content = {**EVENT, "target": events.parent.name, **replaced}
    if content["action"] == "publish":
        sums = {name: entry["sha256"] for name, entry in dict(content["files"]).items()}
        version = hashlib.sha256(canonical(sums)).hexdigest()
        content = {"version": version, "run": "", "spec_sha256": "", **content}
    text = canonical(content)
    (events / f"00000001-{hashlib.sha256(text).hexdigest()}.json").write_bytes(text)
    return content["version"]


def file(**replaced):
    return {"policy.json": {"sha256": "0" * 64, "size_bytes": 3, **replaced}}


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def test_the_forger_knows_the_format(store, events):
    forge(events, files=file())
    assert store.shelf("tiny").damages == ()
    assert len(store.shelf("tiny").versions) == 2


@pytest.mark.parametrize("name", FILES)
def test_an_altered_artifact_is_not_published(root, artifact, name):
    alter(artifact / name)
    if name == "manifest.json":  # somewhere in its middle stands a number, which nothing else contradicts
        (artifact / name).write_bytes(b"{}")
    with pytest.raises(ArtifactError):
        PolicyStore(root).publish(artifact, name="tiny")
    assert call("publish", artifact, "--name", "tiny", "--store", root).exit_code == 1
    assert not root.exists()


@pytest.mark.parametrize("name", FILES)
def test_an_artifact_with_a_file_missing_is_not_published(root, artifact, name):
    (artifact / name).unlink()
    with pytest.raises(SpecError):
        PolicyStore(root).publish(artifact, name="tiny")
    assert not root.exists()


@pytest.mark.parametrize("name", FILES[1:])
def test_verify_refuses_an_altered_artifact(artifact, name):
    alter(artifact / name)
    with pytest.raises(ArtifactError, match=name):
        trimtab.verify(artifact)
    assert call("verify", artifact).exit_code == 1


def test_apply_refuses_a_policy_whose_layers_were_altered(artifact, tmp_path):
    content = json.loads((artifact / "policy.json").read_text())
    content["model"]["layers"][0][0] += "x"
    (artifact / "policy.json").write_text(json.dumps(content))
    result = call("apply", artifact / "policy.json", "--model", artifact / "model.onnx", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_of_the_store_is_refused_and_listed(store, root, tmp_path, name):
    (path,) = root.glob(f"tiny/*/versions/*/{name}")
    alter(path)
    for arguments in (("promote", "tiny"), ("fetch", "tiny", "--out", tmp_path / "out")):
        result = call(*arguments, "--store", root)
        assert (result.exit_code, name in result.stderr) == (1, True)
    assert not (tmp_path / "out").exists()
    listed = call("list", "--store", root, "--json")
    assert listed.exit_code == 1
    (damage,) = json.loads(listed.stdout)["damaged"].values()
    assert f"{name} was altered" in damage


def test_a_file_of_the_store_that_is_a_link_counts_as_missing(store, root, artifact, tmp_path):
    (path,) = root.glob("tiny/*/versions/*/model.onnx")
    path.unlink()
    path.symlink_to(artifact / "model.onnx")
    with pytest.raises(ArtifactError, match=r"model\.onnx is missing"):
        store.promote("tiny")


def test_a_pipe_in_the_place_of_a_file_does_not_hold_anybody_up(store, root, events):
    (path,) = root.glob("tiny/*/versions/*/model.onnx")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ArtifactError, match=r"model\.onnx is missing"):
        store.promote("tiny")


def test_an_event_that_is_gone_is_named(store, root, events):
    first = sorted(events.iterdir())[0]
    first.unlink()
    result = call("list", "--store", root)
    assert result.exit_code == 1
    assert f"event {first.stem} is missing" in result.stdout


def test_an_event_under_another_name_is_named(store, root, events):
    first = sorted(events.iterdir())[0]
    first.rename(events / f"00000009-{first.stem[9:]}.json")
    with pytest.raises(ArtifactError, match="is damaged"):
        store.promote("tiny")


@pytest.mark.parametrize("name", ["notes.txt", "00000001.json", f"1-{'0' * 64}.json", f"00000001-{'g' * 64}.json"])
def test_a_stranger_among_the_events_is_named(store, events, name):
    (events / name).write_text("{}")
    with pytest.raises(ArtifactError, match=f"{name} has not the name"):
        store.promote("tiny")


def test_an_event_that_is_too_large_is_not_read(store, events):
    with (events / f"00000001-{'0' * 64}.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ArtifactError, match="the size of an event"):
        store.promote("tiny")


def test_what_was_left_of_a_writer_that_died_is_not_seen(store, events):
    (events / f".00000003-{'0' * 64}.json.x7f").write_text("half of an ev")
    assert store.promote("tiny").damages == ()


def test_an_event_of_another_model_is_refused(store, root, events, artifact):
    store.publish(artifact, name="other")
    (stranger,) = root.glob("other/*/events/*.json")
    shutil.copy(stranger, events)
    with pytest.raises(ArtifactError, match="belongs to other"):
        store.promote("tiny")


def test_a_version_that_nobody_published_cannot_be_in_production(store, events):
    forge(events, **PROMOTE)
    with pytest.raises(ArtifactError, match="nobody published before"):
        store.fetch("tiny", out="nowhere")


@pytest.mark.parametrize(
    ("replaced", "why"),
    [
        ({"files": {"../../up.json": {"sha256": "0" * 64, "size_bytes": 1}}}, "a file's name must"),
        ({"files": {"/etc/passwd": {"sha256": "0" * 64, "size_bytes": 1}}}, "a file's name must"),
        ({"files": file(sha256="../up")}, "must have a sha256"),
        ({"files": file(size_bytes=-1)}, "must have a sha256"),
        ({"files": file(size_bytes=1 << 40)}, "at most 2147483647 bytes"),
        ({"files": file(size_bytes=1.5)}, "must be a whole number"),
        ({"files": {f"{n}": {"sha256": "0" * 64, "size_bytes": 1} for n in range(66)}}, "1 to 65 files, got 66"),
        ({"files": {}}, "1 to 65 files, got 0"),
        ({"files": []}, "AttributeError"),
        ({"files": file(), "version": "0" * 64}, "not the digest of its files"),
        ({"files": file(), "run": "\x1b[2J"}, "run must be one line"),
        ({**PROMOTE, "action": "delete"}, "must be one of publish, promote, rollback"),
        ({**PROMOTE, "version": "../../up"}, "64 hex digits"),
        ({**PROMOTE, "why": "\x1b[2J"}, "why must be one line"),
        ({**PROMOTE, "who": "eve\nada"}, "who must be one line"),
        ({**PROMOTE, "when": "yesterday"}, "isoformat"),
        ({**PROMOTE, "when": "2026-01-02T03:04:05"}, "time zone"),
        ({**PROMOTE, "parents": ["../up"]}, "name events as its parents"),
        ({**PROMOTE, "parents": [f"99999999-{'0' * 64}"]}, "name events as its parents"),
        ({**PROMOTE, "parents": [f"00000001-{'0' * 64}"]}, "was altered"),
        ({**PROMOTE, "schema": 2}, "kind and schema"),
        ({**PROMOTE, "more": 1}, "was altered"),
        ({**PROMOTE, "model": "../up"}, "a model's name must"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_a_forged_event_that_asks_for_anything_else_is_refused(store, events, replaced, why):
    forge(events, **replaced)
    with pytest.raises(ArtifactError, match=why):
        store.promote("tiny")


def test_files_that_do_not_belong_together_are_refused(store, root, events, tmp_path):
    """Everything has its digest, but the manifest speaks of other files."""
    files = {"manifest.json": b"{}", "policy.json": (GOLDEN / "policy.json").read_bytes()}
    entries = {n: {"sha256": hashlib.sha256(c).hexdigest(), "size_bytes": len(c)} for n, c in files.items()}
    version = forge(events, files=entries)
    folder = events.parent / "versions" / version
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="manifest"):
        store.promote("tiny", version)


def test_deeply_nested_json_is_no_event(store, events):
    text = b"[" * 100_000
    (events / f"00000001-{hashlib.sha256(text).hexdigest()}.json").write_bytes(text)
    with pytest.raises(ArtifactError, match="damaged"):
        store.promote("tiny")


@pytest.mark.parametrize("n_written", range(6))
def test_a_disk_that_is_full_leaves_no_half_version(root, artifact, tmp_path, monkeypatch, n_written):
    """Four files, then the event; whatever fails, nothing is seen, and publishing again makes up for it."""
    store, replace, n_left = PolicyStore(root), Path.replace, [n_written]

    def replace_some(path, target):
        if not n_left[0]:
            raise OSError(28, "No space left on device")
        n_left[0] -= 1
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_some)
    if n_written < 5:
        with pytest.raises(SpecError, match="No space left"):
            store.publish(artifact, name="tiny")
        assert [shelf.versions for shelf in store.shelves()] in ([], [()])
    else:
        store.publish(artifact, name="tiny")
    monkeypatch.undo()
    version = store.publish(artifact, name="tiny")
    assert store.fetch("tiny", version.id, out=tmp_path / "out") == version

"""The store: publish, promote, roll back and fetch versions of policies and artifacts."""

import getpass
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ...core.errors import ArtifactError, SpecError
from ...core.files import replaced_folder, write_bytes
from ...core.names import describe_unknown
from ...evaluators.measurement import Measurement
from .contents import Contents, find_source, read_contents
from .event import Action, Event, FileEntry, check_event, check_name, version_id
from .history import append_event, check_undamaged, read_shelf
from .places import open_place
from .shelf import Shelf, Version

#: names the store where nobody else does
STORE_VARIABLE = "TRIMTAB_STORE"
_DEFAULT = "store"


class PolicyStore:
    """A folder, or any URL that fsspec knows, of policies and artifacts by model and target.

    A version is an immutable set of files under the sha256 of their digests. What was done with versions, by whom,
    when and why is a log of events, each in an object of its own that is written once, after everything that it speaks
    of; the state is a fold over them. So writers need no lock and lose nothing, and nobody sees half a version. Digests
    show what was altered, not who did it: whoever may write to the store may promote.

    ``MODEL/TARGET/versions/ID/`` holds files, ``MODEL/TARGET/events/`` the history.

    >>> PolicyStore(tempfile.mkdtemp()).shelves()
    []
    """

    def __init__(self, where: str | Path | None = None, *, who: str | None = None) -> None:
        """Opens a store; it need not exist yet.

        Args:
            where: a folder or a URL; None for $TRIMTAB_STORE, else ``store`` in the current folder.
            who: stands in the history beside what this object does; None for user@machine.

        Raises:
            SpecError: the URL cannot be opened.
        """
        self._place = open_place(where if where is not None else os.environ.get(STORE_VARIABLE, _DEFAULT))
        self._who = who or _find_user()

    @property
    def name(self) -> str:
        """The folder or URL."""
        return self._place.name

    def publish(self, source: str | Path, *, name: str | None = None, why: str = "") -> Version:
        """Adds a version, as a candidate; publishing the same files again adds to the history only.

        Args:
            source: a run's folder, an artifact's folder or a policy's file.
            name: the model's name in the store; None for that in the spec of a run.
            why: one line for the history.

        Raises:
            SpecError: there is nothing to publish, or no name.
            ArtifactError: a file was altered, or the history is damaged.
            TransientError: the file system fails; nothing was published.
        """
        found = find_source(Path(source))
        model = name or found.name
        if model is None:
            raise SpecError(f"{source} has no run that names the model; say under which name to publish it (--name)")
        check_name("a model's name", model)
        contents = read_contents(found.path)
        shelf = read_shelf(self._place, model, contents.target)
        entries = contents.entries
        event = replace(
            self._event("publish", shelf, version_id(entries), why),
            files=entries,
            run=contents.run,
            spec_sha256=found.spec_sha256,
        )
        check_undamaged(self._place, shelf)
        check_event(event)
        self._write_files(f"{model}/{shelf.target}/versions/{event.version}", contents)
        return append_event(self._place, shelf, event).version(event.version)

    def promote(self, name: str, version: str | None = None, *, target: str | None = None, why: str = "") -> Shelf:
        """Puts a version into production, after checking its files against their digests.

        Args:
            name: the model's name.
            version: how its id begins; None for what was published last.
            target: the target's folder; None where there is only one.
            why: one line for the history.

        Returns:
            The state afterwards: another may have promoted something else at the same time.

        Raises:
            SpecError: there is no such version.
            ArtifactError: one of its files, or the history, was altered.
        """
        shelf = self._sound_shelf(name, target)
        chosen = shelf.newest if version is None else shelf.version(version)
        return self._move("promote", shelf, chosen, why)

    def rollback(self, name: str, *, target: str | None = None, why: str = "") -> Shelf:
        """Returns to what was in production before; see `promote`.

        Raises:
            SpecError: nothing was in production before.
            ArtifactError: a file of that version, or the history, was altered.
        """
        shelf = self._sound_shelf(name, target)
        if len(shelf.promoted) < 2:
            raise SpecError(f"{name} on {shelf.target} has no version to return to; {len(shelf.promoted)} was promoted")
        return self._move("rollback", shelf, shelf.version(shelf.promoted[-2]), why)

    def fetch(self, name: str, version: str | None = None, *, out: str | Path, target: str | None = None) -> Version:
        """Copies a version into a folder, as a whole or not at all.

        Args:
            name: the model's name.
            version: how its id begins; None for what is in production.
            out: the folder; an artifact that stands there is replaced.
            target: the target's folder; None where there is only one.

        Raises:
            SpecError: there is no such version, or ``out`` is a folder of something else.
            ArtifactError: one of its files, or the history, was altered.
        """
        shelf = self._sound_shelf(name, target)
        chosen = shelf.production if version is None else shelf.version(version)
        if chosen is None:
            raise SpecError(f"{name} on {shelf.target} has nothing in production; promote a version, or name one")
        _copy_out(Path(out), self._read(shelf, chosen))
        return chosen

    def check(self, shelf: Shelf, version: Version) -> Measurement | None:
        """Reads every file of a version and returns what its manifest promises; None for a policy without an artifact.

        Raises:
            ArtifactError: a file is missing or was altered.
        """
        manifest = self._read(shelf, version).manifest
        return None if manifest is None else manifest.promise.measurement

    def shelf(self, name: str, *, target: str | None = None) -> Shelf:
        """Returns the state of a model on a target; where its history is damaged it says so.

        Raises:
            SpecError: there is no such model or target, or ``target`` is needed to tell several apart.
        """
        models = self._place.list_folders("")
        if name not in models:
            raise SpecError(f"{describe_unknown('model', name, models)} (store {self.name})")
        targets = self._place.list_folders(name)
        if target is None and len(targets) == 1:
            return read_shelf(self._place, name, targets[0])
        if target not in targets:
            raise SpecError(f"{describe_unknown('target', target or '', targets)}; name one (--target)")
        return read_shelf(self._place, name, str(target))

    def shelves(self, name: str | None = None) -> list[Shelf]:
        """Returns the state of every model on every target, or of the model called ``name``."""
        models = self._place.list_folders("")
        return [
            read_shelf(self._place, model, target)
            for model in models
            if name in (None, model)
            for target in self._place.list_folders(model)
        ]

    def _sound_shelf(self, name: str, target: str | None) -> Shelf:
        shelf = self.shelf(name, target=target)
        check_undamaged(self._place, shelf)
        return shelf

    def _move(self, action: Action, shelf: Shelf, version: Version, why: str) -> Shelf:
        self.check(shelf, version)
        append_event(self._place, shelf, self._event(action, shelf, version.id, why))
        return read_shelf(self._place, shelf.model, shelf.target)

    def _event(self, action: Action, shelf: Shelf, version: str, why: str) -> Event:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Event(action, shelf.model, shelf.target, version, self._who, now, why, (), secrets.token_hex(8))

    def _write_files(self, folder: str, contents: Contents) -> None:
        """Writes what is not there yet, or no longer as it was."""
        entries, sizes = contents.entries, self._place.list_files(folder)
        same = {name: e.size_bytes for name, e in entries.items() if sizes.get(name) == e.size_bytes}
        known = {name: FileEntry.of(content) for name, content in self._place.read(folder, same).items()}
        for name, entry in entries.items():
            if known.get(name) != entry:
                self._place.write(f"{folder}/{name}", contents.files[name])

    def _read(self, shelf: Shelf, version: Version) -> Contents:
        folder = f"{shelf.model}/{shelf.target}/versions/{version.id}"
        where = f"{self.name}/{folder}"
        limits = {name: entry.size_bytes for name, entry in version.files.items()}
        files = self._place.read(folder, limits)
        for name, entry in version.files.items():
            if name not in files:
                raise ArtifactError(f"{where}/{name} is missing; publish that artifact again")
            if FileEntry.of(files[name]) != entry:
                raise ArtifactError(f"{where}/{name} was altered: its sha256 is not the history's; publish it again")
        with _unpacked(files) as path:
            contents = read_contents(path)
        if contents.entries != dict(version.files) or contents.target != shelf.target:
            raise ArtifactError(f"{where} does not hold what its manifest says")
        return contents


@contextmanager
def _unpacked(files: dict[str, bytes]) -> Iterator[Path]:
    """Writes files to a folder for as long as they are read, and yields what `read_contents` takes."""
    with tempfile.TemporaryDirectory(prefix="trimtab-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        yield Path(folder) if "manifest.json" in files else Path(folder) / "policy.json"


def _copy_out(folder: Path, contents: Contents) -> None:
    is_ours = any((folder / name).is_file() for name in ("manifest.json", "policy.json"))
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not is_ours)):
        raise SpecError(f"--out {folder} exists and is not an artifact; choose another folder, or remove it")
    with ExitStack() as stack:
        try:
            staging = stack.enter_context(replaced_folder(folder))
        except OSError as error:
            raise SpecError(f"--out {folder} cannot be written: {error}; choose another folder") from error
        for name, content in contents.files.items():
            write_bytes(staging / name, content)


def _find_user() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container's user may have no name
        return f"{os.getuid()}@{socket.gethostname()}"

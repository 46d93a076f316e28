"""Where a store stands: a folder, or a URL of any file system that fsspec knows."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ...core.errors import ArtifactError, SpecError, TransientError
from ...core.files import sync_folder, write_bytes

_FILE_SCHEME = "file://"


class Place(Protocol):
    """Folders and files by relative path; nothing in it is ever deleted, and names that begin with a dot are not seen.

    A file is written as a whole or not at all: whoever lists it can read it.
    """

    @property
    def name(self) -> str:
        """The folder or URL, for messages."""

    def list_folders(self, folder: str) -> list[str]:
        """Returns the names of the folders in ``folder``; none where there is no such folder."""

    def list_files(self, folder: str) -> dict[str, int]:
        """Returns name → bytes of the files in ``folder``; none where there is no such folder."""

    def read(self, folder: str, limits: Mapping[str, int]) -> dict[str, bytes]:
        """Returns name → content of the files that are there.

        Args:
            folder: the folder of the files.
            limits: name → the most bytes that the file may have.

        Raises:
            ArtifactError: a file is larger.
        """

    def write(self, path: str, content: bytes) -> None:
        """Writes a file; one that stands there is replaced."""


def open_place(where: str | Path) -> Place:
    """Opens a store's place; it need not exist yet.

    Args:
        where: a folder, or a URL such as ``s3://bucket/policies``.

    Raises:
        SpecError: fsspec, or what it needs for this kind of URL, is not installed, or it does not know it.
        TransientError: the file system cannot be reached.
    """
    text = str(where)
    if text.startswith(_FILE_SCHEME):
        return FolderPlace(Path(text.removeprefix(_FILE_SCHEME)))
    if "://" not in text:
        return FolderPlace(Path(text))
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise SpecError("fsspec is not installed; pip install 'trimtab[store]'") from error
    try:
        file_system, root = url_to_fs(text)
    except (ImportError, ValueError) as error:
        raise SpecError(f"store {text} cannot be opened: {error}") from error
    except Exception as error:  # some connect here, and each driver has errors of its own
        raise TransientError(f"store {text} cannot be reached: {error!r}; try again") from error
    return UrlPlace(text, file_system, root)


class FolderPlace:
    """A folder of this machine, or one that it mounts: files come into being by a rename, after an fsync.

    >>> import tempfile
    >>> place = FolderPlace(Path(tempfile.mkdtemp()))
    >>> place.write("digits/notes.txt", b"seven")
    >>> place.list_folders(""), place.list_files("digits"), place.read("digits", {"notes.txt": 5, "absent": 5})
    (['digits'], {'notes.txt': 5}, {'notes.txt': b'seven'})
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def name(self) -> str:
        """The folder."""
        return str(self._root)

    def list_folders(self, folder: str) -> list[str]:
        """See `Place`; links are not followed."""
        return [entry.name for entry in self._scan(folder) if entry.is_dir(follow_symlinks=False)]

    def list_files(self, folder: str) -> dict[str, int]:
        """See `Place`; links are not followed."""
        files = [entry for entry in self._scan(folder) if entry.is_file(follow_symlinks=False)]
        return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in files}

    def read(self, folder: str, limits: Mapping[str, int]) -> dict[str, bytes]:
        """See `Place`.

        Raises:
            ArtifactError: a file is larger than its limit.
            SpecError: a file cannot be read.
        """
        found = {name: self._read(self._root / folder / name, limit) for name, limit in limits.items()}
        return {name: content for name, content in found.items() if content is not None}

    def write(self, path: str, content: bytes) -> None:
        """See `Place`; on return the file survives a crash.

        Raises:
            SpecError: it cannot be written.
        """
        target = self._root / path
        try:
            _make_folder(target.parent)
            write_bytes(target, content)
        except OSError as error:
            raise SpecError(f"store file {target} cannot be written: {error}; choose another --store") from error

    def _scan(self, folder: str) -> list["os.DirEntry[str]"]:
        try:
            with os.scandir(self._root / folder) as entries:
                return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SpecError(f"store folder {self._root / folder} cannot be read: {error}") from error

    def _read(self, path: Path, limit_bytes: int) -> bytes | None:
        try:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                return None
            _check_size(str(path), found.st_size, limit_bytes)
            with path.open("rb") as file:
                return file.read(limit_bytes + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SpecError(f"store file {path} cannot be read: {error}") from error


class UrlPlace:
    """A file system of fsspec whose single put is atomic, as that of every object store is."""

    def __init__(self, url: str, file_system: Any, root: str) -> None:
        self._url, self._files, self._root = url, file_system, root.rstrip("/")

    @property
    def name(self) -> str:
        """The URL."""
        return self._url

    def list_folders(self, folder: str) -> list[str]:
        """See `Place`."""
        return sorted(name for name, entry in self._scan(folder).items() if entry["type"] == "directory")

    def list_files(self, folder: str) -> dict[str, int]:
        """See `Place`."""
        files = {name: entry for name, entry in self._scan(folder).items() if entry["type"] == "file"}
        return {name: int(files[name]["size"] or 0) for name in sorted(files)}

    def read(self, folder: str, limits: Mapping[str, int]) -> dict[str, bytes]:
        """See `Place`; many files are fetched at a time where the file system can.

        Raises:
            ArtifactError: a file is larger than its limit.
            TransientError: the file system cannot be reached, or fails.
        """
        sizes = {name: size for name, size in self.list_files(folder).items() if name in limits}
        for name, size_bytes in sizes.items():
            _check_size(f"{self._url}/{folder}/{name}", size_bytes, limits[name])
        paths = {self._path(f"{folder}/{name}"): name for name in sizes}
        if not paths:
            return {}
        with self._reaching(folder):
            contents = self._files.cat(list(paths), on_error="raise")
        # a file system may write its paths in another way than it was asked
        by_name = {str(path).rsplit("/", 1)[-1]: bytes(content) for path, content in contents.items()}
        return {name: by_name[name] for name in sizes}

    def write(self, path: str, content: bytes) -> None:
        """See `Place`.

        Raises:
            TransientError: the file system cannot be reached, or fails.
        """
        with self._reaching(path):
            self._files.pipe_file(self._path(path), content)

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _scan(self, folder: str) -> dict[str, Any]:
        path = self._path(folder)
        with self._reaching(folder):
            self._files.invalidate_cache()  # another process may have written
            try:
                entries = self._files.ls(path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        names = {str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]: entry for entry in entries}
        # some list the folder itself, as an empty file
        return {n: e for n, e in names.items() if not n.startswith(".") and e["name"].strip("/") != path.strip("/")}

    @contextmanager
    def _reaching(self, path: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each driver has errors of its own
            raise TransientError(f"store {self._url}, {path or 'its root'}: {error!r}; try again") from error


def _check_size(name: str, size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise ArtifactError(f"{name} has {size_bytes} bytes and may have {limit_bytes}; it was altered")


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, durably."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)

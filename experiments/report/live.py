"""The page of a run that is still growing, served on this machine only: read, never changed, by those who sit here."""

import hashlib
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ...core.errors import SpecError, TrimtabError
from ..run_folder import RunFolder
from .journal_tail import JournalTail
from .page import Body, content_policy, render_body, render_page
from .reading import Stage, is_held, read_run

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

#: names under which this machine may be asked; another one means that a web page elsewhere was made to point here
_HOSTS = ("127.0.0.1", "localhost")
#: what is written while a search goes on; whatever changes one of them changes the page
_WATCHED = ("spec.yaml", "journal.jsonl", "original.json", "space.json", "knowledge.json", "result.json", "policy.json",
            "prices.json", "artifact/manifest.json")  # fmt: skip

#: with more trials than this the reasons would keep the page waiting
_MOST_EXPLAINED = 300
#: trials that have to come in before they say how fast others will
_FEWEST_FOR_PACE = 4


@dataclass(frozen=True, slots=True)
class State:
    """What the page asks for, again and again."""

    #: changes where anything that is shown does
    tag: str
    content: bytes


class LiveRun:
    """A run as it is now; rendered anew only where one of its files changed, the journal read on from where it was."""

    def __init__(self, run: Path) -> None:
        """Opens a run.

        Raises:
            RunError: there is none.
        """
        self._folder = RunFolder.open(run)
        self._tail = JournalTail(self._folder.journal)
        self._lock = Lock()
        self._seen: tuple[object, ...] | None = None
        #: when the first trials were seen, and how many they were
        self._first: tuple[float, int] | None = None
        self._body = Body("", {}, run.name, Stage.PREPARING)
        self._state = State("", b"{}")

    def page(self) -> str:
        """Returns the whole page."""
        with self._lock:
            self._refresh()
            return render_page(self._body, is_live=True)

    def state(self) -> State:
        """Returns what the page puts in place."""
        with self._lock:
            self._refresh()
            return self._state

    def _refresh(self) -> None:
        seen = (is_held(self._folder.journal), *(_stamp(self._folder.path / name) for name in _WATCHED))
        if seen == self._seen:
            return
        self._seen, error = seen, ""
        try:
            self._body = render_body(
                read_run(self._folder.path, self._tail, pace_s=self._pace_s()), most_explained=_MOST_EXPLAINED
            )
        except TrimtabError as cause:
            # half-copied or damaged: the page keeps what it had, says so, and the next change may mend it
            error = str(cause)
            self._tail = JournalTail(self._folder.journal)
        body = self._body
        content = {"html": body.html, "figures": body.figures, "title": body.title, "stage": body.stage, "error": error}
        text = json.dumps(content, allow_nan=False).encode()
        self._state = State(f'"{hashlib.sha256(text).hexdigest()[:24]}"', text)

    def _pace_s(self) -> float | None:
        """Returns seconds from one trial to the next since the page was first asked for; None before a few came in."""
        self._tail.read()
        now_s, n_trials = time.monotonic(), len(self._tail.records)
        if self._first is None:
            self._first = now_s, n_trials
        since_s, n_first = self._first
        n_new = n_trials - n_first
        return (now_s - since_s) / n_new if n_new >= _FEWEST_FOR_PACE else None


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def build_app(live: LiveRun) -> "Starlette":
    """Makes the application: the page and its state, both read-only.

    Raises:
        SpecError: starlette (it comes with fastapi) is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.responses import HTMLResponse, Response
        from starlette.routing import Route
    except ImportError as error:
        raise SpecError("fastapi is not installed; pip install 'trimtab[report]'") from error

    def page(request: "Request") -> "Response":  # noqa: ARG001 - starlette's signature
        return HTMLResponse(live.page(), headers=_headers())

    def state(request: "Request") -> "Response":
        found = live.state()
        headers = {**_headers(), "ETag": found.tag}
        if request.headers.get("if-none-match") == found.tag:
            return Response(status_code=304, headers=headers)
        return Response(found.content, media_type="application/json", headers=headers)

    return Starlette(
        routes=[Route("/", page, methods=["GET"]), Route("/state.json", state, methods=["GET"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(_HOSTS), www_redirect=False)],
    )


def _headers() -> dict[str, str]:
    return {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": f"{content_policy(is_live=True)}; frame-ancestors 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def serve(run: Path, *, port: int = 0, announce: Callable[[str], None] | None = None) -> None:
    """Serves the live page of a run on 127.0.0.1 until it is interrupted.

    Args:
        run: the run's folder.
        port: 0 takes one that is free.
        announce: called with the address as soon as the page can be opened.

    Raises:
        SpecError: (or RunError) there is no run, the port is taken, or an extra is not installed.
    """
    app = build_app(LiveRun(run))
    try:
        import uvicorn
    except ImportError as error:
        raise SpecError("uvicorn is not installed; pip install 'trimtab[report]'") from error
    with _listen(port) as listener:
        server: Any = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        )
        if announce is not None:
            announce(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        server.run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise SpecError(f"port {port} cannot be used: {error}; choose another with --port, or leave it out") from error
    return listener

"""For tests: an agent in a thread of this process, whose answers may be tampered with on their way."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .address import Address
from .agent_bench import AgentBench
from .server import AgentSettings, build_app
from .serving import open_server
from .tokens import TokenKeeper, issue_token

#: an agent that does not listen after so long never will, in seconds
_START_S = 10.0

#: (method, path, status, body) of an answer → the status and the body that the client gets
Tamper = Callable[[str, str, int, bytes], tuple[int, bytes]]


@dataclass(frozen=True)
class RunningAgent:
    """An agent that answers."""

    url: str
    #: lets its bearer in for an hour
    token: str
    #: the file of tokens
    tokens: Path


@contextmanager
def run_agent(
    bench: AgentBench,
    folder: Path,
    *,
    address: Address | None = None,
    settings: AgentSettings | None = None,
    wrap: Callable[[Any], Any] = lambda app: app,
) -> Iterator[RunningAgent]:
    """Runs an agent in a thread until the context ends.

    Args:
        bench: what it offers.
        folder: receives the file of tokens.
        address: where it listens; None: a free port of this machine.
        settings: how much it takes on.
        wrap: makes another ASGI application of the agent's.
    """
    tokens = folder / "tokens.json"
    token = issue_token(tokens, valid_s=3600.0)
    opened = open_server(wrap(build_app(bench, TokenKeeper(tokens), settings)), address or Address(port=0))
    thread = threading.Thread(target=opened.run, daemon=True)
    thread.start()
    deadline_s = time.monotonic() + _START_S
    while not opened.server.started and time.monotonic() < deadline_s:
        time.sleep(0.005)
    try:
        yield RunningAgent(opened.url, token, tokens)
    finally:
        opened.server.should_exit = True
        thread.join(_START_S)


class TamperedApp:
    """An ASGI application whose answers pass through a function, body and status."""

    def __init__(self, app: Any, tamper: Tamper) -> None:
        self._app, self._tamper = app, tamper

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handles one request (ASGI)."""
        started: dict[str, Any] = {}
        body = bytearray()

        async def pass_on(message: Any) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            status, content = self._tamper(scope["method"], scope["path"], started["status"], bytes(body))
            # the length is the new one's
            headers = [pair for pair in started["headers"] if pair[0].lower() != b"content-length"]
            headers += [] if scope["method"] == "HEAD" or status == 204 else [
                (b"content-length", str(len(content)).encode())
            ]  # fmt: skip
            await send({**started, "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})

        await self._app(scope, receive, pass_on)

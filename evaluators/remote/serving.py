"""Starts an agent, and ends it."""

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...core.errors import SpecError
from .address import Address
from .agent_bench import AgentBench
from .tokens import TokenKeeper

_log = logging.getLogger(__name__)

#: connections at a time; more are told to come again
_MAX_CONNECTIONS = 64
#: what is under way when the agent is told to end may take so long, in seconds
_GRACE_S = 5


@dataclass(frozen=True)
class OpenedServer:
    """A server whose port is open already."""

    server: Any
    listener: socket.socket
    #: how it is reached from this machine; with ``0.0.0.0`` from others by their name for it
    url: str

    def run(self) -> None:
        """Answers until the process, or whoever sets ``server.should_exit``, ends it."""
        with self.listener:
            self.server.run(sockets=[self.listener])


def serve(bench: AgentBench, keeper: TokenKeeper, address: Address, *, announce: Callable[[str], None]) -> None:
    """Answers searches until the process is told to end.

    Args:
        bench: what runs and times.
        keeper: who may come in.
        address: where to listen.
        announce: called with the agent's URL once it can be reached.

    Raises:
        SpecError: FastAPI or uvicorn is not installed, or the address cannot be had.
    """
    try:
        from .server import build_app
    except ImportError as error:
        raise SpecError("fastapi is not installed; pip install 'trimtab[agent]'") from error
    opened = open_server(build_app(bench, keeper), address)
    if address.is_exposed:
        _log.warning("tokens travel unencrypted to %s: everybody on the way can read and use them", opened.url)
    announce(opened.url)
    opened.run()


def open_server(app: Any, address: Address) -> OpenedServer:
    """Opens the port for an ASGI application.

    Raises:
        SpecError: uvicorn is not installed, or certificate or address cannot be used.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise SpecError("uvicorn is not installed; pip install 'trimtab[agent]'") from error
    settings: dict[str, Any] = {}
    if address.certificate is not None:
        settings = {"ssl_certfile": str(address.certificate), "ssl_keyfile": str(address.key)}
    runner = uvicorn.Config(
        app, log_level="warning", access_log=False, ws="none", lifespan="off", server_header=False,
        limit_concurrency=_MAX_CONNECTIONS, timeout_graceful_shutdown=_GRACE_S, **settings,
    )  # fmt: skip
    try:
        runner.load()  # the certificate, before anybody is told to come
    except (OSError, ValueError) as error:
        raise SpecError(f"the certificate and its key cannot be used: {error}") from error
    listener = _listen(address)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    scheme = "http" if address.certificate is None else "https"
    return OpenedServer(uvicorn.Server(runner), listener, f"{scheme}://{shown}:{port}")


def _listen(address: Address) -> socket.socket:
    host = address.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, address.port), family=family)
    except (OSError, OverflowError) as error:
        raise SpecError(
            f"{address.host}:{address.port} cannot be listened on: {error}; choose another --host or --port"
        ) from error
    # what it accepts inherits this; without it an answer's body waits 40 ms for the client to acknowledge its head
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener

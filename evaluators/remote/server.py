"""The agent's HTTP side: who may come in, what is said back, and how long a body may get.

=======================================  ==================================================================
``GET  /v1/health``                      for everybody: alive, and which life it is
``GET  /v1/capabilities``                profile and capabilities for ``?threads=…&batch_size=…``
``HEAD /v1/artifacts/{sha256}``          whether an artifact is here
``PUT  /v1/artifacts/{sha256}``          brings one
``PUT  /v1/leases/{id}``                 takes or renews the sole use; 409 while another has it
``DELETE /v1/leases/{id}``               gives it back
``PUT  /v1/orders/{id}``                 runs or times artifacts; 202 while it is not done: send it again
=======================================  ==================================================================

Every request can be repeated: ids are the client's, and what came of an order is kept for a while.
"""

import asyncio
import hashlib
import logging
import re
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from ...core.errors import MeasurementError, SpecError, TrimtabError
from .agent_bench import AgentBench, RecentlyUsed, UnknownArtifactError
from .identity import describe_device
from .lease import LeaseDesk
from .tokens import TokenKeeper
from .wire import (
    BOOT_HEADER,
    ID,
    LEASE_HEADER,
    MAX_ARTIFACT_BYTES,
    MAX_ORDER_BYTES,
    PROTOCOL,
    Arrays,
    Health,
    Lease,
    Order,
    Refusal,
    WireError,
    pack,
    unpack,
)

_log = logging.getLogger(__name__)

HEALTH = "/v1/health"
_SHA256 = re.compile("[0-9a-f]{64}")
_ID = re.compile(ID)
#: bodies that are in memory at a time
_MAX_BODIES = 4
#: a body that takes longer to arrive is given up, in seconds
_BODY_S = 300.0


@dataclass(frozen=True)
class AgentSettings:
    """How much an agent takes on."""

    max_artifact_bytes: int = MAX_ARTIFACT_BYTES
    max_order_bytes: int = MAX_ORDER_BYTES
    #: how long an order is waited for before the client is told to ask again, in seconds
    wait_s: float = 10.0
    #: answers that are kept, in bytes; a client that asks again later has its order carried out again
    max_kept_bytes: int = MAX_ORDER_BYTES


class RefusedError(Exception):
    """A request that comes to nothing, with its status code."""

    def __init__(self, status: int, error: str, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers
        self.body = Refusal.model_validate({"error": error, "detail": detail[:4096]}).model_dump_json()


class TokenGate:
    """Lets nothing but the health endpoint through without a token; everything refused looks the same."""

    def __init__(self, app: Any, keeper: TokenKeeper, boot: str) -> None:
        self._app, self._keeper, self._boot = app, keeper, boot

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handles one connection (ASGI)."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def sign(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (BOOT_HEADER.lower().encode(), self._boot.encode())]
            await send(message)

        headers = {name.lower(): value for name, value in scope["headers"]}
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        if scope["type"] == "http" and (scope["path"] == HEALTH or self._keeper.admits(authorization)):
            await self._app(scope, receive, sign)
            return
        refusal = Refusal(error="unauthorized", detail="a valid token must be sent: Authorization: Bearer TOKEN")
        answer = Response(refusal.model_dump_json(), 401, {"WWW-Authenticate": "Bearer"}, "application/json")
        await answer(scope, receive, sign)


@dataclass
class _Work:
    """An order and what came of it."""

    digest: str
    future: "asyncio.Future[bytes]"


@dataclass
class _Agent:
    """The state behind the endpoints."""

    bench: AgentBench
    settings: AgentSettings
    desk: LeaseDesk = field(default_factory=LeaseDesk)
    #: everything that computes runs here, one thing at a time
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "trimtab-agent"))
    bodies: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_BODIES))
    pending: dict[str, _Work] = field(default_factory=dict)
    done: RecentlyUsed[_Work] = field(init=False)

    def __post_init__(self) -> None:
        self.done = RecentlyUsed(self.settings.max_kept_bytes)

    async def compute(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.worker, work, *arguments)


def build_app(bench: AgentBench, keeper: TokenKeeper, settings: AgentSettings | None = None) -> TokenGate:
    """Makes the ASGI application of an agent.

    Args:
        bench: what runs and times.
        keeper: who may come in.
        settings: how much it takes on.
    """
    agent = _Agent(bench, settings or AgentSettings())
    boot = uuid.uuid4().hex
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_errors(app)
    _add_queries(app, agent, boot)
    _add_leases(app, agent)
    _add_artifacts(app, agent)
    _add_orders(app, agent)
    return TokenGate(app, keeper, boot)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refuse(_request: Request, error: RefusedError) -> Response:
        return Response(error.body, error.status, error.headers, "application/json")

    @app.exception_handler(ClientDisconnect)
    async def leave(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=400)


def _add_queries(app: FastAPI, agent: _Agent, boot: str) -> None:
    @app.get(HEALTH)
    async def health() -> Response:
        return JSONResponse(Health(status="ok", protocol=PROTOCOL, boot=boot).model_dump())

    @app.get("/v1/capabilities")
    async def capabilities(request: Request) -> Response:
        try:
            threads, batch_size = (int(request.query_params[name]) for name in ("threads", "batch_size"))
        except (KeyError, ValueError) as error:
            raise RefusedError(422, "request", "threads and batch_size must be numbers") from error
        if not (1 <= threads <= 1024 and 1 <= batch_size <= 65536):
            raise RefusedError(422, "request", "threads must lie within 1 to 1024, batch_size within 1 to 65536")
        try:
            # not in the worker's thread, which has given up cores, so that the machine is described as it is
            device = await asyncio.to_thread(agent.bench.device, threads, batch_size)
            description = await asyncio.to_thread(describe_device, device)
        except TrimtabError as error:
            raise RefusedError(422, "request", str(error)) from error
        return Response(description.model_dump_json(), media_type="application/json")


def _add_leases(app: FastAPI, agent: _Agent) -> None:
    @app.put("/v1/leases/{lease_id}")
    async def take(lease_id: str) -> Response:
        _require_id(lease_id)
        if not agent.desk.take(lease_id):
            raise RefusedError(409, "busy", "another client measures on this machine", **{"Retry-After": "1"})
        return JSONResponse(Lease(id=lease_id, expires_in_s=agent.desk.lease_s).model_dump())

    @app.delete("/v1/leases/{lease_id}")
    async def give_back(lease_id: str) -> Response:
        _require_id(lease_id)
        agent.desk.give_back(lease_id)
        return Response(status_code=204)


def _add_artifacts(app: FastAPI, agent: _Agent) -> None:
    @app.head("/v1/artifacts/{sha256}")
    async def look(sha256: str, request: Request) -> Response:
        _require_free(agent, request)  # before the model is on its way
        return Response(status_code=204 if agent.bench.knows(sha256) else 404)

    @app.put("/v1/artifacts/{sha256}")
    async def bring(sha256: str, request: Request) -> Response:
        if not _SHA256.fullmatch(sha256):
            raise RefusedError(422, "request", "an artifact is called by its sha256, 64 hex digits")
        async with agent.bodies:
            model = await _read_body(request, agent.settings.max_artifact_bytes)
            _require_free(agent, request)
            try:
                await agent.compute(agent.bench.add, sha256, bytes(model))
            except MeasurementError as error:
                raise RefusedError(422, "measurement", str(error)) from error
        return Response(status_code=204)


def _add_orders(app: FastAPI, agent: _Agent) -> None:
    @app.put("/v1/orders/{order_id}")
    async def carry_out(order_id: str, request: Request) -> Response:
        _require_id(order_id)
        async with agent.bodies:
            body = await _read_body(request, agent.settings.max_order_bytes)
            _require_free(agent, request)  # only now, since a connection that is closed on its sender looks broken
            digest = hashlib.sha256(body).hexdigest()
            work = agent.pending.get(order_id) or agent.done.get(order_id)
            if work is None:
                work = _begin(agent, order_id, digest, _read_order(agent, request, body))
            if work.digest != digest:
                raise RefusedError(422, "request", "this id was another order's; draw a new one for each order")
        await asyncio.wait({work.future}, timeout=agent.settings.wait_s)
        if not work.future.done():
            return Response(Refusal(error="pending", detail="ask again").model_dump_json(), 202)
        return Response(_result_of(work), media_type="application/octet-stream")


def _read_order(agent: _Agent, request: Request, body: bytearray) -> tuple[Order, list[Any]]:
    try:
        order, arrays = unpack(Order, body)
    except WireError as error:
        raise RefusedError(422, "request", str(error)) from error
    lease_id = request.headers.get(LEASE_HEADER)
    if order.kind != "run" and not agent.desk.renew(lease_id):
        raise RefusedError(409, "busy", "whoever measures needs the lease", **{"Retry-After": "0"})
    return order, arrays


def _begin(agent: _Agent, order_id: str, digest: str, found: tuple[Order, list[Any]]) -> _Work:
    order, arrays = found
    if len(agent.pending) >= 64:
        raise RefusedError(429, "busy", "too many orders are waiting", **{"Retry-After": "1"})

    def carry_out() -> bytes:
        outputs = agent.bench.execute(order, arrays)
        return pack(Arrays(n_outputs=len(outputs) // max(1, order.n_batches)), outputs)

    async def follow() -> bytes:
        try:
            answer: bytes = await agent.compute(carry_out)
        except UnknownArtifactError:
            raise  # nothing was done, so nothing is remembered
        except BaseException:
            agent.done.put(order_id, work, 1024)
            raise
        else:
            agent.done.put(order_id, work, len(answer))
            return answer
        finally:
            agent.pending.pop(order_id, None)

    future = asyncio.ensure_future(follow())
    future.add_done_callback(lambda one: one.cancelled() or one.exception())  # nobody may be left to ask for it
    work = _Work(digest, future)
    agent.pending[order_id] = work
    return work


def _result_of(work: _Work) -> bytes:
    try:
        return work.future.result()
    except UnknownArtifactError as error:
        raise RefusedError(404, "unknown_artifact", str(error)) from error
    except (MeasurementError, WireError) as error:
        raise RefusedError(422, "measurement", str(error)) from error
    except SpecError as error:
        raise RefusedError(422, "request", str(error)) from error
    except Exception as error:  # a runtime, or whatever a model makes it do
        _log.warning("an order failed on an unexpected error", exc_info=error)
        raise RefusedError(422, "failed", f"{type(error).__name__}: {error}") from error


def _require_id(value: str) -> None:
    if not _ID.fullmatch(value):
        raise RefusedError(422, "request", "an id must be 32 hex digits")


def _require_free(agent: _Agent, request: Request) -> None:
    """Keeps everything away that would disturb whoever holds the lease."""
    if not agent.desk.is_free_for(request.headers.get(LEASE_HEADER)):
        raise RefusedError(409, "busy", "another client measures on this machine", **{"Retry-After": "1"})


async def _read_body(request: Request, max_bytes: int) -> bytearray:
    """Reads a body piece by piece, and no further than it may go."""
    stated = request.headers.get("content-length", "0")
    body = bytearray()
    too_large = RefusedError(413, "request", f"a body may have {max_bytes} bytes at most", Connection="close")
    if not stated.isdecimal() or int(stated[:20]) > max_bytes:
        raise too_large
    try:
        async with asyncio.timeout(_BODY_S):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError as error:
        raise RefusedError(408, "request", f"the body took longer than {_BODY_S:g} s to arrive") from error
    return body

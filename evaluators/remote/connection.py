"""The client's HTTP side: a token, retries with a deadline, and answers of bounded size."""

import logging
import math
import os
import random
import re
import ssl
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...core.errors import DeviceLostError, MeasurementError, SpecError
from ...core.files import read_text
from .address import TOKEN, TOKEN_FILE, check_url, is_loopback
from .wire import BOOT_HEADER, MAX_JSON_BYTES

_log = logging.getLogger(__name__)

CERTIFICATES, PATIENCE = "TRIMTAB_AGENT_CA", "TRIMTAB_AGENT_PATIENCE_S"

#: an agent that cannot be reached for so long is lost, in seconds, unless ``TRIMTAB_AGENT_PATIENCE_S`` says otherwise
_PATIENCE_S = 60.0
_CONNECT_S, _READ_S = 5.0, 30.0
#: an answer that drips in is given up after so long, in seconds
_ANSWER_S = 300.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
#: statuses that a proxy or a crowded agent gives, which pass
_PASSING = frozenset({429, 500, 502, 503, 504})
_TOKEN = re.compile(r"[\x21-\x7e]+")


class AgentRefusalError(DeviceLostError):
    """The agent, or whoever answers in its place, does not let this process in: no use to try again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    body: bytes
    #: which life of the agent it comes from; empty where it does not say
    boot: str
    #: how long the agent asks to be left alone, in seconds
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """One request; it can be repeated without harm."""

    method: str
    path: str
    content: bytes | None = None
    headers: Mapping[str, str] | None = None
    max_bytes: int = MAX_JSON_BYTES
    #: how long to go on trying; None: as the connection does
    patience_s: float | None = None


class AgentConnection:
    """Talks to one agent; keeps its connection open."""

    def __init__(self, url: str) -> None:
        """Reads token, certificates and patience from the environment; nothing is sent yet.

        Args:
            url: ``http://host:port`` or ``https://host:port``.

        Raises:
            SpecError: the URL is another one, the token is missing, or httpx is not installed.
        """
        self.url = check_url(url)
        self._patience_s = _read_patience()
        httpx = _import_httpx()
        token = read_token()
        if url.startswith("http://") and not is_loopback(urlsplit(url).hostname or ""):
            _log.warning("the token travels unencrypted to %s; give the agent a certificate", self.url)
        self._errors: tuple[type[Exception], ...] = (httpx.TransportError, httpx.DecodingError, httpx.InvalidURL)
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(_READ_S, connect=_CONNECT_S),
            verify=_trust() if url.startswith("https://") else True,
            trust_env=False,  # neither proxies nor the passwords of ~/.netrc
            follow_redirects=False,
        )
        weakref.finalize(self, self._client.close)

    def ask(self, question: Question) -> Answer:
        """Sends a request until it is answered.

        Raises:
            AgentRefusalError: the token or the certificate is refused.
            DeviceLostError: nothing answered for as long as the patience lasts.
            MeasurementError: the answer is too long, or none that an agent gives.
        """
        patience_s = self._patience_s if question.patience_s is None else question.patience_s
        deadline_s = time.monotonic() + patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                answer = self._send(question)
                if answer.status not in _PASSING:
                    return self._admit(answer)
                cause: object = f"status {answer.status}"
            except self._errors as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error) or isinstance(
                    error.__cause__, ssl.SSLCertVerificationError
                ):
                    raise AgentRefusalError(
                        f"the certificate of the agent at {self.url} is not trusted: {error}; name the file that holds "
                        f"it, or its authority's, in {CERTIFICATES}"
                    ) from error
                cause = f"{type(error).__name__}: {error}"
            if time.monotonic() + pause_s > deadline_s:
                raise DeviceLostError(
                    f"the agent at {self.url} cannot be reached for {patience_s:g} s now ({cause}); start it again "
                    f"there, then go on"
                )
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _send(self, question: Question) -> Answer:
        stream = self._client.stream(
            question.method, question.path, content=question.content, headers=question.headers or {}
        )
        with stream as response:
            body, end_s = bytearray(), time.monotonic() + _ANSWER_S
            for piece in response.iter_raw():
                body += piece
                if len(body) > question.max_bytes:
                    raise MeasurementError(
                        f"the agent at {self.url} must answer in at most {question.max_bytes} bytes, and sends more"
                    )
                if time.monotonic() > end_s:
                    raise MeasurementError(f"the agent at {self.url} takes longer than {_ANSWER_S:g} s for an answer")
            headers = response.headers
            boot = headers.get(BOOT_HEADER, "")[:64]
            return Answer(response.status_code, bytes(body), boot, _read_pause(headers.get("Retry-After", "")))

    def _admit(self, answer: Answer) -> Answer:
        if answer.status == 401:
            raise AgentRefusalError(
                f"the agent at {self.url} refuses the token: it is wrong, or it has expired; make a new one there with "
                f"trimtab agent-token, and set {TOKEN} or {TOKEN_FILE}"
            )
        return answer


def read_token() -> str:
    """Returns the token from the environment.

    Raises:
        SpecError: there is none, or it is no token.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token and (path := os.environ.get(TOKEN_FILE)):
        token = read_text(Path(path), noun="token file").strip()
    if not token:
        raise SpecError(
            f"the runtime remote needs the agent's token; set {TOKEN}, or {TOKEN_FILE} to a file that holds it "
            f"(on the agent's machine: trimtab agent-token --tokens FILE --for 24h)"
        )
    if not _TOKEN.fullmatch(token):
        raise SpecError(f"the token in {TOKEN} or {TOKEN_FILE} must be one word of ASCII characters")
    return token


def _trust() -> ssl.SSLContext:
    path = os.environ.get(CERTIFICATES)
    try:
        return ssl.create_default_context(cafile=path or None)
    except (OSError, ValueError) as error:
        raise SpecError(f"{CERTIFICATES} must name a file of certificates in PEM, got '{path}': {error}") from error


def _read_patience() -> float:
    text = os.environ.get(PATIENCE, str(_PATIENCE_S))
    try:
        patience_s = float(text)
    except ValueError:
        patience_s = math.nan
    if not 0 < patience_s < math.inf:
        raise SpecError(f"{PATIENCE} must be a number of seconds greater than 0, got '{text}'")
    return patience_s


def _read_pause(text: str) -> float:
    return min(float(text), 60.0) if text.isdecimal() and len(text) < 9 else 0.0


def _import_httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise SpecError("httpx is not installed; pip install 'trimtab[agent]'") from error
    return httpx

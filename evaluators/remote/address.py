"""Where an agent listens, and how a spec names it."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ...core.errors import SpecError

#: where a client finds its token
TOKEN, TOKEN_FILE = "TRIMTAB_AGENT_TOKEN", "TRIMTAB_AGENT_TOKEN_FILE"


@dataclass(frozen=True, slots=True)
class Address:
    """Where an agent listens.

    Raises:
        SpecError: a token would travel unencrypted, or only half of the encryption is named.
    """

    host: str = "127.0.0.1"
    #: 0 takes a free one
    port: int = 8765
    certificate: Path | None = None
    key: Path | None = None
    #: whether tokens may travel unencrypted
    allows_plain: bool = False

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise SpecError("TLS needs both a certificate and its key: --tls-cert FILE --tls-key FILE")
        for path in (self.certificate, self.key):
            if path is not None and not path.is_file():
                raise SpecError(f"{path} does not exist; TLS needs a certificate and its key in PEM")
        if self.certificate is None and not self.allows_plain and not is_loopback(self.host):
            raise SpecError(
                f"{self.host} can be reached by other machines, and without TLS everybody on the way reads the token; "
                f"give --tls-cert and --tls-key, or listen on 127.0.0.1 behind an SSH tunnel, or say --insecure"
            )

    @property
    def is_exposed(self) -> bool:
        """Whether tokens travel unencrypted between machines."""
        return self.certificate is None and not is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a host.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_url(url: str) -> str:
    """Returns the URL of an agent without a slash at its end.

    Raises:
        SpecError: it is none, or holds more than where the agent is: specs are kept, secrets must not be.
    """
    wanted = "target.device of the runtime remote must be an agent's URL, such as https://board:8765"
    try:
        parts = urlsplit(url.rstrip("/"))
        port = parts.port
    except ValueError as error:
        raise SpecError(f"{wanted}; got something else: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise SpecError(f"{wanted}, without a name or a password: the token comes from {TOKEN} or {TOKEN_FILE}")
    is_plain = not (parts.path or parts.query or parts.fragment) and port != 0
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain or not url.isprintable():
        raise SpecError(f"{wanted}; got '{url[:200]}'")
    return url.rstrip("/")

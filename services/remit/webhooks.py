"""What agent and tools agree on about webhooks: the tool, its keys, and which URLs there are.

The end of a run is told by a call of a tool like any other effect. The tool is Remit's own: no
agent may name it and no model is offered it. Agent calls it under a key that no model's call has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NoReturn
from urllib.parse import urlsplit

from remit import names
from remit.addresses import Network, is_loopback, literal, refusal

TOOL_ID: Final = "post_webhook"
TOOL: Final = names.tool_name(TOOL_ID)
"""The tool that posts."""
MAX_URL_CHARS: Final = 2_000
HTTP_STATUS: Final = "http_status"
"""Metadata of a failed call: the status that the receiver answered with."""
FINAL: Final = "final"
"""Metadata of a failed call that another try cannot mend; the value is `true`."""

_PORTS: Final = {"https": 443, "http": 80}
_MAX_PORT: Final = 65_535
_URL: Final = re.compile(r"[!#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]+")  # RFC 3986
_HOST: Final = re.compile(r"(?=.{1,253}$)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?\.?)+")
_NUMERIC: Final = re.compile(r"(?:.*\.)?(?:0x[0-9a-f]*|[0-9]+)\.?")
_LOCALHOST: Final = re.compile(r"(?:.*\.)?localhost\.?")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads."""

    is_tls: bool
    host: str
    """A name in lower case, or an address without brackets."""
    port: int
    path: str
    """With the query, as it goes into the request."""

    @property
    def authority(self) -> str:
        """What the header `Host` says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = _PORTS["https" if self.is_tls else "http"]
        return host if self.port == usual else f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the URL itself says that it leads to this machine."""
        address = literal(self.host)
        if address is not None:
            return is_loopback(address)
        return _LOCALHOST.fullmatch(self.host) is not None


def parse_url(url: str, allowed: Iterable[Network] = ()) -> Target:
    """Where a webhook's URL leads, if it may be one.

    `allowed` are the operator's networks that may be reached besides the public ones. The addresses
    of a name are not looked at here. Raises ValueError with what is wrong, to be read after the
    name of the field.
    """
    if not 1 <= len(url) <= MAX_URL_CHARS:
        _refuse(f"must have 1 to {MAX_URL_CHARS} characters")
    if not _URL.fullmatch(url):
        _refuse("must be an absolute URL, such as https://example.com/ended, in ASCII")
    target = _parsed(url)
    allowed = tuple(allowed)
    address = literal(target.host)
    if address is not None and (why := refusal(address, allowed)):
        _refuse(f"leads to an address that {why}")
    if address is None and target.is_loopback and not _allow_loopback(allowed):
        _refuse("leads to this machine itself")
    if not (target.is_tls or target.is_loopback):
        _refuse("must begin with https://")
    return target


def call_key(run: str, number: int) -> str:
    """Key of the effect that is try `number` of a run's delivery, counted from 1."""
    return f"{run}/webhook/{number}"


def is_call_key(key: str, run: str) -> bool:
    """Whether a key is that of a delivery of the run: calls of its model have others."""
    return bool(run) and key.startswith(f"{run}/webhook/")


def _parsed(url: str) -> Target:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        _refuse("names a host or port that cannot be read")
    scheme = parts.scheme.lower()
    if scheme not in _PORTS:
        _refuse("must begin with https://")
    if "@" in parts.netloc:
        _refuse("must hold no user and no password")
    if "#" in url:
        _refuse("must hold no fragment (#)")
    if literal(host) is None and (not _HOST.fullmatch(host) or _NUMERIC.fullmatch(host)):
        _refuse("names no host that can be looked up")
    if port is not None and not 1 <= port <= _MAX_PORT:
        _refuse(f"must have a port from 1 to {_MAX_PORT}")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(scheme == "https", host, port or _PORTS[scheme], path)


def _allow_loopback(allowed: Iterable[Network]) -> bool:
    return any(network.is_loopback for network in allowed)


def _refuse(fault: str) -> NoReturn:
    raise ValueError(fault)

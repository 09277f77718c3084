"""One POST to an address that was checked, so that a URL of a client reaches nothing of ours.

The name is looked up once. Every address that it has is checked before any is connected to, and the
connection goes to one of these: a name that answers differently a moment later changes nothing. TLS
is verified against the name. A redirect is an answer like any other and is not followed; of the
answer only the status is read, and no more than `MAX_HEAD_BYTES`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, TypeAlias

import h11

from remit.addresses import Address, Network, is_loopback, refusal
from remit.webhooks import Target

MAX_HEAD_BYTES: Final = 16_384
"""Most bytes of an answer that are read to find its status."""
_MAX_ADDRESSES: Final = 4
"""Addresses of a name that are tried in turn."""
_READ_BYTES: Final = 4_096

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[Address]]]


class PostError(Exception):
    """No answer came, and why; the text names no address and holds nothing of the URL's path."""

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final
        """Whether another try cannot mend it."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is posted."""

    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Poster:
    """Posts messages."""

    tls: ssl.SSLContext
    allowed: tuple[Network, ...]
    """The operator's networks that may be reached besides the public ones."""
    resolve: Resolve
    timeout_s: float
    """Of the whole exchange."""

    async def post(self, target: Target, message: Message) -> int:
        """The status that the receiver answered with. Raises PostError."""
        sent = False
        try:
            async with asyncio.timeout(self.timeout_s):
                addresses = await self._checked(target)
                async with self._connected(target, addresses) as (reader, writer):
                    sent = True
                    return await _exchange(reader, writer, target, message)
        except TimeoutError:
            fault = f"{target.host} did not answer within {self.timeout_s:g} s"
            raise PostError(f"{fault}{_UNKNOWN if sent else ''}") from None
        except OSError as error:
            fault = f"the connection to {target.host} broke ({type(error).__name__})"
            raise PostError(f"{fault}{_UNKNOWN if sent else ''}") from error

    async def _checked(self, target: Target) -> Sequence[Address]:
        """The addresses of the target's name, if every one may be reached."""
        try:
            addresses = await self.resolve(target.host, target.port)
        except (OSError, UnicodeError) as error:
            raise PostError(f"{target.host} could not be looked up") from error
        if not addresses:
            raise PostError(f"{target.host} has no address")
        for address in addresses:
            if why := refusal(address, self.allowed):
                raise PostError(f"{target.host} has an address that {why}", is_final=True)
            if not (target.is_tls or is_loopback(address)):
                raise PostError(f"{target.host} needs https", is_final=True)
        return addresses[:_MAX_ADDRESSES]

    @contextlib.asynccontextmanager
    async def _connected(
        self, target: Target, addresses: Sequence[Address]
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await self._connect(target, addresses)
        try:
            yield reader, writer
        finally:
            # Without the goodbyes of TLS: nothing of the answer is read any more.
            writer.transport.abort()

    async def _connect(
        self, target: Target, addresses: Sequence[Address]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        fault = ""
        for address in addresses:
            try:
                return await asyncio.open_connection(
                    str(address),
                    target.port,
                    limit=MAX_HEAD_BYTES,
                    ssl=self.tls if target.is_tls else None,
                    server_hostname=target.host if target.is_tls else None,
                )
            except ssl.SSLCertVerificationError as error:
                fault = f"the certificate of {target.host} is not valid: {error.verify_message}"
            except OSError as error:
                fault = f"no connection to {target.host} ({type(error).__name__})"
        raise PostError(fault)


async def system_resolve(host: str, port: int) -> Sequence[Address]:
    """The addresses of a name by the system's resolver, in its order. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )
    addresses = (ip_address(sockaddr[0]) for *_, sockaddr in found)
    return list(dict.fromkeys(addresses))


_UNKNOWN: Final = "; whether it got the message is unknown"


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Target, message: Message
) -> int:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    request = h11.Request(method="POST", target=target.path, headers=_headers(target, message))
    for part in (request, h11.Data(data=message.body), h11.EndOfMessage()):
        writer.write(connection.send(part) or b"")
    await writer.drain()
    try:
        return await _status(reader, connection)
    except h11.RemoteProtocolError as error:
        fault = f"{target.host} gave an answer that is no HTTP{_UNKNOWN}"
        raise PostError(fault) from error


async def _status(reader: asyncio.StreamReader, connection: h11.Connection) -> int:
    read_bytes = 0
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Response):
            return event.status_code
        if event is h11.NEED_DATA:
            data = await reader.read(_READ_BYTES)
            read_bytes += len(data)
            if read_bytes > MAX_HEAD_BYTES:
                raise h11.RemoteProtocolError("the head of the answer is too long")
            connection.receive_data(data)
        elif not isinstance(event, h11.InformationalResponse):
            raise h11.RemoteProtocolError("the connection was closed before an answer")


def _headers(target: Target, message: Message) -> list[tuple[str, str]]:
    return [
        ("host", target.authority),
        ("user-agent", "remit"),
        ("connection", "close"),
        ("content-length", str(len(message.body))),
        *message.headers.items(),
    ]

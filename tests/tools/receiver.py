"""A receiver of webhooks: a real HTTP server on loopback that keeps what it was sent."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass(frozen=True)
class Received:
    """One request."""

    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def identifier(self) -> str:
        return self.headers["webhook-id"]

    def is_signed_by(self, public_key: str) -> bool:
        """Whether one of its signatures is by a key in the form of Standard Webhooks."""
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key.removeprefix("whpk_")))
        signed = f"{self.identifier}.{self.headers['webhook-timestamp']}.".encode() + self.body
        for signature in self.headers["webhook-signature"].split(" "):
            version, _, encoded = signature.partition(",")
            with contextlib.suppress(InvalidSignature):
                key.verify(base64.b64decode(encoded), signed)
                return version == "v1a"
        return False


@dataclass
class Receiver:
    """The server. Each request takes the next of `answers`, then `OK`."""

    port: int = 0
    answers: list[bytes] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    hold: asyncio.Event | None = None
    """While set and not fired, requests wait for their answer."""
    tls: bool = False

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://localhost:{self.port}/ended?from=remit"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            plain = dict(line.split(": ", 1) for line in head[1:] if line)
            headers = {name.lower(): value for name, value in plain.items()}
            body = await reader.readexactly(int(headers["content-length"]))
            self.received.append(Received(head[0].split(" ")[1], headers, body))
            answer = self.answers.pop(0) if self.answers else OK
            if self.hold is not None:
                await self.hold.wait()
            writer.write(answer)
            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A receiver on a port of its own."""
    receiver = Receiver(tls=tls is not None)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        if receiver.hold is not None:
            receiver.hold.set()
        server.close()
        await server.wait_closed()


def answer(status: int, *headers: str, body: bytes = b"") -> bytes:
    """An answer with a status."""
    lines = [f"HTTP/1.1 {status} Said", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body

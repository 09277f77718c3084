"""A plain HTTP/1.1 client: what `curl` and a browser do, so that tests see every byte.

It reads answers whole or as server-sent events, and can be cut at any moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from remit.rpc.errors import RemitError

TIMEOUT_S = 30.0


@dataclass
class Answer:
    """What came back; header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", self
        return json.loads(self.body)

    def error(self) -> RemitError:
        """The error, which must have an ErrorInfo of ours."""
        return error_of(self.json())


@dataclass
class Event:
    """One server-sent event, or a comment."""

    name: str = "message"
    id: str = ""
    retry: str = ""
    data: str = ""
    comment: str = ""

    def json(self) -> Any:
        return json.loads(self.data)


def error_of(document: Any) -> RemitError:
    """The error that the JSON of a google.rpc.Status carries."""
    from google.protobuf import json_format  # noqa: PLC0415 - it needs the detail types known
    from google.rpc import status_pb2  # noqa: PLC0415 - as above

    assert set(document) == {"code", "message", "details"}, document
    kinds = [detail["@type"].rpartition("/")[2] for detail in document["details"]]
    assert kinds[0] == "google.rpc.ErrorInfo", document
    return RemitError.from_status(json_format.ParseDict(document, status_pb2.Status()))


@dataclass
class Stream:
    """An answer that is being read."""

    answer: Answer
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    received: list[Event] = field(default_factory=list)

    async def events(self) -> AsyncIterator[Event]:
        """Events as they arrive, to the end of the body; a cut raises IncompleteReadError."""
        text = b""
        async for piece in _body(self.answer, self.reader):
            text += piece
            while b"\n\n" in text:
                block, _, text = text.partition(b"\n\n")
                yield event_of(block.decode())
        assert not text, f"a torn event: {text!r}"


class Client:
    """Calls one address with the same headers each time."""

    def __init__(self, address: str, headers: Mapping[str, str] | None = None) -> None:
        self._host, _, port = address.partition(":")
        self._port = int(port)
        self._headers = dict(headers or {})

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.call("GET", path, headers=headers)

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        return await self.call("POST", path, body, headers=headers)

    async def call(
        self, verb: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own. Names of headers may be written with `_`."""
        async with self.stream(verb, path, body, headers=headers) as stream:
            async with asyncio.timeout(TIMEOUT_S):
                pieces = [piece async for piece in _body(stream.answer, stream.reader)]
            stream.answer.body = b"".join(pieces)
            return stream.answer

    @contextlib.asynccontextmanager
    async def stream(
        self, verb: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Stream]:
        """The same, the body still to be read; leaving the block cuts the connection."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            content = body if isinstance(body, bytes) else b"" if body is None else _json(body)
            given = {
                k.replace("_", "-"): v for k, v in (self._headers | dict(headers or {})).items()
            }
            writer.write(_head(verb, path, content, given) + content)
            async with asyncio.timeout(TIMEOUT_S):
                answer = await _answer(reader)
            yield Stream(answer, reader, writer)
        finally:
            writer.transport.abort()


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()


def _head(verb: str, path: str, content: bytes, headers: Mapping[str, str]) -> bytes:
    lines = {"host": "edge.test", "content-length": str(len(content))}
    if content:
        lines["content-type"] = "application/json"
    lines |= headers
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{verb} {path} HTTP/1.1\r\n{text}\r\n".encode()


async def _answer(reader: asyncio.StreamReader) -> Answer:
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        assert name.lower() not in headers, f"{name} twice: {lines}"
        headers[name.lower()] = value.strip()
    return Answer(int(status.split()[1]), headers)


async def _body(answer: Answer, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    if answer.headers.get("transfer-encoding") != "chunked":
        yield await reader.readexactly(int(answer.headers.get("content-length", 0)))
        return
    while size := int(await _line(reader), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    while await _line(reader):
        pass  # trailers


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line.endswith(b"\r\n"):
        raise asyncio.IncompleteReadError(line, None)
    return line.strip()


def event_of(block: str) -> Event:
    """The event that some lines make, the empty one after them left out."""
    event = Event()
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            event.comment = value
        else:
            setattr(event, "name" if name == "event" else name, value)
    return event

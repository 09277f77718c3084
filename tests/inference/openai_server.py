"""A server on loopback that speaks the OpenAI chat completions protocol, by a script.

The engine meets it over real HTTP. A script is a coroutine that gets the request's body and answers
with a response; `chunks` makes the usual stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.ports import free_ports
from tests.waiting import eventually

Script = Callable[[dict[str, Any]], Awaitable[Response]]


@dataclass
class OpenAIServer:
    """A running server; `script` answers, `requests` keeps what came."""

    port: int
    script: Script
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    broken_off: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client closed a connection before the end of a slow answer."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        return await self.script(body)


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[OpenAIServer]:
    """Serves until the end of the block."""
    server = OpenAIServer(free_ports(1)[0], says("hello"))
    app = Starlette(routes=[Route("/v1/chat/completions", server.answer, methods=["POST"])])
    config = uvicorn.Config(
        app, host="127.0.0.1", port=server.port, log_level="critical", lifespan="off", ws="none"
    )
    uvicorn_server = uvicorn.Server(config)
    uvicorn_server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(uvicorn_server._serve())
    await eventually(lambda: uvicorn_server.started)
    try:
        yield server
    finally:
        uvicorn_server.should_exit = True
        uvicorn_server.force_exit = True
        await asyncio.wait({task}, timeout=5)


def delta(finish_reason: str | None = None, **content: Any) -> dict[str, Any]:
    """A chunk with one choice."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": content, "finish_reason": finish_reason}],
    }


def usage(prompt: int, completion: int, cached: int | None = None) -> dict[str, Any]:
    """The chunk with the usage, which has no choices."""
    counts: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if cached is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    return {"choices": [], "usage": counts}


def call_delta(index: int, **parts: Any) -> dict[str, Any]:
    """A chunk with a piece of a tool call."""
    call: dict[str, Any] = {"index": index}
    if "id" in parts:
        call |= {"id": parts["id"], "type": "function"}
    call["function"] = {key: parts[key] for key in ("name", "arguments") if key in parts}
    return delta(tool_calls=[call])


def chunks(*parts: object, done: bool = True) -> Script:
    """Streams the parts as server-sent events; a string is sent as it is."""

    async def script(_body: dict[str, Any]) -> Response:
        async def events() -> AsyncIterator[bytes]:
            for part in parts:
                data = part if isinstance(part, str) else json.dumps(part)
                yield f"data: {data}\n\n".encode()
            if done:
                yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return script


def says(*texts: str) -> Script:
    """A plain answer."""
    return chunks(
        delta(role="assistant", content=""),
        *(delta(content=text) for text in texts),
        delta(finish_reason="stop"),
        usage(10, len(texts)),
    )


def refuses(status: int, message: str = "no", **error: Any) -> Script:
    """An error with a status; `headers` among the arguments are the response's."""
    headers = error.pop("headers", None)

    async def script(_body: dict[str, Any]) -> Response:
        return JSONResponse(
            {"error": {"message": message, "type": "error", "code": None, **error}},
            status_code=status,
            headers=headers,
        )

    return script


def cut_after(*parts: object) -> Script:
    """Breaks the connection off after some parts, in the middle of the body."""

    async def script(_body: dict[str, Any]) -> Response:
        async def events() -> AsyncIterator[bytes]:
            for part in parts:
                yield f"data: {json.dumps(part)}\n\n".encode()
            message = "the provider dies"
            raise ConnectionResetError(message)

        return StreamingResponse(events(), media_type="text/event-stream")

    return script


def stalls_after(server: OpenAIServer, *parts: object) -> Script:
    """Sends some parts and then nothing, until the client closes the connection."""

    async def script(_body: dict[str, Any]) -> Response:
        async def events() -> AsyncIterator[bytes]:
            try:
                for part in parts:
                    yield f"data: {json.dumps(part)}\n\n".encode()
                await asyncio.Event().wait()
            finally:
                server.broken_off.set()

        return StreamingResponse(events(), media_type="text/event-stream")

    return script


def in_turn(scripts: Sequence[Script]) -> Script:
    """Each request gets the next script."""
    left = iter(scripts)

    async def script(body: dict[str, Any]) -> Response:
        return await next(left)(body)

    return script

"""A REST client that knows nothing but docs/openapi.yaml, with the standard library alone."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import quote, urlencode

from tests.clients.schemas import Document
from tests.waiting import PATIENCE

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Answer:
    """An HTTP answer with its headers in small letters; the body of a stream is all of it."""

    status: int
    headers: Mapping[str, str]
    body: str

    @property
    def content(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def events(self) -> list[dict[str, str]]:
        """The server-sent events, each by the names of its lines; comments are left out."""
        blocks = [block.split("\n") for block in self.body.split("\n\n") if block]
        told = [[line.split(": ", 1) for line in block if line[:1] != ":"] for block in blocks]
        return [dict(lines) for lines in told if lines]


@dataclass(frozen=True)
class Rest:
    """Calls operations of the document at one gateway."""

    document: Document
    address: str
    key: str

    async def __call__(
        self,
        method: str,
        path: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer of the operation of an RPC, `/package.Service/Method`."""
        template, verb, _ = self.document.operation(method)
        for name, value in (path or {}).items():
            template = template.replace(f"{{{name}}}", quote(value))
        url = f"http://{self.address}{template}"
        if query:
            url += f"?{urlencode(query)}"
        sent = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - http, to a gateway on loopback
            url, data=data, headers=sent | dict(headers or {}), method=verb.upper()
        )
        return await asyncio.to_thread(_answered, request)


def _answered(request: urllib.request.Request) -> Answer:
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S * PATIENCE) as found:  # noqa: S310 - as above
            return Answer(found.status, _lower(found.headers), found.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, _lower(error.headers), error.read().decode())


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}

"""Asking a process on this machine how it is, over plain HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
from dataclasses import dataclass
from typing import Any, Final

TIMEOUT_S: Final = 2.0
_MAX_BODY_BYTES: Final = 8 << 20


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; status 0 means that there was none, and the body says why."""

    status: int
    body: str

    def json(self) -> Any:  # noqa: ANN401 - any document
        """The body as JSON; None if it is not."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


async def ask(host: str, port: int, path: str, *, method: str = "GET") -> Answer:
    """Sends one request and never takes longer than `TIMEOUT_S` per step."""
    return await asyncio.to_thread(_ask, host, port, path, method)


async def not_ready(host: str, port: int) -> str:
    """Why a service is not ready; empty if it is."""
    answer = await ask(host, port, "/ready")
    if answer.status == http.client.OK:
        return ""
    document = answer.json()
    reason = document.get("reason") if isinstance(document, dict) else None
    return str(reason or answer.body.strip() or f"HTTP status {answer.status}")


def _ask(host: str, port: int, path: str, method: str) -> Answer:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, headers={"connection": "close"})
        response = connection.getresponse()
        body = response.read(_MAX_BODY_BYTES).decode(errors="replace")
        return Answer(response.status, body)
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, str(error) or type(error).__name__)
    finally:
        connection.close()

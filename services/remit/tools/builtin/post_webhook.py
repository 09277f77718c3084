"""`post_webhook`: tells an address that a run has ended. Remit's own: no model can call it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Annotated, Any, Final

from pydantic import Field

from remit import webhooks
from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError
from remit.tools.context import ToolContext, ToolError
from remit.tools.definition import canonical_json, tool
from remit.tools.posting import Message, Poster, PostError, system_resolve
from remit.tools.settings import ToolsSettings
from remit.tools.webhook_keys import WebhookKeys

MAX_BODY_BYTES: Final = 16_384
_LIMIT_S: Final = 40
"""Above the longest time that an exchange may be allowed."""

Url = Annotated[str, Field(max_length=webhooks.MAX_URL_CHARS, description="Where it is posted.")]
Identifier = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_-]{1,100}$", description="The message's id, the same at each try."),
]
Event = Annotated[dict[str, Any], Field(description="The message.")]


def post_webhook_tool(settings: ToolsSettings, keys: WebhookKeys) -> Callable[..., object]:
    """The tool with the network and the keys of the settings."""
    poster = Poster(
        tls=ssl.create_default_context(cafile=settings.webhook_ca_file),
        allowed=settings.webhook_networks,
        resolve=system_resolve,
        timeout_s=settings.webhook_timeout_s,
    )

    # A receiver knows a repetition by its id, so that one does no harm.
    @tool(permission_class="write", idempotent=True, timeout_s=_LIMIT_S)
    async def post_webhook(
        context: ToolContext, url: Url, identifier: Identifier, event: Event
    ) -> dict[str, object]:
        """Post a signed message to an address and return the status that it answered with."""
        if not keys:
            raise ToolError("webhooks need a key; REMIT_TOOLS_WEBHOOK_KEY_FILES names its file")
        body = canonical_json(event)
        if len(body) > MAX_BODY_BYTES:
            raise ToolError(f"the message has {len(body)} bytes; the limit is {MAX_BODY_BYTES}")
        timestamp_s = int(context.clock.now().timestamp())
        headers = {
            "content-type": "application/json",
            "webhook-id": identifier,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": keys.signature(context.org, identifier, timestamp_s, body),
        }
        status = await _posted(poster, url, Message(body, headers))
        return {webhooks.HTTP_STATUS: status}

    return post_webhook


async def _posted(poster: Poster, url: str, message: Message) -> int:
    """The status, if it confirms. Raises TOOL_FAILED that says whether another try can help."""
    try:
        target = webhooks.parse_url(url, poster.allowed)
    except ValueError as error:
        raise _failed(f"the URL {error}", is_final=True) from None
    try:
        status = await poster.post(target, message)
    except PostError as error:
        raise _failed(str(error), is_final=error.is_final) from error
    if 200 <= status < 300:
        return status
    gone = status == 410  # the receiver says that it wants no more
    raise _failed(f"{target.host} answered {status}", status=status, is_final=gone)


def _failed(message: str, *, is_final: bool, status: int | None = None) -> RemitError:
    metadata = {webhooks.HTTP_STATUS: str(status)} if status is not None else {}
    if is_final:
        metadata[webhooks.FINAL] = "true"
    return RemitError(
        error_reason_pb2.ERROR_REASON_TOOL_FAILED,
        f"{webhooks.TOOL}: {message}",
        metadata=metadata,
    )

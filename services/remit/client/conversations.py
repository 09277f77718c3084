"""Conversations: begun, read, listed and deleted. A run joins one by `NewRun.conversation`.

Every method raises RemitError. A call that broke is made again for a moment, as for runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from remit.api.agent.v1 import (
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
)
from remit.client.repetition import Metadata, repeated
from remit.client.requests import full_name, new_request_id
from remit.client.resumption import Resumption

Response = TypeVar("Response")

_MOST_A_PAGE: Final = 200


@dataclass(frozen=True)
class ConversationList:
    """Conversations, the one used last first, and whether there are more than were asked for."""

    conversations: list[conversation_pb2.Conversation]
    more: bool


class Conversations:
    """The conversations of one API key. A name may lack its `conversations/`."""

    def __init__(
        self,
        stub: conversation_service_pb2_grpc.ConversationServiceStub,
        metadata: Metadata,
        resumption: Resumption,
    ) -> None:
        self._stub = stub
        self._metadata = metadata
        self._resumption = resumption

    async def create(
        self, display_name: str = "", *, request_id: str = ""
    ) -> conversation_pb2.Conversation:
        """Begins a conversation; with the same request id and name it is the same one."""
        request = conversation_service_pb2.CreateConversationRequest(
            display_name=display_name, request_id=request_id or new_request_id()
        )
        return (await self._call(self._stub.CreateConversation, request)).conversation

    async def get(self, conversation: str) -> conversation_pb2.Conversation:
        """The conversation as it is now."""
        request = conversation_service_pb2.GetConversationRequest(
            name=full_name("conversations", conversation)
        )
        return (await self._call(self._stub.GetConversation, request)).conversation

    async def list(self, *, own: bool = False, limit: int = 50) -> ConversationList:
        """Up to `limit` conversations that the key may read, the one used last first.

        With `own` none but the caller's, where it may read those of others too.
        """
        request = conversation_service_pb2.ListConversationsRequest(own=own)
        found: list[conversation_pb2.Conversation] = []
        while True:
            request.page_size = min(limit - len(found), _MOST_A_PAGE)
            page = await self._call(self._stub.ListConversations, request)
            found += page.conversations
            request.page_token = page.next_page_token
            if not request.page_token or len(found) >= limit:
                more = bool(request.page_token) or len(found) > limit
                return ConversationList(found[:limit], more)

    async def delete(
        self, conversation: str, *, request_id: str = ""
    ) -> conversation_pb2.Conversation:
        """Deletes a conversation in which no run goes on; its runs are shown no more."""
        request = conversation_service_pb2.DeleteConversationRequest(
            name=full_name("conversations", conversation),
            request_id=request_id or new_request_id(),
        )
        return (await self._call(self._stub.DeleteConversation, request)).conversation

    async def _call(self, method: Callable[..., Awaitable[Response]], request: object) -> Response:
        return await repeated(method, request, self._metadata, self._resumption)

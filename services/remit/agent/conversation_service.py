"""ConversationService: proto in, proto out, and who may see what."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc

from remit import names, telemetry
from remit.agent.admin_log import DELETE_CONVERSATION, AdminLog
from remit.agent.conversation_store import ConversationStore, StoredConversation, place
from remit.agent.service import ADMIN, may_see, name_of_token, page_size, page_token
from remit.agent.threads import conversation_not_found, goes_on
from remit.agent.validation import check_conversation, check_name, check_request_id
from remit.api.agent.v1 import (
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
)
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.guardrails import ServiceRules
from remit.rpc.calls import current_remit
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError, check_all
from remit.rpc.ids import IdSource

_TRIES: Final = 5
"""A conversation that goes on this often during one request is left to the client's next try."""

log = telemetry.logger(__name__)


@dataclass(frozen=True)
class ConversationService(conversation_service_pb2_grpc.ConversationServiceServicer):
    """Conversations, for the clients who own them."""

    store: ConversationStore
    clock: Clock
    ids: IdSource
    admin_log: AdminLog
    rules: ServiceRules

    async def CreateConversation(
        self,
        request: conversation_service_pb2.CreateConversationRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> conversation_service_pb2.CreateConversationResponse:
        """Begins a conversation."""
        remit = current_remit()
        display_name = check_conversation(request, self.rules.of(remit))
        created = await self.store.create(
            conversation_pb2.Conversation(
                name=names.conversation_name(self.ids.uuid7()),
                subject=remit.subject,
                display_name=display_name,
            ),
            org=remit.org,
            request_id=request.request_id,
            body_digest=hashlib.sha256(request.SerializeToString(deterministic=True)).digest(),
            now=self.clock.now(),
        )
        return conversation_service_pb2.CreateConversationResponse(
            conversation=created.conversation
        )

    async def GetConversation(
        self,
        request: conversation_service_pb2.GetConversationRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> conversation_service_pb2.GetConversationResponse:
        """Returns a conversation."""
        stored = await self._found(request.name)
        if stored.is_deleted:
            raise conversation_not_found(request.name)
        return conversation_service_pb2.GetConversationResponse(conversation=stored.conversation)

    async def ListConversations(
        self,
        request: conversation_service_pb2.ListConversationsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> conversation_service_pb2.ListConversationsResponse:
        """Lists conversations, the one that was used last first."""
        check_all(
            partial(page_size, request.page_size),
            partial(name_of_token, "conversation", request.page_token),
        )
        remit, size = current_remit(), page_size(request.page_size)
        everybodys = ADMIN in remit.roles and not request.own
        found = await self.store.page(
            remit.org,
            "" if everybodys else remit.subject,
            limit=size + 1,
            before=name_of_token("conversation", request.page_token),
        )
        more = len(found) > size
        return conversation_service_pb2.ListConversationsResponse(
            conversations=found[:size],
            next_page_token=page_token(place(found[size - 1])) if more else "",
        )

    async def DeleteConversation(
        self,
        request: conversation_service_pb2.DeleteConversationRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> conversation_service_pb2.DeleteConversationResponse:
        """Deletes a conversation in which no run goes on."""
        check_all(
            partial(check_request_id, request.request_id),
            partial(check_name, "conversation", "name", request.name),
        )
        for _ in range(_TRIES):
            stored = await self._found(request.name)
            if stored.is_deleted:
                return _deleted(stored, request.request_id)
            if stored.is_going_on:
                raise goes_on(request.name, stored.conversation.last_run)
            await self.admin_log.asked(
                DELETE_CONVERSATION,
                request.name,
                request.request_id,
                {
                    "own": stored.conversation.subject == current_remit().subject,
                    "runs": stored.conversation.runs,
                },
            )
            if await self.store.delete(stored, request.request_id, self.clock.now()):
                log.info(
                    "conversation_deleted",
                    conversation=request.name,
                    user=current_remit().subject,
                    runs=stored.conversation.runs,
                )
        raise RemitError(
            reasons.ERROR_REASON_OVERLOADED, f"{request.name} goes on too fast to be deleted"
        )

    async def _found(self, name: str) -> StoredConversation:
        """A conversation that the caller may see, or might before it was deleted."""
        check_name("conversation", "name", name)
        stored = await self.store.get(name)
        if not may_see(current_remit(), stored.org, stored.conversation.subject):
            raise conversation_not_found(name)
        return stored


def _deleted(
    stored: StoredConversation, request_id: str
) -> conversation_service_pb2.DeleteConversationResponse:
    if stored.delete_request_id != request_id:
        raise conversation_not_found(stored.conversation.name)
    return conversation_service_pb2.DeleteConversationResponse(conversation=stored.conversation)

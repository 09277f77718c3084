"""Admission to a conversation: who continues it, after which run, and what the new run sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from remit.agent.conversation_store import ConversationStore, StoredConversation
from remit.agent.history import Exchange, kept
from remit.agent.reading import RunReader
from remit.agent.settings import AgentSettings
from remit.agent.threads import Place, conversation_not_found, goes_on
from remit.rpc.remits import Remit

_PAGE: Final = 16
"""Exchanges read at once; their bytes are bounded as well."""


@dataclass(frozen=True)
class Admission:
    """Lets new runs into conversations."""

    store: ConversationStore
    reader: RunReader
    settings: AgentSettings

    async def find(self, conversation: str, remit: Remit) -> StoredConversation:
        """The conversation that a caller continues. Raises CONVERSATION_NOT_FOUND.

        An admin of the org may read and delete it, and does not speak in it.
        """
        stored = await self.store.get(conversation)
        is_owner = stored.org == remit.org and stored.conversation.subject == remit.subject
        if stored.is_deleted or not is_owner:
            raise conversation_not_found(conversation, or_else=" or is not yours to continue")
        return stored

    async def place(self, stored: StoredConversation) -> Place:
        """Where the next run of it stands. Raises INVALID_STATE while a run goes on in it."""
        conversation = stored.conversation
        if stored.is_going_on:
            raise goes_on(conversation.name, conversation.last_run)
        return Place(
            conversation.name,
            conversation.last_run,
            stored.previous_run,
            await self._history(stored.previous_run),
        )

    async def _history(self, newest: str) -> tuple[Exchange, ...]:
        """What a run sees that follows on the run `newest`, oldest first."""
        max_runs, max_bytes = self.settings.max_history_runs, self.settings.max_history_bytes
        found: list[Exchange] = []
        seen: tuple[Exchange, ...] = ()
        while newest and len(seen) == len(found) < max_runs:
            left_bytes = max_bytes - sum(exchange.size_bytes for exchange in found)
            found += await self.reader.exchanges(newest, limit=_PAGE, max_bytes=left_bytes)
            seen = kept(found, max_runs=max_runs, max_bytes=max_bytes)
            newest = found[-1].previous_run
        return seen[::-1]

"""Conversations in the database: created, read, listed, deleted.

A conversation's row knows its newest run and nothing of what was said: that stands in the journals
of its runs. Deleting it marks it and its runs; the journals, which are the record, stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from remit import names
from remit.agent.journal import TERMINAL
from remit.agent.records import conversation_id
from remit.agent.sealing import Key, KeyRef, Keys, request_erased
from remit.agent.store import key_reused
from remit.agent.threads import conversation_not_found
from remit.api.agent.v1 import conversation_pb2, run_pb2
from remit.postgres import Database
from remit.rpc.errors import RemitError
from remit.subject_keys import is_erased


@dataclass(frozen=True, slots=True)
class StoredConversation:
    """A conversation with what only the service knows of it."""

    conversation: conversation_pb2.Conversation
    org: str
    last_state: run_pb2.RunState.ValueType
    """Of its newest run; UNSPECIFIED before the first."""
    previous_run: str
    """The newest of its runs that SUCCEEDED, once the newest run has ended."""
    delete_request_id: str

    @property
    def is_deleted(self) -> bool:
        """Whether it was deleted."""
        return self.conversation.HasField("delete_time")

    @property
    def is_going_on(self) -> bool:
        """Whether its newest run has not ended."""
        return bool(self.last_state) and self.last_state not in TERMINAL


class ConversationStore:
    """Reads and writes conversations.

    Every method raises DEPENDENCY_UNAVAILABLE when the database is away, or audit, which has the
    keys. Of a conversation whose subject was erased it shows what is left.
    """

    def __init__(self, database: Database, keys: Keys) -> None:
        self._database = database
        self._keys = keys

    async def create(
        self,
        new: conversation_pb2.Conversation,
        *,
        org: str,
        request_id: str,
        body_digest: bytes,
        now: datetime,
    ) -> StoredConversation:
        """The conversation of a request: the new one, or the one that it created before.

        Raises KEY_REUSED; SUBJECT_ERASED if nobody can say any more what the earlier one was asked
        for with; CONVERSATION_NOT_FOUND if it was deleted.
        """
        record = conversation_id(new.name)
        key = await self._keys.new(new.subject, record)
        await self._database.execute(
            _INSERT,
            record,
            org,
            new.subject,
            request_id,
            key.keyed(body_digest),
            key.seal(_NAME, new.display_name.encode()),
            key.key_id,
            now,
        )
        row = await self._database.fetchrow(_FIND_REQUEST, org, new.subject, request_id)
        if row is None:
            raise TypeError(request_id)
        [stored] = await self._stored([row])
        if row["body_digest"] != body_digest:
            await self._check_same(row, request_id, body_digest)
        if stored.is_deleted:
            raise conversation_not_found(stored.conversation.name)
        return stored

    async def get(self, name: str) -> StoredConversation:
        """The conversation of a full name, deleted or not. Raises CONVERSATION_NOT_FOUND."""
        row = await self._database.fetchrow(_GET, conversation_id(name))
        if row is None:
            raise conversation_not_found(name)
        [stored] = await self._stored([row])
        return stored

    async def page(
        self, org: str, subject: str, *, limit: int, before: str = ""
    ) -> list[conversation_pb2.Conversation]:
        """Up to `limit` conversations of an org, or of its subject, the one used last first.

        `before` is the `place` of the last one of the page before.
        """
        rows = await self._database.fetch(
            _LIST, org, subject or None, conversation_id(before) if before else None, limit
        )
        return [stored.conversation for stored in await self._stored(rows)]

    async def delete(self, stored: StoredConversation, request_id: str, now: datetime) -> bool:
        """Deletes a conversation with its runs; False if it has changed since it was read."""
        last = stored.conversation.last_run
        deleted = await self._database.fetchval(
            _DELETE,
            conversation_id(stored.conversation.name),
            UUID(names.parse("run", last)[0]) if last else None,
            request_id,
            now,
        )
        return deleted is not None

    async def _stored(self, rows: Sequence[asyncpg.Record]) -> list[StoredConversation]:
        refs = {row["conversation"]: KeyRef(row["subject"], row["key_id"]) for row in rows}
        keys = await self._keys.to_show(refs.items())
        return [_stored(row, keys[row["conversation"]]) for row in rows]

    async def _check_same(self, row: asyncpg.Record, request_id: str, body_digest: bytes) -> None:
        ref = KeyRef(row["subject"], row["key_id"])
        try:
            key = await self._keys.to_read(ref, row["conversation"])
        except RemitError as error:
            raise request_erased(request_id, ref.subject) if is_erased(error) else error from error
        if key is None or not key.knows(row["body_digest"], body_digest):
            raise key_reused(request_id)


def place(conversation: conversation_pb2.Conversation) -> str:
    """Where a conversation stands in the list, in the form of a conversation's name."""
    if conversation.last_run:
        return names.conversation_name(names.parse("run", conversation.last_run)[0])
    return conversation.name


def _stored(row: asyncpg.Record, key: Key | None) -> StoredConversation:
    sealed = row["sealed_name"]
    conversation = conversation_pb2.Conversation(
        name=names.conversation_name(str(row["conversation"])),
        subject=row["subject"],
        display_name=key.open(_NAME, sealed).decode() if key and sealed else row["display_name"],
        erased=row["key_id"] is not None and key is None,
        last_run=_run_name(row["last_run"]),
        runs=row["runs"],
    )
    for field in ("create_time", "update_time", "delete_time"):
        if row[field] is not None:
            getattr(conversation, field).FromDatetime(row[field])
    state = row["last_state"] or run_pb2.RUN_STATE_UNSPECIFIED
    succeeded = state == run_pb2.RUN_STATE_SUCCEEDED
    return StoredConversation(
        conversation,
        row["org"],
        state,
        _run_name(row["last_run"] if succeeded else row["before_last"]),
        row["delete_request_id"] or "",
    )


def _run_name(run: UUID | None) -> str:
    return names.run_name(str(run)) if run else ""


_NAME: Final = "display name"

_SELECT: Final = """
SELECT c.*, r.state AS last_state, r.previous_run AS before_last
FROM conversations c LEFT JOIN runs r ON r.run = c.last_run
"""

_GET: Final = f"{_SELECT} WHERE c.conversation = $1"

_FIND_REQUEST: Final = f"{_SELECT} WHERE c.org = $1 AND c.subject = $2 AND c.request_id = $3"

# Identifiers of conversations and runs are UUIDv7, so that the newer of the two tells the last use.
_LIST: Final = f"""
{_SELECT}
WHERE c.org = $1
  AND ($2::text IS NULL OR c.subject = $2)
  AND c.delete_time IS NULL
  AND ($3::uuid IS NULL OR coalesce(c.last_run, c.conversation) < $3)
ORDER BY coalesce(c.last_run, c.conversation) DESC LIMIT $4
"""

_INSERT: Final = """
INSERT INTO conversations (conversation, org, subject, request_id, body_digest, display_name,
                           sealed_name, key_id, create_time, update_time)
VALUES ($1, $2, $3, $4, $5, '', $6, $7, $8, $8)
ON CONFLICT (org, subject, request_id) DO NOTHING
"""

_DELETE: Final = """
WITH RECURSIVE gone AS (
    UPDATE conversations SET delete_time = $4, delete_request_id = $3, display_name = '',
        sealed_name = NULL
    WHERE conversation = $1 AND delete_time IS NULL AND last_run IS NOT DISTINCT FROM $2
    RETURNING conversation
), tree AS (
    SELECT run FROM runs JOIN gone USING (conversation)
    UNION ALL
    SELECT below.run FROM runs below JOIN tree ON below.parent = tree.run
), hidden AS (
    UPDATE runs SET delete_time = $4 FROM tree WHERE runs.run = tree.run
)
SELECT conversation FROM gone
"""

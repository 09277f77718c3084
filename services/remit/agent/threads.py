"""Where a new run stands in its conversation, and why it may not join it.

One run at a time: whoever creates a run has seen the newest one of the conversation end, and the
statement that stores the new one sees, under the conversation's row lock, that it is still the
newest. So a conversation is one line, and what a run sees of it never changes afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from remit import names
from remit.agent.history import Exchange
from remit.agent.records import conversation_id
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.postgres import Connection
from remit.rpc.errors import RemitError


@dataclass(frozen=True, slots=True)
class Place:
    """What is pinned when a run joins a conversation."""

    conversation: str
    last_run: str = ""
    """The newest run of it, which has ended; empty before the first."""
    previous_run: str = ""
    """The newest of its runs that SUCCEEDED."""
    history: tuple[Exchange, ...] = ()
    """What the new run sees, oldest first."""

    def pin(self, run: run_pb2.Run) -> None:
        """Writes the place into a run to be created."""
        run.conversation = self.conversation
        run.previous_run = self.previous_run
        run.history_runs = len(self.history)


async def not_continued(connection: Connection, conversation: str) -> RemitError:
    """Why a run that was to join a conversation was not stored."""
    row = await connection.fetchrow(_LAST_RUN, conversation_id(conversation))
    if row is None:
        return conversation_not_found(conversation)
    last = row["last_run"]
    return goes_on(conversation, names.run_name(str(last)) if last else "another run")


def goes_on(conversation: str, run: str) -> RemitError:
    """INVALID_STATE about a conversation in which a run has not ended."""
    return RemitError(
        reasons.ERROR_REASON_INVALID_STATE,
        f"{run} goes on in {conversation}, which takes one run at a time: wait for its end, or"
        " cancel it",
    )


def conversation_not_found(name: str, or_else: str = "") -> RemitError:
    """CONVERSATION_NOT_FOUND; the same whether it never was, was deleted or is another's."""
    message = f"{name} does not exist{or_else}"
    return RemitError(reasons.ERROR_REASON_CONVERSATION_NOT_FOUND, message)


_LAST_RUN: Final = """
SELECT last_run FROM conversations WHERE conversation = $1 AND delete_time IS NULL
"""

"""What is written into journals: new runs, and entries that follow what is there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

from remit.agent.journal import TERMINAL
from remit.agent.records import run_id
from remit.agent.sealing import Content, Key, OtherKey
from remit.api.agent.v1 import run_pb2


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to create with the first events of its journal."""

    org: str
    run: run_pb2.Run
    """The run after its events; its task and context are stored once."""
    request_id: str
    body_digest: bytes
    max_duration_s: float
    events: tuple[run_pb2.RunEvent, ...]
    owner: str = ""
    """The replica that works on it at once; empty: it is queued."""
    lease_s: float = 0.0
    fencing_token: int = 0
    offer: Content | None = None
    traceparent: str = ""
    """The trace that creates it."""
    schedule_time: datetime | None = None
    """When it may start; None: at once."""
    parent_token: int = 0
    """Of a sub-run: the fencing token of the worker that starts it. With a lower one than the
    parent's newest nothing is created."""
    max_user_runs: int = 0
    """Unfinished runs that its subject may have at once, this one included; 0: any number."""
    max_org_runs: int = 0
    """The same of its org."""
    last_run: str = ""
    """Of a run in a conversation: the newest run there that its creator knew. If there is a newer
    one, or the conversation was deleted, nothing is created."""
    key: Key | None = None
    """What it is sealed with, now and ever after."""
    others: tuple[OtherKey, ...] = ()
    """Of which keys that one is made besides its own subject's."""


@dataclass(frozen=True, slots=True)
class CreatedRun:
    """The run of a request: the new one, or the one that the same request created before."""

    name: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class Control:
    """A pause or its end, written with the entry that journals it. Either gives the lease back."""

    request: str
    """Who asked, by kind and request id, such as `pause r1`."""
    is_pause: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """Events to append to one run's journal, all or none."""

    summary: run_pb2.Run
    """The run after the events, without its task and context."""
    fencing_token: int
    events: tuple[run_pb2.RunEvent, ...]
    """In sequence, at least one."""
    offer: Content | None = None
    artifacts: tuple[Content, ...] = ()
    cancel_request_id: str = ""
    control: Control | None = None
    key: Key | None = None
    """What it is sealed with; None where nothing in it is anybody's."""
    is_burial: bool = False
    """Whether it ends a run whose key is gone: nobody can be told of that end any more."""

    @property
    def run_id(self) -> UUID:
        """The run."""
        return run_id(self.summary.name)

    @property
    def follows(self) -> int:
        """The sequence that the first event follows."""
        return self.events[0].sequence - 1

    @property
    def tells(self) -> bool:
        """Whether it ends a run whose end is to be told."""
        has_ended = self.summary.state in TERMINAL
        return has_ended and self.summary.HasField("webhook") and not self.is_burial


Item: TypeAlias = NewRun | Entry


def run_of(item: Item) -> UUID:
    """The run that an item is of."""
    return run_id(item.run.name) if isinstance(item, NewRun) else item.run_id

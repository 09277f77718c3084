"""An effect as it is asked for, permitted, reported and recorded; plain data."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from google.protobuf import struct_pb2

from remit.api.cost.v1 import reservation_pb2
from remit.api.policy.v1 import permission_pb2
from remit.api.usage.v1 import usage_pb2
from remit.effects.claims import Outcome
from remit.rpc.errors import RemitError
from remit.rpc.remits import Remit


@dataclass(frozen=True)
class EffectRequest:
    """What is to be done, by whom, and what it can cost at most."""

    remit: Remit
    """The verified remit of the call."""
    remit_token: str
    """The same, signed; policy, cost and audit verify it again."""
    method: str
    """Effects of one method share the space of their keys, such as `tools.call`."""
    key: str
    """Idempotency key: the same key and body give the same answer."""
    body_digest: bytes
    """SHA-256 over the canonical request, 32 bytes."""
    action: str
    """Policy action, such as `tools.call`."""
    resource: str
    """`tools/{tool}` or `models/{model}`; also what is bought."""
    bound: usage_pb2.Usage
    """The most that it can use, or that it uses before it extends its hold."""
    idempotent: bool
    """Whether a doubt may be answered by another attempt."""
    permission_class: permission_pb2.PermissionClass.ValueType = (
        permission_pb2.PERMISSION_CLASS_UNSPECIFIED
    )
    arguments: struct_pb2.Struct | None = None
    """The exact arguments of a tool call."""
    arguments_digest: bytes = b""
    """SHA-256 over the canonical arguments, or empty."""
    definition_digest: bytes = b""
    """SHA-256 of the definition of the tool or model, 32 bytes, or empty."""
    most: usage_pb2.Usage | None = None
    """The most that it can ever use, where `bound` is only its beginning."""
    list_item: str = ""
    """Name of the item in a public price list, or empty."""
    repeats_claim: str = ""
    """The claim in doubt that a person may let it repeat, `claims/{claim}`; empty for any other."""
    guardrails: Mapping[str, int] = field(default_factory=dict)
    """What guardrails found in what was asked, for the record; numbers by kind, no content."""

    @property
    def principal(self) -> str:
        """Whose keys these are: the run's, or the user's outside runs."""
        return self.remit.run or self.remit.subject


@dataclass
class Callers:
    """Those who wait for an effect: the most patient says until when, the newest by which remit."""

    remit_token: str
    fencing_token: int
    """Of that remit; 0 outside runs."""
    deadline: float
    """Monotonic seconds at which the last of them stops waiting."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when nobody waits any more: end soon and report what was used."""

    def join(self, remit_token: str, fencing_token: int, deadline: float) -> None:
        """One more waits. A run's new worker may join the call of its old one, whose remit dies."""
        self.deadline = max(self.deadline, deadline)
        if fencing_token >= self.fencing_token:
            self.remit_token, self.fencing_token = remit_token, fencing_token


class Hold(Protocol):
    """The money that an effect may use; it may ask for more, one request at a time."""

    @property
    def bound(self) -> usage_pb2.Usage:
        """What is held for."""
        ...

    @property
    def price(self) -> reservation_pb2.Price:
        """What it costs."""
        ...

    @property
    def nanos(self) -> int:
        """Money held, in nano-USD."""
        ...

    async def recheck(self) -> None:
        """Raises PERMISSION_DENIED or FENCED if the effect may not go on, or why none can say."""
        ...

    async def extend(self, bound: usage_pb2.Usage) -> None:
        """Holds the cost of a larger bound, if the effect still may go on.

        Raises as `recheck` does, BUDGET_EXHAUSTED without the money, or why cost did not answer.
        """
        ...


@dataclass(frozen=True)
class Permit:
    """What an effect is given when it may start."""

    key: str
    """Idempotency key to pass on to the outside world."""
    claim: str
    """`claims/{claim}`."""
    attempt: int
    callers: Callers
    hold: Hold

    @property
    def deadline(self) -> float:
        """Monotonic seconds at which the last caller stops waiting."""
        return self.callers.deadline

    @property
    def stopping(self) -> asyncio.Event:
        """Set when nobody waits any more: end soon and report what was used."""
        return self.callers.stopping


@dataclass(frozen=True)
class EffectResult:
    """What an effect reports about itself."""

    outcome: Outcome
    used: usage_pb2.Usage
    payload: bytes = b""
    """The answer to record and replay."""
    error: RemitError | None = None
    """Why it failed or was cancelled."""


@dataclass(frozen=True)
class EffectOutcome:
    """A recorded success."""

    payload: bytes
    used: usage_pb2.Usage
    cost_nanos: int
    claim: str
    """`claims/{claim}`."""
    attempt: int
    intent_leaf_index: int
    replayed: bool


Effect: TypeAlias = Callable[[Permit], Awaitable[EffectResult]]

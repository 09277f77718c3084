"""What a gate asks of its claims, each a compare-and-set; plain data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from remit.effects.claims import Admission, Attempt, Outcome, SealedEnd


@dataclass(frozen=True)
class Begin:
    """Claim a key, or learn what it is."""

    claim: str
    org: str
    principal: str
    method: str
    key: str
    body_digest: bytes
    presenter: str
    """Who shows the remit of this claim, such as `agent`."""
    idempotent: bool
    subject: str
    run: str
    action: str
    resource: str
    trace_id: str


@dataclass(frozen=True)
class Begun:
    """What a Begin found: a new attempt of ours, or what another made of the key."""

    attempt: Attempt
    admission: Admission | None
    """None: the attempt is ours and CLAIMED."""


@dataclass(frozen=True)
class Start:
    """CLAIMED to STARTED, with all three permits."""

    claim: str
    attempt: int
    decision_id: str
    reservation: str
    intent_leaf: int
    hold_nanos: int


@dataclass(frozen=True)
class Extend:
    """STARTED still; the hold has grown."""

    claim: str
    attempt: int
    hold_nanos: int


@dataclass(frozen=True)
class Finish:
    """STARTED (or, late, IN_DOUBT) to DONE."""

    claim: str
    attempt: int
    end: SealedEnd


@dataclass(frozen=True)
class Refuse:
    """CLAIMED (or STARTED, by the owner who did no I/O) to REFUSED."""

    claim: str
    attempt: int
    error: bytes
    is_sealed: bool


@dataclass(frozen=True)
class Close:
    """The attempt's hold and outcome are where they belong."""

    claim: str
    attempt: int
    outcome: Outcome


@dataclass(frozen=True)
class Renew:
    """Prolong the lease."""

    claim: str
    attempt: int


@dataclass(frozen=True)
class Unclosed:
    """An ended attempt whose hold or outcome is still due."""

    org: str
    claim: str
    attempt: int
    outcome: Outcome
    subject: str
    run: str
    action: str
    resource: str
    trace_id: str
    decision_id: str
    used: bytes
    error: bytes
    cost_nanos: int
    result_digest: bytes
    """SHA-256 over the result; empty if there is none."""
    is_sealed: bool = False
    """Whether error and digest are as they are stored."""
    is_unreadable: bool = False
    """Whether error and digest are missing because nobody can read them any more."""
    end_time: datetime | None = None
    """When it ended, by the database's clock; the same at every closing."""


Change: TypeAlias = Start | Extend | Finish | Refuse | Close | Renew
Step: TypeAlias = Begin | Change

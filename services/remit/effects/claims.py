"""The states of an effect and the rules between them; plain data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final


class State(StrEnum):
    """Where an attempt stands."""

    CLAIMED = "CLAIMED"
    STARTED = "STARTED"
    DONE = "DONE"
    CLOSED = "CLOSED"
    REFUSED = "REFUSED"
    """Never started; its hold is released."""
    IN_DOUBT = "IN_DOUBT"
    """Started, and its owner is gone; its whole hold is posted."""


class Outcome(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    REFUSED = "REFUSED"
    CANCELLED = "CANCELLED"
    IN_DOUBT = "IN_DOUBT"


OPEN_STATES: Final = frozenset({State.CLAIMED, State.STARTED})

TRANSITIONS: Final = frozenset(
    {
        (State.CLAIMED, State.STARTED),
        (State.CLAIMED, State.REFUSED),
        # By the owner alone, who knows that the I/O never began.
        (State.STARTED, State.REFUSED),
        (State.STARTED, State.DONE),
        (State.STARTED, State.IN_DOUBT),
        # A late result resolves a doubt, once.
        (State.IN_DOUBT, State.DONE),
        (State.DONE, State.CLOSED),
    }
)
"""Every compare-and-set that there is."""

LAPSES: Final = {State.CLAIMED: State.REFUSED, State.STARTED: State.IN_DOUBT}
"""What an attempt becomes when its owner's lease has lapsed."""


@dataclass(frozen=True)
class Ended:
    """What a finished attempt recorded."""

    outcome: Outcome
    result: bytes
    error: bytes
    """google.rpc.Status, or empty."""
    used: bytes
    """remit.api.usage.v1.Usage."""
    cost_nanos: int
    repeatable: bool
    """Whether another attempt under the same key may follow: it was cancelled or failed in a way
    that may pass. Such a result is never replayed as an answer."""
    result_digest: bytes = b""
    """SHA-256 over a result that is not kept any more because its caller recorded it."""


@dataclass(frozen=True)
class SealedEnd:
    """What a finished attempt recorded, as it is stored: what may hold content is sealed."""

    outcome: Outcome
    result: bytes
    error: bytes
    digest: bytes
    """SHA-256 over the result, sealed too: whoever has a digest in clear can test guesses."""
    used: bytes
    cost_nanos: int
    repeatable: bool
    is_kept: bool = True
    """Whether the result is still there: its caller has not said that it recorded it."""


@dataclass(frozen=True)
class Attempt:
    """The newest attempt of a claim, as the database holds it."""

    claim: str
    attempt: int
    state: State
    owner: str
    lease_left_s: float
    """Until its lease lapses, by the database's clock; negative after."""
    body_digest: bytes
    intent_leaf: int | None = None
    ended: Ended | SealedEnd | None = None
    subject: str = ""
    """Whose effect it is, `orgs/{org}/users/{user}`."""


class Admission(Enum):
    """What a call with a known key may do."""

    REPLAY = "replay"
    """Return the recorded end."""
    REPEAT = "repeat"
    """Begin the next attempt."""
    LAPSED = "lapsed"
    """Close the dead attempt by compare-and-set, then look again."""
    IN_PROGRESS = "in progress"
    """Join it or come again."""
    IN_DOUBT = "in doubt"
    """Nothing: whether it happened is unknown."""
    KEY_REUSED = "key reused"
    """Nothing: the key belongs to another request."""


def admit(
    known: Attempt, body_digest: bytes, *, idempotent: bool, abandoned: bool = False
) -> Admission:
    """What a call may do that finds `known` under its key.

    `idempotent`: doing the effect twice does no harm, so a doubt may be answered by doing it again.
    `abandoned`: its owner is this process, which knows nothing of it any more.
    """
    if known.body_digest != body_digest:
        return Admission.KEY_REUSED
    if known.state in OPEN_STATES:
        lapsed = abandoned or known.lease_left_s < 0
        return Admission.LAPSED if lapsed else Admission.IN_PROGRESS
    if known.state == State.REFUSED:
        return Admission.REPEAT
    if known.state == State.IN_DOUBT:
        return Admission.REPEAT if idempotent else Admission.IN_DOUBT
    ended = known.ended
    return Admission.REPEAT if ended is not None and ended.repeatable else Admission.REPLAY


def may_pass(before: State, after: State) -> bool:
    """Whether there is such a transition."""
    return (before, after) in TRANSITIONS

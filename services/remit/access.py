"""What the log is told of a decision: who asked for what, and how that was answered. Pure.

Equal ones share an entry that counts them, so that neither a busy client nor a flood of bad
credentials fills the log. Nobody is believed to be somebody whose credential was not verified:
such an entry stands under the operator's org and names the address that the call came from.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from remit import names
from remit.api.audit.v1 import event_pb2
from remit.rpc.errors import RemitError

OPERATOR: Final = "orgs/operator"
UNVERIFIED: Final = "orgs/operator/users/unverified"
USE_KEY: Final = "keys.use"
USE_TOKEN: Final = "tokens.use"  # noqa: S105 - an action
USE_SUBJECT_KEY: Final = "subject_keys.use"
FOLDED: Final = "access.folded"
"""Action of the entry that counts refusals for which there was no room apart."""
EDGE: Final = "edge"
"""Who asks on behalf of clients outside the mesh."""
_MOST_SHOWN: Final = 16
_MOST_EFFECTS: Final = 32
_MOST_ID_CHARS: Final = 100
_MOST_TEXT_CHARS: Final = 500
_MOST_ACTION_CHARS: Final = 128
_NETWORK_BITS: Final = 64
"""Of an IPv6 address: whoever has a network has all of its addresses."""


@dataclass(frozen=True, slots=True)
class EdgeAnswer:
    """What the gateway answered by itself to a call that reached no service."""

    http_status: int = 0
    """Zero where it closed the connection without an answer."""
    grpc_status: str = ""
    """Name of the code; empty for plain HTTP."""
    flags: str = ""
    """Envoy's response flags, such as `RL`."""
    client: str = ""
    """A keyed hash of the client's address: the same for the same client, and no address."""


@dataclass(frozen=True, slots=True)
class Access:
    """A question and its answer; what is equal in all of this shares an entry."""

    org: str
    subject: str
    action: str
    resource: str
    is_allowed: bool
    reason: str
    """Of an answer of the policies, their own; else the reason of the error."""
    asked_by: str
    """The service that asks, or `edge`."""
    policy_ids: tuple[str, ...] = ()
    epoch: int = 0
    run: str = ""
    key: str = ""
    """`orgs/{org}/apiKeys/{key}`: the credential of a client's call."""
    peer: str = ""
    """Address of a client that nobody vouches for."""
    answer: EdgeAnswer | None = None
    """Of a call that the gateway refused by itself: told best effort, and not by policy."""

    def folded(self) -> Access:
        """What is left of a refusal for which there is no room: that there was one."""
        return Access(
            OPERATOR,
            UNVERIFIED,
            FOLDED,
            OPERATOR,
            is_allowed=False,
            reason="",
            asked_by=self.asked_by,
            answer=EdgeAnswer() if self.answer else None,
        )


@dataclass(frozen=True, slots=True)
class Occasion:
    """What may differ between equal ones; an entry names the first few."""

    method: str = ""
    effect: str = ""
    """`claims/{claim}-{attempt}`."""
    decision: str = ""
    shown: str = ""
    """The beginning of a credential that was not believed; it is no secret."""
    trace_id: str = ""
    request: str = ""
    """The id that the gateway gave the call."""
    time: datetime | None = None
    """When it was, where that is not now."""


@dataclass
class Tally:
    """Equal questions since the last entry about them."""

    access: Access
    due: float
    """Monotonic seconds from which its entry may be written."""
    count: int = 0
    first: Occasion = field(default_factory=Occasion)
    first_time: datetime | None = None
    last_time: datetime | None = None
    methods: list[str] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)

    def add(self, occasion: Occasion, now: datetime) -> None:
        """Counts one more."""
        now = occasion.time or now
        if self.count == 0:
            self.first, self.first_time = occasion, now
        self.count += 1
        self.last_time = now
        for found, most, value in (
            (self.methods, _MOST_SHOWN, occasion.method),
            (self.effects, _MOST_EFFECTS, occasion.effect),
            (self.shown, _MOST_SHOWN, occasion.shown),
        ):
            if value and len(found) < most and value not in found:
                found.append(value)

    def event(self, event_id: str) -> event_pb2.Event:
        """The entry. Of the effects that it counts it names the one, or in its detail the first."""
        access = self.access
        outcome = event_pb2.OUTCOME_SUCCEEDED if access.is_allowed else event_pb2.OUTCOME_REFUSED
        event = event_pb2.Event(
            event_id=event_id,
            kind=event_pb2.EVENT_KIND_ACCESS,
            org=access.org,
            subject=access.subject,
            action=_printable(access.action, _MOST_ACTION_CHARS) or FOLDED,
            resource=_printable(access.resource, _MOST_TEXT_CHARS),
            run=access.run,
            outcome=outcome,
            trace_id=self.first.trace_id,
            detail_json=json.dumps(self._detail(), sort_keys=True, separators=(",", ":")),
        )
        if self.count == 1 and self.first.effect:
            claim, _, attempt = self.first.effect.rpartition("-")
            event.claim, event.attempt = claim, int(attempt)
        if self.first_time is not None:
            event.event_time.FromDatetime(self.first_time)
        return event

    def _detail(self) -> dict[str, object]:
        access = self.access
        detail: dict[str, object] = {
            "asked_by": access.asked_by,
            "count": self.count,
            "decision": self.first.decision if self.count == 1 else "",
            "effects": self.effects,
            "key": access.key,
            "last_time": self.last_time.isoformat() if self.last_time else "",
            "methods": self.methods,
            "peer": access.peer,
            "policy_epoch": access.epoch,
            "policy_ids": [
                _printable(each, _MOST_ID_CHARS) for each in access.policy_ids[:_MOST_SHOWN]
            ],
            "reason": _printable(access.reason, _MOST_TEXT_CHARS),
            "request": self.first.request,
            "shown": self.shown,
            **_answered(access.answer),
        }
        return {name: value for name, value in detail.items() if value}


def _answered(answer: EdgeAnswer | None) -> dict[str, object]:
    if answer is None:
        return {}
    return {
        "best_effort": True,
        "client": answer.client,
        "flags": answer.flags,
        "grpc_status": answer.grpc_status,
        "http_status": answer.http_status,
    }


def refused(access: Access, error: RemitError) -> Access:
    """The access as an error refused it, with the policies that the error names."""
    named = error.metadata.get("policy_ids", "")
    return replace(
        access,
        is_allowed=False,
        reason=error.reason_name,
        policy_ids=tuple(filter(None, named.split(","))),
    )


def peer_of(address: str) -> str:
    """An address as entries have it: of IPv6 the network; nothing for what is no address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, _NETWORK_BITS), strict=False))


def effect_of(claim: str, attempt: int) -> str:
    """How entries name an effect; empty outside of effects."""
    return f"{claim}-{attempt}" if names.is_name("claim", claim) else ""


def _printable(text: str, most: int) -> str:
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown[:most]

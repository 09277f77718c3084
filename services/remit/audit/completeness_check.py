"""`CheckCompleteness`: the log against claims, ledger and journals, as a stream of steps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final
from uuid import UUID

from remit import names, telemetry
from remit.api.audit.v1 import audit_query_service_pb2, log_difference_pb2
from remit.audit.completeness import NEXT_STEPS, Difference, Key
from remit.audit.completeness_walk import BEFORE_ALL, CompletenessWalk, Cut, Step
from remit.audit.effect_events import EffectEvents
from remit.audit.stores_beside import EventKey, StoresBeside
from remit.postgres import Database
from remit.rpc.errors import Violation, invalid_request
from remit.rpc.mesh import Mesh

MOST_LOGGED: Final = 1000
"""Differences of a check that go into the service's log; after a restore there may be millions."""
_EFFECTS_PERCENT: Final = 70
_WHOLE: Final = 100
_EFFECTS: Final = "effects"
_JOURNALS: Final = "journals"

Message = audit_query_service_pb2.CheckCompletenessResponse

log = telemetry.logger(__name__)


class CompletenessCheck:
    """Runs checks. It only reads: what is wrong is told, and nothing is mended."""

    def __init__(self, walk: CompletenessWalk) -> None:
        self._walk = walk

    @classmethod
    def of(cls, database: Database, mesh: Mesh, *, open_limit_s: float) -> CompletenessCheck:
        """The check of a log that is in `database`, beside the stores of a mesh."""
        walk = CompletenessWalk(
            EffectEvents(database), StoresBeside.of(mesh), open_limit_s=open_limit_s
        )
        return cls(walk)

    async def run(self, org: str, resume_token: str) -> AsyncIterator[Message]:
        """The steps of a check for somebody of `org`; each counts for itself.

        Raises INVALID_REQUEST for another token, DEPENDENCY_UNAVAILABLE when a part is away: what
        could not be looked at is not said to be complete.
        """
        effects_after, journals_after = place_of(resume_token)
        cut = await self._walk.cut()
        teller = _Teller(org, cut, resume_token)
        if effects_after is not None:
            async for step in self._walk.effects(effects_after, cut):
                more = step.next_key is not None
                teller.reach(effects_token(step.next_key) if step.next_key else _JOURNALS)
                yield teller.told(step, teller.share(step) if more else _EFFECTS_PERCENT)
        async for step in self._walk.journals(journals_after, cut):
            if step.next_event is not None:
                teller.reach(journals_token(step.next_event))
            yield teller.told(step, _EFFECTS_PERCENT if step.next_event else _WHOLE)


class _Teller:
    """Makes the messages of one check."""

    def __init__(self, org: str, cut: Cut, token: str) -> None:
        self._org = org
        self._cut = cut
        self._token = token
        self._sequence = 0
        self._logged = 0
        self._percent = 0
        self._first_ms: int | None = None

    def reach(self, token: str) -> None:
        """The check may be resumed here from now on."""
        self._token = token

    def share(self, step: Step) -> int:
        """How far a step is among the attempts, by the times in the names of their claims."""
        reached_ms, cut_ms = _born_ms(step.next_key), int(self._cut.time.timestamp() * 1000)
        if self._first_ms is None:
            self._first_ms = _born_ms(step.first_key)
        length_ms = max(cut_ms - self._first_ms, 1)
        share = _EFFECTS_PERCENT * (reached_ms - self._first_ms) // length_ms
        return min(max(share, 0), _EFFECTS_PERCENT - 1)

    def told(self, step: Step, percent: int) -> Message:
        """The message of a step."""
        self._sequence += 1
        self._percent = max(self._percent, percent)
        self._log(step.differences)
        own = [found for found in step.differences if found.org == self._org]
        message = Message(
            percent=self._percent,
            resume_token=self._token,
            sequence=self._sequence,
            tree_size=self._cut.tree_size,
            attempts=step.attempts,
            events=step.events,
            reservations=step.reservations,
            calls=step.calls,
            after_cut=step.after_cut,
            differences=[_message(found) for found in own],
            differences_elsewhere=len(step.differences) - len(own),
        )
        message.cut_time.FromDatetime(self._cut.time)
        return message

    def _log(self, differences: Sequence[Difference]) -> None:
        """Says the first of them where the operator of all orgs finds them."""
        for found in differences[: MOST_LOGGED - self._logged]:
            self._logged += 1
            log.error(
                "log_differs",
                kind=found.kind.name,
                claim=found.claim,
                attempt=found.attempt,
                area=found.service,
                leaf_index=found.leaf_index,
                explanation=found.explanation,
            )


def effects_token(key: Key) -> str:
    """Resumes among the attempts, after one of them."""
    return f"{_EFFECTS}:{key.claim}:{key.attempt}"


def journals_token(event: EventKey) -> str:
    """Resumes among the journals, after an event."""
    return f"{_JOURNALS}:{event[0]}:{event[1]}"


def place_of(token: str) -> tuple[Key | None, EventKey | None]:
    """Where to go on among the attempts, and among the journals. Raises INVALID_REQUEST.

    None among the attempts: they have been compared; among the journals: from the first.
    """
    if not token:
        return BEFORE_ALL, None
    if token == _JOURNALS:
        return None, None
    phase, _, place = token.partition(":")
    name, _, number = place.partition(":")
    kind = {_EFFECTS: "claim", _JOURNALS: "run"}.get(phase)
    is_number = number.isascii() and number.isdecimal() and 1 <= int(number[:20]) < 2**31
    if kind is None or not names.is_name(kind, name) or not is_number:
        fault = "is not a token of a check of the log"
        raise invalid_request([Violation("resume_token", fault)])
    if phase == _EFFECTS:
        return Key(name, int(number)), None
    return None, (name, int(number))


def _born_ms(key: Key | None) -> int:
    """When a claim was made, by its name: a UUIDv7 begins with its time."""
    return UUID(names.parse("claim", key.claim)[0]).int >> 80 if key is not None else 0


def _message(found: Difference) -> log_difference_pb2.LogDifference:
    return log_difference_pb2.LogDifference(
        kind=log_difference_pb2.LogDifference.Kind.ValueType(found.kind),
        claim=found.claim,
        attempt=found.attempt,
        service=found.service,
        leaf_index=found.leaf_index,
        run=found.run,
        explanation=found.explanation,
        next_step=NEXT_STEPS[found.kind],
    )

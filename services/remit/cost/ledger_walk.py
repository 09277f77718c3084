"""Walks the whole ledger and all claims side by side, and keeps what two looks both find.

A span of reservations is read, then the attempts of the same span from each enforcement service:
the ledger first, the claims second. What looks wrong is looked at again in the same order, and
counts only if it is wrong in the same way. So each of the two stores is seen before and after the
other, and whatever order something was written in, one of the looks must have seen it whole: what
stays wrong is wrong, however busy the mesh is (ADR 29).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from remit.cost import rows
from remit.cost.claims import Claims, is_possible
from remit.cost.reconciliation import (
    Attempt,
    Difference,
    Place,
    difference,
    is_resolved_late,
    place_of,
)
from remit.cost.reservations import Reservation, ReservationKey
from remit.postgres import Database

SPAN_SIZE: Final = 500
"""Reservations of one span."""

_PRICED: Final = (
    "r.*, p.input_nanos_per_million, p.cached_input_nanos_per_million, p.output_nanos_per_million,"
    " p.call_nanos"
)
_SELECT_SPAN: Final = f"""
    SELECT {_PRICED} FROM (
        SELECT * FROM reservations
        WHERE (claim, attempt) > ($1, $2::integer) ORDER BY claim, attempt LIMIT $3
    ) r LEFT JOIN prices p ON p.version = r.price_version ORDER BY r.claim, r.attempt
"""  # noqa: S608 - constants of this module
_SELECT_THESE: Final = f"""
    SELECT {_PRICED} FROM unnest($1::text[], $2::integer[]) AS k (claim, attempt)
    CROSS JOIN LATERAL (SELECT * FROM reservations f
        WHERE f.claim = k.claim AND f.attempt = k.attempt OFFSET 0) r
    LEFT JOIN prices p ON p.version = r.price_version
"""  # noqa: S608 - constants of this module

Held = dict[Place, Reservation]
Attempts = Mapping[Place, Attempt]


@dataclass
class Step:
    """What a part of the walk compared and found."""

    after: ReservationKey | None
    """The walk may begin again after this key."""
    reservations: int = 0
    attempts: int = 0
    resolved_late: int = 0
    differences: list[Difference] = field(default_factory=list)


class LedgerWalk:
    """Compares the ledger with the claims. It only reads."""

    def __init__(self, database: Database, claims: Claims, *, open_limit_s: float) -> None:
        self._database = database
        self._claims = claims
        self._open_limit_s = open_limit_s

    async def steps(self, after: ReservationKey | None) -> AsyncIterator[Step]:
        """The whole walk from a key on. Raises RemitError when a service does not answer."""
        ledger_after = claims_after = after
        while True:
            held = await self._span(ledger_after)
            is_last = len(held) < SPAN_SIZE
            through = None if is_last else _last_possible(held) or claims_after
            seen: set[Place] = set()
            for service in self._claims.services:
                async for attempts in self._claims.between(service, claims_after, through):
                    seen |= attempts.keys()
                    yield await self._compared(claims_after, attempts, held, attempts)
            rest = [place for place in held if place not in seen]
            step = await self._compared(through or claims_after, rest, held, {})
            step.reservations = len(held)
            yield step
            if is_last:
                return
            ledger_after, claims_after = next(reversed(held)).key, through

    async def confirmed(self, suspects: Mapping[Place, Difference]) -> dict[Place, Difference]:
        """Those of these differences that a second look at both sides finds, as it finds them."""
        if not suspects:
            return {}
        held = await self.held(suspects)
        attempts = await self._claims.these(suspects)
        again = self.differences(suspects, held, attempts)
        return {p: found for p, found in again.items() if found.kind is suspects[p].kind}

    async def held(self, places: Iterable[Place]) -> dict[Place, Reservation]:
        """Those of these reservations that the ledger knows."""
        keys = sorted({place.key for place in places})
        records = await self._database.fetch(
            _SELECT_THESE, [key.claim for key in keys], [key.attempt for key in keys]
        )
        return _by_place(rows.reservation_of(dict(record)) for record in records)

    async def _compared(
        self,
        after: ReservationKey | None,
        places: Collection[Place],
        held: Held,
        attempts: Attempts,
    ) -> Step:
        suspects = self.differences(places, held, attempts)
        return Step(
            after,
            attempts=len(attempts),
            resolved_late=sum(is_resolved_late(held.get(p), attempts.get(p)) for p in places),
            differences=list((await self.confirmed(suspects)).values()),
        )

    def differences(
        self, places: Iterable[Place], held: Mapping[Place, Reservation], attempts: Attempts
    ) -> dict[Place, Difference]:
        """What one look at both sides finds."""
        found = {
            place: difference(held.get(place), attempts.get(place), open_limit_s=self._open_limit_s)
            for place in places
        }
        return {place: each for place, each in found.items() if each is not None}

    async def _span(self, after: ReservationKey | None) -> dict[Place, Reservation]:
        claim, attempt = after or ReservationKey("", 0)
        records = await self._database.fetch(_SELECT_SPAN, claim, attempt, SPAN_SIZE)
        return _by_place(rows.reservation_of(dict(record)) for record in records)


def _by_place(reservations: Iterable[Reservation]) -> dict[Place, Reservation]:
    return {place_of(each): each for each in reservations}


def _last_possible(held: Held) -> ReservationKey | None:
    """The last key that an attempt can have."""
    return next((place.key for place in reversed(held) if is_possible(place.key)), None)

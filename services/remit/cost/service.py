"""CostService: the ledger's door for the services that perform effects. Proto in, proto out.

The accounts come from the verified remit, never from a field. A remit authorises a new hold alone;
what was reserved is extended, settled and released on the identity of the service that reserved it,
after the remit has expired too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sized
from typing import Any, Final

import grpc

from remit.api.cost.v1 import cost_service_pb2, cost_service_pb2_grpc
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.cost.messages import (
    body_digest,
    checked_usage,
    key_of,
    key_violations,
    require_reserve,
    reservation_message,
    usage_of,
)
from remit.cost.prices import PriceList
from remit.cost.reservations import Extend, Release, Reservation, ReservationKey, Reserve, Settle
from remit.cost.store import LedgerStore
from remit.rpc.calls import current_call
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.parties import caller_label
from remit.rpc.remits import Remit, RemitVerifier

Context = grpc.aio.ServicerContext[Any, Any]

MAX_BATCH: Final = 256
"""Requests in one batch, as the contracts state."""


class CostService(cost_service_pb2_grpc.CostServiceServicer):
    """The hot path of cost."""

    def __init__(self, *, store: LedgerStore, prices: PriceList, verifier: RemitVerifier) -> None:
        self._store = store
        self._prices = prices
        self._verifier = verifier

    # ---------------------------------------------------------------------------------- opening

    async def ReserveBudget(
        self, request: cost_service_pb2.ReserveBudgetRequest, context: Context
    ) -> cost_service_pb2.ReserveBudgetResponse:
        """Hold the bound of one effect."""
        held = await self._store.open(await self._prepared(request))
        return cost_service_pb2.ReserveBudgetResponse(reservation=reservation_message(held))

    async def BatchReserveBudgets(
        self, request: cost_service_pb2.BatchReserveBudgetsRequest, context: Context
    ) -> cost_service_pb2.BatchReserveBudgetsResponse:
        """Hold the bounds of many; each is decided on its own, in the order of the request."""
        _require_count(request.requests)
        # All are prepared before the first is sent: looking up a price must not change the order.
        prepared = await _each(self._prepared(item) for item in request.requests)
        results = await _each(self._opened(item) for item in prepared)
        return cost_service_pb2.BatchReserveBudgetsResponse(results=map(_result, results))

    async def ExtendReservation(
        self, request: cost_service_pb2.ExtendReservationRequest, context: Context
    ) -> cost_service_pb2.ExtendReservationResponse:
        """Raise one hold."""
        held = await self._extended(request)
        return cost_service_pb2.ExtendReservationResponse(reservation=reservation_message(held))

    async def BatchExtendReservations(
        self, request: cost_service_pb2.BatchExtendReservationsRequest, context: Context
    ) -> cost_service_pb2.BatchExtendReservationsResponse:
        """Raise many holds, each on its own."""
        _require_count(request.requests)
        results = await _each(self._extended(item) for item in request.requests)
        return cost_service_pb2.BatchExtendReservationsResponse(results=map(_result, results))

    # ---------------------------------------------------------------------------------- closing

    async def SettleReservation(
        self, request: cost_service_pb2.SettleReservationRequest, context: Context
    ) -> cost_service_pb2.SettleReservationResponse:
        """Post what one effect used."""
        settled = await self._settled(request)
        return cost_service_pb2.SettleReservationResponse(reservation=reservation_message(settled))

    async def BatchSettleReservations(
        self, request: cost_service_pb2.BatchSettleReservationsRequest, context: Context
    ) -> cost_service_pb2.BatchSettleReservationsResponse:
        """Post what many effects used, each on its own."""
        _require_count(request.requests)
        results = await _each(self._settled(item) for item in request.requests)
        return cost_service_pb2.BatchSettleReservationsResponse(results=map(_result, results))

    async def ReleaseReservation(
        self, request: cost_service_pb2.ReleaseReservationRequest, context: Context
    ) -> cost_service_pb2.ReleaseReservationResponse:
        """Free one hold."""
        released = await self._released(request)
        return cost_service_pb2.ReleaseReservationResponse(
            reservation=reservation_message(released)
        )

    async def BatchReleaseReservations(
        self, request: cost_service_pb2.BatchReleaseReservationsRequest, context: Context
    ) -> cost_service_pb2.BatchReleaseReservationsResponse:
        """Free many holds, each on its own."""
        _require_count(request.requests)
        results = await _each(self._released(item) for item in request.requests)
        return cost_service_pb2.BatchReleaseReservationsResponse(results=map(_result, results))

    # ------------------------------------------------------------------------------- operations

    async def _prepared(self, request: cost_service_pb2.ReserveBudgetRequest) -> Reserve:
        require_reserve(request)
        remit = await self._verified(request.remit)
        bound = usage_of(request.bound)
        prices = await self._prices.prices_of(request.item, request.list_item, bound)
        service = _service()
        return Reserve(
            key=ReservationKey(request.claim, request.attempt),
            service=service,
            account=remit.account,
            item=request.item,
            price=prices,
            bound=bound,
            own_limit_nanos=remit.max_cost_nanos,
            outer_limits_nanos=remit.outer_limits_nanos,
            body_digest=body_digest(request, service, remit.account),
        )

    async def _verified(self, token: str) -> Remit:
        """The remit, if it is meant for cost and for the service that shows it."""
        remit = await self._verifier.verify(token, audience=options_pb2.CALLER_COST)
        caller = current_call().caller
        if caller not in remit.audience:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_REMIT_INVALID,
                f"the remit is not meant for {caller_label(caller)}",
            )
        return remit

    async def _opened(self, prepared: Reserve | RemitError) -> Reservation:
        if isinstance(prepared, RemitError):
            raise prepared
        return await self._store.open(prepared)

    async def _extended(self, request: cost_service_pb2.ExtendReservationRequest) -> Reservation:
        key = key_of(request)
        bound = checked_usage("bound", request.bound)
        return await self._store.open(Extend(key, _service(), bound))

    async def _settled(self, request: cost_service_pb2.SettleReservationRequest) -> Reservation:
        violations = key_violations(request)
        if not request.whole_hold and not request.HasField("used"):
            violations.append(Violation("used", "must be set unless whole_hold is"))
        if violations:
            raise invalid_request(violations)
        used = None if request.whole_hold else checked_usage("used", request.used)
        key = ReservationKey(request.claim, request.attempt)
        return await self._store.close(Settle(key, _service(), used))

    async def _released(self, request: cost_service_pb2.ReleaseReservationRequest) -> Reservation:
        return await self._store.close(Release(key_of(request), _service()))


def _service() -> str:
    """The calling service, by its mTLS identity."""
    return caller_label(current_call().caller)


def _require_count(requests: Sized) -> None:
    if not 1 <= len(requests) <= MAX_BATCH:
        fault = f"holds {len(requests)} requests; a batch holds 1 to {MAX_BATCH}"
        raise invalid_request([Violation("requests", fault)])


async def _each(work: Iterable[Awaitable[Any]]) -> list[Any]:
    """The results in order, a RemitError in the place of each that failed with one."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, RemitError):
            raise result
    return results


def _result(result: Reservation | RemitError) -> cost_service_pb2.ReservationResult:
    if isinstance(result, RemitError):
        return cost_service_pb2.ReservationResult(error=result.to_status())
    return cost_service_pb2.ReservationResult(reservation=reservation_message(result))

"""PriceService: what models and tools cost the caller's own org. Proto in, proto out."""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import grpc

from remit import names
from remit.api.cost.v1 import price_service_pb2, price_service_pb2_grpc
from remit.cost.messages import MAX_LIST_ITEM_CHARS, is_time
from remit.cost.org_prices import SOURCE
from remit.cost.paging import check_token, decode_texts, decode_token, encode_token, page_size_of
from remit.cost.price_files import Rates
from remit.cost.price_listing import A_SMALL_REQUEST, listed_prices
from remit.cost.price_store import PriceStore, WantedPrice
from remit.cost.prices import PriceList, make_price
from remit.idempotency import AdminRecorder, AdminRequest, asked_by, request_id_violations
from remit.rpc.calls import current_remit
from remit.rpc.errors import Violation, check_all, invalid_request
from remit.rpc.remits import Remit

Context = grpc.aio.ServicerContext[Any, Any]

_RATES: Final = tuple(Rates.model_fields)
_SET: Final = "prices.set"
_DELETE: Final = "prices.delete"


class PriceService(price_service_pb2_grpc.PriceServiceServicer):
    """Lists and changes prices."""

    def __init__(self, *, store: PriceStore, prices: PriceList, recorder: AdminRecorder) -> None:
        self._store = store
        self._prices = prices
        self._recorder = recorder

    async def ListPrices(
        self, request: price_service_pb2.ListPricesRequest, context: Context
    ) -> price_service_pb2.ListPricesResponse:
        """List what items cost the caller's org, now and later."""
        check_all(
            partial(_require_selection, request),
            partial(page_size_of, request.page_size),
            partial(check_token, request.page_token),
        )
        org = current_remit().org
        size = page_size_of(request.page_size)
        query = f"prices {org} {request.item} {request.list_item}"
        after = decode_texts(request.page_token, query, 1)
        items = [request.item] if request.item else await self._items(org, after, size + 1)
        now, own = await self._store.in_force(org, items[:size])
        response = price_service_pb2.ListPricesResponse()
        for item in items[:size]:
            prices = await self._prices.prices_of(item, request.list_item, A_SMALL_REQUEST)
            response.prices.extend(listed_prices(prices, own.get((org, item)), now))
        if len(items) > size:
            response.next_page_token = encode_token((items[size - 1],), query)
        return response

    async def SetPrice(
        self, request: price_service_pb2.SetPriceRequest, context: Context
    ) -> price_service_pb2.SetPriceResponse:
        """Set a price; the change is in the audit log before the caller hears of it."""
        stated = {
            field.name: nanos for field, nanos in request.ListFields() if field.name in _RATES
        }
        _require_change(request, _rate_violations(stated))
        wanted = WantedPrice(
            request.item, make_price(request.item, Rates(**stated), SOURCE), _start_of(request)
        )
        change = await self._store.change(
            _admin_request(current_remit(), request, _SET, stated),
            wanted,
            lambda made: price_service_pb2.SetPriceResponse(change=made),
        )
        await self._recorder.record(change)
        return price_service_pb2.SetPriceResponse.FromString(change.response)

    async def DeletePrice(
        self, request: price_service_pb2.DeletePriceRequest, context: Context
    ) -> price_service_pb2.DeletePriceResponse:
        """End a price; the change is in the audit log before the caller hears of it."""
        _require_change(request, [])
        change = await self._store.change(
            _admin_request(current_remit(), request, _DELETE, {}),
            WantedPrice(request.item, None, _start_of(request)),
            lambda made: price_service_pb2.DeletePriceResponse(change=made),
        )
        await self._recorder.record(change)
        return price_service_pb2.DeletePriceResponse.FromString(change.response)

    async def ListPriceChanges(
        self, request: price_service_pb2.ListPriceChangesRequest, context: Context
    ) -> price_service_pb2.ListPriceChangesResponse:
        """List what the caller's org set and deleted."""
        check_all(
            partial(_require, _item_violations(request.item) if request.item else []),
            partial(page_size_of, request.page_size),
            partial(check_token, request.page_token),
        )
        org = current_remit().org
        size = page_size_of(request.page_size)
        query = f"price changes {org} {request.item}"
        place = decode_token(request.page_token, query, (int, str))
        found = await self._store.changes(org, request.item, place[0] if place else None, size + 1)
        response = price_service_pb2.ListPriceChangesResponse(changes=found[:size])
        if len(found) > size:
            last = found[size - 1]
            response.next_page_token = encode_token((last.sequence, last.item), query)
        return response

    async def _items(self, org: str, after: Sequence[str] | None, size: int) -> list[str]:
        """The next items of which the org or a file states a price, by name."""
        place = after[0] if after else ""
        own = await self._store.items(org, place, size)
        listed = [item for item in self._prices.items if item > place]
        return sorted({*own, *heapq.nsmallest(size, listed)})[:size]


def _require_selection(request: price_service_pb2.ListPricesRequest) -> None:
    violations = _item_violations(request.item) if request.item else []
    if request.list_item and not request.item:
        violations.append(Violation("list_item", "is of an item; name it"))
    if len(request.list_item) > MAX_LIST_ITEM_CHARS:
        fault = f"has more than {MAX_LIST_ITEM_CHARS} characters"
        violations.append(Violation("list_item", fault))
    _require(violations)


def _require_change(
    request: price_service_pb2.SetPriceRequest | price_service_pb2.DeletePriceRequest,
    violations: Sequence[Violation],
) -> None:
    found = [
        *_item_violations(request.item),
        *violations,
        *request_id_violations(request.request_id),
    ]
    if request.HasField("start_time") and not is_time(request.start_time):
        found.append(Violation("start_time", "is not a time between the years 1970 and 9999"))
    _require(found)


def _require(violations: Sequence[Violation]) -> None:
    if violations:
        raise invalid_request(violations)


def _item_violations(item: str) -> list[Violation]:
    if names.is_name("model", item) or names.is_name("tool", item):
        return []
    return [Violation("item", "must be `models/{model}` or `tools/{tool}`")]


def _rate_violations(stated: dict[str, int]) -> list[Violation]:
    """A price that states nothing would be free by an oversight."""
    if not stated:
        return [Violation("call_nanos", "state at least one rate, be it 0")]
    return [
        Violation(name, f"is {nanos}; a rate is at least 0")
        for name, nanos in stated.items()
        if nanos < 0
    ]


def _start_of(
    request: price_service_pb2.SetPriceRequest | price_service_pb2.DeletePriceRequest,
) -> datetime | None:
    return request.start_time.ToDatetime(UTC) if request.HasField("start_time") else None


def _admin_request(
    caller: Remit,
    request: price_service_pb2.SetPriceRequest | price_service_pb2.DeletePriceRequest,
    method: str,
    stated: dict[str, int],
) -> AdminRequest:
    start = _start_of(request)
    detail = json.dumps(
        {"item": request.item, **stated, "start_time": start.isoformat() if start else None},
        sort_keys=True,
    )
    return asked_by(caller, method, request.request_id, request.item, detail=detail)

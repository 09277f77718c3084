"""CostReportService: reports and budgets of the caller's own org. Proto in, proto out."""

from __future__ import annotations

from datetime import UTC, date, datetime
from functools import partial
from typing import Any, Literal, Protocol

import grpc
from google.protobuf import timestamp_pb2

from remit import names
from remit.api.cost.v1 import cost_report_service_pb2, cost_report_service_pb2_grpc
from remit.cost.alert_store import select_alerts
from remit.cost.budget_requests import checked_account, checked_delete, checked_set
from remit.cost.budgets import BudgetStore
from remit.cost.charges import ChargePlace, ChargeQuery, place_of, select_charges
from remit.cost.ledger_check import LedgerCheck, Steps
from remit.cost.messages import is_time
from remit.cost.paging import (
    check_token,
    decode_texts,
    decode_token,
    encode_token,
    invalid_token,
    page_size_of,
)
from remit.cost.reservation_list import list_reservations
from remit.cost.run_spend import select_run_spend
from remit.cost.spend import SpendQuery, select_spend
from remit.idempotency import AdminRecorder
from remit.postgres import Database
from remit.rpc.calls import current_remit
from remit.rpc.errors import Violation, check_all, invalid_request

Context = grpc.aio.ServicerContext[Any, Any]


class CostReportService(cost_report_service_pb2_grpc.CostReportServiceServicer):
    """The admin and query side of cost."""

    def __init__(
        self,
        *,
        database: Database,
        budgets: BudgetStore,
        recorder: AdminRecorder,
        check: LedgerCheck,
    ) -> None:
        self._database = database
        self._check = check
        self._budgets = budgets
        self._recorder = recorder

    async def ListSpend(
        self, request: cost_report_service_pb2.ListSpendRequest, context: Context
    ) -> cost_report_service_pb2.ListSpendResponse:
        """Sum what the caller's org spent."""
        check_all(
            partial(_spend_query, "", request),
            partial(page_size_of, request.page_size),
            partial(check_token, request.page_token),
        )
        query = _spend_query(current_remit().org, request)
        size = page_size_of(request.page_size)
        after = decode_token(request.page_token, query.describe(), (int, str))
        page = await select_spend(self._database, query, after, size + 1)
        response = cost_report_service_pb2.ListSpendResponse(
            rows=page.rows[:size], total=page.total
        )
        if len(page.rows) > size:
            last = page.rows[size - 1]
            response.next_page_token = encode_token((last.posted_nanos, last.key), query.describe())
        return response

    def CheckLedger(
        self, request: cost_report_service_pb2.CheckLedgerRequest, context: Context
    ) -> Steps:
        """Check the whole ledger; what is the caller's org's is told in full."""
        return self._check.run(current_remit().org, request.resume_token)

    async def GetRunSpend(
        self, request: cost_report_service_pb2.GetRunSpendRequest, context: Context
    ) -> cost_report_service_pb2.GetRunSpendResponse:
        """Show what a run of the caller's org and the runs below it spent."""
        if not names.is_name("run", request.run):
            raise invalid_request([Violation("run", "must be `runs/{uuid}`")])
        runs = await select_run_spend(self._database, current_remit().org, request.run)
        return cost_report_service_pb2.GetRunSpendResponse(runs=runs)

    async def ListCharges(
        self, request: cost_report_service_pb2.ListChargesRequest, context: Context
    ) -> cost_report_service_pb2.ListChargesResponse:
        """List what the caller's org was charged."""
        check_all(
            partial(_checked_span, request),
            partial(page_size_of, request.page_size),
            partial(check_token, request.page_token),
        )
        start, end = _checked_span(request)
        query = ChargeQuery(current_remit().org, start, end)
        size = page_size_of(request.page_size)
        after = _charge_place(request.page_token, query)
        page = await select_charges(self._database, query, after, size)
        response = cost_report_service_pb2.ListChargesResponse(charges=page.charges)
        if not page.is_last:
            response.next_page_token = encode_token(place_of(page.charges[-1]), query.describe())
        return response

    async def SetBudget(
        self, request: cost_report_service_pb2.SetBudgetRequest, context: Context
    ) -> cost_report_service_pb2.SetBudgetResponse:
        """Set a budget; the change is in the audit log before the caller hears of it."""
        wanted, terms = checked_set(current_remit(), request, self._budgets.default_percents)
        change = await self._budgets.set(wanted.request, wanted.account, wanted.period, terms)
        await self._recorder.record(change)
        return cost_report_service_pb2.SetBudgetResponse.FromString(change.response)

    async def DeleteBudget(
        self, request: cost_report_service_pb2.DeleteBudgetRequest, context: Context
    ) -> cost_report_service_pb2.DeleteBudgetResponse:
        """Delete a budget; the change is in the audit log before the caller hears of it."""
        wanted = checked_delete(current_remit(), request)
        change = await self._budgets.delete(wanted.request, wanted.account, wanted.period)
        await self._recorder.record(change)
        return cost_report_service_pb2.DeleteBudgetResponse.FromString(change.response)

    async def ListBudgets(
        self, request: cost_report_service_pb2.ListBudgetsRequest, context: Context
    ) -> cost_report_service_pb2.ListBudgetsResponse:
        """List the budgets of the caller's org."""
        org = current_remit().org
        check_all(
            partial(page_size_of, request.page_size), partial(check_token, request.page_token)
        )
        size = page_size_of(request.page_size)
        after = decode_token(request.page_token, org, (str, int))
        found = await self._budgets.page(org, after, size + 1)
        response = cost_report_service_pb2.ListBudgetsResponse(
            budgets=[budget.message() for budget in found[:size]]
        )
        if len(found) > size:
            last = found[size - 1]
            # A default stands before all others, whatever its period is.
            place = (last.account, 0 if last.terms.is_default else int(last.period))
            response.next_page_token = encode_token(place, org)
        return response

    async def ListReservations(
        self, request: cost_report_service_pb2.ListReservationsRequest, context: Context
    ) -> cost_report_service_pb2.ListReservationsResponse:
        """List reservations by key, for services that compare them."""
        return await list_reservations(self._database, request)

    async def ListBudgetAlerts(
        self, request: cost_report_service_pb2.ListBudgetAlertsRequest, context: Context
    ) -> cost_report_service_pb2.ListBudgetAlertsResponse:
        """List the alerts of the budgets of the caller's org."""
        caller = current_remit()
        check_all(
            partial(checked_account, caller, request.account),
            partial(page_size_of, request.page_size),
            partial(check_token, request.page_token),
        )
        account = checked_account(caller, request.account)
        query = f"alerts of {caller.org} {account}"
        size = page_size_of(request.page_size)
        after = decode_token(request.page_token, query, (int, str))
        before = after[0] if after else None
        found = await select_alerts(self._database, caller.org, account, before, size + 1)
        response = cost_report_service_pb2.ListBudgetAlertsResponse(
            alerts=[alert.message() for alert in found[:size]]
        )
        if len(found) > size:
            response.next_page_token = encode_token((found[size - 1].number, ""), query)
        return response


class _Span(Protocol):
    """The fields by which a request selects by time."""

    @property
    def start_time(self) -> timestamp_pb2.Timestamp: ...

    @property
    def end_time(self) -> timestamp_pb2.Timestamp: ...

    def HasField(self, name: Literal["start_time", "end_time"], /) -> bool: ...


def _spend_query(org: str, request: cost_report_service_pb2.ListSpendRequest) -> SpendQuery:
    if request.group_by not in cost_report_service_pb2.ListSpendRequest.Dimension.values():
        violation = Violation("group_by", f"{request.group_by} is not a dimension")
        raise invalid_request([violation, *_span_violations(request)])
    start, end = _checked_span(request)
    return SpendQuery(org, request.group_by, start, end)


def _charge_place(token: str, query: ChargeQuery) -> ChargePlace | None:
    texts = decode_texts(token, query.describe(), len(ChargePlace._fields))
    if texts is None:
        return None
    try:
        day = date.fromisoformat(texts[0])
    except ValueError as error:
        raise invalid_token("is not a token of this list") from error
    return ChargePlace(day, *texts[1:])


def _checked_span(request: _Span) -> tuple[datetime | None, datetime | None]:
    """Start and end of a request, None where it states none. Raises INVALID_REQUEST."""
    violations = _span_violations(request)
    if violations:
        raise invalid_request(violations)
    start = request.start_time.ToDatetime(UTC) if request.HasField("start_time") else None
    end = request.end_time.ToDatetime(UTC) if request.HasField("end_time") else None
    if start is not None and end is not None and start >= end:
        raise invalid_request([Violation("end_time", "is not after start_time")])
    return start, end


def _span_violations(request: _Span) -> list[Violation]:
    fault = "is not a time between the years 1970 and 9999"
    violations = []
    if request.HasField("start_time") and not is_time(request.start_time):
        violations.append(Violation("start_time", fault))
    if request.HasField("end_time") and not is_time(request.end_time):
        violations.append(Violation("end_time", fault))
    return violations

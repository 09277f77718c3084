"""What is asked of budgets, checked: all violations at once, nothing outside the caller's org."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from remit.api.cost.v1 import cost_report_service_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.cost.accounts import is_account
from remit.cost.budgets import detail_of
from remit.cost.periods import BudgetPeriod, Period, RunPeriod, budget_period
from remit.cost.reservations import SetLimit, amount_violations, limit_violations
from remit.cost.terms import Enforcement, Terms, percents_fault
from remit.idempotency import AdminRequest, asked_by, request_id_violations
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.remits import Remit

_SET: Final = "budgets.set"
_DELETE: Final = "budgets.delete"
_LIST: Final = "budgets.list"
MAX_ACCOUNT_CHARS: Final = 512
"""As many as the audit log takes of a resource's name."""


@dataclass(frozen=True, slots=True)
class Change:
    """A budget that is to be set or deleted."""

    request: AdminRequest
    account: str
    period: BudgetPeriod


def checked_set(
    caller: Remit, request: cost_report_service_pb2.SetBudgetRequest, percents: Sequence[int]
) -> tuple[Change, Terms]:
    """A budget to set; `percents` are those of settings. Raises INVALID_REQUEST and others."""
    violations = _name_violations(request)
    if violations:
        violations += amount_violations(request.limit_nanos)
    else:
        wanted = SetLimit(request.account, budget_period(request.period), request.limit_nanos)
        violations += limit_violations(wanted)
    if request.enforcement not in {0, *map(int, Enforcement)}:
        violations.append(Violation("enforcement", "must be HARD or SOFT"))
    fault = percents_fault(request.alert_percents)
    if fault:
        violations.append(Violation("alert_percents", fault))
    if violations:
        raise invalid_request(violations)
    _require_own(caller, request.account, _SET)
    terms = Terms(
        limit_nanos=request.limit_nanos,
        enforcement=Enforcement(request.enforcement or Enforcement.HARD),
        alert_percents=tuple(sorted(request.alert_percents or percents)),
    )
    return _change(caller, request, _SET, terms), terms


def checked_delete(caller: Remit, request: cost_report_service_pb2.DeleteBudgetRequest) -> Change:
    """A budget to delete. Raises INVALID_REQUEST, PERMISSION_DENIED."""
    violations = _name_violations(request)
    if violations:
        raise invalid_request(violations)
    _require_own(caller, request.account, _DELETE)
    return _change(caller, request, _DELETE)


def checked_account(caller: Remit, account: str) -> str:
    """An account whose alerts are asked for, or none. Raises INVALID_REQUEST, PERMISSION_DENIED."""
    if account:
        violations = _account_violations(account)
        if violations:
            raise invalid_request(violations)
        _require_own(caller, account, _LIST)
    return account


Request = cost_report_service_pb2.SetBudgetRequest | cost_report_service_pb2.DeleteBudgetRequest


def _name_violations(request: Request) -> list[Violation]:
    violations = request_id_violations(request.request_id) + _account_violations(request.account)
    if request.period not in {*map(int, Period), int(RunPeriod.RUN)}:
        violations.append(Violation("period", "must be TOTAL, DAY, MONTH or RUN"))
    return violations


def _account_violations(account: str) -> list[Violation]:
    if not is_account(account):
        fault = "must be `orgs/{org}` or an account under it, such as `orgs/acme/users/alice`"
        return [Violation("account", fault)]
    if len(account) > MAX_ACCOUNT_CHARS:
        fault = f"has {len(account)} characters; {MAX_ACCOUNT_CHARS} at most"
        return [Violation("account", fault)]
    return []


def _require_own(caller: Remit, account: str, permission: str) -> None:
    if not f"{account}/".startswith(f"{caller.org}/"):
        raise RemitError(
            error_reason_pb2.ERROR_REASON_PERMISSION_DENIED,
            f"{caller.subject} has no budgets outside {caller.org}",
            metadata={"permission": permission, "account": account},
        )


def _change(caller: Remit, request: Request, method: str, terms: Terms | None = None) -> Change:
    period = budget_period(request.period)
    detail = detail_of(request.account, period, terms)
    admin = asked_by(caller, method, request.request_id, request.account, detail=detail)
    return Change(admin, request.account, period)

"""Tells of alerts: each is appended to the audit log, then counted and logged, once.

The table is an outbox. Every replica looks at it; an event is made from its row alone, so that the
log keeps one however often it is sent, and whoever notes the append first counts it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from typing import Final

from remit import telemetry
from remit.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc, event_pb2
from remit.cost.alert_store import StoredAlert, note_recorded, select_unrecorded
from remit.cost.alerts import Alert
from remit.cost.messages import timestamp
from remit.cost.metrics import count_alert
from remit.postgres import Database
from remit.rpc.errors import RemitError

ACTION: Final = "budgets.alert"
_SWEEP_LIMIT: Final = 64

log = telemetry.logger(__name__)


class AlertRecorder:
    """Appends alerts to the audit log, looking for new ones every `every_s` seconds."""

    def __init__(
        self, database: Database, audit: audit_service_pb2_grpc.AuditServiceStub, *, every_s: float
    ) -> None:
        self._database = database
        self._audit = audit
        self._every_s = every_s
        self._swept = 0

    async def run(self) -> None:
        """Records alerts until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                while await self.sweep():
                    pass
            except RemitError as error:
                log.warning("alert_sweep_failed", reason=error.reason_name)

    async def sweep(self) -> bool:
        """One round over the next alerts that audit lacks, oldest first; whether there may be more.

        Round after round comes past all of them, so that some that cannot be recorded now do not
        keep the rest from the log.
        """
        found = await select_unrecorded(self._database, self._swept, _SWEEP_LIMIT)
        is_full = len(found) == _SWEEP_LIMIT
        self._swept = found[-1].number if is_full else 0
        if found:
            await self._record(found)
        return is_full

    async def _record(self, found: Sequence[StoredAlert]) -> None:
        entries = [audit_service_pb2.Entry(event=alert_event(each.alert)) for each in found]
        response = await self._audit.AppendEvents(
            audit_service_pb2.AppendEventsRequest(entries=entries)
        )
        taken = []
        for each, result in zip(found, response.results, strict=True):
            if result.WhichOneof("result") == "leaf_index":
                taken.append(each)
            else:
                reason = RemitError.from_status(result.error).reason_name
                log.warning("alert_unrecorded", reason=reason, account=each.alert.account)
        noted = await note_recorded(self._database, [each.number for each in taken])
        for each in taken:
            if each.number in noted:
                _tell(each.alert)


def alert_event(alert: Alert) -> event_pb2.Event:
    """The ALERT event of an alert: a function of its row and nothing else."""
    key, terms = alert.key, alert.terms
    named = (
        f"{alert.account}\0{alert.period.name}\0{alert.run_account}\0{key.start}"
        f"\0{terms.is_default}\0{alert.percent}\0{terms.limit_nanos}"
    )
    return event_pb2.Event(
        event_id=f"alert-{hashlib.sha256(named.encode()).hexdigest()}",
        event_time=timestamp(alert.fire_time),
        kind=event_pb2.EVENT_KIND_ALERT,
        org=alert.org,
        subject=alert.cause.subject,
        action=ACTION,
        resource=alert.account,
        run=alert.cause.run,
        claim=alert.cause.claim,
        outcome=event_pb2.OUTCOME_SUCCEEDED,
        detail_json=json.dumps(_detail(alert), sort_keys=True),
    )


def _tell(alert: Alert) -> None:
    count_alert(alert)
    log.warning("budget_alert", account=alert.account, **_detail(alert))


def _detail(alert: Alert) -> dict[str, object]:
    return {
        "period": alert.period.name,
        "run_account": alert.run_account,
        "start": alert.key.start.isoformat(),
        "percent": alert.percent,
        "limit_nanos": alert.terms.limit_nanos,
        "posted_nanos": alert.posted_nanos,
        "enforcement": alert.terms.enforcement.name,
        "is_default": alert.terms.is_default,
    }

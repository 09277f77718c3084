"""Admin changes that happen once and are in the audit log before anybody is told of them.

An area that has admin RPCs keeps a table `admin_requests` in its own database. The change and its
row there commit together: the row dedupes repetitions of the same `request_id`, holds the answer
that they get, and is the outbox from which the change reaches the log. Only after the append is the
caller answered; if audit is away the caller gets an error and may repeat the request, and the sweep
appends the event in any case. The event is made from the row alone, so that every attempt sends the
same one and the log keeps one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import asyncpg
from google.protobuf import timestamp_pb2

from remit import telemetry
from remit.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc, event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.postgres import Connection, Database
from remit.rpc.calls import current_call
from remit.rpc.errors import RemitError, Violation
from remit.rpc.remits import Remit

MAX_REQUEST_ID_CHARS: Final = 64
_SWEEP_LIMIT: Final = 64
_REFUSED: Final = "refused "
"""First word of the method of a request that was refused, and whose refusal is recorded."""
_BEFORE_THE_FIRST: Final = (datetime.min.replace(tzinfo=UTC), "", "", "")
_COLUMNS: Final = (
    "subject, method, request_id, org, body_digest, action, resource, detail, trace_id, response,"
    " create_time"
)

log = telemetry.logger(__name__)


@dataclass(frozen=True)
class AdminRequest:
    """An admin change as it was asked for, and what its audit event will say."""

    subject: str
    """Who asks; a request_id is theirs alone."""
    method: str
    request_id: str
    org: str
    body_digest: bytes
    """SHA-256 of the request without its request_id."""
    action: str
    resource: str
    detail: str
    """JSON."""
    trace_id: str


@dataclass(frozen=True)
class AdminChange:
    """An admin request that took effect at `create_time`, and how it was answered."""

    request: AdminRequest
    response: bytes
    create_time: datetime


def asked_by(
    caller: Remit, method: str, request_id: str, resource: str, *, detail: str, body: bytes = b""
) -> AdminRequest:
    """The change that the call in progress asks for.

    `body` is what a repetition must have alike; `detail` where it is empty.
    """
    return AdminRequest(
        subject=caller.subject,
        method=method,
        request_id=request_id,
        org=caller.org,
        body_digest=hashlib.sha256(body or detail.encode()).digest(),
        action=method,
        resource=resource,
        detail=detail,
        trace_id=current_call().trace_id,
    )


def refused(request: AdminRequest, detail: str) -> AdminRequest:
    """The line for the log that says that a request was refused; `detail` says why, as JSON.

    It is a request of its own: the one that was refused may be repeated and be refused again.
    """
    return dataclasses.replace(request, method=f"{_REFUSED}{request.method}", detail=detail)


def request_id_violations(request_id: str) -> list[Violation]:
    """What is wrong with a request id."""
    if 1 <= len(request_id) <= MAX_REQUEST_ID_CHARS and request_id.isprintable():
        return []
    fault = f"must have 1 to {MAX_REQUEST_ID_CHARS} printable characters"
    return [Violation("request_id", fault)]


async def known_change(connection: Connection, request: AdminRequest) -> AdminChange | None:
    """What an identical earlier request did, or None. Raises KEY_REUSED if it was another one."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM admin_requests"  # noqa: S608 - constants of this module
        " WHERE subject = $1 AND method = $2 AND request_id = $3",
        request.subject,
        request.method,
        request.request_id,
    )
    if row is None:
        return None
    if row["body_digest"] != request.body_digest:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_KEY_REUSED,
            f"request_id {request.request_id} was used before for another request",
        )
    return _change_of(row)


async def remember(connection: Connection, request: AdminRequest, response: bytes) -> AdminChange:
    """Stores a new request and its answer, in the transaction of the change itself.

    Its caller has asked `known_change` under a lock that serialises the requests of an org.
    """
    row = await connection.fetchrow(
        "INSERT INTO admin_requests (subject, method, request_id, org, body_digest, action,"  # noqa: S608 - constants of this module
        " resource, detail, trace_id, response)"
        f" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING {_COLUMNS}",
        request.subject,
        request.method,
        request.request_id,
        request.org,
        request.body_digest,
        request.action,
        request.resource,
        request.detail,
        request.trace_id,
        response,
    )
    if row is None:  # pragma: no cover - an insert of one row returns it
        message = "an insert returned nothing"
        raise AssertionError(message)
    return _change_of(row)


def _change_of(row: asyncpg.Record) -> AdminChange:
    names = AdminRequest.__dataclass_fields__
    request = AdminRequest(**{name: row[name] for name in names})
    return AdminChange(request, row["response"], row["create_time"])


class AdminRecorder:
    """Appends admin changes to the audit log."""

    def __init__(
        self, database: Database, audit: audit_service_pb2_grpc.AuditServiceStub, *, retry_s: float
    ) -> None:
        self._database = database
        self._audit = audit
        self._retry_s = retry_s
        self._swept = _BEFORE_THE_FIRST

    async def record(self, change: AdminChange) -> None:
        """Appends the change's event and notes that. Repeating it changes nothing.

        Raises RemitError as AppendEvents does; the change is then not to be acknowledged.
        """
        response = await self._audit.AppendEvents(
            audit_service_pb2.AppendEventsRequest(
                entries=[audit_service_pb2.Entry(event=admin_event(change))]
            )
        )
        if response.results[0].WhichOneof("result") != "leaf_index":
            raise RemitError.from_status(response.results[0].error)
        await self._database.execute(
            "UPDATE admin_requests SET record_time = now()"
            " WHERE subject = $1 AND method = $2 AND request_id = $3 AND record_time IS NULL",
            change.request.subject,
            change.request.method,
            change.request.request_id,
        )

    async def run(self) -> None:
        """Records, until cancelled, what a crash or an absent audit service left behind."""
        while True:
            await asyncio.sleep(self._retry_s)
            try:
                await self.sweep()
            except RemitError as error:
                log.warning("admin_sweep_failed", reason=error.reason_name)

    async def sweep(self) -> None:
        """One round over the next changes that audit has not taken yet, the oldest first.

        Round after round comes past all of them, so that some that cannot be recorded now do not
        keep the rest from the log.
        """
        for row in await self._unrecorded():
            change = _change_of(row)
            try:
                await self.record(change)
            except RemitError as error:
                log.warning(
                    "admin_change_unrecorded",
                    reason=error.reason_name,
                    request_id=change.request.request_id,
                )

    async def _unrecorded(self) -> list[asyncpg.Record]:
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM admin_requests"  # noqa: S608 - constants of this module
            " WHERE record_time IS NULL"
            " AND (create_time, subject, method, request_id)"
            " > ($2::timestamptz, $3::text, $4::text, $5::text)"
            " ORDER BY create_time, subject, method, request_id LIMIT $1",
            _SWEEP_LIMIT,
            *self._swept,
        )
        self._swept = _BEFORE_THE_FIRST
        if len(rows) == _SWEEP_LIMIT:
            last = rows[-1]
            self._swept = (
                last["create_time"],
                last["subject"],
                last["method"],
                last["request_id"],
            )
        return rows


def admin_event(change: AdminChange) -> event_pb2.Event:
    """The ADMIN event of a change: a function of its row and nothing else."""
    request = change.request
    named = f"{request.subject}\0{request.method}\0{request.request_id}".encode()
    event_time = timestamp_pb2.Timestamp()
    event_time.FromDatetime(change.create_time)
    return event_pb2.Event(
        event_id=f"admin-{hashlib.sha256(named).hexdigest()}",
        event_time=event_time,
        kind=event_pb2.EVENT_KIND_ADMIN,
        org=request.org,
        subject=request.subject,
        action=request.action,
        resource=request.resource,
        outcome=(
            event_pb2.OUTCOME_REFUSED
            if request.method.startswith(_REFUSED)
            else event_pb2.OUTCOME_SUCCEEDED
        ),
        trace_id=request.trace_id,
        detail_json=request.detail,
    )

"""`ListRunEvents`: what the log says of one run, for the agent service to explain it.

The agent service shows a run to whoever may see it. Whose read it is, the remit in the request
says, and the read is in the log before anything is answered, as every read is.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from remit import names
from remit.api.audit.v1 import audit_query_service_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.audit.archived_months import ArchivedMonth, ArchivedMonths
from remit.audit.filters import EventFilter, Walk
from remit.audit.log import AuditLog, LoggedEvent
from remit.audit.reading import ReadRecorder
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.remits import Remit, RemitVerifier

Request = audit_query_service_pb2.ListRunEventsRequest


class RunPage(NamedTuple):
    """Events of a run, whether there are more, and the dropped months that may have held some."""

    events: list[LoggedEvent]
    has_more: bool
    archived: list[ArchivedMonth]


class RunEvents:
    """Reads the events of runs, and records each read."""

    def __init__(
        self,
        log: AuditLog,
        reads: ReadRecorder,
        remits: RemitVerifier,
        months: ArchivedMonths,
        *,
        default: int,
        most: int,
    ) -> None:
        self._log = log
        self._reads = reads
        self._remits = remits
        self._months = months
        self._default = default
        self._most = most

    async def page(self, request: Request) -> RunPage:
        """The next events of a run, newest first, and whether there are more.

        Raises INVALID_REQUEST, REMIT_INVALID for a remit that is no client's, and whatever keeps
        the read from being recorded: then nothing may be read.
        """
        _check(request)
        reader = await self._reader(request.remit)
        before = request.before_leaf_index if request.HasField("before_leaf_index") else None
        asked = {"run": request.run, "before_leaf_index": before}
        read_index = await self._reads.record(asked, reader)
        size = min(request.page_size or self._default, self._most)
        wanted = EventFilter(org=reader.org, run=request.run)
        high = read_index if before is None else before
        # A run is of one org, so each event of the run that is looked at is wanted.
        found = await self._log.list_events(wanted, Walk(high, most=size + 1), limit=size + 1)
        low = found[size - 1].leaf_index if len(found) > size else 0
        missed = await self._months.missed(wanted, low, high)
        return RunPage(found[:size], len(found) > size, missed)

    async def _reader(self, token: str) -> Remit:
        reader = await self._remits.verify(
            token, audience=options_pb2.CALLER_AUDIT, presenter=options_pb2.CALLER_PUBLIC
        )
        if reader.is_run:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_REMIT_INVALID, "a run reads no log: a client does"
            )
        return reader


_SIZE: Final = Violation("page_size", "must not be negative")


def _check(request: Request) -> None:
    violations = [] if request.page_size >= 0 else [_SIZE]
    if not names.is_name("run", request.run):
        violations.append(Violation("run", "is not the name of a run"))
    if violations:
        raise invalid_request(violations)

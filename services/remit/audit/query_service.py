"""AuditQueryService: events for those who may read them, proofs for everybody who may ask."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc

from remit.api.audit.v1 import audit_query_service_pb2, audit_query_service_pb2_grpc, event_pb2
from remit.audit import merkle
from remit.audit.archived_leaves import ArchivedLeaves
from remit.audit.archived_months import ArchivedMonths, messages
from remit.audit.checkpoints import CheckpointSigner, SignedCheckpoint
from remit.audit.completeness_check import CompletenessCheck
from remit.audit.filters import EventFilter, Walk
from remit.audit.log import AuditLog, LoggedEvent
from remit.audit.reading import (
    ReadRecorder,
    asked,
    check_page_token,
    page_token,
    place_asked,
    place_of,
    read_filter,
    read_page_token,
)
from remit.audit.run_events import RunEvents
from remit.audit.tail import Tail
from remit.rpc.calls import current_remit
from remit.rpc.errors import Violation, check_all, invalid_request

_MAX_PAGE_BYTES: Final = 3 * 1024 * 1024
"""Events of a page together; the contract lets a response have 4 MiB, frames included."""

_MOST_TOKEN_CHARS: Final = 100
"""Of a token that a read is recorded with; none that is one is longer."""


@dataclass(frozen=True)
class PageSizes:
    """Events of a page: when nothing is asked, at most, and looked at for it at most.

    Leaves of one message of an export.
    """

    default: int
    most: int
    looked_at: int
    export_leaves: int


class AuditQueryService(audit_query_service_pb2_grpc.AuditQueryServiceServicer):
    """Reads the log."""

    def __init__(  # noqa: PLR0913 - its collaborators, each used
        self,
        log: AuditLog,
        checkpoints: CheckpointSigner,
        reads: ReadRecorder,
        sizes: PageSizes,
        run_events: RunEvents,
        check: CompletenessCheck,
        *,
        tail: Tail,
        months: ArchivedMonths,
        leaves: ArchivedLeaves,
    ) -> None:
        self._log = log
        self._store = log.store
        self._checkpoints = checkpoints
        self._reads = reads
        self._sizes = sizes
        self._run_events = run_events
        self._check = check
        self._tail = tail
        self._months = months
        self._leaves = leaves

    async def ListEvents(
        self,
        request: audit_query_service_pb2.ListEventsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> audit_query_service_pb2.ListEventsResponse:
        """List events of the caller's org, newest first; see the contract."""
        org = current_remit().org
        check_all(
            partial(read_filter, request, org, self._log.pseudonym_of),
            partial(_check_page_size, request.page_size),
            partial(check_page_token, request.page_token),
        )
        wanted = read_filter(request, org, self._log.pseudonym_of)
        before = read_page_token(request.page_token, wanted) if request.page_token else None
        detail = asked(request, org, self._log.hiding_users) | {"page_token": request.page_token}
        read_index = await self._reads.record(detail)
        limit = min(request.page_size or self._sizes.default, self._sizes.most)
        return await self._page(wanted, read_index if before is None else before, limit)

    async def ListRunEvents(
        self,
        request: audit_query_service_pb2.ListRunEventsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> audit_query_service_pb2.ListRunEventsResponse:
        """List the events of a run that the agent service explains; see the contract."""
        found = await self._run_events.page(request)
        page = _fitting([_logged(event) for event in found.events])
        return audit_query_service_pb2.ListRunEventsResponse(
            events=page,
            has_more=found.has_more or len(page) < len(found.events),
            archived_months=messages(found.archived),
        )

    async def CheckCompleteness(
        self,
        request: audit_query_service_pb2.CheckCompletenessRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[audit_query_service_pb2.CheckCompletenessResponse]:
        """Compare the log with all that happened; see the contract."""
        await self._reads.record({"resume_token": request.resume_token[:_MOST_TOKEN_CHARS]})
        async for step in self._check.run(current_remit().org, request.resume_token):
            yield step

    async def TailEvents(
        self,
        request: audit_query_service_pb2.TailEventsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[audit_query_service_pb2.TailEventsResponse]:
        """Follow events of the caller's org; see the contract."""
        org = current_remit().org
        check_all(
            partial(read_filter, request, org, self._log.pseudonym_of),
            partial(_check_place, request.after_sequence),
        )
        wanted = read_filter(request, org, self._log.pseudonym_of)
        detail = asked(request, org, self._log.hiding_users)
        now = await self._reads.record(detail | place_asked(request))
        start = place_of(request, now)
        async for piece in self._tail.follow(wanted, start, end=now if request.until_now else None):
            missed = await self._missed(wanted, start, piece.size)
            start = piece.size
            events = [_logged(event) for event in piece.events]
            part = _fitting(events)
            while len(part) < len(events):
                yield _told(part[-1].leaf_index + 1, part, missed)
                missed = []  # told first: a stream that breaks goes on behind it
                events = events[len(part) :]
                part = _fitting(events)
            yield _told(piece.size, part, missed)

    async def GetCheckpoint(
        self,
        request: audit_query_service_pb2.GetCheckpointRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> audit_query_service_pb2.GetCheckpointResponse:
        """Return a checkpoint; see the contract."""
        if request.min_tree_size < 0:
            raise invalid_request([Violation("min_tree_size", "must not be negative")])
        checkpoint = await self._checkpoints.covering(request.min_tree_size)
        return audit_query_service_pb2.GetCheckpointResponse(
            checkpoint=_checkpoint(checkpoint), key_rotations=self._checkpoints.rotations
        )

    async def GetInclusionProof(
        self,
        request: audit_query_service_pb2.GetInclusionProofRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> audit_query_service_pb2.GetInclusionProofResponse:
        """Prove that a leaf is in a tree; see the contract."""
        index, size = request.leaf_index, request.tree_size
        found = await self._size_violations("tree_size", size)
        if index < 0 or (not found and index >= size):
            fault = f"is {index}; a tree of {size} leaves has 0 to {size - 1}"
            found.append(Violation("leaf_index", fault))
        _require(found)
        leaf = merkle.LeafRange(index, index + 1)
        hashes = await self._store.range_hashes([leaf, *merkle.inclusion_ranges(index, size)])
        return audit_query_service_pb2.GetInclusionProofResponse(
            leaf_hash=hashes[0], hashes=hashes[1:]
        )

    async def GetConsistencyProof(
        self,
        request: audit_query_service_pb2.GetConsistencyProofRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> audit_query_service_pb2.GetConsistencyProofResponse:
        """Prove that one tree is a prefix of another; see the contract."""
        first, second = request.first_tree_size, request.second_tree_size
        found = await self._size_violations("second_tree_size", second)
        if first < 1 or (not found and first > second):
            fault = f"is {first}; 1 to the second size, {second}, are accepted"
            found.append(Violation("first_tree_size", fault))
        _require(found)
        hashes = await self._store.range_hashes(merkle.consistency_ranges(first, second))
        return audit_query_service_pb2.GetConsistencyProofResponse(hashes=hashes)

    async def ExportLog(
        self,
        request: audit_query_service_pb2.ExportLogRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[audit_query_service_pb2.ExportLogResponse]:
        """Stream a checkpoint and every leaf below it; see the contract."""
        start = request.start_index
        _check_export(request)
        await self._reads.record({"start_index": start, "tree_size": request.tree_size})
        checkpoint = await self._export_checkpoint(request.tree_size)
        if start > checkpoint.tree_size:
            fault = f"is {start}, but the export has {checkpoint.tree_size} leaves"
            raise invalid_request([Violation("start_index", fault)])
        yield audit_query_service_pb2.ExportLogResponse(
            sequence=start,
            checkpoint=_checkpoint(checkpoint),
            key_rotations=self._checkpoints.rotations,
        )
        while start < checkpoint.tree_size:
            stop = min(start + self._sizes.export_leaves, checkpoint.tree_size)
            leaves = await self._leaves.read(start, stop)
            yield audit_query_service_pb2.ExportLogResponse(sequence=start, leaves=leaves)
            start = stop

    async def _page(
        self, wanted: EventFilter, before_index: int, limit: int
    ) -> audit_query_service_pb2.ListEventsResponse:
        walk = Walk(before_index, self._sizes.looked_at)
        events = await self._log.list_events(wanted, walk, limit=limit + 1)
        page = _fitting([_logged(event) for event in events[:limit]])
        goes_on = page[-1].leaf_index if len(page) < len(events) else None
        if len(events) <= limit and goes_on is None:
            goes_on = await self._store.walked_to(wanted, walk)
        return audit_query_service_pb2.ListEventsResponse(
            events=page,
            next_page_token="" if goes_on is None else page_token(goes_on, wanted),
            archived_months=await self._missed(wanted, goes_on or 0, before_index),
        )

    async def _missed(
        self, wanted: EventFilter, low: int, high: int
    ) -> list[event_pb2.ArchivedMonth]:
        """The dropped months among leaves that were looked at."""
        return messages(await self._months.missed(wanted, low, high)) if low < high else []

    async def _size_violations(self, field: str, tree_size: int) -> list[Violation]:
        size = await self._store.size()
        if 1 <= tree_size <= size:
            return []
        return [Violation(field, f"is {tree_size}; the log has {size} leaves")]

    async def _export_checkpoint(self, tree_size: int) -> SignedCheckpoint:
        if tree_size == 0:
            return await self._checkpoints.covering_all()
        return await self._checkpoints.at_size(tree_size)


def _check_page_size(page_size: int) -> None:
    if page_size < 0:
        raise invalid_request([Violation("page_size", "must not be negative")])


def _check_place(after: int) -> None:
    if after < 0:
        raise invalid_request([Violation("after_sequence", "must not be negative")])


def _require(violations: list[Violation]) -> None:
    if violations:
        raise invalid_request(violations)


def _fitting(
    events: list[audit_query_service_pb2.LoggedEvent],
) -> list[audit_query_service_pb2.LoggedEvent]:
    """The first of them that fit into one response; always one at least."""
    total_bytes = 0
    fitting: list[audit_query_service_pb2.LoggedEvent] = []
    for event in events:
        total_bytes += event.ByteSize()
        if fitting and total_bytes > _MAX_PAGE_BYTES:
            break
        fitting.append(event)
    return fitting


def _check_export(request: audit_query_service_pb2.ExportLogRequest) -> None:
    violations = [
        Violation(field, "must not be negative")
        for field in ("start_index", "tree_size")
        if getattr(request, field) < 0
    ]
    if request.start_index > 0 and not request.tree_size:
        violations.append(
            Violation("tree_size", "must be that of the export which `start_index` resumes")
        )
    if violations:
        raise invalid_request(violations)


def _checkpoint(checkpoint: SignedCheckpoint) -> event_pb2.Checkpoint:
    return event_pb2.Checkpoint(
        tree_size=checkpoint.tree_size,
        root_hash=checkpoint.root_hash,
        signed_note=checkpoint.signed_note,
    )


def _told(
    sequence: int,
    events: list[audit_query_service_pb2.LoggedEvent],
    missed: Sequence[event_pb2.ArchivedMonth] = (),
) -> audit_query_service_pb2.TailEventsResponse:
    return audit_query_service_pb2.TailEventsResponse(
        sequence=sequence, events=events, archived_months=missed
    )


def _logged(logged: LoggedEvent) -> audit_query_service_pb2.LoggedEvent:
    message = audit_query_service_pb2.LoggedEvent(leaf_index=logged.leaf_index, event=logged.event)
    message.append_time.FromDatetime(logged.append_time)
    return message

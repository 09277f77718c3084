"""ApprovalService: what waits for people, and their decisions. Proto in, proto out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import grpc

from remit import names
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.policy.v1 import approval_pb2, approval_service_pb2, approval_service_pb2_grpc
from remit.approvals import DIGEST_BYTES
from remit.idempotency import AdminRecorder, AdminRequest, refused, request_id_violations
from remit.policy.approval_arguments import ApprovalArguments
from remit.policy.approval_keeper import ApprovalKeeper
from remit.policy.approval_rows import ApprovalRow, State, Verdict, Vote, to_message
from remit.policy.approval_store import DECIDED, ApprovalStore, Seer, already_given, facts_of
from remit.policy.approval_terms import words_of
from remit.policy.entities import SERVICE_ACCOUNT
from remit.policy.epochs import Policies
from remit.policy.remits import principal_of
from remit.policy.rules import Question
from remit.policy.store import PolicyStore
from remit.rpc.calls import current_call, current_remit
from remit.rpc.errors import RemitError, Violation, check_all, invalid_request
from remit.rpc.remits import Remit

Context = grpc.aio.ServicerContext[Any, Any]

_ADMIN: Final = "admin"
_MAX_REASON_CHARS: Final = 1000
_DEFAULT_PAGE: Final = 20
_MAX_PAGE: Final = 100
_WATCH_PAGE: Final = 50
_RECORDED: Final = frozenset(
    {
        reasons.ERROR_REASON_APPROVAL_NOT_YOURS,
        reasons.ERROR_REASON_APPROVAL_MISMATCH,
        reasons.ERROR_REASON_APPROVAL_ALREADY_GIVEN,
        reasons.ERROR_REASON_APPROVAL_CLOSED,
        reasons.ERROR_REASON_PERMISSION_DENIED,
    }
)
"""Refusals of a decision that the audit log tells of."""
_VERDICTS: Final = {
    approval_pb2.APPROVAL_VERDICT_APPROVE: Verdict.APPROVE,
    approval_pb2.APPROVAL_VERDICT_DENY: Verdict.DENY,
}


class ApprovalService(approval_service_pb2_grpc.ApprovalServiceServicer):
    """Shows a caller what concerns them within their own org, and takes their decision."""

    def __init__(  # noqa: PLR0913 - its collaborators, by name
        self,
        *,
        store: ApprovalStore,
        arguments: ApprovalArguments,
        policy_store: PolicyStore,
        policies: Policies,
        recorder: AdminRecorder,
        keeper: ApprovalKeeper,
        heartbeat_s: float,
    ) -> None:
        self._store = store
        self._arguments = arguments
        self._policy_store = policy_store
        self._policies = policies
        self._recorder = recorder
        self._keeper = keeper
        self._heartbeat_s = heartbeat_s

    async def ListApprovals(
        self, request: approval_service_pb2.ListApprovalsRequest, context: Context
    ) -> approval_service_pb2.ListApprovalsResponse:
        """List approvals, newest first; a page token is the id of the last one shown."""
        caller = current_remit()
        _check_list(request)
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        rows = await self._store.page(
            caller.org,
            _seer(caller),
            state=_state_word(request.state),
            run=request.run,
            after=request.page_token,
            limit=size + 1,
        )
        response = approval_service_pb2.ListApprovalsResponse(
            approvals=[to_message(row) for row in rows[:size]]
        )
        if len(rows) > size:
            response.next_page_token = rows[size - 1].approval
        return response

    async def GetApproval(
        self, request: approval_service_pb2.GetApprovalRequest, context: Context
    ) -> approval_service_pb2.GetApprovalResponse:
        """Return one."""
        row = await self._visible(current_remit(), request.name)
        shown = await self._arguments.opened(row)
        return approval_service_pb2.GetApprovalResponse(
            approval=to_message(shown, with_arguments=True)
        )

    async def WatchApprovals(
        self, request: approval_service_pb2.WatchApprovalsRequest, context: Context
    ) -> AsyncIterator[approval_service_pb2.WatchApprovalsResponse]:
        """Follow them: what is pending, then every change."""
        caller, place = current_remit(), request.after_sequence
        if place < 0:
            raise invalid_request([Violation("after_sequence", "must not be negative")])
        pending_only = not place
        with self._keeper.followed():
            while True:
                head = await self._store.newest_sequence()
                while place < head:
                    rows = await self._store.changed(
                        caller.org,
                        _seer(caller),
                        after=place,
                        through=head,
                        pending_only=pending_only,
                        limit=_WATCH_PAGE,
                    )
                    for row in rows:
                        place = row.sequence
                        yield _piece(place, row)
                    if len(rows) < _WATCH_PAGE:
                        place = head
                pending_only = False
                yield approval_service_pb2.WatchApprovalsResponse(sequence=place)
                await self._keeper.reaches(place, self._heartbeat_s)

    async def DecideApproval(
        self, request: approval_service_pb2.DecideApprovalRequest, context: Context
    ) -> approval_service_pb2.DecideApprovalResponse:
        """Take what a person says. It counts once it is in the audit log."""
        caller = current_remit()
        check_all(partial(_check_decision, request), partial(_check_name, request.name))
        row = await self._visible(caller, request.name)
        asked = _admin_request(caller, request, row)
        if await self._policy_store.known_change(asked) is None:
            try:
                await self._take(caller, request, row, asked)
            except RemitError as refusal:
                await self._record_refusal(asked, row, refusal)
                raise
        await self._record(asked)
        decided = await self._store.settle(row.approval)
        return approval_service_pb2.DecideApprovalResponse(approval=to_message(decided))

    async def _visible(self, caller: Remit, name: str) -> ApprovalRow:
        """An approval that concerns the caller; any other does not exist for them."""
        _check_name(name)
        row = await self._store.get(names.parse("approval", name)[0])
        if row is None or row.org != caller.org or not _seer(caller).sees(row):
            raise RemitError(reasons.ERROR_REASON_APPROVAL_NOT_FOUND, f"{name} does not exist")
        return row

    async def _take(
        self,
        caller: Remit,
        request: approval_service_pb2.DecideApprovalRequest,
        row: ApprovalRow,
        asked: AdminRequest,
    ) -> None:
        """Keeps a decision. Raises why it is none."""
        refusal = _refusal(caller, request, row) or await self._forbidden(caller, row)
        if refusal is not None:
            raise refusal
        await self._store.vote(
            row.approval,
            _vote(caller, request),
            asked,
            lambda now: _refusal(caller, request, now),
        )

    async def _record_refusal(
        self, asked: AdminRequest, row: ApprovalRow, refusal: RemitError
    ) -> None:
        """Notes in the audit log that somebody may not decide, or not so, or not any more."""
        if refusal.reason not in _RECORDED:
            return
        facts = {**facts_of(row), "reason": refusal.reason_name, "message": refusal.message}
        note = refused(asked, json.dumps(facts, sort_keys=True))
        await self._store.keep_refusal(note)
        await self._record(note)

    async def _record(self, request: AdminRequest) -> None:
        change = await self._policy_store.known_change(request)
        if change is not None:
            await self._recorder.record(change)

    async def _forbidden(self, caller: Remit, row: ApprovalRow) -> RemitError | None:
        book = await self._policies.newest()
        question = Question(principal_of(caller), DECIDED, row.name, requester=row.requester)
        decision = book.decide(question)
        if decision.allow:
            return None
        return RemitError(
            reasons.ERROR_REASON_PERMISSION_DENIED,
            f"{caller.subject} may not perform {DECIDED} on {row.name}: {decision.reason}",
            metadata={"permission": DECIDED, "policy_ids": ",".join(decision.policy_ids)},
        )


def _refusal(
    caller: Remit, request: approval_service_pb2.DecideApprovalRequest, row: ApprovalRow
) -> RemitError | None:
    """Why somebody may not decide, or not so, or not any more."""
    not_theirs = _not_theirs(caller, row)
    if not_theirs:
        return RemitError(reasons.ERROR_REASON_APPROVAL_NOT_YOURS, not_theirs)
    if request.digest != row.digest:
        return RemitError(
            reasons.ERROR_REASON_APPROVAL_MISMATCH,
            f"{row.name} is bound to another digest than the one that was decided about",
        )
    if any(vote.subject == caller.subject for vote in row.votes):
        return already_given(caller.subject, row.approval)
    if row.state is not State.PENDING or row.is_late:
        state = State.EXPIRED if row.state is State.PENDING else row.state
        since = row.end_time or row.expire_time
        return RemitError(
            reasons.ERROR_REASON_APPROVAL_CLOSED,
            f"{row.name} is {state} since {since.astimezone(UTC).isoformat(timespec='seconds')};"
            " it cannot be decided any more",
        )
    return None


def _not_theirs(caller: Remit, row: ApprovalRow) -> str:
    """Why it is not the caller's to decide; empty if it is."""
    if caller.subject == row.requester:
        return (
            f"{caller.subject} asked for {row.name}; nobody decides about what they asked for"
            " themselves"
        )
    if SERVICE_ACCOUNT in caller.roles:
        return f"{caller.subject} is a service account; only people decide about {row.name}"
    if caller.is_run or not _is_asked(caller, row):
        wanted = "; ".join(" or ".join(rule.approvers) for rule in row.rules)
        return f"{caller.subject} is not asked for {row.name}; it wants {wanted}"
    return ""


def _is_asked(caller: Remit, row: ApprovalRow) -> bool:
    words = _words(caller)
    return any(not words.isdisjoint(rule.approvers) for rule in row.rules)


def _words(caller: Remit) -> frozenset[str]:
    return words_of(caller.subject, caller.team, caller.roles)


def _seer(caller: Remit) -> Seer:
    return Seer(caller.subject, _words(caller), sees_all=_ADMIN in caller.roles)


def _vote(caller: Remit, request: approval_service_pb2.DecideApprovalRequest) -> Vote:
    return Vote(
        subject=caller.subject,
        verdict=_VERDICTS[request.verdict],
        reason=request.reason,
        words=_words(caller),
        request_id=request.request_id,
        create_time=datetime.now(UTC),  # the database has its own
    )


def _admin_request(
    caller: Remit, request: approval_service_pb2.DecideApprovalRequest, row: ApprovalRow
) -> AdminRequest:
    said = {"verdict": _VERDICTS[request.verdict], "why": request.reason}
    body = {**said, "name": row.name, "digest": request.digest.hex()}
    return AdminRequest(
        subject=caller.subject,
        method=DECIDED,
        request_id=request.request_id,
        org=caller.org,
        body_digest=hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest(),
        action=DECIDED,
        resource=row.name,
        detail=json.dumps({**facts_of(row), **said}, sort_keys=True),
        trace_id=current_call().trace_id,
    )


def _piece(sequence: int, row: ApprovalRow) -> approval_service_pb2.WatchApprovalsResponse:
    return approval_service_pb2.WatchApprovalsResponse(sequence=sequence, approval=to_message(row))


def _state_word(state: approval_pb2.ApprovalState.ValueType) -> str:
    if state == approval_pb2.APPROVAL_STATE_UNSPECIFIED:
        return ""
    return approval_pb2.ApprovalState.Name(state).removeprefix("APPROVAL_STATE_")


def _check_list(request: approval_service_pb2.ListApprovalsRequest) -> None:
    found = []
    if request.page_size < 0:
        found.append(Violation("page_size", "must not be negative"))
    if request.state not in approval_pb2.ApprovalState.values():
        found.append(Violation("state", "is none that there is"))
    if request.run and not names.is_name("run", request.run):
        found.append(Violation("run", "must be `runs/{uuid}` or empty"))
    if request.page_token and not names.is_name("approval", f"approvals/{request.page_token}"):
        found.append(Violation("page_token", "is not one that a page came with"))
    if found:
        raise invalid_request(found)


def _check_name(name: str) -> None:
    if not names.is_name("approval", name):
        raise invalid_request([Violation("name", "must be `approvals/{uuid}`")])


def _check_decision(request: approval_service_pb2.DecideApprovalRequest) -> None:
    found = request_id_violations(request.request_id)
    if request.verdict not in _VERDICTS:
        found.append(Violation("verdict", "must be APPROVE or DENY"))
    if len(request.digest) != DIGEST_BYTES:
        found.append(Violation("digest", f"must have {DIGEST_BYTES} bytes"))
    if len(request.reason) > _MAX_REASON_CHARS:
        found.append(Violation("reason", f"has more than {_MAX_REASON_CHARS} characters"))
    if request.verdict == approval_pb2.APPROVAL_VERDICT_DENY and not request.reason.strip():
        found.append(Violation("reason", "must say why; whoever asked is told"))
    if found:
        raise invalid_request(found)

"""PolicyService: decisions for the effect gate, remits for runs. Proto in, proto out.

Every decision reads the run's fence and the epoch in force from the database, never from a cache. A
batch reads them once, in one statement, and each of its questions is answered on its own.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any, Final
from uuid import UUID

import grpc
from google.protobuf import duration_pb2, timestamp_pb2

from remit.access_recorder import AccessRecorder
from remit.api.errors.v1.error_reason_pb2 import (
    ERROR_REASON_PERMISSION_DENIED,
    ERROR_REASON_REMIT_INVALID,
    ERROR_REASON_RUN_NOT_FOUND,
)
from remit.api.options.v1 import options_pb2
from remit.api.options.v1.options_pb2 import Caller
from remit.api.policy.v1 import policy_service_pb2, policy_service_pb2_grpc
from remit.guardrails import Wanted, wanted_of
from remit.policy.approval_desk import ApprovalDesk, Verdict, unapproved_repetition
from remit.policy.checks import (
    answer_of,
    decision_id,
    outside_remit,
    question_of,
    refused_by_remit,
    violations,
)
from remit.policy.decision_record import DecisionRecord
from remit.policy.entities import Principal
from remit.policy.epochs import Policies
from remit.policy.guarding import wanted_for_run
from remit.policy.key_ring import KeyRing
from remit.policy.limit_book import LimitBook
from remit.policy.metrics import count_decision, note_undecided, unasked_counted
from remit.policy.registration import (
    check_delegation,
    check_issue,
    check_restated,
    check_starts_runs,
    registration_of,
    run_violations,
    sub_registration,
)
from remit.policy.remits import Issued, RemitIssuer, principal_of
from remit.policy.rules import Decision, Question, RuleBook
from remit.policy.runs import Fences, Registration, RunStore
from remit.policy.schema import RUN_AGENT
from remit.policy.shadow import Shadow
from remit.policy.standing import (
    check_counts,
    check_fence,
    facts_about,
    facts_about_client,
    lapsed,
)
from remit.policy.telling import DecisionTeller, Registering
from remit.rpc.calls import current_call
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.ids import IdSource
from remit.rpc.parties import caller_label
from remit.rpc.remits import Remit, RemitVerifier

Context = grpc.aio.ServicerContext[Any, Any]

MAX_BATCH: Final = 256
"""Questions in one BatchCheckPermissions, as its contract states."""
_KNOWN_RUNS: Final = 4096
_CONTINUATION_S: Final = 600.0
"""How long after its remit expired an effect may go on, as CheckPermissionRequest states; no call
lasts longer than five minutes."""


class PolicyService(policy_service_pb2_grpc.PolicyServiceServicer):
    """The hot path of policy."""

    def __init__(  # noqa: PLR0913 - its collaborators, each used
        self,
        *,
        policies: Policies,
        runs: RunStore,
        approvals: ApprovalDesk,
        keys: KeyRing,
        issuer: RemitIssuer,
        verifier: RemitVerifier,
        ids: IdSource,
        record: DecisionRecord,
        shadow: Shadow,
        accesses: AccessRecorder,
        limits: LimitBook,
        decision_valid_s: float,
    ) -> None:
        self._policies = policies
        self._runs = runs
        self._approvals = approvals
        self._keys = keys
        self._issuer = issuer
        self._verifier = verifier
        self._ids = ids
        self._record = record
        self._shadow = shadow
        self._teller = DecisionTeller(accesses)
        self._limits = limits
        self._decision_valid_s = decision_valid_s
        self._registered: OrderedDict[str, Registration] = OrderedDict()

    async def CheckPermission(
        self, request: policy_service_pb2.CheckPermissionRequest, context: Context
    ) -> policy_service_pb2.CheckPermissionResponse:
        """Decide one action."""
        remit = await self._admitted_or_error(request)
        with unasked_counted([request.resource]), self._teller.refusals(remit, request):
            if isinstance(remit, RemitError):
                raise remit
            fences = await self._runs.fences(*facts_about([remit]))
            book = await self._policies.at_least(fences.epoch)
            return await self._answer(book, fences, remit, request)

    async def BatchCheckPermissions(
        self, request: policy_service_pb2.BatchCheckPermissionsRequest, context: Context
    ) -> policy_service_pb2.BatchCheckPermissionsResponse:
        """Decide many actions; one that cannot be decided spoils no other."""
        if not 1 <= len(request.requests) <= MAX_BATCH:
            raise invalid_request([Violation("requests", f"must hold 1 to {MAX_BATCH} questions")])
        remits = [await self._admitted_or_error(item) for item in request.requests]
        with unasked_counted(item.resource for item in request.requests):
            admitted = [remit for remit in remits if isinstance(remit, Remit)]
            fences = await self._runs.fences(*facts_about(admitted))
            book = await self._policies.at_least(fences.epoch)
        response = policy_service_pb2.BatchCheckPermissionsResponse()
        for remit, item in zip(remits, request.requests, strict=True):
            response.results.append(await self._result(book, fences, remit, item))
            await asyncio.sleep(0)  # a decision takes a tenth of a millisecond: let others in
        return response

    async def IssueRemit(
        self, request: policy_service_pb2.IssueRemitRequest, context: Context
    ) -> policy_service_pb2.IssueRemitResponse:
        """Issue or renew the remit of a run."""
        check_issue(request)
        with self._teller.registering(request.run, request.agent) as asked:
            wanted, now = await self._wanted(request, asked)
            # A higher token fences lower ones whether or not it gets a remit.
            run = await self._runs.claim(request.run, request.fencing_token, wanted)
            if wanted is None:
                check_counts(now, run.principal)
            book = await self._policies.at_least(now.epoch)
        self._remember(run)
        guardrails = wanted_for_run(book, run)
        issued = self._issued(run, request.fencing_token, book, guardrails)
        response = policy_service_pb2.IssueRemitResponse(
            remit=issued.token, lifetime=_lifetime(issued), guardrails=guardrails.claim
        )
        if request.client_remit:
            unfinished = await self._limits.unfinished(run.subject)
            response.max_user_runs, response.max_org_runs = unfinished.user, unfinished.org
        return response

    async def DelegateRemit(
        self, request: policy_service_pb2.DelegateRemitRequest, context: Context
    ) -> policy_service_pb2.DelegateRemitResponse:
        """Issue or renew the remit of a sub-run."""
        check_delegation(request)
        with self._teller.registering(request.run, request.agent) as asked:
            parent, of_parent = await self._delegating(request.parent_remit)
            asked.principal = parent.principal
            wanted = sub_registration(parent, request)
            known, book = await self._standing(request.run)
            if known is None:
                _require_allowed(book, wanted.principal, asked)
            run = await self._runs.claim(request.run, request.fencing_token, wanted)
        self._remember(run)
        # Its parent may have been told more by the policies of a moment ago.
        guardrails = Wanted.of([of_parent, wanted_for_run(book, run)])
        issued = self._issued(run, request.fencing_token, book, guardrails)
        return policy_service_pb2.DelegateRemitResponse(
            remit=issued.token, lifetime=_lifetime(issued), guardrails=guardrails.claim
        )

    async def FenceRun(
        self, request: policy_service_pb2.FenceRunRequest, context: Context
    ) -> policy_service_pb2.FenceRunResponse:
        """Raise a run's least fencing token."""
        found = run_violations(request.run, "min_fencing_token", request.min_fencing_token)
        if found:
            raise invalid_request(found)
        token = await self._runs.fence(request.run, request.min_fencing_token)
        return policy_service_pb2.FenceRunResponse(min_fencing_token=token)

    async def BatchGetApprovals(
        self, request: policy_service_pb2.BatchGetApprovalsRequest, context: Context
    ) -> policy_service_pb2.BatchGetApprovalsResponse:
        """Tell how approvals stand that runs wait for."""
        return policy_service_pb2.BatchGetApprovalsResponse(
            approvals=await self._approvals.these(request.names)
        )

    async def WithdrawApprovals(
        self, request: policy_service_pb2.WithdrawApprovalsRequest, context: Context
    ) -> policy_service_pb2.WithdrawApprovalsResponse:
        """Withdraw what a run that ends still asks of people."""
        withdrawn = await self._approvals.withdraw(request.run)
        return policy_service_pb2.WithdrawApprovalsResponse(withdrawn=withdrawn)

    async def ListRemitKeys(
        self, request: policy_service_pb2.ListRemitKeysRequest, context: Context
    ) -> policy_service_pb2.ListRemitKeysResponse:
        """List the keys that verify remits."""
        response = policy_service_pb2.ListRemitKeysResponse()
        for key in await self._keys.listed():
            create_time = timestamp_pb2.Timestamp()
            create_time.FromDatetime(key.create_time)
            response.keys.add(key_id=key.key_id, public_key=key.public_key, create_time=create_time)
        return response

    # ------------------------------------------------------------------------------ decisions

    async def _admitted(self, request: policy_service_pb2.CheckPermissionRequest) -> Remit:
        """Verify a question's remit: made for policy, and for the service that asks."""
        found = violations(request)
        if found:
            raise invalid_request(found)
        remit = await self._verifier.verify(
            request.remit,
            audience=options_pb2.CALLER_POLICY,
            grace_s=_CONTINUATION_S if request.continuing else 0.0,
        )
        _check_party(remit, current_call().caller)
        return remit

    async def _admitted_or_error(
        self, request: policy_service_pb2.CheckPermissionRequest
    ) -> Remit | RemitError:
        try:
            return await self._admitted(request)
        except RemitError as error:
            return error

    async def _result(
        self,
        book: RuleBook,
        fences: Fences,
        remit: Remit | RemitError,
        request: policy_service_pb2.CheckPermissionRequest,
    ) -> policy_service_pb2.CheckPermissionResult:
        try:
            with unasked_counted([request.resource]), self._teller.refusals(remit, request):
                if isinstance(remit, RemitError):
                    raise remit
                answer = await self._answer(book, fences, remit, request)
        except RemitError as error:
            return policy_service_pb2.CheckPermissionResult(error=error.to_status())
        return policy_service_pb2.CheckPermissionResult(response=answer)

    async def _answer(
        self,
        book: RuleBook,
        fences: Fences,
        remit: Remit,
        request: policy_service_pb2.CheckPermissionRequest,
    ) -> policy_service_pb2.CheckPermissionResponse:
        check_fence(fences, remit)
        name = decision_id(request.claim, request.attempt, UUID(self._ids.uuid7()))
        decision = self._decide(book, fences, remit, request, name)
        decision = unapproved_repetition(decision, request)
        verdict = Verdict(decision)
        if decision.approval is not None:
            verdict = await self._approvals.answer(decision, decision.approval, remit, request)
        if decision.errors:
            note_undecided(decision, request.action, request.resource, decision=name)
        else:
            count_decision(request.resource, verdict.word)
        if verdict.approval or not verdict.is_waiting:
            self._teller.answered(remit, request, verdict.decision, name)
        return answer_of(verdict, name, self._decision_valid_s, book.clock.now())

    def _decide(
        self,
        book: RuleBook,
        fences: Fences,
        remit: Remit,
        request: policy_service_pb2.CheckPermissionRequest,
        name: str,
    ) -> Decision:
        ended = lapsed(fences, principal_of(remit), remit.api_key)
        if ended is not None:
            return refused_by_remit(ended.message, book.epoch)
        outside = outside_remit(remit, request.action, request.resource)
        if outside:
            return refused_by_remit(outside, book.epoch)
        question = question_of(remit, request)
        decision = book.decide(question)
        self._record.note(name, question, decision)
        self._shadow.note(name, question, decision)
        return decision

    # ----------------------------------------------------------------------------------- runs

    async def _wanted(
        self, request: policy_service_pb2.IssueRemitRequest, asked: Registering
    ) -> tuple[Registration | None, Fences]:
        """Return what the run shall be registered with; None if it is registered already.

        And where those stand for whom it acts, and the policies.
        """
        known = self._registered.get(request.run)
        if known is None:
            client = await self._client_or_error(request)
            known, now = await self._runs.look_up(request.run, *facts_about_client(client))
            if known is None:
                if isinstance(client, RemitError):
                    raise client
                return await self._register(request, client, now, asked), now
        who = asked.principal = known.principal
        check_restated(known, request)
        return None, await self._runs.fences((), (), (who.user, who.org))

    async def _standing(self, run: str) -> tuple[Registration | None, RuleBook]:
        """Return what a run is registered with, if it is, and the policies in force.

        Those of a moment ago would say what is screened for as long as the remit lives.
        """
        known = self._registered.get(run)
        if known is not None:
            return known, await self._policies.newest()
        known, now = await self._runs.look_up(run)
        return known, await self._policies.at_least(now.epoch)

    async def _client_or_error(
        self, request: policy_service_pb2.IssueRemitRequest
    ) -> Remit | RemitError:
        """The client's remit, verified; needed and looked at where the run is new alone."""
        if not request.client_remit:
            return RemitError(
                ERROR_REASON_RUN_NOT_FOUND,
                f"{request.run} is not registered; its first remit needs the client's own",
            )
        try:
            client = await self._verifier.verify(
                request.client_remit,
                audience=options_pb2.CALLER_POLICY,
                presenter=options_pb2.CALLER_PUBLIC,
            )
            _check_party(client, current_call().caller)
        except RemitError as error:
            return error
        return client

    async def _register(
        self,
        request: policy_service_pb2.IssueRemitRequest,
        client: Remit,
        now: Fences,
        asked: Registering,
    ) -> Registration:
        """Build the registration of a new run from the client's remit, if the rules allow it."""
        check_starts_runs(client)
        principal = asked.principal = principal_of(client)
        check_counts(now, principal, client.api_key)
        _require_allowed(await self._policies.at_least(now.epoch), principal, asked)
        return registration_of(principal, request)

    async def _delegating(self, parent_remit: str) -> tuple[Registration, Wanted]:
        """Return what the run is registered with that starts a sub-run, if it is still its own.

        And what its remit wants of guardrails.
        """
        remit = await self._verifier.verify(
            parent_remit,
            audience=options_pb2.CALLER_POLICY,
            presenter=options_pb2.CALLER_AGENT,
        )
        fences = await self._runs.fences(*facts_about([remit]))
        check_fence(fences, remit)
        check_counts(fences, principal_of(remit))
        known = self._registered.get(remit.run) or (await self._runs.look_up(remit.run))[0]
        if known is None:
            raise RemitError(
                ERROR_REASON_RUN_NOT_FOUND, f"{remit.run} was never registered with policy"
            )
        return known, wanted_of(remit.guardrails)

    def _issued(
        self, run: Registration, fencing_token: int, book: RuleBook, guardrails: Wanted
    ) -> Issued:
        return self._issuer.for_run(run, fencing_token, epoch=book.epoch, guardrails=guardrails)

    def _remember(self, run: Registration) -> None:
        """Keep a registration, which never changes, to spare renewals a query."""
        self._registered[run.run] = run
        self._registered.move_to_end(run.run)
        if len(self._registered) > _KNOWN_RUNS:
            self._registered.popitem(last=False)


def _check_party(remit: Remit, caller: Caller.ValueType) -> None:
    """Refuse a service that may not accept the remit which it shows."""
    if caller not in remit.audience:
        raise RemitError(
            ERROR_REASON_REMIT_INVALID, f"the remit is not meant for {caller_label(caller)}"
        )


def _require_allowed(book: RuleBook, principal: Principal, asked: Registering) -> None:
    """Raise PERMISSION_DENIED unless the rules let the principal run the agent."""
    agent = asked.agent
    decision = book.decide(Question(principal, RUN_AGENT, agent))
    note_undecided(decision, RUN_AGENT, agent)
    asked.decided(principal, decision)
    if not decision.allow:
        raise RemitError(
            ERROR_REASON_PERMISSION_DENIED,
            f"{principal.user} may not perform {RUN_AGENT} on {agent}: {decision.reason}",
            metadata={"permission": RUN_AGENT, "policy_ids": ",".join(decision.policy_ids)},
        )


def _lifetime(issued: Issued) -> duration_pb2.Duration:
    lifetime = duration_pb2.Duration()
    lifetime.FromNanoseconds(int(issued.lifetime_s * 1e9))
    return lifetime

"""What stands around the agent service in its tests.

Policy, inference and tools that speak the contracts, record every effect once per key, and can be
told to fail, to hang or to be away.
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf import duration_pb2, json_format, struct_pb2
from google.rpc import status_pb2

from remit import names
from remit.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc, event_pb2
from remit.api.effects.v1 import attempt_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import (
    inference_service_pb2,
    inference_service_pb2_grpc,
    message_pb2,
)
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import approval_pb2, policy_service_pb2, policy_service_pb2_grpc
from remit.api.tools.v1 import tool_pb2, tool_service_pb2, tool_service_pb2_grpc
from remit.api.usage.v1 import usage_pb2
from remit.guardrails import parse_wanted
from remit.rpc.calls import current_remit
from remit.rpc.clock import SystemClock
from remit.rpc.contracts import permissions
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds
from remit.rpc.remits import Remit, RemitVerifier, encode_remit

Generate = inference_service_pb2.GenerateTextRequest
Turn = inference_service_pb2.GenerateTextResponse
TOOLS = ("calculator", "clock", "read_file", "search", "write_file", "send_email")
MODEL_COST_NANOS = 700
TOOL_COST_NANOS = 50


class Keys:
    """The key pair of this small policy; also where verifiers find it."""

    def __init__(self) -> None:
        self.private = Ed25519PrivateKey.generate()

    async def public_key(self, key_id: str) -> Ed25519PublicKey | None:
        return self.private.public_key() if key_id == "k1" else None

    def verifier(self) -> RemitVerifier:
        return RemitVerifier(self, SystemClock())

    def sign(self, remit: Remit) -> str:
        return encode_remit(remit, self.private)


def client_remit(user: str = "orgs/acme/users/alice", *roles: str) -> Remit:
    """The remit that the edge would give a client."""
    return _remit(
        user,
        presenter=options_pb2.CALLER_PUBLIC,
        audience=frozenset(
            {options_pb2.CALLER_AGENT, options_pb2.CALLER_AUDIT, options_pb2.CALLER_POLICY}
        ),
        roles=frozenset(roles or ("member",)),
        permissions=frozenset(permissions()),
    )


def _remit(user: str, *, presenter: Any, audience: frozenset[Any], **more: Any) -> Remit:
    now = datetime.now(UTC).replace(microsecond=0)
    agent, run = more.pop("agent", ""), more.pop("run", "")
    facts: dict[str, Any] = {
        "remit_id": SystemIds().uuid7(),
        "team": "",
        "tools": frozenset(),
        "models": frozenset(),
        "max_cost_nanos": None,
        "fencing_token": 0,
        "policy_epoch": 1,
        "roles": frozenset({"member"}),
        "key_id": "k1",
        "issue_time": now,
        "expire_time": now + timedelta(minutes=5),
    }
    return Remit(
        subject=user,
        agent=agent,
        run=run,
        presenter=presenter,
        audience=audience,
        account=names.account_path(user, agent=agent, run=run)[-1],
        **(facts | more),
    )


@dataclass
class Policy(policy_service_pb2_grpc.PolicyServiceServicer):
    """Registers runs, issues their remits, keeps their least tokens."""

    keys: Keys
    lifetime_s: float = 300.0
    registered: dict[str, policy_service_pb2.IssueRemitRequest] = field(default_factory=dict)
    delegated: dict[str, Remit] = field(default_factory=dict)
    """The remit of the parent that each sub-run was started with."""
    least: dict[str, int] = field(default_factory=dict)
    issued: list[tuple[str, int]] = field(default_factory=list)
    max_user_runs: int = 0
    max_org_runs: int = 0
    guardrails: dict[str, str] = field(default_factory=dict)
    """What policies want for the runs of an agent, as an annotation says it."""
    failures: list[RemitError] = field(default_factory=list)
    on_delegation: Callable[[str], Awaitable[None]] | None = None
    """Told of every sub-run that was registered, before its parent hears of it."""
    approvals: dict[str, str] = field(default_factory=dict)
    """Where approvals stand, such as PENDING."""
    asked_about: int = 0
    """Calls of BatchGetApprovals."""
    withdrawn: list[str] = field(default_factory=list)
    """Runs whose approvals were withdrawn."""
    approvals_away: bool = False

    async def BatchGetApprovals(
        self, request: Any, context: Any
    ) -> policy_service_pb2.BatchGetApprovalsResponse:
        self.asked_about += 1
        if self.approvals_away:
            raise away("policy")
        return policy_service_pb2.BatchGetApprovalsResponse(
            approvals=[
                approval_pb2.Approval(
                    name=name,
                    state=approval_pb2.ApprovalState.Value(
                        f"APPROVAL_STATE_{self.approvals[name]}"
                    ),
                )
                for name in request.names
                if name in self.approvals
            ]
        )

    async def WithdrawApprovals(
        self, request: Any, context: Any
    ) -> policy_service_pb2.WithdrawApprovalsResponse:
        if self.approvals_away:
            raise away("policy")
        self.withdrawn.append(request.run)
        return policy_service_pb2.WithdrawApprovalsResponse(withdrawn=1)

    async def IssueRemit(self, request: Any, context: Any) -> policy_service_pb2.IssueRemitResponse:
        if self.failures:
            raise self.failures.pop(0)
        if request.run not in self.registered:
            await self.keys.verifier().verify(
                request.client_remit, audience=options_pb2.CALLER_POLICY
            )
            self.registered[request.run] = request
        self._raise(request.run, request.fencing_token)
        if request.fencing_token < self.least[request.run]:
            raise fenced(request.run)
        self.issued.append((request.run, request.fencing_token))
        return policy_service_pb2.IssueRemitResponse(
            remit=await self._sign(self.registered[request.run], request.fencing_token),
            lifetime=duration_pb2.Duration(nanos=int(self.lifetime_s % 1 * 1e9))
            if self.lifetime_s < 1
            else duration_pb2.Duration(seconds=int(self.lifetime_s)),
            max_user_runs=self.max_user_runs,
            max_org_runs=self.max_org_runs,
            guardrails=self._wanted(self.registered[request.run].agent),
        )

    async def FenceRun(self, request: Any, context: Any) -> policy_service_pb2.FenceRunResponse:
        if self.failures:
            raise self.failures.pop(0)
        self._raise(request.run, request.min_fencing_token)
        return policy_service_pb2.FenceRunResponse(min_fencing_token=self.least[request.run])

    async def DelegateRemit(
        self, request: Any, context: Any
    ) -> policy_service_pb2.DelegateRemitResponse:
        if self.failures:
            raise self.failures.pop(0)
        parent = await self.keys.verifier().verify(
            request.parent_remit, audience=options_pb2.CALLER_POLICY
        )
        self.check(parent)
        if request.run not in self.registered:
            self.delegated[request.run] = parent
            self.registered[request.run] = policy_service_pb2.IssueRemitRequest(
                run=request.run,
                client_remit=self.registered[parent.run].client_remit,
                agent=request.agent,
                tools=request.tools,
                models=request.models,
                max_cost_nanos=request.max_cost_nanos,
            )
        issue = policy_service_pb2.IssueRemitRequest(
            run=request.run, fencing_token=request.fencing_token
        )
        issued = await self.IssueRemit(issue, context)
        if self.on_delegation is not None:
            await self.on_delegation(request.run)
        return policy_service_pb2.DelegateRemitResponse(
            remit=issued.remit, lifetime=issued.lifetime, guardrails=issued.guardrails
        )

    async def CheckPermission(self, request: Any, context: Any) -> Any:
        raise not_asked_for("CheckPermission")

    async def BatchCheckPermissions(self, request: Any, context: Any) -> Any:
        raise not_asked_for("BatchCheckPermissions")

    async def ListRemitKeys(self, request: Any, context: Any) -> Any:
        raise not_asked_for("ListRemitKeys")

    def check(self, remit: Remit) -> None:
        """What CheckPermission would say of a fenced remit."""
        if remit.fencing_token < self.least.get(remit.run, 0):
            raise fenced(remit.run)

    def _raise(self, run: str, token: int) -> None:
        self.least[run] = max(self.least.get(run, 0), token)

    def _wanted(self, agent: str) -> str:
        return parse_wanted(said).claim if (said := self.guardrails.get(agent)) else ""

    async def _sign(self, first: policy_service_pb2.IssueRemitRequest, token: int) -> str:
        client = await self.keys.verifier().verify(
            first.client_remit, audience=options_pb2.CALLER_POLICY
        )
        return self.keys.sign(
            _remit(
                client.subject,
                presenter=options_pb2.CALLER_AGENT,
                audience=frozenset(
                    {
                        options_pb2.CALLER_INFERENCE,
                        options_pb2.CALLER_TOOLS,
                        options_pb2.CALLER_POLICY,
                    }
                ),
                agent=first.agent,
                run=first.run,
                tools=frozenset(first.tools),
                models=frozenset(first.models),
                max_cost_nanos=first.max_cost_nanos,
                fencing_token=token,
                guardrails=self._wanted(first.agent),
            )
        )


def not_asked_for(method: str) -> RemitError:
    """The agent service has no business with this method."""
    return RemitError(reasons.ERROR_REASON_METHOD_UNKNOWN, method)


def fenced(run: str) -> RemitError:
    return RemitError(reasons.ERROR_REASON_FENCED, f"{run} is owned by a newer worker")


def away(area: str, retry_after_s: float = 0.05) -> RemitError:
    return RemitError(
        reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        f"the {area} service cannot be reached",
        retry_after_s=retry_after_s,
    )


@dataclass
class Effects:
    """The gate's promise in small: one key, one effect, one recorded answer."""

    policy: Policy
    recorded: dict[str, Any] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    performed: Counter[str] = field(default_factory=Counter)
    failures: list[RemitError] = field(default_factory=list)
    """Raised by the next calls, before anything happens."""
    hold: asyncio.Event | None = None
    """While set and not fired, effects hang after they were performed."""
    held: int = 0
    acknowledged: set[str] = field(default_factory=set)
    """Claims whose results the agent said to have recorded: they are kept no more."""
    wants_approval: set[str] = field(default_factory=set)
    """Parts of keys whose effects a person must approve."""
    away: bool = False
    """Whether acknowledgements fail, and attempts are not told."""
    attempts: dict[tuple[str, int], attempt_pb2.Attempt] = field(default_factory=dict)
    """What is told of attempts."""

    async def perform(self, key: str, body: bytes, effect: Callable[[], Any]) -> tuple[Any, bool]:
        """The answer, and whether it is a recorded one."""
        assert 1 <= len(key) <= 128
        if self.failures:
            raise self.failures.pop(0)
        self.policy.check(current_remit())
        if self.bodies.setdefault(key, body) != body:
            raise RemitError(reasons.ERROR_REASON_KEY_REUSED, f"{key} was used for another body")
        if key in self.recorded:
            if self.recorded[key].claim in self.acknowledged:
                raise RemitError(reasons.ERROR_REASON_RESULT_NOT_KEPT, f"{key} was recorded")
            return self.recorded[key], True
        if any(part in key for part in self.wants_approval):
            self._require_approval(key)
        self.performed[key] += 1
        self.recorded[key] = answer = effect()
        if self.hold is not None:
            self.held += 1
            await self.hold.wait()
        return answer, False

    def _require_approval(self, key: str) -> None:
        """Asks a person once, and does what was decided."""
        name = names.approval_name(str(uuid.uuid5(uuid.NAMESPACE_OID, key)))
        state = self.policy.approvals.setdefault(name, "PENDING")
        if state == "APPROVED":
            return
        is_pending = state == "PENDING"
        raise RemitError(
            reasons.ERROR_REASON_APPROVAL_REQUIRED
            if is_pending
            else reasons.ERROR_REASON_PERMISSION_DENIED,
            f"the effect waits for {name}" if is_pending else f"{name} is {state}",
            metadata={"approval": name, "approval_state": state},
        )

    def these(self, keys: Sequence[attempt_pb2.AttemptKey]) -> list[attempt_pb2.Attempt]:
        """Where attempts stand."""
        if self.away:
            raise away("the gate")
        unknown = attempt_pb2.Attempt.STATE_UNKNOWN
        return [
            self.attempts.get((key.claim, key.attempt), attempt_pb2.Attempt(key=key, state=unknown))
            for key in keys
        ]

    def acknowledge(self, claims: Sequence[str]) -> list[status_pb2.Status]:
        """Keeps these results no more; one that was never given is refused."""
        if self.away:
            raise away("the gate")
        given = {answer.claim for answer in self.recorded.values()}
        self.acknowledged |= given.intersection(claims)
        unknown = RemitError(reasons.ERROR_REASON_RESOURCE_NOT_FOUND, "no such claim").to_status()
        return [status_pb2.Status() if claim in given else unknown for claim in claims]


@dataclass
class Inference(inference_service_pb2_grpc.InferenceServiceServicer):
    """A model whose turns are a function of the request."""

    effects: Effects
    think: Callable[[Generate], Turn]
    requests: list[Generate] = field(default_factory=list)
    piece_chars: int = 5
    pieces: AsyncIterator[str] | None = None
    """Text sent before the turn, at the test's own pace."""
    silent: set[str] = field(default_factory=set)
    """Models that never answer and perform nothing."""
    left: Counter[str] = field(default_factory=Counter)
    """Calls of silent models that were given up."""
    breaks: int = 0
    """Streams that break off after their first piece."""

    async def StreamGenerateText(
        self, request: Any, context: Any
    ) -> AsyncIterator[inference_service_pb2.StreamGenerateTextResponse]:
        asked: Generate = request.request
        self.requests.append(asked)
        if asked.model in self.silent:
            try:
                await asyncio.Event().wait()
            finally:
                self.left[asked.model] += 1
        turn, replayed = await self.effects.perform(
            asked.request_id,
            asked.SerializeToString(deterministic=True),
            lambda: self.think(asked),
        )
        sequence = 0
        if not replayed:
            async for text in self._texts(turn):
                sequence += 1
                yield inference_service_pb2.StreamGenerateTextResponse(
                    sequence=sequence, text_delta=text
                )
                if self.breaks:
                    self.breaks -= 1
                    raise away("inference")
        response = Turn()
        response.CopyFrom(turn)
        response.replayed = replayed
        yield inference_service_pb2.StreamGenerateTextResponse(
            sequence=sequence + 1, response=response
        )

    async def GenerateText(self, request: Any, context: Any) -> Any:
        raise not_asked_for("GenerateText")

    async def AcknowledgeResults(
        self, request: Any, context: Any
    ) -> inference_service_pb2.AcknowledgeResultsResponse:
        results = self.effects.acknowledge(request.claims)
        return inference_service_pb2.AcknowledgeResultsResponse(results=results)

    async def BatchGetAttempts(
        self, request: Any, context: Any
    ) -> inference_service_pb2.BatchGetAttemptsResponse:
        attempts = self.effects.these(request.keys)
        return inference_service_pb2.BatchGetAttemptsResponse(attempts=attempts)

    async def _texts(self, turn: Turn) -> AsyncIterator[str]:
        if self.pieces is not None:
            async for text in self.pieces:
                yield text
            return
        text = turn.message.text
        for start in range(0, len(text), self.piece_chars):
            yield text[start : start + self.piece_chars]


@dataclass
class Tools(tool_service_pb2_grpc.ToolServiceServicer):
    """Tools whose results are a function of the request."""

    effects: Effects
    act: Callable[[tool_service_pb2.CallToolRequest], tool_service_pb2.CallToolResponse]
    names: tuple[str, ...] = TOOLS
    listings: int = 0
    most_at_once: int = 0
    at_once: int = 0

    async def ListTools(self, request: Any, context: Any) -> tool_service_pb2.ListToolsResponse:
        self.listings += 1
        return tool_service_pb2.ListToolsResponse(
            tools=[
                tool_pb2.Tool(
                    name=f"tools/{name}",
                    description=f"does {name}",
                    input_schema_json='{"type": "object"}',
                    idempotent=name == "calculator",
                )
                for name in self.names
            ]
        )

    async def GetTool(self, request: Any, context: Any) -> Any:
        raise not_asked_for("GetTool")

    async def AcknowledgeResults(
        self, request: Any, context: Any
    ) -> tool_service_pb2.AcknowledgeResultsResponse:
        results = self.effects.acknowledge(request.claims)
        return tool_service_pb2.AcknowledgeResultsResponse(results=results)

    async def BatchGetAttempts(
        self, request: Any, context: Any
    ) -> tool_service_pb2.BatchGetAttemptsResponse:
        attempts = self.effects.these(request.keys)
        return tool_service_pb2.BatchGetAttemptsResponse(attempts=attempts)

    async def GetWebhookKeys(self, request: Any, context: Any) -> Any:
        raise not_asked_for("GetWebhookKeys")

    async def CallTool(self, request: Any, context: Any) -> tool_service_pb2.CallToolResponse:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer, replayed = await self.effects.perform(
                request.request_id,
                request.SerializeToString(deterministic=True),
                lambda: self.act(request),
            )
        finally:
            self.at_once -= 1
        response = tool_service_pb2.CallToolResponse()
        response.CopyFrom(answer)
        response.replayed = replayed
        return response


def says(text: str, *calls: tuple[str, dict[str, Any]]) -> Turn:
    """A turn with a text and calls of tools, or of agents by their full names."""
    return Turn(
        message=message_pb2.Message(
            role=message_pb2.ROLE_ASSISTANT,
            text=text,
            tool_calls=[
                message_pb2.ToolCall(
                    id=f"c{i}",
                    tool=tool if "/" in tool else f"tools/{tool}",
                    arguments=_struct(arguments),
                )
                for i, (tool, arguments) in enumerate(calls)
            ],
        ),
        finish_reason=(
            message_pb2.FINISH_REASON_TOOL_CALLS if calls else message_pb2.FINISH_REASON_STOP
        ),
        usage=usage_pb2.Usage(input_tokens=10, output_tokens=5, calls=1),
        cost_nanos=MODEL_COST_NANOS,
        claim=names.claim_name(SystemIds().uuid7()),
        intent_leaf_index=7,
    )


def results(**result: Any) -> tool_service_pb2.CallToolResponse:
    """A tool's result."""
    return tool_service_pb2.CallToolResponse(
        result=_struct(result),
        usage=usage_pb2.Usage(calls=1),
        cost_nanos=TOOL_COST_NANOS,
        claim=names.claim_name(SystemIds().uuid7()),
        intent_leaf_index=8,
    )


def _struct(content: dict[str, Any]) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    json_format.ParseDict(content, struct)
    return struct


def multiplies(request: Generate) -> Turn:
    """Calls the calculator for `a * b` in the task, then answers with its result."""
    last = request.messages[-1]
    if last.role == message_pb2.ROLE_TOOL:
        return says(f"The result is {json.loads(last.text)['value']}.")
    found = re.search(r"(\d+) \* (\d+)", last.text)
    if found is None:
        return says(f"You said: {last.text}")
    return says("Let me compute.", ("calculator", {"expression": found[0]}))


def computes(request: tool_service_pb2.CallToolRequest) -> tool_service_pb2.CallToolResponse:
    """Multiplies."""
    left, right = str(request.arguments["expression"]).split(" * ")
    return results(value=int(left) * int(right))


@dataclass
class Log(audit_service_pb2_grpc.AuditServiceServicer):
    """Keeps events by their ids, as the contract of AppendEvents says; may be told to be away."""

    events: dict[str, event_pb2.Event] = field(default_factory=dict)
    is_away: bool = False

    async def AppendEvents(
        self, request: audit_service_pb2.AppendEventsRequest, context: Any
    ) -> audit_service_pb2.AppendEventsResponse:
        if self.is_away:
            raise away("audit")
        response = audit_service_pb2.AppendEventsResponse()
        for entry in request.entries:
            known = self.events.setdefault(entry.event.event_id, entry.event)
            if known == entry.event:
                response.results.add(leaf_index=list(self.events).index(known.event_id))
            else:
                reused = RemitError(reasons.ERROR_REASON_KEY_REUSED, known.event_id)
                response.results.add(error=reused.to_status())
        return response

    async def AppendOutcomes(
        self, request: audit_service_pb2.AppendOutcomesRequest, context: Any
    ) -> audit_service_pb2.AppendOutcomesResponse:
        raise NotImplementedError

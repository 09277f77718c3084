"""ToolService: proto in, proto out. Every call of a tool goes through the gate."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import grpc
from pydantic import BaseModel

from remit import names, telemetry, webhooks
from remit.api.errors.v1 import error_reason_pb2
from remit.api.tools.v1 import tool_pb2, tool_service_pb2, tool_service_pb2_grpc
from remit.effects import EffectGate, EffectOutcome, EffectRequest, Permit
from remit.guardrails import Direction, Screening, ServiceRules
from remit.rpc.calls import current_call, current_remit
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.remits import Remit
from remit.tools.arguments import NotJsonError, arguments_digest, plain_struct, validate
from remit.tools.context import ToolContext
from remit.tools.definition import ToolDefinition, canonical_json
from remit.tools.effect import ONE_CALL, ToolEffect
from remit.tools.execution import Execution
from remit.tools.registry import Registry, not_found
from remit.tools.screening import screened_call, screening_of
from remit.tools.webhook_keys import WebhookKeys

ACTION: Final = "tools.call"
"""Policy action of a call, and the space that its keys share."""
MAX_REQUEST_ID_CHARS: Final = 128
DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 200
ANSWER_MARGIN_S: Final = 0.25
"""Kept of the caller's time to record the result and answer."""

Context = grpc.aio.ServicerContext[Any, Any]

log = telemetry.logger(__name__)


class ToolService(tool_service_pb2_grpc.ToolServiceServicer):
    """Calls tools and tells which there are."""

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        *,
        registry: Registry,
        execution: Execution,
        gate: EffectGate,
        clock: Clock,
        workspaces: Path,
        webhook_keys: WebhookKeys,
        rules: ServiceRules,
    ) -> None:
        self._registry = registry
        self._execution = execution
        self._gate = gate
        self._clock = clock
        self._workspaces = workspaces
        self._webhook_keys = webhook_keys
        self._rules = rules

    async def CallTool(
        self, request: tool_service_pb2.CallToolRequest, context: Context
    ) -> tool_service_pb2.CallToolResponse:
        """Call a tool once, or return what was recorded under the key."""
        remit = current_remit()
        _check_call(request)
        definition = self._callable(request.tool, remit, request.request_id)
        rules = self._rules.of(remit)
        screening = screening_of(rules, request.tool, Direction.INPUT)
        screened = screened_call(request, screening)
        try:
            arguments = _arguments(definition, screened, screening)
        except RemitError as refusal:
            return _response(await self._done_before(request, definition, remit, refusal))
        self._execution.check_room()
        effect = ToolEffect(
            definition,
            definition.keywords(arguments),
            self._execution,
            _Contexts(definition, remit, _asked_s(request), self._clock, self._workspaces),
            rules,
            screened.arguments,
        )
        asked = _asked(request, screened, definition, remit)
        performed = await self._gate.perform(replace(asked, guardrails=screening.notes), effect)
        return _response(performed)

    async def AcknowledgeResults(
        self, request: tool_service_pb2.AcknowledgeResultsRequest, context: Context
    ) -> tool_service_pb2.AcknowledgeResultsResponse:
        """Keep results no more that the caller has recorded."""
        results = await self._gate.acknowledge(request.claims, current_call().caller)
        return tool_service_pb2.AcknowledgeResultsResponse(results=results)

    async def BatchGetAttempts(
        self, request: tool_service_pb2.BatchGetAttemptsRequest, context: Context
    ) -> tool_service_pb2.BatchGetAttemptsResponse:
        """Say where attempts stand."""
        attempts = await self._gate.attempts.these(request.keys)
        return tool_service_pb2.BatchGetAttemptsResponse(
            attempts=attempts, closing_bound=self._gate.attempts.closing_bound
        )

    async def ListAttempts(
        self, request: tool_service_pb2.ListAttemptsRequest, context: Context
    ) -> tool_service_pb2.ListAttemptsResponse:
        """List the attempts of a span of keys."""
        page = await self._gate.attempts.between(request.after, request.through, request.page_size)
        return tool_service_pb2.ListAttemptsResponse(
            attempts=page.attempts,
            has_more=page.has_more,
            closing_bound=self._gate.attempts.closing_bound,
            read_time=page.read_time,
        )

    async def ListTools(
        self, request: tool_service_pb2.ListToolsRequest, context: Context
    ) -> tool_service_pb2.ListToolsResponse:
        """List the tools that the remit offers, by name."""
        after = _after(request)
        size = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        rest = [each for each in self._offered(current_remit()) if each.name > after]
        more = len(rest) > size
        return tool_service_pb2.ListToolsResponse(
            tools=[to_message(definition) for definition in rest[:size]],
            next_page_token=_token(rest[size - 1].name) if more else "",
        )

    async def GetTool(
        self, request: tool_service_pb2.GetToolRequest, context: Context
    ) -> tool_service_pb2.GetToolResponse:
        """Return one tool, if the remit offers it."""
        if not names.is_name("tool", request.name):
            raise invalid_request([Violation("name", "must be `tools/{tool}`")])
        offered = {each.resource_name: each for each in self._offered(current_remit())}
        if request.name not in offered:
            raise not_found(request.name, list(offered))
        return tool_service_pb2.GetToolResponse(tool=to_message(offered[request.name]))

    async def GetWebhookKeys(
        self, request: tool_service_pb2.GetWebhookKeysRequest, context: Context
    ) -> tool_service_pb2.GetWebhookKeysResponse:
        """Return what verifies the webhooks of the caller's org."""
        keys = self._webhook_keys.public(current_remit().org)
        return tool_service_pb2.GetWebhookKeysResponse(public_keys=keys)

    async def _done_before(
        self,
        request: tool_service_pb2.CallToolRequest,
        definition: ToolDefinition,
        remit: Remit,
        refusal: RemitError,
    ) -> EffectOutcome:
        """What came of a call that would be refused now: rules and tools change. Else raises."""
        try:
            asked = _asked(request, request, definition, remit)
        except NotJsonError:
            raise refusal from None  # it never was a call
        return await self._gate.recorded(asked, refusal)

    def _offered(self, remit: Remit) -> list[ToolDefinition]:
        """The tools that a model or a client may call: not the one that is Remit's own."""
        return [
            each
            for each in self._registry
            if remit.offers_tool(each.resource_name) and each.resource_name != webhooks.TOOL
        ]

    def _callable(self, name: str, remit: Remit, key: str) -> ToolDefinition:
        """The tool, if there is one and the remit offers it."""
        if webhooks.is_call_key(key, remit.run) and remit.offers_tool(webhooks.TOOL):
            offered = [webhooks.TOOL]
        else:
            offered = [each.resource_name for each in self._offered(remit)]
        if name == webhooks.TOOL and name not in offered:
            raise not_found(name, offered)
        definition = self._registry.get(name, offered)
        if name not in offered:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_PERMISSION_DENIED,
                f"{remit.run} may not call {name}: its agent does not have this tool",
                metadata={"permission": ACTION, "resource": name},
            )
        return definition


@dataclass(frozen=True)
class _Contexts:
    """Makes the context of a call once its permit is there."""

    definition: ToolDefinition
    remit: Remit
    asked_s: float | None
    clock: Clock
    workspaces: Path

    def __call__(self, permit: Permit) -> ToolContext:
        limit_s = self.definition.timeout_s
        if self.asked_s is not None:
            limit_s = min(limit_s, self.asked_s)
        return ToolContext(
            key=permit.key,
            tool=self.definition.resource_name,
            clock=self.clock,
            deadline=min(self.clock.monotonic() + limit_s, permit.deadline - ANSWER_MARGIN_S),
            workspace_path=self.workspaces / self.remit.subject,
            org=self.remit.org,
            subject=self.remit.subject,
            run=self.remit.run,
            logger=log.bind(tool=self.definition.name, claim=permit.claim),
        )


def to_message(definition: ToolDefinition) -> tool_pb2.Tool:
    """A definition as the contract shows it."""
    return tool_pb2.Tool(
        name=definition.resource_name,
        description=definition.description,
        input_schema_json=definition.input_schema_json,
        permission_class=definition.permission_class,
        idempotent=definition.idempotent,
        definition_digest=definition.digest,
    )


def _check_call(request: tool_service_pb2.CallToolRequest) -> None:
    violations = []
    key = request.request_id
    if not (1 <= len(key) <= MAX_REQUEST_ID_CHARS and key.isprintable()):
        fault = f"must have 1 to {MAX_REQUEST_ID_CHARS} printable characters"
        violations.append(Violation("request_id", fault))
    if not names.is_name("tool", request.tool):
        violations.append(Violation("tool", "must be the name of a tool, tools/{tool}"))
    asked_s = _asked_s(request)
    if asked_s is not None and asked_s <= 0:
        violations.append(Violation("timeout", "must be more than 0; leave it out for no limit"))
    if request.repeats_claim and not names.is_name("claim", request.repeats_claim):
        violations.append(Violation("repeats_claim", "must be the name of a claim, or empty"))
    if violations:
        raise invalid_request(violations)


def _asked_s(request: tool_service_pb2.CallToolRequest) -> float | None:
    return request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else None


def _arguments(
    definition: ToolDefinition, call: tool_service_pb2.CallToolRequest, screening: Screening
) -> BaseModel:
    """The arguments of a screened call. Raises SUSPICIOUS_INPUT, or that they do not fit."""
    refusal = screening.refusal()
    if refusal is not None:
        raise refusal
    return validate(definition, call.arguments)


def _asked(
    request: tool_service_pb2.CallToolRequest,
    screened: tool_service_pb2.CallToolRequest,
    definition: ToolDefinition,
    remit: Remit,
) -> EffectRequest:
    # The same request is the same, whatever is replaced in it.
    return replace(_effect_request(screened, definition, remit), body_digest=_body_digest(request))


def _effect_request(
    request: tool_service_pb2.CallToolRequest, definition: ToolDefinition, remit: Remit
) -> EffectRequest:
    return EffectRequest(
        remit=remit,
        remit_token=current_call().remit_token,
        method=ACTION,
        key=request.request_id,
        body_digest=_body_digest(request),
        action=ACTION,
        resource=definition.resource_name,
        bound=ONE_CALL,
        idempotent=definition.idempotent,
        permission_class=definition.permission_class,
        arguments=request.arguments,
        arguments_digest=arguments_digest(request.arguments),
        definition_digest=definition.digest,
        repeats_claim=request.repeats_claim,
    )


def _body_digest(request: tool_service_pb2.CallToolRequest) -> bytes:
    """Over what the call does. What it repeats is not of it: a repetition is the same call."""
    body = {
        "tool": request.tool,
        "arguments": plain_struct(request.arguments),
        "timeout_ns": request.timeout.ToNanoseconds() if request.HasField("timeout") else None,
    }
    return hashlib.sha256(canonical_json(body)).digest()


def _response(performed: EffectOutcome) -> tool_service_pb2.CallToolResponse:
    response = tool_service_pb2.CallToolResponse.FromString(performed.payload)
    response.usage.CopyFrom(performed.used)
    response.cost_nanos = performed.cost_nanos
    response.claim = performed.claim
    response.intent_leaf_index = performed.intent_leaf_index
    response.replayed = performed.replayed
    return response


def _token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _after(request: tool_service_pb2.ListToolsRequest) -> str:
    """Name of the last tool of the page before; empty at the beginning."""
    violations = []
    if request.page_size < 0:
        violations.append(Violation("page_size", "must not be negative"))
    try:
        after = base64.b64decode(request.page_token, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        violations.append(Violation("page_token", "must be the token of the page before"))
        after = ""
    if violations:
        raise invalid_request(violations)
    return after

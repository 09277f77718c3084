"""A tool call as the gate's effect: it runs once, and says plainly how it ended.

A tool that is not idempotent and did not end by itself is in doubt: nobody knows how far it came,
so it is neither a failure that may be tried again nor a success.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format, struct_pb2

from remit import telemetry
from remit.api.errors.v1 import error_reason_pb2
from remit.api.tools.v1 import tool_service_pb2
from remit.api.usage.v1 import usage_pb2
from remit.effects import EffectResult, Outcome, Permit
from remit.guardrails import Direction, Rules, Screening
from remit.rpc.errors import RemitError
from remit.telemetry import table
from remit.telemetry.content import capture
from remit.tools import results
from remit.tools.context import ToolContext
from remit.tools.definition import ToolDefinition
from remit.tools.execution import Execution, NotStartedError, StoppedInTimeError
from remit.tools.metrics import count_call
from remit.tools.screening import screened_outcome, screening_of

ONE_CALL: Final = usage_pb2.Usage(calls=1)
NOTHING: Final = usage_pb2.Usage()

_DOUBTFUL: Final = frozenset(
    {
        error_reason_pb2.ERROR_REASON_CANCELLED,
        error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
        error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT,
    }
)


@dataclass(frozen=True)
class ToolEffect:
    """One call of one tool, to be handed to the gate."""

    definition: ToolDefinition
    keywords: dict[str, Any]
    execution: Execution
    context_of: Callable[[Permit], ToolContext]
    rules: Rules
    """What guardrails do about the result."""
    arguments: struct_pb2.Struct | None = None
    """As the tool gets them, for the span."""

    async def __call__(self, permit: Permit) -> EffectResult:
        """Run the tool, until it ends, its time is up, or nobody waits for it any more."""
        context = self.context_of(permit)
        if context.remaining_s() <= 0:
            return _not_started(self.definition)
        started = context.clock.monotonic()
        with self._span(permit) as span:
            result = await self._run(permit, context)
            _describe(span, result)
        seconds = context.clock.monotonic() - started
        count_call(self.definition.name, result.outcome, seconds)
        return result

    @contextlib.contextmanager
    def _span(self, permit: Permit) -> Iterator[telemetry.Span]:
        """The span of the tool's own work, with the lengths of what it was given."""
        name = self.definition.name
        with telemetry.span(f"{table.EXECUTE_TOOL} {name}") as span:
            if span.place is not None:
                span.set(table.GEN_AI_OPERATION, table.EXECUTE_TOOL)
                span.set(table.GEN_AI_TOOL_NAME, name)
                span.set(table.GEN_AI_TOOL_TYPE, "function")
                span.set(table.CLAIM, permit.claim)
                span.set(table.ATTEMPT, permit.attempt)
                given = self.arguments
                span.set(table.ARGUMENTS_BYTES, given.ByteSize() if given is not None else 0)
                if given is not None:
                    arguments = json_format.MessageToDict
                    capture(span, table.GEN_AI_TOOL_ARGUMENTS, lambda: arguments(given))
            yield span

    async def _run(self, permit: Permit, context: ToolContext) -> EffectResult:
        run = asyncio.ensure_future(self.execution.run(self.definition, self.keywords, context))
        stopping = asyncio.ensure_future(permit.stopping.wait())
        try:
            await asyncio.wait({run, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not run.done():
                run.cancel()
                await asyncio.wait({run})
        except asyncio.CancelledError:  # the gate waits no longer; what is known is still recorded
            run.cancel()
            context.cancellation.request()
        finally:
            stopping.cancel()
        return self._result(run)

    def _result(self, run: asyncio.Future[results.Outcome]) -> EffectResult:
        if not run.done() or run.cancelled():
            return self._failed(_stopped(self.definition))
        name = self.definition.resource_name
        screening = screening_of(self.rules, name, Direction.OUTPUT)
        error = run.exception()
        if error is None:
            return self._screened(run.result(), screening)
        if isinstance(error, RemitError):
            return self._failed(screening.error(error))
        raise error

    def _screened(self, outcome: results.Outcome, screening: Screening) -> EffectResult:
        """The result as it may go on. Refused or not, the tool did what it did."""
        try:
            payload = _payload(screened_outcome(outcome, screening))
        except RemitError as refusal:
            return EffectResult(Outcome.FAILED, ONE_CALL, error=refusal)
        finally:
            screening.count(self.definition.resource_name)
        return EffectResult(Outcome.SUCCEEDED, ONE_CALL, payload=payload)

    def _failed(self, error: RemitError) -> EffectResult:
        if isinstance(error, NotStartedError):
            return EffectResult(Outcome.FAILED, NOTHING, error=error)
        if isinstance(error, StoppedInTimeError):
            return EffectResult(Outcome.CANCELLED, ONE_CALL, error=error)
        if error.reason in _DOUBTFUL and not self.definition.idempotent:
            return EffectResult(Outcome.IN_DOUBT, ONE_CALL, error=_in_doubt(error))
        if error.reason == error_reason_pb2.ERROR_REASON_CANCELLED:
            return EffectResult(Outcome.CANCELLED, ONE_CALL, error=error)
        return EffectResult(Outcome.FAILED, ONE_CALL, error=error)


def _describe(span: telemetry.Span, result: EffectResult) -> None:
    """What came of it, by counts and lengths."""
    if span.place is None:
        return
    span.set(table.OUTCOME, result.outcome)
    if result.error is not None:
        span.failed(result.error.reason_name)
    if result.payload:
        response = tool_service_pb2.CallToolResponse.FromString(result.payload)
        span.set(table.RESULT_BYTES, response.result.ByteSize())
        span.set(table.ARTIFACTS, len(response.artifacts))
        answer = response.result
        capture(span, table.GEN_AI_TOOL_RESULT, lambda: json_format.MessageToDict(answer))


def _payload(outcome: results.Outcome) -> bytes:
    """What is recorded: the response without what differs from one answer to the next."""
    response = tool_service_pb2.CallToolResponse(result=outcome.result, artifacts=outcome.artifacts)
    return response.SerializeToString()


def _not_started(definition: ToolDefinition) -> EffectResult:
    error = RemitError(
        error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
        f"the time of the call was over before {definition.resource_name} could start",
    )
    return EffectResult(Outcome.FAILED, NOTHING, error=error)


def _stopped(definition: ToolDefinition) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_CANCELLED,
        f"{definition.resource_name} was stopped because nobody waited for it any more",
    )


def _in_doubt(error: RemitError) -> RemitError:
    if error.reason == error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT:
        return error
    return RemitError(
        error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT,
        f"{error.message}; whether it took effect is unknown",
    )

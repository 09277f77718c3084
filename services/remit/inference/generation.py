"""One model call as an effect: what the gate must know before, and what it is told after."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from remit import telemetry
from remit.api.errors.v1 import error_reason_pb2
from remit.api.inference.v1.inference_service_pb2 import GenerateTextRequest, GenerateTextResponse
from remit.api.inference.v1.message_pb2 import ROLE_ASSISTANT, Message
from remit.api.usage.v1.usage_pb2 import Usage
from remit.effects import EffectOutcome, EffectRequest, EffectResult, Outcome, Permit
from remit.inference import spans
from remit.inference.cuts import FINISH_REASONS, Cause, Cut, count_cut
from remit.inference.engine import Growth, Progress, TextDelta, Turn
from remit.inference.models import DeclaredModel
from remit.inference.screening import Answer
from remit.inference.supervision import Supervision, Terms, lease_of, with_output
from remit.rpc.calls import Call
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.rpc.remits import Remit

log = telemetry.logger(__name__)

METHOD: Final = "models.generate"
"""Action of the policy and space of the keys; unary and streamed calls share it."""


@dataclass(frozen=True)
class Asked:
    """A request as it came, and as the model may see it."""

    request: GenerateTextRequest
    prompt: GenerateTextRequest
    found: Mapping[str, int]
    """What guardrails found in it."""
    refusal: RemitError | None = None
    """Why the model may not be asked this; what was answered before is told all the same."""


def effect_request(
    call: Call, remit: Remit, model: DeclaredModel, asked: Asked, terms: Terms
) -> EffectRequest:
    """What the gate must know. A model call may be made again: it costs money and harms nothing."""
    request = asked.request
    whole = model.engine.bound(limited(model, asked.prompt))
    return EffectRequest(
        remit=remit,
        remit_token=call.remit_token,
        method=METHOD,
        key=request.request_id,
        body_digest=body_digest(request),
        action=METHOD,
        resource=model.name,
        bound=with_output(whole, lease_of(model.engine, whole, terms).first()),
        most=whole,
        idempotent=True,
        arguments_digest=body_digest(asked.prompt),
        definition_digest=hashlib.sha256(
            model.to_message().SerializeToString(deterministic=True)
        ).digest(),
        list_item=model.declaration.list_item,
        guardrails=asked.found,
    )


def body_digest(request: GenerateTextRequest) -> bytes:
    """SHA-256 over the request without its key, maps sorted: what "the same body" means."""
    body = GenerateTextRequest()
    body.CopyFrom(request)
    body.ClearField("request_id")
    return hashlib.sha256(body.SerializeToString(deterministic=True)).digest()


def limited(model: DeclaredModel, request: GenerateTextRequest) -> GenerateTextRequest:
    """The request with the model's own limit where it names none."""
    if request.max_output_tokens:
        return request
    filled = GenerateTextRequest()
    filled.CopyFrom(request)
    filled.max_output_tokens = model.declaration.max_output_tokens
    return filled


def response_of(outcome: EffectOutcome) -> GenerateTextResponse:
    """The recorded turn with what the gate knows of it."""
    response = GenerateTextResponse.FromString(outcome.payload)
    response.usage.CopyFrom(outcome.used)
    response.cost_nanos = outcome.cost_nanos
    response.claim = outcome.claim
    response.intent_leaf_index = outcome.intent_leaf_index
    response.replayed = outcome.replayed
    return response


class Generation:
    """Runs an engine once, inside the gate."""

    def __init__(
        self,
        model: DeclaredModel,
        prompt: GenerateTextRequest,
        answer: Answer,
        progress: Progress,
        *,
        clock: Clock,
        terms: Terms,
    ) -> None:
        self._model = model
        self._request = limited(model, prompt)
        self._answer = answer
        self._progress = progress
        self._clock = clock
        self._terms = terms
        self._generated: Turn | None = None

    async def __call__(self, permit: Permit) -> EffectResult:
        """The effect: the turn, or why there is none, always with what was used."""
        with spans.chat(self._model, self._request, permit) as span:
            result = await self._performed(permit)
            self._answer.ended(self._model.name)
            spans.ended(span, result, self._generated)
            return result

    async def _performed(self, permit: Permit) -> EffectResult:
        supervision = self._supervision(permit)
        generating = asyncio.create_task(self._turn(supervision))
        watching = asyncio.create_task(supervision.watch())
        stopping = asyncio.create_task(permit.stopping.wait())
        tasks: set[asyncio.Task[Any]] = {generating, watching, stopping}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if generating.done():
                return self._result(generating)
            generating.cancel()
            await asyncio.wait({generating})
            return self._cut(watching.result()) if watching.done() else self._stopped()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _supervision(self, permit: Permit) -> Supervision:
        whole = self._model.engine.bound(self._request)
        lease = lease_of(self._model.engine, whole, self._terms)
        return Supervision(permit, lease, whole, clock=self._clock, terms=self._terms)

    async def _turn(self, supervision: Supervision) -> Turn:
        pieces = self._model.engine.generate(self._request, self._progress)
        async with aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, TextDelta):
                    self._answer.add(piece.text)
                elif isinstance(piece, Growth):
                    await supervision.cover(piece.tokens)
                else:
                    return piece
        message = f"the engine of {self._model.name} ended without a turn"
        raise RuntimeError(message)

    def _result(self, generating: asyncio.Task[Turn]) -> EffectResult:
        try:
            turn = generating.result()
        except RemitError as error:
            return self._failed(self._used(), self._answer.error(error))
        except Cut as cut:
            return self._cut(cut)
        return self._succeeded(turn)

    def _cut(self, cut: Cut) -> EffectResult:
        """The end of a generation that was not let go on: what came of it is billed, and kept.

        Not where another attempt may follow: the run's new worker asks again, or whoever waits for
        policy and cost to be back.
        """
        name, used = self._model.name, self._used()
        count_cut(name, cut)
        log.warning(
            "generation_cut",
            model=name,
            cause=cut.cause,
            output_tokens=used.output_tokens,
            text=cut.error.message,
        )
        if cut.cause in FINISH_REASONS:
            try:
                message = Message(role=ROLE_ASSISTANT, text=self._answer.rest())
            except RemitError as refusal:
                return self._failed(used, refusal)
            return self._succeeded(Turn(message, FINISH_REASONS[cut.cause], used))
        outcome = Outcome.CANCELLED if cut.cause is Cause.FENCED else Outcome.FAILED
        return EffectResult(outcome, used, error=cut.error)

    def _succeeded(self, turn: Turn) -> EffectResult:
        try:
            return self._recorded(self._answer.turn(turn))
        except RemitError as refusal:
            # It was generated, so it is paid for.
            return self._failed(turn.usage, refusal)

    def _failed(self, used: Usage, error: RemitError) -> EffectResult:
        return EffectResult(Outcome.FAILED, used, error=error)

    def _recorded(self, turn: Turn) -> EffectResult:
        self._generated = turn
        payload = GenerateTextResponse(
            message=turn.message,
            finish_reason=turn.finish_reason,
            confidence=self._confidence(turn),
        )
        return EffectResult(Outcome.SUCCEEDED, turn.usage, payload.SerializeToString())

    def _confidence(self, turn: Turn) -> float | None:
        """How sure the answer is, where somebody asked; a wish for tools is no answer."""
        if self._request.measure_confidence and not turn.message.tool_calls:
            return turn.confidence
        return None

    def _stopped(self) -> EffectResult:
        error = RemitError(
            error_reason_pb2.ERROR_REASON_CANCELLED,
            f"the generation by {self._model.name} was stopped because nobody waits for it",
        )
        return EffectResult(Outcome.CANCELLED, self._used(), error=error)

    def _used(self) -> Usage:
        return self._model.engine.used(self._request, self._progress)

"""`InferenceService` and `ModelService`: proto in, proto out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from remit import names
from remit.api.errors.v1 import error_reason_pb2
from remit.api.inference.v1 import inference_service_pb2_grpc, model_service_pb2_grpc
from remit.api.inference.v1.inference_service_pb2 import (
    AcknowledgeResultsRequest,
    AcknowledgeResultsResponse,
    BatchGetAttemptsRequest,
    BatchGetAttemptsResponse,
    GenerateTextRequest,
    GenerateTextResponse,
    ListAttemptsRequest,
    ListAttemptsResponse,
    StreamGenerateTextRequest,
    StreamGenerateTextResponse,
)
from remit.api.inference.v1.model_service_pb2 import (
    GetModelRequest,
    GetModelResponse,
    ListModelsRequest,
    ListModelsResponse,
)
from remit.effects import EffectGate, EffectOutcome
from remit.guardrails import Direction, Screening, ServiceRules
from remit.inference.engine import Progress
from remit.inference.generation import Asked, Generation, effect_request, response_of
from remit.inference.metrics import Measured
from remit.inference.models import DeclaredModel, ModelCatalog, model_not_found
from remit.inference.screening import Answer, screened_prompt
from remit.inference.streaming import Deltas
from remit.inference.supervision import Terms
from remit.inference.validation import violations_of
from remit.rpc.calls import current_call, current_remit
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError, Violation, invalid_request

_STREAM_PREFIX: Final = "request."


class InferenceService(inference_service_pb2_grpc.InferenceServiceServicer):
    """Generates text through the gate."""

    def __init__(
        self,
        models: ModelCatalog,
        gate: EffectGate,
        *,
        clock: Clock,
        terms: Terms,
        rules: ServiceRules,
        heartbeat_s: float,
    ) -> None:
        self._models = models
        self._gate = gate
        self._clock = clock
        self._terms = terms
        self._rules = rules
        self._heartbeat_s = heartbeat_s

    async def GenerateText(
        self, request: GenerateTextRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> GenerateTextResponse:
        """Generates one turn, or returns the one recorded under the key."""
        del context
        model = self._model(request, prefix="")
        asked = self._screened(request, prefix="")
        return response_of(await self._perform(model, asked, Deltas()))

    async def StreamGenerateText(
        self,
        request: StreamGenerateTextRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[StreamGenerateTextResponse]:
        """The same with its text as it comes; a recorded turn comes whole."""
        del context
        model = self._model(request.request, prefix=_STREAM_PREFIX)
        asked = self._screened(request.request, prefix=_STREAM_PREFIX)
        deltas = Deltas()
        performing = asyncio.create_task(self._perform(model, asked, deltas))
        performing.add_done_callback(lambda _: deltas.end())
        sequence = 0
        try:
            async for text in self._texts(deltas, performing):
                sequence += 1
                yield _piece(sequence, text)
            response = response_of(await performing)
            yield StreamGenerateTextResponse(sequence=sequence + 1, response=response)
        finally:
            # This caller waits no longer. If nobody else does, the gate stops the engine.
            performing.cancel()
            await asyncio.wait({performing})

    async def AcknowledgeResults(
        self, request: AcknowledgeResultsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AcknowledgeResultsResponse:
        """Keeps turns no more that the caller has recorded."""
        del context
        results = await self._gate.acknowledge(request.claims, current_call().caller)
        return AcknowledgeResultsResponse(results=results)

    async def BatchGetAttempts(
        self, request: BatchGetAttemptsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> BatchGetAttemptsResponse:
        """Says where attempts stand."""
        del context
        attempts = await self._gate.attempts.these(request.keys)
        return BatchGetAttemptsResponse(
            attempts=attempts, closing_bound=self._gate.attempts.closing_bound
        )

    async def ListAttempts(
        self, request: ListAttemptsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListAttemptsResponse:
        """Lists the attempts of a span of keys."""
        del context
        page = await self._gate.attempts.between(request.after, request.through, request.page_size)
        return ListAttemptsResponse(
            attempts=page.attempts,
            has_more=page.has_more,
            closing_bound=self._gate.attempts.closing_bound,
            read_time=page.read_time,
        )

    async def _texts(
        self, deltas: Deltas, performing: asyncio.Task[EffectOutcome]
    ) -> AsyncIterator[str]:
        """Text as it comes, an empty one as a heartbeat; ends with the effect."""
        while not performing.done():
            text = await deltas.take(self._heartbeat_s)
            if text or not performing.done():
                yield text
        if rest := await deltas.take(0):
            yield rest

    async def _perform(self, model: DeclaredModel, asked: Asked, deltas: Deltas) -> EffectOutcome:
        effect = effect_request(current_call(), current_remit(), model, asked, self._terms)
        if asked.refusal is not None:
            return await self._gate.recorded(effect, asked.refusal)
        progress = Progress(clock=self._clock)
        answer = Answer(self._rules.of(current_remit()), deltas.add)
        generation = Generation(
            model, asked.prompt, answer, progress, clock=self._clock, terms=self._terms
        )
        measured = Measured(generation, model, progress, self._clock)
        return await self._gate.perform(effect, measured)

    def _screened(self, request: GenerateTextRequest, *, prefix: str) -> Asked:
        """The request with its prompt screened, and with every violation if it is refused."""
        screening = Screening(self._rules.of(current_remit()), Direction.INPUT)
        prompt = screened_prompt(request, screening, prefix=prefix)
        screening.count(request.model)
        return Asked(request, prompt, screening.notes, screening.refusal())

    def _model(self, request: GenerateTextRequest, *, prefix: str) -> DeclaredModel:
        """The model of a correct request.

        Raises INVALID_REQUEST with every violation, MODEL_NOT_FOUND, or CONFIGURATION_INVALID for a
        model that is not ready.
        """
        model = self._models.find(request.model)
        limit = model.declaration.max_output_tokens if model is not None else None
        faults = violations_of(request, max_output_tokens=limit, prefix=prefix)
        if faults:
            raise invalid_request(faults)
        model = self._models.get(request.model)
        _check_ready(model)
        return model


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """Tells which models there are; a run sees those of its remit alone."""

    def __init__(self, models: ModelCatalog) -> None:
        self._models = models

    async def ListModels(
        self, request: ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListModelsResponse:
        """A page of the models that the remit offers, by name."""
        del context
        offered = current_remit().offers_model
        models, token = self._models.page(request.page_size, request.page_token, offered)
        return ListModelsResponse(
            models=[model.to_message() for model in models], next_page_token=token
        )

    async def GetModel(
        self, request: GetModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> GetModelResponse:
        """One model; to a run, one that its remit does not offer does not exist."""
        del context
        if not names.is_name("model", request.name):
            raise invalid_request([Violation("name", "must be `models/{model}`")])
        if not current_remit().offers_model(request.name):
            raise model_not_found(request.name, current_remit().models)
        return GetModelResponse(model=self._models.get(request.name).to_message())


def _piece(sequence: int, text: str) -> StreamGenerateTextResponse:
    """More text, or a heartbeat."""
    if not text:
        return StreamGenerateTextResponse(sequence=sequence)
    return StreamGenerateTextResponse(sequence=sequence, text_delta=text)


def _check_ready(model: DeclaredModel) -> None:
    reason = model.engine.not_ready_reason()
    if reason:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
            f"{model.name} is not ready: {reason}",
        )

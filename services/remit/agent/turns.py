"""One model turn: asked for, streamed into the journal, recorded with what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from google.rpc import status_pb2

from remit.agent.attempts import EffectFailed
from remit.agent.conversation import Offer, model_request, unique_call_ids
from remit.agent.decisions import AskModel, next_action
from remit.agent.deltas import DeltaBuffer
from remit.agent.failures import judge_model_failure
from remit.agent.logbook import ANSWERING, THINKING, USING_TOOLS, Draft
from remit.agent.spans import answering
from remit.agent.work import Work
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import inference_service_pb2, message_pb2
from remit.rpc.errors import RemitError
from remit.rpc.mesh import reading, remit_metadata
from remit.telemetry import work_failed
from remit.telemetry.spans import Value
from remit.telemetry.table import RUN, STAGE, STEP

_MAX_DELTA_CHARS: Final = 16_384
"""Characters of one text event at most, so that no event outgrows a stream's message."""


class ModelTurns:
    """Asks for the model turns of one run."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._logbook = work.logbook

    async def ask(self, step: int) -> None:
        """Asks for the turn of a step and records how it ended. Raises FENCED."""

        async def once(remit: str) -> inference_service_pb2.GenerateTextResponse:
            offer = await self._open(step, remit)
            return await self._streamed(step, offer, remit)

        try:
            response = await self._work.attempts.until_final(once, judge_model_failure)
        except EffectFailed as failure:
            work_failed(failure.error.reason_name)
            await self._record_failure(step, failure.error)
        else:
            await self._record(step, response)

    async def _open(self, step: int, remit: str) -> Offer:
        """Journals that the turn is asked for, unless this worker's journal says so already."""
        offer, unpinned = await self._work.pinned_offer(remit)
        async with self._logbook.lock:
            draft = self._logbook.draft()
            if not _is_asked_for(draft, step):
                draft.enter(THINKING)
                draft.add(run_pb2.ModelCallStarted(step=step, model=self._work.model))
            await self._logbook.commit(draft, offer=unpinned)
        self._work.offer = offer
        return offer

    async def _streamed(
        self, step: int, offer: Offer, remit: str
    ) -> inference_service_pb2.GenerateTextResponse:
        request = inference_service_pb2.StreamGenerateTextRequest(
            request=model_request(
                self._logbook.progress, self._work.definition, offer, step, self._work.history
            )
        )
        buffer = self._buffer(step)
        facts: dict[str, Value] = {STAGE: ANSWERING, STEP: step, RUN: self._work.run}
        with answering(facts) as begin_answer:
            try:
                async with reading(
                    self._work.outside.inference.StreamGenerateText(
                        request, metadata=remit_metadata(remit)
                    )
                ) as pieces:
                    async for piece in pieces:
                        if piece.HasField("response"):
                            await buffer.close()
                            return piece.response
                        if piece.text_delta:
                            begin_answer()
                            await buffer.add(piece.text_delta)
            except RemitError:
                await buffer.close()
                raise
            except BaseException:
                buffer.cancel()
                raise
            await buffer.close()
            raise RemitError(
                reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                f"the stream of {self._work.model} ended before the turn did",
            )

    def _buffer(self, step: int) -> DeltaBuffer:
        async def flush(text: str) -> None:
            async with self._logbook.lock:
                draft = self._logbook.draft()
                _add_text(draft, step, text)
                await self._logbook.commit(draft)

        settings = self._work.settings
        return DeltaBuffer(
            flush,
            interval_s=settings.delta_interval_ms / 1000,
            max_chars=settings.delta_chars,
        )

    async def _record(
        self, step: int, response: inference_service_pb2.GenerateTextResponse
    ) -> None:
        async with self._logbook.lock:
            draft = self._logbook.draft()
            self._complete_text(draft, step, response.message.text)
            ended = _ended(step, self._work.model, response)
            draft.add(ended)
            if ended.HasField("error"):
                work_failed(RemitError.from_status(ended.error).reason_name)
            if ended.tool_calls and step < draft.progress.max_steps:
                draft.enter(USING_TOOLS)
                draft.add(*_tool_calls(step, response.message))
            draft.announce_next(self._work.model)
            await self._logbook.commit(draft)

    def _complete_text(self, draft: Draft, step: int, text: str) -> None:
        """Adds what the journal lacks of the turn's text; begins anew where they differ."""
        turn = draft.progress.turn
        journalled = turn.text if turn is not None else ""
        if not text.startswith(journalled):
            draft.add(run_pb2.ModelCallStarted(step=step, model=self._work.model))
            journalled = ""
        _add_text(draft, step, text[len(journalled) :])

    async def _record_failure(self, step: int, error: RemitError) -> None:
        async with self._logbook.lock:
            draft = self._logbook.draft()
            if not isinstance(next_action(draft.progress), AskModel):
                return
            if not _is_asked_for(draft, step):
                draft.add(run_pb2.ModelCallStarted(step=step, model=self._work.model))
            draft.add(
                run_pb2.ModelCallEnded(step=step, model=self._work.model, error=error.to_status())
            )
            draft.announce_next(self._work.model)
            await self._logbook.commit(draft)


def _is_asked_for(draft: Draft, step: int) -> bool:
    """Whether the journal says that this worker asks for the turn, and holds no text of it yet."""
    turn = draft.progress.turn
    has_text = turn is not None and bool(turn.text)
    return next_action(draft.progress) == AskModel(step, is_journalled=True) and not has_text


def _add_text(draft: Draft, step: int, text: str) -> None:
    if text:
        draft.enter(ANSWERING)
    for start in range(0, len(text), _MAX_DELTA_CHARS):
        draft.add(run_pb2.TextDelta(step=step, text=text[start : start + _MAX_DELTA_CHARS]))


def _ended(
    step: int, model: str, response: inference_service_pb2.GenerateTextResponse
) -> run_pb2.ModelCallEnded:
    error = _unfinished(model, response.finish_reason)
    return run_pb2.ModelCallEnded(
        step=step,
        model=model,
        tool_calls=0 if error else len(response.message.tool_calls),
        usage=response.usage,
        cost_nanos=response.cost_nanos,
        claim=response.claim,
        intent_leaf_index=response.intent_leaf_index,
        error=error,
    )


def _unfinished(
    model: str, finish_reason: message_pb2.FinishReason.ValueType
) -> status_pb2.Status | None:
    """Why a turn that ended is no answer: a text that was cut is never passed off as whole."""
    if finish_reason == message_pb2.FINISH_REASON_LENGTH:
        return RemitError(
            reasons.ERROR_REASON_RUN_LIMIT_REACHED,
            f"{model} stopped at its limit of output tokens before its turn was complete",
        ).to_status()
    if finish_reason == message_pb2.FINISH_REASON_CONTENT_FILTER:
        return RemitError(
            reasons.ERROR_REASON_PROVIDER_FAILED, f"the provider's filter ended the turn of {model}"
        ).to_status()
    return None


def _tool_calls(step: int, message: message_pb2.Message) -> Iterator[run_pb2.ToolCallStarted]:
    call_ids = unique_call_ids(message.tool_calls)
    for call_id, call in zip(call_ids, message.tool_calls, strict=True):
        yield run_pb2.ToolCallStarted(
            step=step, call_id=call_id, tool=call.tool, arguments=call.arguments
        )

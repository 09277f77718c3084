"""One model turn: asked for, streamed into the journal, recorded with what follows from it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from remit import telemetry
from remit.agent.attempts import EffectFailed
from remit.agent.conversation import Offer, model_request, request_digest, unique_call_ids
from remit.agent.decisions import AskModel, next_action
from remit.agent.deltas import DeltaBuffer
from remit.agent.failures import Verdict, judge_model_failure
from remit.agent.fallback import TookTooLong, gives_up
from remit.agent.logbook import ANSWERING, THINKING, USING_TOOLS, Draft
from remit.agent.spans import answering
from remit.agent.turn_ends import add_end, end_of
from remit.agent.work import Work
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.inference.v1 import inference_service_pb2, message_pb2
from remit.rpc.errors import RemitError
from remit.rpc.mesh import reading, remit_metadata
from remit.telemetry import work_failed
from remit.telemetry.spans import Value
from remit.telemetry.table import RUN, STAGE, STEP

log = telemetry.logger(__name__)

_MAX_DELTA_CHARS: Final = 16_384
"""Characters of one text event at most, so that no event outgrows a stream's message."""


class ModelTurns:
    """Asks for the model turns of one run."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._logbook = work.logbook
        self._rules = work.definition.rules
        self._asked = b""
        """Digest of the request of the turn that is asked for; empty before it is made."""

    async def ask(self, step: int) -> None:
        """Asks for the turn of a step and records how it ended. Raises FENCED."""

        async def once(remit: str) -> inference_service_pb2.GenerateTextResponse:
            offer = await self._open(step, remit)
            return await self._streamed(step, offer, remit)

        self._asked = b""
        try:
            response = await self._work.attempts.until_final(once, self._judge)
        except EffectFailed as failure:
            work_failed(failure.error.reason_name)
            await self._record_failure(step, failure.error)
        else:
            await self._record(step, response)

    async def fall_back(self) -> None:
        """Asks another model where the journal holds a turn that is not good enough alone."""
        async with self._logbook.lock:
            draft = self._logbook.draft()
            draft.announce_next(self._work.model)
            await self._commit(draft)

    def _judge(self, error: RemitError) -> Verdict:
        verdict = judge_model_failure(error)
        rule, turn = self._rules.fallback, self._logbook.progress.turn
        if rule is not None and turn is not None and gives_up(rule, error, turn.refusals):
            return Verdict.FAIL
        return verdict

    def _model(self, step: int) -> str:
        return self._logbook.progress.second_model(step) or self._work.model

    async def _open(self, step: int, remit: str) -> Offer:
        """Journals that the turn is asked for, unless this worker's journal says so already."""
        offer, unpinned = await self._work.pinned_offer(remit)
        async with self._logbook.lock:
            draft = self._logbook.draft()
            if not _is_asked_for(draft, step):
                draft.enter(THINKING)
                draft.add(run_pb2.ModelCallStarted(step=step, model=self._model(step)))
            await self._logbook.commit(draft, offer=unpinned)
        self._work.offer = offer
        return offer

    async def _streamed(
        self, step: int, offer: Offer, remit: str
    ) -> inference_service_pb2.GenerateTextResponse:
        work = self._work
        asked = model_request(self._logbook.progress, work.definition, offer, step, work.history)
        self._asked = request_digest(asked)
        request = inference_service_pb2.StreamGenerateTextRequest(request=asked)
        buffer = self._buffer(step)
        facts: dict[str, Value] = {STAGE: ANSWERING, STEP: step, RUN: self._work.run}
        with answering(facts) as begin_answer:
            try:
                async with within(self._rules.timeout_s, asked.model):
                    response = await self._read(request, remit, buffer, begin_answer)
            except RemitError:
                await buffer.close()
                raise
            except BaseException:
                buffer.cancel()
                raise
            await buffer.close()
            return response

    async def _read(
        self,
        request: inference_service_pb2.StreamGenerateTextRequest,
        remit: str,
        buffer: DeltaBuffer,
        begin_answer: Callable[[], None],
    ) -> inference_service_pb2.GenerateTextResponse:
        stream = self._work.outside.inference.StreamGenerateText(
            request, metadata=remit_metadata(remit)
        )
        async with reading(stream) as pieces:
            async for piece in pieces:
                if piece.HasField("response"):
                    return piece.response
                if piece.text_delta:
                    begin_answer()
                    await buffer.add(piece.text_delta)
        raise RemitError(
            reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
            f"the stream of {request.request.model} ended before the turn did",
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
            ended = end_of(step, self._model(step), response, self._rules)
            ended.request_digest = self._asked
            if ended.HasField("error"):
                work_failed(RemitError.from_status(ended.error).reason_name)
            is_kept = add_end(draft, ended)
            if is_kept and ended.tool_calls and step < draft.progress.max_steps:
                draft.enter(USING_TOOLS)
                draft.add(*_tool_calls(step, response.message))
            draft.announce_next(self._work.model)
            await self._commit(draft)

    async def _commit(self, draft: Draft) -> None:
        """Commits what follows from a turn, and tells of another model's being asked."""
        await self._logbook.commit(draft)
        for event in draft.events:
            if event.HasField("model_fallback"):
                _tell(self._work, draft, event.model_fallback)

    def _complete_text(self, draft: Draft, step: int, text: str) -> None:
        """Adds what the journal lacks of the turn's text; begins anew where they differ."""
        turn = draft.progress.turn
        journalled = turn.text if turn is not None else ""
        if not text.startswith(journalled):
            draft.add(run_pb2.ModelCallStarted(step=step, model=self._model(step)))
            journalled = ""
        _add_text(draft, step, text[len(journalled) :])

    async def _record_failure(self, step: int, error: RemitError) -> None:
        async with self._logbook.lock:
            draft = self._logbook.draft()
            if not isinstance(next_action(draft.progress), AskModel):
                return
            model = self._model(step)
            if not _is_asked_for(draft, step):
                draft.add(run_pb2.ModelCallStarted(step=step, model=model))
            ended = run_pb2.ModelCallEnded(
                step=step, model=model, error=error.to_status(), request_digest=self._asked
            )
            add_end(draft, ended)
            draft.announce_next(self._work.model)
            await self._commit(draft)


def _is_asked_for(draft: Draft, step: int) -> bool:
    """Whether the journal says that this worker asks for the turn, and holds no text of it yet."""
    turn = draft.progress.turn
    has_text = turn is not None and bool(turn.text)
    return next_action(draft.progress) == AskModel(step, is_journalled=True) and not has_text


@contextlib.asynccontextmanager
async def within(limit_s: float | None, model: str) -> AsyncIterator[None]:
    """Stops the body after a time. Raises TookTooLong then."""
    limit = asyncio.timeout(limit_s)
    try:
        async with limit:
            yield
    except TimeoutError:
        if limit_s is None or not limit.expired():
            raise
        raise TookTooLong(model, limit_s) from None


def _tell(work: Work, draft: Draft, fallback: run_pb2.ModelFallback) -> None:
    """Logs why another model is asked."""
    turn = draft.progress.turn
    facts = {
        "run": work.run,
        "agent": work.definition.full_name,
        "step": fallback.step,
        "model": fallback.from_model,
        "fallback_model": fallback.to_model,
    }
    first = turn.aside.ended if turn is not None and turn.aside is not None else None
    if first is None or not first.HasField("error"):
        confidence = first.confidence.value if first is not None else 0.0
        log.warning("low_confidence_primary", confidence=round(confidence, 6), **facts)
    else:
        error = RemitError.from_status(first.error)
        log.warning("primary_agent_failed", error_type=error.reason_name, **facts)


def _add_text(draft: Draft, step: int, text: str) -> None:
    if text:
        draft.enter(ANSWERING)
    for start in range(0, len(text), _MAX_DELTA_CHARS):
        draft.add(run_pb2.TextDelta(step=step, text=text[start : start + _MAX_DELTA_CHARS]))


def _tool_calls(step: int, message: message_pb2.Message) -> Iterator[run_pb2.ToolCallStarted]:
    call_ids = unique_call_ids(message.tool_calls)
    for call_id, call in zip(call_ids, message.tool_calls, strict=True):
        yield run_pb2.ToolCallStarted(
            step=step, call_id=call_id, tool=call.tool, arguments=call.arguments
        )

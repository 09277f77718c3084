"""The journal of one run in the hands of its worker: append, fold, publish.

One entry a commit, and in it everything that is known: what happened, and what the run does next.
So a run of two turns and a tool call costs four commits, and a crash finds both or neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from remit.agent.decisions import AskModel, End, FallBack, next_action
from remit.agent.entries import Control, Entry
from remit.agent.failures import backoff_s
from remit.agent.feed import Feed
from remit.agent.journal import Progress, apply
from remit.agent.metrics import count_ended
from remit.agent.reading import RunReader
from remit.agent.receipts import Receipts
from remit.agent.records import run_id
from remit.agent.sealing import Content, Key, KeyRef, Keys
from remit.agent.spans import place_of, record_run
from remit.agent.standing import Standing
from remit.agent.store import RunStore, fenced
from remit.agent.summary import ended_run, summary_of
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.calls import shielded
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.telemetry import within

Body: TypeAlias = (
    run_pb2.RunCreated
    | run_pb2.RunStarted
    | run_pb2.StageStarted
    | run_pb2.TextDelta
    | run_pb2.ModelCallStarted
    | run_pb2.ModelCallEnded
    | run_pb2.ModelFallback
    | run_pb2.ToolCallStarted
    | run_pb2.ToolCallEnded
    | run_pb2.RunWaiting
    | run_pb2.CancelRequested
    | run_pb2.RunPaused
    | run_pb2.RunResumed
    | run_pb2.SubRunStarted
    | run_pb2.RunEnded
)

THINKING: Final = "thinking"
USING_TOOLS: Final = "using tools"
ANSWERING: Final = "answering"

_RETRY_BASE_S: Final = 0.05
_RETRY_CAP_S: Final = 1.0
_UNKNOWN: Final = frozenset(
    {reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, reasons.ERROR_REASON_OVERLOADED}
)
_FIELD_OF: Final[dict[type, str]] = {
    run_pb2.RunCreated: "created",
    run_pb2.RunStarted: "started",
    run_pb2.StageStarted: "stage_started",
    run_pb2.TextDelta: "text_delta",
    run_pb2.ModelCallStarted: "model_call_started",
    run_pb2.ModelCallEnded: "model_call_ended",
    run_pb2.ModelFallback: "model_fallback",
    run_pb2.ToolCallStarted: "tool_call_started",
    run_pb2.ToolCallEnded: "tool_call_ended",
    run_pb2.RunWaiting: "waiting",
    run_pb2.CancelRequested: "cancel_requested",
    run_pb2.RunPaused: "paused",
    run_pb2.RunResumed: "resumed",
    run_pb2.SubRunStarted: "sub_run_started",
    run_pb2.RunEnded: "ended",
}


class Draft:
    """Events that are not committed yet, and the progress that they lead to."""

    def __init__(self, run: str, progress: Progress, clock: Clock) -> None:
        self._run = run
        self._clock = clock
        self.progress = progress
        self.events: list[run_pb2.RunEvent] = []

    def add(self, *bodies: Body) -> None:
        """Adds events in order. Raises DATA_CORRUPT if one cannot come next: a bug."""
        for body in bodies:
            event = run_pb2.RunEvent(run=self._run, sequence=self.progress.sequence + 1)
            event.event_time.FromDatetime(self._clock.now())
            getattr(event, _FIELD_OF[type(body)]).CopyFrom(body)
            self.progress = apply(self.progress, event)
            event.percent = self.progress.percent
            self.events.append(event)

    def enter(self, stage: str) -> None:
        """Begins a stage, unless the run is in it."""
        if self.progress.stage != stage:
            self.add(run_pb2.StageStarted(stage=stage))

    def end(self, end: End) -> None:
        """Ends the run."""
        self.add(run_pb2.RunEnded(run=ended_run(self.progress, end, self._clock.now())))

    def announce_next(self, model: str) -> None:
        """Adds what the next action must have in the journal before it begins."""
        action = next_action(self.progress)
        if isinstance(action, FallBack):
            self.add(action.event)
            action = next_action(self.progress)
        if isinstance(action, End):
            # A run ends after its sub-runs: its worker stops them first.
            if not self.progress.sub_runs:
                self.end(action)
        elif isinstance(action, AskModel) and not action.is_journalled:
            self.enter(THINKING)
            asked = self.progress.second_model(action.step) or model
            self.add(run_pb2.ModelCallStarted(step=action.step, model=asked))


def started(fencing_token: int, replica: str) -> run_pb2.RunStarted:
    """The event that says that a worker took a run."""
    return run_pb2.RunStarted(fencing_token=fencing_token, replica=replica)


@dataclass(frozen=True)
class Books:
    """Where journals are written, read and followed."""

    store: RunStore
    reader: RunReader
    feed: Feed
    clock: Clock
    page: int
    receipts: Receipts
    keys: Keys

    @property
    def standing(self) -> Standing:
        """Where the progress of a run is read."""
        return Standing(self.reader, self.page)


class Logbook:
    """One run's journal under one fencing token."""

    def __init__(
        self,
        books: Books,
        run: str,
        fencing_token: int,
        progress: Progress,
        key: KeyRef,
        traceparent: str = "",
    ) -> None:
        self._books = books
        self.key = key
        self._run = run
        self._fencing_token = fencing_token
        self._traceparent = traceparent
        self.progress = progress
        # Tool calls end in parallel; their entries follow one another.
        self.lock = asyncio.Lock()
        self._committing: asyncio.Task[None] | None = None

    def draft(self) -> Draft:
        """A draft that follows what is committed. Hold `lock` until it is committed."""
        return Draft(self._run, self.progress, self._books.clock)

    async def commit(
        self,
        draft: Draft,
        *,
        offer: Content | None = None,
        artifacts: Sequence[Content] = (),
        cancel_request_id: str = "",
        control: Control | None = None,
    ) -> None:
        """Commits a draft. Waits for a database that is away, and for audit, which has the keys.

        Raises FENCED to who lost the run, SUBJECT_ERASED where its key is gone: nothing is written.

        A commit in progress is not undone by cancelling its caller: see `settle`.
        """
        if not draft.events:
            return
        entry = Entry(
            summary=summary_of(draft.progress),
            fencing_token=self._fencing_token,
            events=tuple(draft.events),
            offer=offer,
            artifacts=tuple(artifacts),
            cancel_request_id=cancel_request_id,
            control=control,
        )
        self._committing = asyncio.create_task(self._commit(entry, draft.progress))
        await shielded(self._committing)

    async def settle(self) -> None:
        """Waits for the commit whose caller was cancelled, so that `progress` is the journal's."""
        if self._committing is not None:
            await self._committing

    def close(self) -> None:
        """Gives up whatever is being committed: the run is another's, or this process stops."""
        if self._committing is not None:
            self._committing.cancel()

    async def _commit(self, entry: Entry, progress: Progress) -> None:
        await self._append(entry)
        self.progress = progress
        self._books.feed.publish(entry.events)
        self._books.receipts.committed(entry.events)
        if progress.ended is not None:
            now = self._books.clock.now()
            # Who cancels a run ends it in a call of its own, which may be of another trace.
            with within(place_of(self._run, self._traceparent)):
                count_ended(progress.ended, progress.turns, entry.events, now)
            record_run(progress, self._traceparent)

    async def _append(self, entry: Entry) -> None:
        tries = 0
        while True:
            try:
                await self._books.store.append(replace(entry, key=await self._own_key()))
            except RemitError as error:
                if error.reason not in _UNKNOWN:
                    raise
            else:
                return
            tries += 1
            await asyncio.sleep(
                backoff_s(tries, None, base_s=_RETRY_BASE_S, cap_s=_RETRY_CAP_S, chance=lambda: 0.5)
            )
            if await self._is_committed(entry):
                return

    async def _own_key(self) -> Key:
        """The run's key; a run that is older than keys keeps the first one that it gets."""
        key = await self._books.keys.of(self.key, run_id(self._run))
        self.key = replace(self.key, key_id=key.key_id)
        return key

    async def _is_committed(self, entry: Entry) -> bool:
        """Whether an entry of unknown fate is in the journal. Raises FENCED if another one is."""
        try:
            found = await self._books.reader.events(
                self._run, after=entry.follows, limit=len(entry.events)
            )
        except RemitError as error:
            if error.reason not in _UNKNOWN:
                raise
            return False
        if found and tuple(found) != entry.events:
            raise fenced(self._run)
        return bool(found)

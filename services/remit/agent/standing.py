"""Where a run stands: the fold of its own journal, on what it took over from the run it forked.

Whoever needs the progress of a run reads it here: a worker that takes it up, who cancels it, who
pauses it. A fork of a fork has a chain of journals, each read up to the point at which it was left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from remit.agent.forks import MAX_CHAIN, base_of
from remit.agent.journal import Progress, apply
from remit.agent.reading import RunReader
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError


@dataclass(frozen=True, slots=True)
class Stretch:
    """A journal from its beginning to a sequence, and where it leads."""

    progress: Progress
    began: dict[int, int]
    """The sequence at which each step that the run itself began was first asked for."""
    chain: int
    """Runs in its chain of forks, itself included."""


@dataclass(frozen=True)
class Standing:
    """Reads the progress of runs; `page` events at a time."""

    reader: RunReader
    page: int

    async def now(self, run: str) -> Progress:
        """The progress of a run. Raises DATA_CORRUPT, DEPENDENCY_UNAVAILABLE."""
        return (await self.stretch(run)).progress

    async def stretch(self, run: str, until: int | None = None) -> Stretch:
        """A run's journal up to a sequence, or its end. Raises DATA_CORRUPT."""
        return await self._stretch(run, until, MAX_CHAIN)

    async def base(self, run: str) -> Progress:
        """What a run took over from another one; nothing, unless it is a fork. Raises DATA_CORRUPT.

        An empty journal leads to nothing too.
        """
        async for event in self.events(run, 1):
            if event.created.run.HasField("fork"):
                source = await self._source(event.created.run, MAX_CHAIN)
                return base_of(source.progress, event.created.run.fork.turns)
        return Progress()

    async def _stretch(self, run: str, until: int | None, depth: int) -> Stretch:
        progress, began, chain = Progress(), dict[int, int](), 1
        async for event in self.events(run, until):
            kind = event.WhichOneof("event")
            if kind == "created" and event.created.run.HasField("fork"):
                source = await self._source(event.created.run, depth)
                progress = base_of(source.progress, event.created.run.fork.turns)
                chain += source.chain
            elif kind == "model_call_started":
                began.setdefault(event.model_call_started.step, event.sequence)
            progress = apply(progress, event)
        return Stretch(progress, began, chain)

    async def _source(self, run: run_pb2.Run, depth: int) -> Stretch:
        fork = run.fork
        if depth <= 1:
            raise _corrupt(run.name, f"stands in a chain of more than {MAX_CHAIN} forks")
        source = await self._stretch(fork.run, fork.sequence, depth - 1)
        if source.progress.sequence != fork.sequence or len(source.progress.turns) < fork.turns:
            raise _corrupt(run.name, f"goes on from {fork.run}, whose journal lacks what it needs")
        return source

    async def events(self, run: str, until: int | None = None) -> AsyncIterator[run_pb2.RunEvent]:
        """A run's events from the first to a sequence, or its end. Raises DATA_CORRUPT."""
        after = 0
        while until is None or after < until:
            limit = self.page if until is None else min(self.page, until - after)
            found = await self.reader.events(run, after=after, limit=limit)
            for event in found:
                yield event
            after += len(found)
            if len(found) < limit:
                return


def _corrupt(run: str, fault: str) -> RemitError:
    return RemitError(reasons.ERROR_REASON_DATA_CORRUPT, f"{run} {fault}")

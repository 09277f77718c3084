"""Replaying a run for whoever may read it: the journal read, and gone through without a service."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial

from remit.agent.conversation import Offer
from remit.agent.definitions import AgentCatalog, AgentDefinition
from remit.agent.forks import CURRENT, check_overrides, overridden
from remit.agent.journal import Progress
from remit.agent.offers import unpinned
from remit.agent.reading import DefinitionStore, RunReader, not_found
from remit.agent.replay import Replay, Script
from remit.agent.standing import Standing
from remit.agent.sub_runs import offered
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.tools.v1 import tool_pb2
from remit.guardrails import ServiceRules
from remit.rpc.calls import current_remit
from remit.rpc.clock import Clock
from remit.rpc.errors import Violation, check_all, invalid_request


@dataclass(frozen=True)
class Replayer:
    """Replays runs."""

    reader: RunReader
    standing: Standing
    definitions: DefinitionStore
    catalog: AgentCatalog
    clock: Clock
    max_doubt_attempts: int
    rules: ServiceRules

    async def replay(
        self, request: agent_service_pb2.ReplayRunRequest
    ) -> agent_service_pb2.ReplayRunResponse:
        """The first difference between a run's journal and what would be now.

        Raises INVALID_REQUEST and SUSPICIOUS_INPUT about overrides, AGENT_NOT_FOUND for the
        current definition of an agent that is gone, DATA_CORRUPT for a journal that cannot be read.
        """
        check_replay(request.overrides)
        base = await self.standing.base(request.name)
        replay: Replay | None = None
        found: agent_service_pb2.Divergence | None = None
        async for event in self.standing.events(request.name):
            if replay is None:
                replay = await self._begun(base, event.created.run, request)
            found = replay.take(event)
            if found is not None:
                break
            # A step of a long conversation takes milliseconds to compute: let others in.
            await asyncio.sleep(0)
        if replay is None:
            raise not_found(request.name)
        return agent_service_pb2.ReplayRunResponse(
            divergence=found,
            last_sequence=replay.progress.sequence,
            requests_compared=replay.requests_compared,
            requests_unrecorded=replay.requests_unrecorded,
            agent_version=replay.script.definition.version,
        )

    async def _begun(
        self, base: Progress, run: run_pb2.Run, request: agent_service_pb2.ReplayRunRequest
    ) -> Replay:
        own = await self.definitions.get(run.agent_version)
        stored = await self.reader.offer(request.name)
        pinned = unpinned(stored) if stored is not None else Offer(())
        definition, offer = own, pinned
        if request.overrides.agent_version == CURRENT:
            definition = self.catalog.get(run.agent)
            offer = self._as_offered_then(definition, pinned)
        accepted: run_pb2.Run | None = None
        if request.overrides != agent_service_pb2.RunOverrides():
            now = self.clock.now()
            rules = self.rules.of(current_remit())
            accepted = overridden(run, own, definition, request.overrides, now, rules)
        script = Script(
            definition,
            offer,
            await self.reader.history(run),
            self.max_doubt_attempts,
            accepted,
            (own, pinned),
        )
        return Replay(script, base)

    def _as_offered_then(self, definition: AgentDefinition, pinned: Offer) -> Offer:
        """What another definition would be offered: its tools as the run saw them, where it did."""
        known = {tool.name: tool for tool in pinned.tools}
        tools = [known.get(name, tool_pb2.Tool(name=name)) for name in definition.tool_names]
        agents = [offered(self.catalog.get(name)) for name in definition.agent_names]
        return Offer((*tools, *agents))


def check_replay(overrides: agent_service_pb2.RunOverrides) -> None:
    """Raises INVALID_REQUEST for overrides that no run, or no replay, could have."""
    check_all(partial(check_overrides, overrides), partial(_check_no_priority, overrides))


def _check_no_priority(overrides: agent_service_pb2.RunOverrides) -> None:
    if overrides.priority:
        raise invalid_request([Violation("overrides.priority", "says nothing in a replay")])

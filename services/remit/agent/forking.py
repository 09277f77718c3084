"""Forking a run: the point found, the overrides checked, a new run begun with what it takes over.

A fork is a run like any other: registered at policy under the remit of whoever asks for it, with a
budget of its own. What its source may use and has spent says nothing about it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from remit import names
from remit.agent.conversation import Offer
from remit.agent.creation import FIRST_TOKEN, Beginning, Created, Creator, Order
from remit.agent.definitions import AgentDefinition, Grant
from remit.agent.forks import (
    CURRENT,
    MAX_CHAIN,
    Point,
    after_sequence,
    base_of,
    before_step,
    begun,
    chain_too_long,
    check_goes_on,
    check_last_step_failed,
    check_overrides,
    differences,
    overridden,
)
from remit.agent.metrics import refusals_counted
from remit.agent.offers import unpinned
from remit.agent.reading import DefinitionStore, StoredRun
from remit.agent.run_remit import IssuedRemit
from remit.agent.standing import Standing, Stretch
from remit.agent.validation import check_request_id
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.guardrails import Rules
from remit.rpc.calls import shielded, spawn
from remit.rpc.errors import Violation, invalid_request
from remit.rpc.remits import Remit


@dataclass(frozen=True)
class Forker:
    """Forks runs."""

    creator: Creator
    definitions: DefinitionStore
    standing: Standing

    async def fork(
        self,
        request: agent_service_pb2.ForkRunRequest,
        source: StoredRun,
        remit: Remit,
        remit_token: str,
    ) -> Created:
        """The fork of a source that the caller may read; the same request gets the same fork.

        Raises INVALID_REQUEST, SUSPICIOUS_INPUT, INVALID_STATE, AGENT_NOT_FOUND, KEY_REUSED,
        OVERLOADED, DATA_CORRUPT for a source that cannot be read, and whatever policy answers.
        """
        with refusals_counted():
            return await self._checked(request, source, remit, remit_token)

    async def _checked(
        self,
        request: agent_service_pb2.ForkRunRequest,
        source: StoredRun,
        remit: Remit,
        remit_token: str,
    ) -> Created:
        check_request_id(request.request_id)
        check_overrides(request.overrides)
        digest = _digest(request)
        known = await self.creator.reader.run_of_request(
            remit.org, remit.subject, request.request_id, digest
        )
        if known is not None:
            return Created(known)
        order = await self._order(request, source, remit, digest)

        async def register(grant: Grant) -> IssuedRemit:
            return await self.creator.desk.register(
                order.run, FIRST_TOKEN, grant, client_remit=remit_token
            )

        # Whoever asked may leave now; what was begun is finished, so that no run lies idle.
        made = spawn(self.creator.begin(order, register), name=f"new-{order.run.name}")
        return await shielded(made)

    async def _order(
        self,
        request: agent_service_pb2.ForkRunRequest,
        stored: StoredRun,
        remit: Remit,
        digest: bytes,
    ) -> Order:
        source, subject = stored.run, remit.subject
        rules = self.creator.rules.of(remit)
        point, stretch = await self._point(request, source)
        if stretch.chain >= MAX_CHAIN:
            raise chain_too_long(source.name)
        accepted = stretch.progress.accepted
        definition = await self._definition(accepted, request.overrides)
        run = await self._run(request, accepted, definition, subject, rules)
        run.fork.MergeFrom(
            run_pb2.RunFork(
                run=source.name,
                sequence=point.sequence,
                turns=point.turns,
                overrides=differences(accepted, run),
            )
        )
        base = base_of(stretch.progress, point.turns)
        field = request.WhichOneof("point") or "name"
        check_goes_on(source.name, point, begun(base, run), field=field)
        offer = await self._offer(request, source, subject)
        history = await self.creator.reader.history(run)
        begins = Beginning(base, offer, history)
        others = tuple(key for key in stored.key.all_of_it if key.subject != subject)
        return Order(
            run, definition, request.request_id, digest, rules, begins=begins, others=others
        )

    async def _point(
        self, request: agent_service_pb2.ForkRunRequest, source: run_pb2.Run
    ) -> tuple[Point, Stretch]:
        """Where the fork leaves its source, and the source as it stood there or later."""
        if request.WhichOneof("point") == "from_sequence":
            until = request.from_sequence
            if not 1 <= until <= source.last_sequence:
                fault = f"must be from 1 to {source.last_sequence}, the newest event"
                raise invalid_request([Violation("from_sequence", fault)])
            stretch = await self.standing.stretch(source.name, until)
            return after_sequence(stretch.progress), stretch
        if request.WhichOneof("point") is None:
            check_last_step_failed(source)
        stretch = await self.standing.stretch(source.name)
        newest = max(len(stretch.progress.turns), 1)
        step = request.from_step if request.HasField("from_step") else newest
        return before_step(stretch.progress, stretch.began, step), stretch

    async def _definition(
        self, source: run_pb2.Run, overrides: agent_service_pb2.RunOverrides
    ) -> AgentDefinition:
        # An agent that the operator took away starts nothing any more, of no version.
        current = self.creator.catalog.get(source.agent)
        if overrides.agent_version == CURRENT:
            return current
        return await self.definitions.get(source.agent_version)

    async def _run(
        self,
        request: agent_service_pb2.ForkRunRequest,
        source: run_pb2.Run,
        definition: AgentDefinition,
        subject: str,
        rules: Rules,
    ) -> run_pb2.Run:
        """The fork as it is accepted. Raises INVALID_REQUEST, SUSPICIOUS_INPUT."""
        creator, now = self.creator, self.creator.clock.now()
        own = await self.definitions.get(source.agent_version)
        asked = overridden(source, own, definition, request.overrides, now, rules)
        run = run_pb2.Run(
            name=names.run_name(creator.ids.uuid7()),
            agent=definition.full_name,
            agent_version=definition.version,
            subject=subject,
            task=asked.task,
            context=asked.context,
            state=run_pb2.RUN_STATE_QUEUED,
            limits=asked.limits,
            last_sequence=1,
            priority=asked.priority,
            previous_run=source.previous_run,
            history_runs=source.history_runs,
        )
        run.create_time.FromDatetime(now)
        return run

    async def _offer(
        self, request: agent_service_pb2.ForkRunRequest, source: run_pb2.Run, subject: str
    ) -> Offer | None:
        """The tools that the source was offered; none where the fork is to be offered its own."""
        if request.overrides.agent_version == CURRENT or subject != source.subject:
            return None
        stored = await self.creator.reader.offer(source.name)
        return unpinned(stored) if stored is not None else None


def _digest(request: agent_service_pb2.ForkRunRequest) -> bytes:
    """Of the request's body and kind: no request of another kind has the same."""
    body = request.SerializeToString(deterministic=True)
    return hashlib.sha256(b"ForkRun\0" + body).digest()

"""Creating a run: registered at policy, stored with its first events, begun at once if it can be.

The client's remit is used while the request is served and not kept: policy registers the run under
it, and from then on the run's own remits need only the fencing token.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, TypeAlias

from remit import names, telemetry, webhooks
from remit.agent.admission import Admission
from remit.agent.conversation import Offer
from remit.agent.definitions import AgentCatalog, AgentDefinition, Grant
from remit.agent.entries import NewRun
from remit.agent.forks import within_overrides
from remit.agent.history import Exchange
from remit.agent.journal import Progress
from remit.agent.logbook import Draft, started
from remit.agent.metrics import count_created, refusals_counted
from remit.agent.offers import Offers, pinned
from remit.agent.pool import RunPool
from remit.agent.reading import RunReader
from remit.agent.records import run_id
from remit.agent.run_remit import IssuedRemit, RemitDesk
from remit.agent.sealing import Key, KeyRef, Keys, OtherKey
from remit.agent.settings import AgentSettings
from remit.agent.spans import traceparent_of_call
from remit.agent.store import RunStore, queue_full
from remit.agent.summary import run_of
from remit.agent.tenure import Head, Tenure
from remit.agent.threads import Place
from remit.agent.validation import (
    DEFAULT_PRIORITY,
    check_create,
    resolve_limits,
    screened_run,
)
from remit.agent.webhooks import waiting
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.guardrails import AGENT, Rules, ServiceRules
from remit.rpc.calls import shielded, spawn
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource
from remit.rpc.remits import Remit

FIRST_TOKEN: Final = 1
"""Fencing token under which a run is created; whoever claims it later raises it."""


@dataclass(frozen=True, slots=True)
class Created:
    """A run that exists, with the events that this very call committed."""

    name: str
    events: tuple[run_pb2.RunEvent, ...] = ()
    run: run_pb2.Run | None = None
    """The run after these events; None where an earlier call created it."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a run begins with: nothing, unless it is a fork."""

    base: Progress = field(default_factory=Progress)
    """What it takes over of its source."""
    offer: Offer | None = None
    """The tools that its source was offered; None: those that it is offered itself."""
    history: tuple[Exchange, ...] = ()
    """What its source saw of the runs before it."""


@dataclass(frozen=True, slots=True)
class Order:
    """A run to be created: checked, named, and asked for under a request id."""

    run: run_pb2.Run
    definition: AgentDefinition
    request_id: str
    digest: bytes
    """Of the request's body: the same id with another digest is another request."""
    rules: Rules
    """By which its texts were screened. What policy wants of the run itself is known later."""
    parent_token: int = 0
    """Of a sub-run: the fencing token of the worker that starts it."""
    place: Place | None = None
    """Of a run that continues a conversation."""
    begins: Beginning = field(default_factory=Beginning)
    """Of a fork: what it takes over."""
    others: tuple[OtherKey, ...] = ()
    """Keys of others whose content it knows: of whose run it forks, or its parent forked."""

    @property
    def org(self) -> str:
        """`orgs/{org}` whose run it is."""
        return names.org_of(self.run.subject)


Register: TypeAlias = Callable[[Grant], Awaitable[IssuedRemit]]
"""Registers an order's run at policy and returns its first remit."""


@dataclass(frozen=True)
class Creator:
    """Creates runs."""

    catalog: AgentCatalog
    store: RunStore
    reader: RunReader
    admission: Admission
    desk: RemitDesk
    offers: Offers
    keys: Keys
    pool: RunPool
    settings: AgentSettings
    clock: Clock
    ids: IdSource

    @functools.cached_property
    def rules(self) -> ServiceRules:
        """What happens to what guardrails find in a task or a context."""
        return ServiceRules(AGENT, self.settings.guardrail_rules)

    async def create(
        self, request: agent_service_pb2.CreateRunRequest, remit: Remit, remit_token: str
    ) -> Created:
        """The run of a request: a new one, or the one that the same request created before.

        Raises INVALID_REQUEST, SUSPICIOUS_INPUT, AGENT_NOT_FOUND, CONVERSATION_NOT_FOUND,
        KEY_REUSED, INVALID_STATE while another run of the conversation goes on,
        CONCURRENCY_LIMITED, OVERLOADED, and whatever policy answers.
        """
        with refusals_counted():
            return await self._checked(request, remit, remit_token)

    def check(
        self, request: agent_service_pb2.CreateRunRequest, rules: Rules
    ) -> agent_service_pb2.CreateRunRequest:
        """The request as it may go on by the rules for whoever asks.

        Raises INVALID_REQUEST or SUSPICIOUS_INPUT with all that is wrong with it.
        """
        return check_create(request, self.clock.now(), self.settings.webhook_networks, rules)

    async def _checked(
        self, request: agent_service_pb2.CreateRunRequest, remit: Remit, remit_token: str
    ) -> Created:
        rules = self.rules.of(remit)
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        try:
            screened = self.check(request, rules)
        except RemitError as error:
            known = await self._created_before(error, request, remit, digest)
            if known is None:
                raise
            return Created(known)
        thread = None
        if request.conversation:
            thread = await self.admission.find(request.conversation, remit)
        known = await self.reader.run_of_request(
            remit.org, remit.subject, request.request_id, digest
        )
        if known is not None:
            return Created(known)
        definition = self.catalog.get(request.agent)
        run = self._accepted(screened, remit, definition)
        place = await self.admission.place(thread) if thread is not None else None
        if place is not None:
            place.pin(run)
        order = Order(run, definition, request.request_id, digest, rules, place=place)

        async def register(grant: Grant) -> IssuedRemit:
            return await self.desk.register(run, FIRST_TOKEN, grant, client_remit=remit_token)

        # Whoever asked may leave now; what was begun is finished, so that no run lies idle.
        return await shielded(spawn(self.begin(order, register), name=f"new-{run.name}"))

    async def _created_before(
        self,
        error: RemitError,
        request: agent_service_pb2.CreateRunRequest,
        remit: Remit,
        digest: bytes,
    ) -> str | None:
        """The run of a request that would be refused now for what it holds, and was not before.

        Whoever asks again, to go on with a stream of events, gets what the request made.
        """
        if error.reason != reasons.ERROR_REASON_SUSPICIOUS_INPUT:
            return None
        return await self.reader.run_of_request(
            remit.org, remit.subject, request.request_id, digest
        )

    async def begin(self, order: Order, register: Register) -> Created:
        """Registers and stores a run, and begins it if there is a place. Raises as `create` does.

        What policy wants of guardrails for this run, its agent's included, comes with its remit:
        what was not looked for before is looked for then, and nothing is stored of what is refused.
        Raises FENCED for a sub-run whose parent is another worker's.
        """
        telemetry.name_runs(order.run.name)
        is_later = order.run.HasField("schedule_time")
        has_place = not is_later and self.pool.reserve(order.org)
        tenure: Tenure | None = None
        try:
            if not (has_place or is_later) and self.pool.is_queue_full:
                raise queue_full(self.settings.max_queued_runs)
            # Before anybody hears of the run: without a key nothing of it can be stored.
            key = await self.keys.new(order.run.subject, run_id(order.run.name), order.others)
            issued = await register(self._grant(order))
            order = self._screened(order, issued)
            created, tenure = await self._store(order, issued, key, has_place=has_place)
        finally:
            if has_place and tenure is None:
                self.pool.give_up_place(order.org)
        if has_place and tenure is not None:
            await self.pool.start(tenure)
        return created

    def _screened(self, order: Order, issued: IssuedRemit) -> Order:
        beyond = self.rules.of_claim(issued.guardrails).beyond(order.rules)
        is_fork = order.run.HasField("fork")
        with within_overrides() if is_fork else contextlib.nullcontext():
            run = screened_run(order.run, beyond)
        if is_fork:
            changed = {
                each
                for each in ("context", "task")
                if getattr(run, each) != getattr(order.run, each)
            }
            run.fork.overrides[:] = sorted({*run.fork.overrides, *changed})
        return replace(order, run=run)

    def _grant(self, order: Order) -> Grant:
        """What the run is registered with; one whose end is told may call the tool that tells."""
        grant = self.catalog.grant(order.definition)
        if not order.run.HasField("webhook"):
            return grant
        return replace(grant, tools=(*grant.tools, webhooks.TOOL))

    async def _store(
        self, order: Order, issued: IssuedRemit, key: Key, *, has_place: bool
    ) -> tuple[Created, Tenure | None]:
        draft = Draft(order.run.name, order.begins.base, self.clock)
        draft.add(run_pb2.RunCreated(run=order.run))
        offer = self._first_step(draft, order) if has_place else order.begins.offer
        asked = self.clock.monotonic()
        new = self._row(order, draft, issued, offer, key, has_place=has_place)
        stored = await self.store.create(new)
        if not stored.is_new:
            return Created(stored.name), None
        count_created(order.run)
        created = Created(stored.name, new.events, new.run)
        history = order.place.history if order.place is not None else order.begins.history
        tenure = Tenure(
            run=stored.name,
            fencing_token=FIRST_TOKEN,
            grant_time=asked,
            lease_s=self.settings.lease_s,
            deadline=asked + new.max_duration_s,
            org=order.org,
            key=KeyRef(order.run.subject, key.key_id, order.others),
            head=Head(draft.progress, order.definition, issued, offer, history),
            traceparent=new.traceparent,
        )
        return created, tenure if has_place else None

    def _first_step(self, draft: Draft, order: Order) -> Offer | None:
        """Begins the run in the commit that creates it, as far as is known without asking."""
        draft.add(started(FIRST_TOKEN, self.settings.replica))
        offer = order.begins.offer or self.offers.remembered(order.run.subject, order.definition)
        if offer is not None:
            draft.announce_next(order.definition.model_name)
        return offer

    def _row(
        self,
        order: Order,
        draft: Draft,
        issued: IssuedRemit,
        offer: Offer | None,
        key: Key,
        *,
        has_place: bool,
    ) -> NewRun:
        return NewRun(
            org=order.org,
            run=run_of(draft.progress),
            request_id=order.request_id,
            body_digest=order.digest,
            max_duration_s=order.run.limits.max_duration.ToNanoseconds() / 1e9,
            events=tuple(draft.events),
            owner=self.pool.owner if has_place else "",
            lease_s=self.settings.lease_s,
            fencing_token=FIRST_TOKEN,
            traceparent=traceparent_of_call(),
            offer=pinned(offer) if offer is not None else None,
            schedule_time=_time_of(order.run),
            parent_token=order.parent_token,
            max_user_runs=issued.max_user_runs,
            max_org_runs=issued.max_org_runs,
            last_run=order.place.last_run if order.place is not None else "",
            key=key,
            others=order.others,
        )

    def _accepted(
        self,
        request: agent_service_pb2.CreateRunRequest,
        remit: Remit,
        definition: AgentDefinition,
    ) -> run_pb2.Run:
        run = run_pb2.Run(
            name=names.run_name(self.ids.uuid7()),
            agent=definition.full_name,
            agent_version=definition.version,
            subject=remit.subject,
            task=request.task,
            context=request.context,
            state=run_pb2.RUN_STATE_QUEUED,
            limits=resolve_limits(request.limits, definition),
            last_sequence=1,
            priority=request.priority or DEFAULT_PRIORITY,
        )
        if request.webhook:
            run.webhook.CopyFrom(waiting(request.webhook, run.name))
        now = self.clock.now()
        run.create_time.FromDatetime(now)
        if request.HasField("schedule_time") and request.schedule_time.ToDatetime(UTC) > now:
            run.schedule_time.CopyFrom(request.schedule_time)
        return run


def _time_of(run: run_pb2.Run) -> datetime | None:
    """When a run may start; None: at once."""
    return run.schedule_time.ToDatetime(UTC) if run.HasField("schedule_time") else None

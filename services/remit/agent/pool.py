"""The runs that this replica works on: how many, for how long, and what happens when it stops.

Bounded concurrency, leases renewed at a third of their life, orphans adopted, and a drain that
hands runs over so that another replica takes them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from remit import telemetry
from remit.agent.leases import Grant, LeaseStore
from remit.agent.metrics import QUEUE_LENGTH, RUNNING, count_claimed
from remit.agent.settings import AgentSettings
from remit.agent.spans import place_of
from remit.agent.tenure import Tenure
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.calls import spawn
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError

_RENEWALS_A_LEASE: Final = 3
_LOOKS_A_LEASE: Final = 20
"""How often a lease is looked at to see whether its holder must stop."""
_LEAST_PAUSE_S: Final = 0.01
"""Between two looks at the queue: a run whose time has come may be another replica's to take."""
_PUT_BACK_S: Final = 1.0
"""Pause before a run that cannot be worked on now may be claimed again: what fails at once must not
go round and round."""

log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    tenure: Tenure
    task: asyncio.Task[None]


class RunPool:
    """Works on up to `max_running` runs at once."""

    def __init__(
        self,
        leases: LeaseStore,
        work: Callable[[Tenure], Awaitable[None]],
        settings: AgentSettings,
        clock: Clock,
    ) -> None:
        self._leases = leases
        self._work = work
        self._settings = settings
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._leaving: dict[asyncio.Task[None], _Job] = {}
        """Of runs that were paused: what is under way ends, and nothing follows it."""
        self._reserved: Counter[str] = Counter()
        """Places taken for runs about to be created, by org."""
        self._waiting: Counter[str] = Counter()
        """Runs that waited for a worker at the last look, by org."""
        self._next_due_s: float | None = None
        self._backlog = False
        self._draining = False
        self._claiming = asyncio.Lock()
        self._wake = asyncio.Event()

    @property
    def owner(self) -> str:
        """The name under which this process holds leases."""
        return self._leases.owner

    @property
    def running(self) -> int:
        """Runs being worked on."""
        return len(self._jobs)

    @property
    def is_queue_full(self) -> bool:
        """Whether no run may wait for a worker any more, as of the last look."""
        return self._waiting.total() >= self._settings.max_queued_runs

    def reserve(self, org: str) -> bool:
        """Takes a place for a run of an org about to be created; False where it must queue.

        Nobody overtakes: while runs of its org wait for a worker, or any for a place, a new one
        queues with them.
        """
        if self._backlog or self._draining or self._free <= 0 or self._waiting[org]:
            return False
        if self._at_work[org] >= self._settings.max_running_per_org:
            self._waiting[org] += 1  # until the next look, which finds it in the queue
            return False
        self._reserved[org] += 1
        return True

    def give_up_place(self, org: str) -> None:
        """Frees a reserved place that was not used."""
        self._reserved[org] -= 1
        self.wake()

    async def start(self, tenure: Tenure) -> None:
        """Works on a created run in the place that was reserved for it.

        Where a drain began since, the run is handed over instead.
        """
        self._reserved[tenure.org] -= 1
        await self._take_up([tenure])

    def wake(self) -> None:
        """Says that a run may be waiting for a worker."""
        self._wake.set()

    def token_raised(self, run: str, fencing_token: int) -> None:
        """Says that a run's token is at least this: a worker with a lower one stops at once."""
        job = self._jobs.get(run)
        if job is not None and job.tenure.fencing_token < fencing_token:
            job.task.cancel()

    def paused(self, run: str, fencing_token: int) -> None:
        """Says that a run was paused under this token: its worker here ends what is under way."""
        job = self._jobs.get(run)
        if job is None or job.tenure.fencing_token >= fencing_token:
            return
        job.tenure.handing_over = True
        del self._jobs[run]
        if not job.task.done():
            self._leaving[job.task] = job
            job.task.add_done_callback(self._leaving.pop)
        RUNNING.set(len(self._jobs))
        self.wake()

    def stopped(self, run: str, fencing_token: int) -> None:
        """Says that a run was cancelled under this token: whatever works on it here stops."""
        for job in [*self._jobs.values(), *self._leaving.values()]:
            if job.tenure.run == run and job.tenure.fencing_token < fencing_token:
                job.task.cancel()

    async def claim_runs(self) -> None:
        """Claims waiting and orphaned runs while there are places; runs until cancelled."""
        while True:
            self._wake.clear()
            with _outage_logged("claim"):
                await self._claim_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_next_look_s):
                    await self._wake.wait()

    async def renew_leases(self) -> None:
        """Renews every lease at a third of its life; runs until cancelled."""
        while True:
            await asyncio.sleep(self._settings.lease_s / _RENEWALS_A_LEASE)
            with _outage_logged("renew"):
                await self._renew()

    async def stop_lapsed(self) -> None:
        """Stops workers whose lease was not renewed in time; runs until cancelled."""
        while True:
            await asyncio.sleep(self._settings.lease_s / _LOOKS_A_LEASE)
            now = self._clock.monotonic()
            for run, job in list(self._jobs.items()):
                if now >= job.tenure.stop_time:
                    with _in_place(job.tenure):
                        log.warning("lease_lapsed", run=run)
                    job.task.cancel()

    async def drain(self) -> None:
        """Takes no more runs, lets effects under way end, then hands the leases over."""
        self._draining = True
        jobs = list(self._jobs.values())
        for job in jobs:
            job.tenure.handing_over = True
        tasks = [job.task for job in jobs] + list(self._leaving)
        if tasks:
            await asyncio.wait(tasks, timeout=self._settings.hand_over_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if jobs:
            await self._claimed()
            await self._leases.release([job.tenure.held for job in jobs])

    async def _claimed(self) -> None:
        """Lets a claim under way end, which else could take again what is handed over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.hand_over_s), self._claiming:
                pass

    @property
    def _free(self) -> int:
        return self._settings.max_running - len(self._jobs) - self._reserved.total()

    @property
    def _at_work(self) -> Counter[str]:
        """Places in use, by org."""
        return self._reserved + Counter(job.tenure.org for job in self._jobs.values())

    @property
    def _until_next_look_s(self) -> float:
        due_s = self._settings.claim_poll_s if self._next_due_s is None else self._next_due_s
        return max(_LEAST_PAUSE_S, min(due_s, self._settings.claim_poll_s))

    async def _claim_all(self) -> None:
        while not self._draining:
            await self._look()
            count = min(self._free, self._settings.claim_batch)
            if count <= 0:
                self._backlog = bool(self._waiting)
                return
            async with self._claiming:
                if self._draining:  # begun since
                    return
                asked = self._clock.monotonic()
                grants = await self._leases.claim(
                    count,
                    at_work_here=self._at_work,
                    most_of_an_org=self._settings.max_running_per_org,
                )
                self._waiting -= Counter(grant.org for grant in grants)
                await self._take_up([self._tenure(grant, asked) for grant in grants])
            count_claimed(grant.is_orphan for grant in grants)
            self._backlog = len(grants) == count
            if not self._backlog:
                return

    async def _look(self) -> None:
        """Sees what waits for a worker."""
        waiting = await self._leases.waiting()
        self._waiting = Counter(waiting.by_org)
        self._next_due_s = waiting.next_due_s
        QUEUE_LENGTH.set(waiting.queue_length)

    def _tenure(self, grant: Grant, asked: float) -> Tenure:
        return Tenure(
            run=grant.run,
            fencing_token=grant.fencing_token,
            grant_time=asked,
            lease_s=self._settings.lease_s,
            deadline=asked + grant.remaining_s,
            org=grant.org,
            key=grant.key,
            traceparent=grant.traceparent,
        )

    async def _take_up(self, tenures: Sequence[Tenure]) -> None:
        """Begins to work on runs; a drain, which may have begun while they were granted, does not.

        The drain itself knows only of runs that were being worked on when it began.
        """
        if not self._draining:
            for tenure in tenures:
                self._begin(tenure)
        elif tenures:
            await self._hand_over(tenures)

    async def _hand_over(self, tenures: Sequence[Tenure]) -> None:
        with _outage_logged("hand over"):
            await self._leases.release([tenure.held for tenure in tenures])

    def _begin(self, tenure: Tenure) -> None:
        earlier = self._jobs.get(tenure.run)
        if earlier is not None:
            # This process lost the run, claims it again, and has not noticed the loss yet.
            earlier.task.cancel()
        with _in_place(tenure):
            task = spawn(self._run(tenure), name=f"work-{tenure.run}")
        self._jobs[tenure.run] = job = _Job(tenure, task)
        RUNNING.set(len(self._jobs))
        task.add_done_callback(lambda _: self._finished(job))

    async def _run(self, tenure: Tenure) -> None:
        try:
            await self._work(tenure)
        except RemitError as error:
            log.warning(
                "run_put_back", run=tenure.run, reason=error.reason_name, error=error.message
            )
            # Nobody may take it before the pause is over, and anybody at once after it.
            await asyncio.sleep(_PUT_BACK_S)
            await self._hand_over([tenure])

    def _finished(self, job: _Job) -> None:
        if self._jobs.get(job.tenure.run) is job:
            del self._jobs[job.tenure.run]
        RUNNING.set(len(self._jobs))
        if not job.task.cancelled() and (error := job.task.exception()) is not None:
            kind = type(error).__name__
            with _in_place(job.tenure):
                log.error("worker_failed", run=job.tenure.run, error_type=kind)
        if self._backlog or self._waiting[job.tenure.org]:
            self.wake()

    async def _renew(self) -> None:
        jobs = list(self._jobs.values())
        if not jobs:
            return
        asked = self._clock.monotonic()
        renewed = await self._leases.renew([job.tenure.held for job in jobs])
        for job in jobs:
            if job.tenure.run in renewed:
                job.tenure.grant_time = asked
            elif not job.task.done():
                with _in_place(job.tenure):
                    log.info("lease_lost", run=job.tenure.run)
                job.task.cancel()


def _in_place(tenure: Tenure) -> contextlib.AbstractContextManager[None]:
    """Does the body in the run's own trace: the pool's work belongs to none."""
    return telemetry.within(place_of(tenure.run, tenure.traceparent))


@contextlib.contextmanager
def _outage_logged(what: str) -> Iterator[None]:
    """A database that is away ends no background work: it is tried again in time."""
    try:
        yield
    except RemitError as error:
        if error.reason != reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE:
            raise
        log.warning("lease_store_away", during=what, error=error.message)

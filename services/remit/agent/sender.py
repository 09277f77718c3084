"""Tells the ends of runs: takes what is due, has it posted, records what came of it.

A try is a tool call under the run's own remit, with a key of its own. A replica that dies between
the call and its record leaves a lease that lapses; whoever claims the delivery next makes the same
call, and the gate answers with what was recorded: nothing is posted again. Only where the outcome
itself is unknown (no answer, or the tools service died) is the message posted once more, under the
same id.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Final

from remit import telemetry
from remit.agent.metrics import count_webhook_ended, count_webhook_try
from remit.agent.outbox import Due, Outbox
from remit.agent.reading import RunReader, run_erased
from remit.agent.run_remit import RemitDesk
from remit.agent.settings import AgentSettings
from remit.agent.spans import place_of
from remit.agent.webhooks import Patience, Verdict, call_of, judge
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.tools.v1 import tool_service_pb2_grpc
from remit.rpc.calls import spawn
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource
from remit.rpc.mesh import remit_metadata
from remit.telemetry.logs import own_text

_HOLDER_SHARE: Final = 0.8
"""Share of a lease after which its holder stops."""

log = telemetry.logger(__name__)


class WebhookSender:
    """Makes up to `webhook_max_sending` tries at once."""

    def __init__(
        self,
        outbox: Outbox,
        reader: RunReader,
        desk: RemitDesk,
        tools: tool_service_pb2_grpc.ToolServiceStub,
        settings: AgentSettings,
        ids: IdSource,
    ) -> None:
        self._outbox = outbox
        self._reader = reader
        self._desk = desk
        self._tools = tools
        self._settings = settings
        self._ids = ids
        self._patience = Patience(
            settings.webhook_max_tries,
            settings.webhook_max_age_s,
            settings.webhook_retry_base_s,
            settings.webhook_retry_cap_s,
        )
        self._jobs: dict[asyncio.Task[None], Due] = {}
        self._wake = asyncio.Event()
        self._draining = False

    def wake(self) -> None:
        """Says that a delivery may be due."""
        self._wake.set()

    async def run(self) -> None:
        """Takes what is due, until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self._take()
            except RemitError as error:
                if error.reason != reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE:
                    raise
                log.warning("webhook_store_away", error=error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.webhook_poll_s):
                    await self._wake.wait()

    async def drain(self) -> None:
        """Takes nothing more and lets tries under way end, at most `hand_over_s` seconds.

        One that is cut off gives its claim back: another replica makes the same call.
        """
        self._draining = True
        if self._jobs:
            await asyncio.wait(set(self._jobs), timeout=self._settings.hand_over_s)
        await self.stop()

    async def stop(self) -> None:
        """Cuts off every try under way."""
        self._draining = True
        tasks = list(self._jobs)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self) -> None:
        free = self._settings.webhook_max_sending - len(self._jobs)
        if free <= 0 or self._draining:
            return
        here = Counter(due.org for due in self._jobs.values())
        most = self._settings.webhook_max_sending_per_org
        for due in await self._outbox.claim(free, here, most_of_an_org=most):
            task = spawn(self._work(due), name=f"webhook-{due.run}")
            self._jobs[task] = due
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._jobs[task]
        self.wake()

    async def _work(self, due: Due) -> None:
        with telemetry.within(place_of(due.run, due.traceparent)):
            try:
                await self._deliver(due)
            except asyncio.CancelledError:
                with contextlib.suppress(RemitError):
                    await self._outbox.release(due)
                raise
            except RemitError as error:  # the lease lapses, and the same call is made again
                log.warning("webhook_not_recorded", run=due.run, error=error.message)

    async def _deliver(self, due: Due) -> None:
        error: RemitError | None = None
        try:
            async with asyncio.timeout(_HOLDER_SHARE * self._settings.webhook_lease_s):
                await self._call(due)
        except RemitError as failure:
            error = failure
        except TimeoutError:
            error = RemitError(
                reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the tools service did not answer"
            )
        except Exception:
            # Counted as a try, so that what fails by a fault of ours does not go on for ever.
            log.exception("webhook_crashed", run=due.run)
            error = RemitError(reasons.ERROR_REASON_INTERNAL, "an unexpected error occurred")
        verdict = judge(
            error, tries=due.tries, age_s=due.age_s, patience=self._patience, chance=self._chance()
        )
        if await self._outbox.record(due, verdict):
            _tell(due, verdict)

    async def _call(self, due: Due) -> None:
        """Makes the call. Raises RemitError unless the receiver confirmed."""
        run = (await self._reader.run(due.run)).run
        if run.erased:
            raise run_erased(run)
        issued = await self._desk.renew(due.run, due.fencing_token)
        request = call_of(run, due.tries + 1)
        await self._tools.CallTool(request, metadata=remit_metadata(issued.token))

    def _chance(self) -> float:
        return int.from_bytes(self._ids.token_bytes(4), "big") / 2**32


def _tell(due: Due, verdict: Verdict) -> None:
    """Counts and logs what came of a try."""
    error = verdict.error
    reason = error.reason_name if error is not None else ""
    facts = {"run": due.run, "tries": verdict.tries, "reason": reason}
    counted = verdict.tries > due.tries
    if counted:
        count_webhook_try("delivered" if error is None else "failed")
    if verdict.state == run_pb2.WEBHOOK_STATE_DELIVERED:
        count_webhook_ended("DELIVERED", due.age_s)
        log.info("webhook_delivered", run=due.run, tries=verdict.tries)
    elif verdict.state == run_pb2.WEBHOOK_STATE_FAILED:
        count_webhook_ended("FAILED", due.age_s)
        log.error("webhook_failed", error=_text(error), **facts)
    else:
        log.warning(
            "webhook_try_failed", error=_text(error), wait_s=round(verdict.wait_s, 3), **facts
        )


def _text(error: RemitError | None) -> str:
    return own_text(error) if error is not None else ""

"""Asking for an effect until its outcome is final, under one key.

The gateway retries what fails on the way; what is left is an outage. A run waits it out: it says so
in its journal and asks again, with the same key, until its own deadline ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar

from remit import telemetry
from remit.agent.approvals import REASON, ApprovalAwaited
from remit.agent.failures import Verdict, backoff_s
from remit.agent.logbook import Logbook
from remit.agent.metrics import waiting_for
from remit.agent.run_remit import RunRemit
from remit.agent.settings import AgentSettings
from remit.api.agent.v1 import run_pb2
from remit.approvals import APPROVAL
from remit.rpc.clock import Clock
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource

T = TypeVar("T")
_MAX_RENEWALS: Final = 3

log = telemetry.logger(__name__)


class EffectFailed(Exception):  # noqa: N818 - what happened, not a fault of this program
    """The final failure of an effect and what it means for the run."""

    def __init__(self, verdict: Verdict, error: RemitError) -> None:
        super().__init__(error.message)
        self.verdict = verdict
        self.error = error


@dataclass
class _Tally:
    """What one effect has been through."""

    waits: int = 0
    renewals: int = 0
    asked_again: bool = False


class Attempts:
    """How one run asks for its effects."""

    def __init__(
        self,
        logbook: Logbook,
        remit: RunRemit,
        settings: AgentSettings,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._logbook = logbook
        self._remit = remit
        self._settings = settings
        self._clock = clock
        self._ids = ids

    async def until_final(
        self, ask: Callable[[str], Awaitable[T]], judge: Callable[[RemitError], Verdict]
    ) -> T:
        """What `ask(remit)` returns.

        Raises EffectFailed, ApprovalAwaited, or FENCED if the run is another's.
        """
        tally = _Tally()
        await self._sit_out()
        while True:
            try:
                return await ask(await self._remit.current())
            except RemitError as error:
                await self._after_failure(error, judge(error), tally)

    async def _after_failure(self, error: RemitError, verdict: Verdict, tally: _Tally) -> None:
        if verdict is Verdict.STOP:
            raise error
        if verdict is Verdict.AWAIT_APPROVAL and APPROVAL in error.metadata:
            raise ApprovalAwaited(error) from error
        if verdict is Verdict.RETRY:
            await self._wait(error, tally)
        elif verdict is Verdict.RENEW_REMIT and tally.renewals < _MAX_RENEWALS:
            tally.renewals += 1
            self._remit.drop()
        elif verdict is Verdict.ASK_ONCE_MORE and not tally.asked_again:
            tally.asked_again = True
        else:
            raise EffectFailed(verdict, error) from error

    async def _wait(self, error: RemitError, tally: _Tally) -> None:
        tally.waits += 1
        delay_s = backoff_s(
            tally.waits,
            error.retry_after_s,
            base_s=self._settings.retry_base_s,
            cap_s=self._settings.retry_cap_s,
            chance=self._chance,
        )
        waiting = run_pb2.RunWaiting(reason=error.to_status())
        waiting.retry_time.FromDatetime(self._clock.now() + timedelta(seconds=delay_s))
        async with self._logbook.lock:
            draft = self._logbook.draft()
            draft.add(waiting)
            await self._logbook.commit(draft)
        log.warning(
            "retrying_agent",
            attempt=tally.waits,
            reason=error.reason_name,
            delay_s=round(delay_s, 3),
        )
        with waiting_for(error.reason_name):
            await asyncio.sleep(delay_s)

    async def _sit_out(self) -> None:
        """Goes on waiting where an earlier worker was waiting."""
        progress = self._logbook.progress
        if progress.retry_time is not None and progress.waits_for != REASON:
            with waiting_for(progress.waits_for):
                await asyncio.sleep(self._seconds_until(progress.retry_time))

    def _seconds_until(self, moment: datetime) -> float:
        # The clocks of two replicas may differ: never longer than a wait of one's own.
        left_s = (moment - self._clock.now()).total_seconds()
        return min(max(left_s, 0.0), self._settings.retry_cap_s)

    def _chance(self) -> float:
        return int.from_bytes(self._ids.token_bytes(4), "big") / 2**32

"""Batches: each item has its own answer, none waits for ever, none spoils another's request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from remit.api.policy.v1.policy_service_pb2 import CheckPermissionRequest
from remit.effects.batching import Batcher, Limits, closing_limits, opening_limits
from remit.rpc.contracts import all_contracts
from remit.rpc.errors import RemitError
from tests.effects.world import settings
from tests.waiting import in_time

CHECK = "/remit.api.policy.v1.PolicyService/BatchCheckPermissions"


class Recorder:
    """Answers each question with its resource, one batch at a time."""

    def __init__(self) -> None:
        self.batches: list[list[CheckPermissionRequest]] = []
        self.let_go = asyncio.Event()

    async def send(self, items: Sequence[CheckPermissionRequest]) -> Sequence[str | RemitError]:
        self.batches.append(list(items))
        await self.let_go.wait()
        return [item.resource for item in items]


def _limits(changes: dict[str, Any]) -> Limits:
    return cast("Limits", {**opening_limits(settings(), CHECK), **changes})


def question(number: int, size_bytes: int = 0) -> CheckPermissionRequest:
    return CheckPermissionRequest(resource=str(number), remit="x" * size_bytes)


async def test_a_batch_stays_within_the_bytes_of_its_rpc() -> None:
    recorder = Recorder()
    limits = _limits({"max_in_flight": 1})
    batcher = Batcher(recorder.send, name="decisions", **limits)
    # Each may be sent, and all together would be refused.
    asked = [batcher.ask(question(n, 1_000_000)) for n in range(9)]
    await asyncio.sleep(0)
    recorder.let_go.set()
    assert await asyncio.gather(*asked) == [str(n) for n in range(9)]
    most = all_contracts()[CHECK].max_request_bytes
    assert all(sum(i.ByteSize() for i in batch) <= most for batch in recorder.batches)
    assert len(recorder.batches) < len(asked)


async def test_an_item_that_fits_into_no_request_goes_alone() -> None:
    recorder = Recorder()
    recorder.let_go.set()
    limits = _limits({"max_in_flight": 1, "max_bytes": 10})
    batcher = Batcher(recorder.send, name="decisions", **limits)
    asked = [batcher.ask(question(0)), batcher.ask(question(1, 50)), batcher.ask(question(2))]
    await asyncio.gather(*asked)
    assert [len(batch) for batch in recorder.batches] == [1, 1, 1]


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_a_wrong_number_of_answers_fails_every_question_at_once(count: int) -> None:
    async def answer_some(_: Sequence[CheckPermissionRequest]) -> Sequence[str | RemitError]:
        return ["yes"] * count

    limits = _limits({"max_in_flight": 1})
    batcher = Batcher(answer_some, name="decisions", **limits)
    asked = asyncio.gather(*(batcher.ask(question(n)) for n in range(3)), return_exceptions=True)
    results = await in_time(asked, 5)
    assert all(isinstance(result, RemitError) for result in results)


async def test_what_waits_behind_a_batch_that_was_cut_off_does_not_hang() -> None:
    recorder = Recorder()
    limits = _limits({"max_in_flight": 1, "max_batch": 1})
    batcher = Batcher(recorder.send, name="decisions", **limits)
    asked = [batcher.ask(question(n)) for n in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (sending,) = (task for task in asyncio.all_tasks() if task.get_name() == "batch-decisions")
    sending.cancel()
    results = await in_time(asyncio.gather(*asked, return_exceptions=True), 5)
    assert all(isinstance(result, RemitError) for result in results)


async def test_closings_wait_for_company() -> None:
    recorder = Recorder()
    recorder.let_go.set()
    limits = closing_limits(settings(), CHECK)
    batcher = Batcher(recorder.send, name="closings", **limits)
    first = batcher.ask(question(1))
    await asyncio.sleep(0)
    second = batcher.ask(question(2))
    assert list(await asyncio.gather(first, second)) == ["1", "2"]
    assert len(recorder.batches) == 1


async def test_who_asks_again_as_soon_as_it_is_answered_is_answered_again() -> None:
    """Whoever is answered runs before anybody notices that the task that answered has ended."""
    recorder = Recorder()
    recorder.let_go.set()
    batcher = Batcher(recorder.send, name="decisions", **_limits({"max_in_flight": 1}))

    async def ask_often() -> list[str]:
        return [await batcher.ask(question(n)) for n in range(20)]

    assert await in_time(ask_often(), 5) == [str(n) for n in range(20)]

"""The end of a run is told over failures, outages and deaths of replicas; where known, once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.protobuf import json_format

from remit import webhooks
from remit.agent.outbox import Due, Outbox
from remit.agent.webhooks import Verdict
from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.tools.v1 import tool_service_pb2
from remit.rpc.errors import RemitError
from tests.agent.conftest import Client, StartReplica, World
from tests.agent.outside import away, client_remit, computes, results, says
from tests.monitoring.values import gained
from tests.waiting import eventually, in_time

URL = "https://example.com/ended"
DELIVERED, FAILED = run_pb2.WEBHOOK_STATE_DELIVERED, run_pb2.WEBHOOK_STATE_FAILED
PENDING = run_pb2.WEBHOOK_STATE_PENDING


class Receiver:
    """What the tools service posts; each post fails with the next of `failures`, then none."""

    def __init__(self, world: World) -> None:
        self.posted: list[dict[str, Any]] = []
        self.failures: list[RemitError] = []
        self.keys: list[str] = []
        world.tools.act = self._act

    def _act(self, call: tool_service_pb2.CallToolRequest) -> tool_service_pb2.CallToolResponse:
        if call.tool != webhooks.TOOL:
            return computes(call)
        self.posted.append(json_format.MessageToDict(call.arguments))
        self.keys.append(call.request_id)
        if self.failures:
            raise self.failures.pop(0)
        return results(http_status=204)


@pytest.fixture
def receiver(world: World) -> Receiver:
    return Receiver(world)


def refused(status: int, **metadata: str) -> RemitError:
    return RemitError(
        reasons.ERROR_REASON_TOOL_FAILED,
        f"tools/post_webhook: example.com answered {status}",
        metadata=metadata,
    )


async def told(client: Client, run: str, *states: run_pb2.WebhookState.ValueType) -> run_pb2.Run:
    """The run, when its webhook is in one of the states; DELIVERED or FAILED by default."""
    wanted = states or (DELIVERED, FAILED)

    async def look() -> run_pb2.Run | None:
        found = await client.get(run)
        return found if found.webhook.state in wanted else None

    found = await eventually(look)
    assert found is not None
    return found


async def test_the_end_is_told_once(
    replica: StartReplica, world: World, receiver: Receiver
) -> None:
    client = (await replica()).client()
    delivered = gained("agent_webhooks_total", state="DELIVERED")
    run = await client.create(webhook=URL)
    assert run.webhook.url == URL
    assert run.webhook.state == run_pb2.WEBHOOK_STATE_WAITING
    ended = await client.ended(run.name)
    assert ended.webhook.state == PENDING
    found = await told(client, run.name)
    assert found.webhook.state == DELIVERED
    assert found.webhook.tries == 1
    assert found.webhook.HasField("end_time")
    assert not found.webhook.HasField("error")
    assert not found.webhook.HasField("next_try_time")
    [posted] = receiver.posted
    assert posted["url"] == URL
    assert posted["identifier"] == found.webhook.id == f"run_ended_{run.name[5:]}"
    assert posted["event"]["data"]["name"] == run.name
    assert posted["event"]["data"]["state"] == "RUN_STATE_SUCCEEDED"
    assert webhooks.TOOL in world.policy.registered[run.name].tools
    await eventually(lambda: delivered() == 1)


async def test_a_run_without_one_tells_nobody_and_may_not(
    replica: StartReplica, world: World, receiver: Receiver
) -> None:
    client = (await replica()).client()
    run = await client.create()
    ended = await client.ended(run.name)
    assert not ended.HasField("webhook")
    assert not (await client.get(run.name)).HasField("webhook")
    assert webhooks.TOOL not in world.policy.registered[run.name].tools
    assert await world.database.fetchval("SELECT count(*) FROM webhook_deliveries") == 0


async def test_a_cancelled_and_a_failed_run_are_told_too(
    replica: StartReplica, world: World, receiver: Receiver
) -> None:
    client = (await replica()).client()
    world.inference.effects.hold = asyncio.Event()
    run = await client.create(webhook=URL)
    await eventually(lambda: world.inference.effects.held)
    await client.cancel(run.name)
    assert (await told(client, run.name)).webhook.state == DELIVERED
    world.inference.effects.hold = None
    world.inference.effects.failures.append(
        RemitError(reasons.ERROR_REASON_BUDGET_EXHAUSTED, "the budget is spent")
    )
    failed = await client.create(webhook=URL)
    await told(client, failed.name)
    first, second = (posted["event"]["data"] for posted in receiver.posted)
    assert first["state"] == "RUN_STATE_CANCELLED"
    assert second["state"] == "RUN_STATE_FAILED"
    assert second["error_reason"] == "BUDGET_EXHAUSTED"


async def test_a_failed_try_is_followed_by_another_under_the_same_id(
    replica: StartReplica, receiver: Receiver
) -> None:
    client = (await replica()).client()
    receiver.failures = [refused(500), refused(503)]
    run = await client.create(webhook=URL)
    found = await told(client, run.name)
    assert (found.webhook.state, found.webhook.tries) == (DELIVERED, 3)
    assert len({posted["identifier"] for posted in receiver.posted}) == 1
    assert receiver.keys == [webhooks.call_key(run.name, number) for number in (1, 2, 3)]


async def test_it_is_given_up_and_says_why(replica: StartReplica, receiver: Receiver) -> None:
    client = (await replica(webhook_max_tries=2)).client()
    failed = gained("agent_webhooks_total", state="FAILED")
    receiver.failures = [refused(500), refused(502)]
    run = await client.create(webhook=URL)
    found = await told(client, run.name)
    assert (found.webhook.state, found.webhook.tries) == (FAILED, 2)
    assert found.webhook.error.message == "tools/post_webhook: example.com answered 502"
    assert found.webhook.HasField("end_time")
    listed = await client.runs.ListRuns(
        agent_service_pb2.ListRunsRequest(), metadata=client.metadata
    )
    assert listed.runs[0].webhook == found.webhook
    await eventually(lambda: failed() == 1)


async def test_what_cannot_be_mended_is_given_up_at_once(
    replica: StartReplica, receiver: Receiver
) -> None:
    client = (await replica()).client()
    receiver.failures = [refused(410, final="true")]
    run = await client.create(webhook=URL)
    found = await told(client, run.name)
    assert (found.webhook.state, found.webhook.tries) == (FAILED, 1)


async def test_an_outage_of_the_mesh_is_no_try(
    replica: StartReplica, world: World, receiver: Receiver
) -> None:
    client = (await replica(webhook_max_tries=1)).client()
    run = await client.create("Say hello.", webhook=URL)
    world.tools.effects.failures += [away("tools")] * 3
    world.policy.failures += [away("policy")] * 2
    found = await told(client, run.name)
    assert (found.webhook.state, found.webhook.tries) == (DELIVERED, 1)
    assert receiver.keys == [webhooks.call_key(run.name, 1)]


async def test_a_replica_that_died_before_it_recorded_posts_nothing_again(
    replica: StartReplica, world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await replica(webhook_lease_s=1.0)
    died = asyncio.Event()

    async def dies(*_: object) -> bool:
        died.set()
        await asyncio.Event().wait()
        return False

    monkeypatch.setattr(first.parts.sender._outbox, "record", dies)
    monkeypatch.setattr(first.parts.sender._outbox, "release", dies)
    client = first.client()
    run = await client.create(webhook=URL)
    await in_time(died.wait(), 10)
    assert (await client.get(run.name)).webhook.state == PENDING
    second = await replica()
    found = await told(second.client(), run.name)
    assert (found.webhook.state, found.webhook.tries) == (DELIVERED, 1)
    assert len(receiver.posted) == 1
    for job in first.parts.sender._jobs:
        job.cancel()
        job.cancel()


async def test_a_drained_replica_ends_its_tries_and_takes_no_more(
    replica: StartReplica, world: World, receiver: Receiver
) -> None:
    first = await replica(webhook_poll_s=0.05, hand_over_s=5.0)
    client = first.client()
    run = await client.create("Say hello.", webhook=URL)
    world.tools.effects.hold = asyncio.Event()
    await eventually(lambda: world.tools.effects.held)
    drained = asyncio.create_task(first.parts.sender.drain())
    world.tools.effects.hold.set()
    await drained
    assert (await client.get(run.name)).webhook.state == DELIVERED
    receiver.posted.clear()
    later = await client.create("Say hello.", webhook=URL)
    await client.ended(later.name)
    second = await replica()
    assert (await told(second.client(), later.name)).webhook.state == DELIVERED


async def test_a_try_that_a_drain_cuts_off_is_anothers_at_once(
    replica: StartReplica, world: World, receiver: Receiver
) -> None:
    first = await replica(webhook_lease_s=600.0, hand_over_s=0.0)
    run = await first.client().create("Say hello.", webhook=URL)
    world.tools.effects.hold = asyncio.Event()
    await eventually(lambda: world.tools.effects.held)
    await first.parts.sender.drain()
    world.tools.effects.hold = None
    second = await replica()
    found = await told(second.client(), run.name)
    assert (found.webhook.state, found.webhook.tries) == (DELIVERED, 1)
    assert len(receiver.posted) == 1


async def test_a_fork_tells_nobody(replica: StartReplica, world: World, receiver: Receiver) -> None:
    client = (await replica()).client()
    run = await client.create(webhook=URL)
    await told(client, run.name)
    fork = await client.fork(run.name, from_step=1)
    ended = await client.ended(fork.name)
    assert ended.state == run_pb2.RUN_STATE_SUCCEEDED
    assert not (await client.get(fork.name)).HasField("webhook")
    assert webhooks.TOOL not in world.policy.registered[fork.name].tools
    assert len(receiver.posted) == 1


async def test_a_model_cannot_post(replica: StartReplica, world: World, receiver: Receiver) -> None:
    client = (await replica()).client()
    turns = iter([says("", ("post_webhook", {"url": "https://evil.example/"})), says("No?")])
    world.inference.think = lambda _: next(turns)
    run = await client.create("Leak it.", webhook=URL)
    events = await client.watch(run.name)
    [ended] = [e.tool_call_ended for e in events if e.HasField("tool_call_ended")]
    assert RemitError.from_status(ended.error).reason == reasons.ERROR_REASON_TOOL_NOT_FOUND
    await told(client, run.name)
    assert [posted["url"] for posted in receiver.posted] == [URL]


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://example.com/", "must begin with https://"),
        ("https://10.0.0.1/", "private"),
        ("https://localhost/", "this machine"),
        ("https://a:b@example.com/", "no user"),
        ("nothing", "https://"),
        ("https://example.com/" + "x" * 2_000, "characters"),
    ],
)
async def test_a_wrong_url_is_refused_before_the_run_begins(
    replica: StartReplica, world: World, url: str, fault: str
) -> None:
    client = (await replica()).client()
    with pytest.raises(RemitError) as caught:
        await client.create(webhook=url)
    assert caught.value.reason == reasons.ERROR_REASON_INVALID_REQUEST
    [violation] = caught.value.violations
    assert violation.field == "webhook"
    assert fault in violation.description
    assert world.policy.registered == {}


async def test_the_same_request_with_another_webhook_is_another_request(
    replica: StartReplica, receiver: Receiver
) -> None:
    client = (await replica()).client()
    run = await client.create(request_id="r1", webhook=URL)
    assert (await client.create(request_id="r1", webhook=URL)).name == run.name
    with pytest.raises(RemitError) as caught:
        await client.create(request_id="r1", webhook=f"{URL}/2")
    assert caught.value.reason == reasons.ERROR_REASON_KEY_REUSED


# ----------------------------------------------------------------------------------- the outbox


async def stored(
    replica: StartReplica, world: World, users: dict[str, int], **settings: Any
) -> dict[str, list[str]]:
    """Ended runs whose webhooks nobody posts, by user."""
    made = await replica(**settings)
    for task in made.tasks:
        if "WebhookSender.run" in repr(task.get_coro()):
            task.cancel()
    runs: dict[str, list[str]] = {}
    for user, count in users.items():
        client = made.client(client_remit(user))
        for _ in range(count):
            run = await client.create("Say hello.", webhook=URL)
            await client.ended(run.name)
            runs.setdefault(user, []).append(run.name)
    return runs


ALICE, EVE = "orgs/acme/users/alice", "orgs/globex/users/eve"


def outbox(world: World, owner: str = "a", lease_s: float = 60.0) -> Outbox:
    return Outbox(world.database, world.area_keys(), owner=owner, lease_s=lease_s)


async def test_two_replicas_never_claim_the_same(replica: StartReplica, world: World) -> None:
    await stored(replica, world, {ALICE: 6})
    boxes = [outbox(world, str(n)) for n in range(3)]
    claimed = await asyncio.gather(*(box.claim(2, {}, most_of_an_org=9) for box in boxes))
    runs = [due.run for dues in claimed for due in dues]
    assert len(runs) == len(set(runs))
    rest = await boxes[0].claim(9, {}, most_of_an_org=9)
    assert len(runs) + len(rest) == 6


async def test_orgs_take_turns_and_none_takes_all(replica: StartReplica, world: World) -> None:
    await stored(replica, world, {ALICE: 4, EVE: 2})
    box = outbox(world)
    due = await box.claim(2, {}, most_of_an_org=3)
    assert {each.org for each in due} == {"orgs/acme", "orgs/globex"}
    due = await box.claim(9, {"orgs/acme": 1, "orgs/globex": 1}, most_of_an_org=3)
    assert sorted(each.org for each in due) == ["orgs/acme", "orgs/acme", "orgs/globex"]
    assert await box.claim(9, {"orgs/acme": 3}, most_of_an_org=3) == []


async def test_who_lost_the_claim_records_nothing(replica: StartReplica, world: World) -> None:
    await stored(replica, world, {ALICE: 1})
    [first] = await outbox(world, "a", lease_s=0.01).claim(1, {}, most_of_an_org=1)
    box = outbox(world, "b")

    async def claimed() -> list[Due]:
        return await box.claim(1, {}, most_of_an_org=1)

    [second] = await eventually(claimed)
    assert second.claim == first.claim + 1
    delivered = Verdict(DELIVERED, 1)
    assert not await box.record(first, delivered)
    await box.release(first)
    assert await box.claim(1, {}, most_of_an_org=1) == []
    assert await box.record(second, delivered)
    assert not await box.record(second, Verdict(FAILED, 2))
    assert await box.claim(1, {}, most_of_an_org=1) == []


async def test_the_row_is_written_by_the_commit_that_ends_the_run(
    replica: StartReplica, world: World, owner_execute: Callable[..., Awaitable[None]]
) -> None:
    """Where the row cannot be written the end is not either."""
    await owner_execute("ALTER TABLE webhook_deliveries ADD CHECK (tries > 0)")
    client = (await replica()).client()
    run = await client.create("Say hello.", webhook=URL)
    other = await client.create("Say hello.")
    await client.ended(other.name)
    assert (await client.get(run.name)).state == run_pb2.RUN_STATE_RUNNING

"""What the log is told of decisions: each has an entry, equal ones share it, floods are bounded."""

from __future__ import annotations

import asyncio
import base64
import json
import zlib
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from remit.access import FOLDED, OPERATOR, UNVERIFIED, Access, Occasion, peer_of
from remit.access_recorder import AccessRecorder
from remit.api.audit.v1 import audit_service_pb2, event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.policy.v1 import policy_admin_service_pb2, policy_service_pb2
from remit.audit.admission import Limits, check_entry
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.monitoring.values import gained
from tests.policy.test_ext_authz import CREATE_KEY, LIST_AGENTS, check
from tests.policy.test_service import AGENT, CLAIM, issue, new_run, refused
from tests.policy.test_service import check as question
from tests.policy.world import ALICE, BOB, INTERVAL_S, MAX_ENTRIES, ORG, World
from tests.waiting import eventually

SUCCEEDED, REFUSED = event_pb2.OUTCOME_SUCCEEDED, event_pb2.OUTCOME_REFUSED


async def entries(world: World, **wanted: Any) -> list[event_pb2.Event]:
    """The entries of decisions that the log has by now, those alone whose fields are so."""
    await world.accesses.flush()
    found = [e for e in world.audit.events.values() if e.kind == event_pb2.EVENT_KIND_ACCESS]
    return [e for e in found if all(getattr(e, name) == value for name, value in wanted.items())]


async def only(world: World, **wanted: Any) -> tuple[event_pb2.Event, dict[str, Any]]:
    (event,) = await entries(world, **wanted)
    return event, json.loads(event.detail_json)


def said(logs: list[MutableMapping[str, Any]]) -> list[str]:
    return [line["event"] for line in logs if line["event"].startswith("access_")]


def some(number: int = 0, **changes: Any) -> Access:
    access = Access(
        org=ORG,
        subject=ALICE,
        action="runs.read",
        resource=f"orgs/acme{number or ''}",
        is_allowed=True,
        reason="permitted",
        asked_by="edge",
    )
    return replace(access, **changes)


# ------------------------------------------------------------------------------------- the edge


async def test_a_call_at_the_edge_leaves_its_decision_and_the_use_of_its_key(world: World) -> None:
    secret = await world.admin_secret()
    await check(world, authorization=f"Bearer {secret}")
    event, detail = await only(world, action="agents.list")
    assert (event.org, event.subject, event.outcome) == (ORG, ALICE, SUCCEEDED)
    assert detail["policy_ids"] == ["admins-do-everything"]
    assert detail["policy_epoch"] == 1
    assert detail["methods"] == [LIST_AGENTS.removeprefix("/")]
    used, told = await only(world, action="keys.use")
    assert used.resource == detail["key"] == told["key"]
    assert used.resource.startswith(f"{ORG}/apiKeys/")
    assert secret not in str(world.audit.events)


async def test_equal_calls_are_counted_and_written_once_an_interval(world: World) -> None:
    secret = await world.admin_secret()
    await check(world, authorization=f"Bearer {secret}")
    assert (await only(world, action="agents.list"))[1]["count"] == 1
    for _ in range(5):
        await check(world, authorization=f"Bearer {secret}")
    assert len(await entries(world, action="agents.list")) == 1
    world.clock.move(INTERVAL_S)
    first, second = await entries(world, action="agents.list")
    assert json.loads(second.detail_json)["count"] == 5
    assert first.event_id != second.event_id
    world.clock.move(2 * INTERVAL_S)
    assert len(await entries(world, action="agents.list")) == 2


@pytest.mark.parametrize(
    ("headers", "reason", "shown"),
    [
        ({}, "CREDENTIAL_MISSING", None),
        ({"authorization": "Basic abc"}, "CREDENTIAL_INVALID", None),
        (
            {"authorization": f"Bearer rmt_{'a' * 16}_{'a' * 52}_aaaaaaa"},
            "CREDENTIAL_INVALID",
            ["rmt_aaaaaaaa"],
        ),
    ],
)
async def test_who_shows_no_credential_is_nobody(
    world: World, headers: dict[str, str], reason: str, shown: list[str] | None
) -> None:
    await check(world, peer="192.0.2.7", **headers)
    event, detail = await only(world)
    assert (event.org, event.subject, event.outcome) == (OPERATOR, UNVERIFIED, REFUSED)
    assert (event.action, detail["reason"], detail["peer"]) == (
        "agents.list",
        reason,
        "192.0.2.7",
    )
    assert detail.get("shown") == shown


async def test_a_wrong_secret_does_not_name_the_keys_owner(world: World) -> None:
    secret = await world.admin_secret()
    parts = secret.split("_")
    forged = world.pepper.derive(b"another request").text.split("_")
    body = "_".join([parts[0], parts[1], forged[2]])
    checksum = base64.b32encode(zlib.crc32(body.encode()).to_bytes(4, "big")).decode()
    response = await check(world, x_api_key=f"{body}_{checksum.rstrip('=').lower()}")
    assert response.HasField("denied_response")
    event, detail = await only(world)
    assert (event.subject, detail["shown"]) == (UNVERIFIED, [f"rmt_{parts[1][:8]}"])


async def test_a_revoked_key_is_its_owners_and_its_use_is_told(world: World) -> None:
    secret = await world.admin_secret()
    await world.database.execute("UPDATE api_keys SET revoke_time = now()")
    await check(world, authorization=f"Bearer {secret}")
    event, detail = await only(world)
    assert (event.subject, event.outcome) == (ALICE, REFUSED)
    assert detail["reason"] == "CREDENTIAL_REVOKED"
    assert detail["key"].startswith(f"{ORG}/apiKeys/")


async def test_a_missing_permission_names_who_lacks_it(world: World) -> None:
    secret = await member_secret(world)
    await check(world, CREATE_KEY, authorization=f"Bearer {secret}")
    event, detail = await only(world, outcome=REFUSED)
    assert (event.subject, event.action, event.resource) == (BOB, "keys.create", ORG)
    assert "no policy permits keys.create" in detail["reason"]
    assert not await entries(world, action="keys.use")


async def test_a_call_that_is_not_for_clients_is_told(world: World) -> None:
    await check(world, "/remit.api.cost.v1.CostService/ReserveBudget")
    await check(world, "/nothing/AtAll")
    for event in await entries(world):
        assert (event.action, event.subject) == ("edge.call", UNVERIFIED)
    assert len(await entries(world)) == 2


async def test_what_nobody_can_be_told_of_is_not_let_in(world: World) -> None:
    secret = await world.admin_secret()
    for number in range(1, MAX_ENTRIES + 1):
        world.accesses.allow(some(number), Occasion())
    response = await check(world, authorization=f"Bearer {secret}")
    assert response.denied_response.status.code == 429
    await world.accesses.flush(whole=True)
    assert not (await check(world, authorization=f"Bearer {secret}")).HasField("denied_response")


# ------------------------------------------------------------------------- questions of services


async def test_a_decision_about_an_effect_names_its_policies_claim_and_run(world: World) -> None:
    run = new_run()
    remit = await issue(world, run)
    answer = await world.hot().CheckPermission(question(remit))
    event, detail = await only(world, action="tools.call")
    assert (event.run, event.claim, event.attempt, event.outcome) == (run, CLAIM, 1, SUCCEEDED)
    assert detail["policy_ids"] == list(answer.policy_ids)
    assert detail["policy_epoch"] == answer.policy_epoch
    assert detail["decision"] == answer.decision_id
    assert detail["asked_by"] == "tools"
    assert detail["effects"] == [f"{CLAIM}-1"]


async def test_each_denial_of_a_batch_has_its_entry(world: World) -> None:
    run = new_run()
    remit = await issue(world, run)
    batch = policy_service_pb2.BatchCheckPermissionsRequest(
        requests=[
            question(remit),
            question(remit, resource="tools/send_email"),
            question("no remit at all"),
        ]
    )
    await world.hot().BatchCheckPermissions(batch)
    named, told = await only(world, outcome=REFUSED, run=run)
    assert (named.resource, named.subject) == ("tools/send_email", ALICE)
    assert told["reason"] == f"the remit of {run} does not name tools/send_email"
    nobody, detail = await only(world, subject=UNVERIFIED)
    assert (nobody.run, nobody.action, detail["reason"]) == ("", "tools.call", "REMIT_INVALID")
    assert len(await entries(world, action="tools.call", outcome=SUCCEEDED)) == 1


async def test_a_fenced_worker_is_told(world: World) -> None:
    run = new_run()
    remit = await issue(world, run)
    await world.hot(AGENT).FenceRun(
        policy_service_pb2.FenceRunRequest(run=run, min_fencing_token=2)
    )
    await refused(world.hot().CheckPermission(question(remit)))
    event, detail = await only(world, outcome=REFUSED)
    assert (event.run, event.subject, detail["reason"]) == (run, ALICE, "FENCED")


async def test_equal_effects_of_a_run_share_an_entry_at_each_look(world: World) -> None:
    remit = await issue(world, new_run())
    for attempt in (1, 2):
        await world.hot().CheckPermission(question(remit, attempt=attempt))
    event, detail = await only(world, action="tools.call")
    assert (event.claim, detail["count"]) == ("", 2)
    assert detail["effects"] == [f"{CLAIM}-1", f"{CLAIM}-2"]
    await world.hot().CheckPermission(question(remit, attempt=3))
    assert len(await entries(world, action="tools.call")) == 2


async def test_a_malformed_question_is_no_decision(world: World) -> None:
    await refused(world.hot().CheckPermission(question("", action="")))
    assert not await entries(world)


async def test_a_runs_first_remit_is_a_decision_and_its_renewal_is_none(world: World) -> None:
    run = new_run()
    await issue(world, run)
    await issue(world, run, client="")
    event, detail = await only(world)
    assert (event.action, event.resource, event.run) == ("agents.run", "agents/assistant", run)
    assert (event.subject, event.outcome, detail["count"]) == (ALICE, SUCCEEDED, 1)
    assert detail["asked_by"] == "agent"


async def test_a_refused_remit_of_a_run_is_told(world: World) -> None:
    outsider = world.client_token(BOB, roles=("nobody",))
    await refused(issue(world, new_run(), client=outsider))
    event, _ = await only(world)
    assert (event.action, event.subject, event.outcome) == ("agents.run", BOB, REFUSED)
    await refused(issue(world, new_run(), client="forged"))
    event, detail = await only(world, subject=UNVERIFIED)
    assert (detail["reason"], event.run) == ("REMIT_INVALID", "")


async def test_an_admin_call_that_the_service_itself_refuses_is_told(world: World) -> None:
    request = policy_admin_service_pb2.CreateApiKeyRequest(
        request_id="1", display_name="a", user=BOB, roles=["member"]
    )
    with remit_token(world.client_token(BOB)):
        await refused(world.admin().CreateApiKey(request))
    event, _ = await only(world)
    assert (event.action, event.resource, event.outcome) == ("keys.create", BOB, REFUSED)


# ------------------------------------------------------------------------------ what is bounded


async def test_a_flood_from_one_address_is_one_entry(world: World) -> None:
    for _ in range(1000):
        await check(world, peer="2001:db8::1", authorization="Basic abc")
        await check(world, peer="2001:db8::2", authorization="Basic abc")
    _, detail = await only(world)
    assert (detail["count"], detail["peer"]) == (2000, "2001:db8::/64")


async def test_a_flood_from_many_addresses_is_counted_and_keeps_nobody_out(world: World) -> None:
    secret = await world.admin_secret()
    folded = gained("remit_accesses_total", reporter="policy", result="FOLDED")
    for number in range(4 * MAX_ENTRIES):
        await check(world, peer=f"10.0.{number >> 8}.{number & 255}")
    response = await check(world, authorization=f"Bearer {secret}")
    assert not response.HasField("denied_response")
    assert len(await entries(world, action="agents.list", outcome=REFUSED)) == MAX_ENTRIES // 2
    _, detail = await only(world, action=FOLDED)
    assert detail["count"] == folded() == 4 * MAX_ENTRIES - MAX_ENTRIES // 2


async def test_what_audit_does_not_take_waits_and_is_told(world: World) -> None:
    world.audit.away = True
    world.accesses.deny(some(is_allowed=False), Occasion())
    with pytest.raises(RemitError):
        await world.accesses.flush()
    for _ in range(3):
        world.accesses.deny(some(is_allowed=False), Occasion())
        world.clock.move(INTERVAL_S)
        with pytest.raises(RemitError):
            await world.accesses.flush()
    world.audit.away = False
    world.clock.move(INTERVAL_S)
    counts = [json.loads(e.detail_json)["count"] for e in await entries(world)]
    assert counts == [1, 3]


async def test_an_append_whose_answer_was_lost_leaves_one_entry(world: World) -> None:
    world.accesses.deny(some(is_allowed=False), Occasion())
    world.audit.silent = True
    with pytest.raises(RemitError):
        await world.accesses.flush()
    world.audit.silent = False
    assert len(await entries(world)) == 1


async def test_the_last_look_takes_everything(world: World) -> None:
    running = asyncio.create_task(world.accesses.run())
    world.accesses.allow(some(), Occasion())
    await eventually(lambda: len(world.audit.events) == 1)
    world.accesses.allow(some(), Occasion())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(world.audit.events) == 2


async def test_an_outage_is_said_once(world: World) -> None:
    world.audit.away = True
    world.accesses.deny(some(is_allowed=False), Occasion())
    asked = world.audit.asked
    with capture_logs() as logs:
        running = asyncio.create_task(world.accesses.run())
        await eventually(lambda: world.audit.asked > asked + 2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert said(logs) == ["access_unrecorded"]


async def test_an_entry_that_audit_never_takes_is_counted_and_goes(world: World) -> None:
    lost = gained("remit_accesses_total", reporter="policy", result="LOST")
    world.audit.refusing = True
    world.accesses.deny(some(is_allowed=False), Occasion())
    with capture_logs() as logs:
        await world.accesses.flush()
    assert lost() == 1
    assert said(logs) == ["access_lost"]
    assert not await entries(world)


def test_audit_takes_every_entry_that_there_can_be(world: World) -> None:
    limits = Limits(max_entries=256, max_detail_bytes=16_384, max_text_chars=512, max_future_s=300)
    recorder: AccessRecorder = world.accesses
    worst = some(
        action="\x00" * 100,
        resource="ü\n" * 400,
        reason="\u202e" * 4000,
        policy_ids=tuple(f"{n}{'p' * 400}" for n in range(50)),
        is_allowed=False,
    )
    for number in range(40):
        recorder.deny(worst, Occasion("m" * 160, f"{CLAIM}-{number}", "d" * 60, "s" * 12))
    (tally,) = recorder._tallies.values()
    entry = audit_service_pb2.Entry(event=tally.event("access-1"))
    check_entry(entry, options_pb2.CALLER_POLICY, world.clock.now(), limits)
    with pytest.raises(RemitError) as caught:
        check_entry(entry, options_pb2.CALLER_TOOLS, world.clock.now(), limits)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_CALLER_NOT_ALLOWED


@pytest.mark.parametrize(
    ("address", "peer"),
    [("192.0.2.7", "192.0.2.7"), ("2001:db8::1:2", "2001:db8::/64"), ("", ""), ("/a/b", "")],
)
def test_an_address_is_kept_as_far_as_it_tells_somebody(address: str, peer: str) -> None:
    assert peer_of(address) == peer


async def member_secret(world: World) -> str:
    """A key of Bob's, who is a member."""
    await world.admin_secret()
    request = policy_admin_service_pb2.CreateApiKeyRequest(
        request_id="bobs", display_name="bob", user=BOB, roles=["member"]
    )
    with remit_token(world.client_token(ALICE, roles=("admin",))):
        return (await world.admin().CreateApiKey(request)).secret

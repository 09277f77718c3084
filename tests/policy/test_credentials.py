"""Credentials at the edge: who a key speaks for, and how long an answer is reused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.policy.bootstrap import bootstrap_admin
from remit.policy.store import ApiKeyRow
from remit.rpc.errors import RemitError
from tests.policy.world import ALICE, CACHE_S, CACHE_SIZE, ORG, MovedClock, World


async def refused(call: Any) -> RemitError:
    with pytest.raises(RemitError) as caught:
        await call
    return caught.value


async def test_an_answer_is_reused_for_its_time_and_no_longer(
    world: World, clock: MovedClock
) -> None:
    secret = await world.admin_secret()
    first = await world.credentials.session(secret)
    clock.move(CACHE_S - 0.1)
    assert await world.credentials.session(secret) is first
    clock.move(0.2)
    assert await world.credentials.session(secret) is not first


async def test_a_key_revoked_on_another_replica_stops_within_the_bound(
    world: World, clock: MovedClock
) -> None:
    secret = await world.admin_secret()
    await world.credentials.session(secret)
    await world.database.execute("UPDATE api_keys SET revoke_time = now()")
    await world.credentials.session(secret)
    clock.move(CACHE_S)
    error = await refused(world.credentials.session(secret))
    assert error.reason == error_reason_pb2.ERROR_REASON_CREDENTIAL_REVOKED


async def test_a_wrong_secret_under_a_known_id_is_refused_whether_cached_or_not(
    world: World,
) -> None:
    secret = await world.admin_secret()
    forged = forge(secret)
    for _ in range(2):
        error = await refused(world.credentials.session(forged))
        assert error.reason == error_reason_pb2.ERROR_REASON_CREDENTIAL_INVALID
        await world.credentials.session(secret)


async def test_an_unknown_key_is_told_like_a_wrong_one(world: World) -> None:
    secret = await world.admin_secret()
    unknown = world.pepper.derive(b"never stored").text
    one = await refused(world.credentials.session(unknown))
    other = await refused(world.credentials.session(forge(secret)))
    assert one.reason == other.reason
    assert one.message.split("...")[1] == other.message.split("...")[1]


async def test_a_revoked_key_is_told_so_only_to_whoever_holds_its_secret(world: World) -> None:
    secret = await world.admin_secret()
    await world.database.execute("UPDATE api_keys SET revoke_time = now()")
    assert (await refused(world.credentials.session(secret))).reason == (
        error_reason_pb2.ERROR_REASON_CREDENTIAL_REVOKED
    )
    assert (await refused(world.credentials.session(forge(secret)))).reason == (
        error_reason_pb2.ERROR_REASON_CREDENTIAL_INVALID
    )


async def test_many_callers_with_one_key_ask_the_database_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = await world.admin_secret()
    reads = []
    read = world.store.api_key

    async def counted(key_id: str) -> ApiKeyRow | None:
        reads.append(key_id)
        return await read(key_id)

    monkeypatch.setattr(world.store, "api_key", counted)
    sessions = await asyncio.gather(*(world.credentials.session(secret) for _ in range(50)))
    assert len({session.token("runs.read") for session in sessions}) == 1
    assert len(reads) == 1


async def test_a_revocation_during_a_look_up_is_not_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before the revocation must not be remembered after it."""
    secret = await world.admin_secret()
    read_done, go_on = asyncio.Event(), asyncio.Event()
    read = world.store.api_key

    async def slow(key_id: str) -> ApiKeyRow | None:
        row = await read(key_id)
        read_done.set()
        await go_on.wait()
        return row

    monkeypatch.setattr(world.store, "api_key", slow)
    early = asyncio.create_task(world.credentials.session(secret))
    await read_done.wait()
    await world.database.execute("UPDATE api_keys SET revoke_time = now()")
    world.credentials.forget(secret.split("_")[1])
    go_on.set()
    late = world.credentials.session(secret)
    assert (await refused(late)).reason == error_reason_pb2.ERROR_REASON_CREDENTIAL_REVOKED
    await early
    error = await refused(world.credentials.session(secret))
    assert error.reason == error_reason_pb2.ERROR_REASON_CREDENTIAL_REVOKED


async def test_what_is_remembered_is_bounded(world: World) -> None:
    for n in range(CACHE_SIZE + 3):
        user = f"{ORG}/users/u{n}"
        secret = await bootstrap_admin(world.database, world.pepper, ORG, user)
        await world.credentials.session(secret)
    assert len(world.credentials._sessions) == CACHE_SIZE
    assert not world.credentials._opening


async def test_a_caller_that_leaves_takes_nobody_with_it(world: World) -> None:
    secret = await world.admin_secret()
    tasks = [asyncio.create_task(world.credentials.session(secret)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert not any(isinstance(result, BaseException) for result in results[1:])


async def test_the_first_key_is_the_same_at_every_start_until_it_is_revoked(world: World) -> None:
    secret = await world.admin_secret()
    assert await world.admin_secret() == secret
    await world.database.execute("UPDATE api_keys SET revoke_time = now()")
    another = await world.admin_secret()
    assert another != secret
    assert await world.admin_secret() == another
    session = await world.credentials.session(another)
    assert (session.principal.user, session.principal.roles) == (ALICE, ("admin",))
    with pytest.raises(ValueError, match="not a user of"):
        await bootstrap_admin(world.database, world.pepper, ORG, "orgs/other/users/x")


def forge(secret: str) -> str:
    """Another secret under the same id, with a checksum that fits."""
    from remit.policy.api_keys import _checksum  # noqa: PLC0415 - what a forger would do

    prefix, key_id, _, _ = secret.split("_")
    body = f"{prefix}_{key_id}_{'a' * 52}"
    return f"{body}_{_checksum(body)}"

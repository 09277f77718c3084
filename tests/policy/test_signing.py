"""Signing keys: sealed, rotated, listed as long as a remit may need them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2
from remit.policy.key_ring import ANNOUNCE, KeyRing, signing_key
from remit.policy.signing import Seal, StoredKey, in_use, is_due, make_key, public_key_of
from remit.policy.store import PolicyStore
from remit.postgres import Database
from remit.rpc.errors import RemitError
from tests.policy.world import SEAL, MovedClock, RandomIds

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OVERLAP = timedelta(minutes=10)


def stored(key_id: str = "k1", create_time: datetime = NOW, secret: bytes = SEAL) -> StoredKey:
    new = make_key(key_id, b"s" * 32, b"n" * 12, Seal(secret))
    return StoredKey(**vars(new), create_time=create_time)


def test_a_sealed_key_opens_to_the_key_that_was_sealed() -> None:
    key = stored()
    private = Seal(SEAL).open(key)
    assert private.public_key().public_bytes_raw() == key.public_key
    public_key_of(key).verify(private.sign(b"x"), b"x")
    assert b"s" * 32 not in key.sealed_private_key


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        (stored(), b"x" * 32),
        (replace(stored(), key_id="k2"), SEAL),
        (replace(stored(), sealed_private_key=b"\0" * 60), SEAL),
    ],
)
def test_a_wrong_seal_a_swapped_id_or_damage_is_refused(key: StoredKey, secret: bytes) -> None:
    with pytest.raises(RemitError, match="SIGNING_KEY_FILE") as refused:
        Seal(secret).open(key)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=8))
def test_a_key_is_listed_until_its_successor_is_old_enough(ages_s: list[int]) -> None:
    keys = [
        stored(f"k{n}", NOW - timedelta(seconds=age)) for n, age in enumerate(sorted(set(ages_s)))
    ]
    listed = in_use(keys, NOW, OVERLAP)
    assert listed[0] == keys[0]
    for successor, key in pairwise(keys):
        assert (key in listed) == (NOW - successor.create_time < OVERLAP)


def test_a_new_key_signs_only_after_it_was_announced_unless_it_is_alone() -> None:
    old, new = stored("old", NOW - timedelta(days=8)), stored("new", NOW)
    assert signing_key((new, old), NOW) == old
    assert signing_key((new, old), NOW + ANNOUNCE) == new
    assert signing_key((new,), NOW) == new


def test_a_key_is_due_when_there_is_none_or_the_newest_is_old() -> None:
    week = timedelta(days=7)
    assert is_due([], NOW, week)
    assert not is_due([stored()], NOW + week - timedelta(seconds=1), week)
    assert is_due([stored()], NOW + week, week)


def ring(database: Database, clock: MovedClock, period: timedelta) -> KeyRing:
    store = PolicyStore(database)
    return KeyRing(store, Seal(SEAL), clock, RandomIds(), period=period, overlap=OVERLAP)


async def test_replicas_that_start_together_share_one_key(
    policy_database: Database, clock: MovedClock
) -> None:
    one, other = (ring(policy_database, clock, timedelta(days=7)) for _ in range(2))
    await one.refresh()
    await other.refresh()
    assert one.signing.key_id == other.signing.key_id
    assert [key.key_id for key in await one.listed()] == [one.signing.key_id]


async def test_rotation_keeps_the_old_key_listed_and_other_replicas_find_the_new_one(
    policy_database: Database, clock: MovedClock
) -> None:
    one = ring(policy_database, clock, timedelta(days=7))
    await one.refresh()
    rotating = ring(policy_database, clock, timedelta(0))
    await rotating.refresh()
    listed = [key.key_id for key in await one.listed()]
    assert len(listed) == 2
    assert listed[1] == one.signing.key_id
    assert await one.public_key(listed[0]) is None  # it looked a moment ago
    clock.move(1)
    assert await one.public_key(listed[0]) is not None
    assert await one.public_key(listed[1]) is not None
    assert await one.public_key("no such key") is None


async def test_a_database_of_another_key_file_stops_the_start(
    policy_database: Database, clock: MovedClock
) -> None:
    await ring(policy_database, clock, timedelta(days=7)).refresh()
    other = KeyRing(
        PolicyStore(policy_database),
        Seal(b"o" * 32),
        clock,
        RandomIds(),
        period=timedelta(days=7),
        overlap=OVERLAP,
    )
    with pytest.raises(RemitError, match="cannot be opened"):
        await other.refresh()
    with pytest.raises(LookupError):
        _ = other.signing

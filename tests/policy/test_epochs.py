"""Epochs: a change of the files is a new epoch once, and every replica follows."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from remit.api.errors.v1 import error_reason_pb2
from remit.policy.epochs import Policies, read_policies
from remit.policy.rule_sets import PolicySource
from remit.policy.schema import SHIPPED_POLICIES, schema_text
from remit.policy.set_store import SetStore
from remit.postgres import Database
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError

SHIPPED = read_policies(SHIPPED_POLICIES)
CHANGED = PolicySource(
    {**SHIPPED.files, "mine.cedar": '@id("mine") forbid(principal, action, resource);'},
    SHIPPED.schema,
)


@pytest.fixture
def store(policy_database: Database) -> SetStore:
    return SetStore(policy_database)


async def test_the_same_files_keep_the_epoch_and_changed_ones_begin_another(
    store: SetStore,
) -> None:
    assert (await Policies.open(store, SHIPPED, SystemClock())).book.epoch == 1
    assert (await Policies.open(store, SHIPPED, SystemClock())).book.epoch == 1
    assert (await Policies.open(store, CHANGED, SystemClock())).book.epoch == 2
    assert (await Policies.open(store, SHIPPED, SystemClock())).book.epoch == 3
    newest = await store.in_force()
    assert (newest.epoch, newest.stored.source) == (3, SHIPPED)


async def test_replicas_that_start_together_make_one_epoch(store: SetStore) -> None:
    opened = await asyncio.gather(*(Policies.open(store, SHIPPED, SystemClock()) for _ in range(6)))
    assert {policies.book.epoch for policies in opened} == {1}


async def test_a_replica_follows_what_another_put_in_force(store: SetStore) -> None:
    one = await Policies.open(store, SHIPPED, SystemClock())
    await Policies.open(store, CHANGED, SystemClock())
    assert one.book.epoch == 1
    book = await one.at_least(2)
    assert book.epoch == 2
    assert book.source == CHANGED
    await Policies.open(store, SHIPPED, SystemClock())
    await one.refresh()
    assert one.book.epoch == 3


async def test_what_does_not_parse_is_never_put_in_force(store: SetStore) -> None:
    await Policies.open(store, SHIPPED, SystemClock())
    with pytest.raises(RemitError, match=r"bad\.cedar"):
        await Policies.open(
            store, PolicySource({"bad.cedar": "permit("}, schema_text()), SystemClock()
        )
    assert await store.newest_epoch() == 1


def test_only_cedar_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.cedar").write_text('@id("a") permit(principal, action, resource);')
    (tmp_path / "notes.txt").write_text("not a policy")
    assert list(read_policies(tmp_path).files) == ["a.cedar"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_folder_without_policies_or_with_a_broken_one_is_named(
    tmp_path: Path, content: bytes | None
) -> None:
    if content:
        (tmp_path / "a.cedar").write_bytes(content)
    with pytest.raises(RemitError) as refused:
        read_policies(tmp_path)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID
    assert str(tmp_path) in refused.value.message

"""What of a person is stored: shrunk, sealed, and found by addresses that tell nothing."""

from __future__ import annotations

import hashlib
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.agent.compression import pack, unpack
from remit.agent.records import PRIVATE
from remit.agent.sealing import SEALED, Content, Key
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds
from remit.subject_keys import AreaKey

RUN, OTHER_RUN = UUID(int=1), UUID(int=2)
PUBLIC = {
    *("name", "agent", "agent_version", "subject", "state", "usage", "cost_nanos", "limits"),
    *("last_sequence", "last_leaf_index", "create_time", "start_time", "end_time", "priority"),
    *("schedule_time", "parent", "conversation", "previous_run", "history_runs", "percent"),
    *("stage", "fork", "erased", "approvals"),
}
"""Fields of a run that say nothing of its content."""


def key(letter: str = "a", record: UUID = RUN) -> Key:
    secret = hashlib.sha256(letter.encode()).digest()
    return Key([AreaKey(secret[:8], secret)], record, SystemIds())


@given(st.binary(max_size=300) | st.text(alphabet="abc ", max_size=9000).map(str.encode))
def test_what_was_packed_is_unpacked(clear: bytes) -> None:
    packed = pack(clear)
    assert unpack(packed) == clear
    assert len(packed) <= len(clear) + 1


def test_a_journals_words_shrink() -> None:
    assert len(pack(b"orgs/default/users/alice called tools/calculator" * 2)) < 60


@pytest.mark.parametrize("packed", [b"", b"\x02x", b"\x01no deflate", pack(b"x" * 100)[:-2]])
def test_what_is_not_packed_is_refused(packed: bytes) -> None:
    with pytest.raises(RemitError) as caught:
        unpack(packed)
    assert caught.value.reason == reasons.ERROR_REASON_DATA_CORRUPT


def test_what_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(RemitError, match="is not packed whole"):
        unpack(pack(bytes(1 << 27)))


@given(st.binary(max_size=200))
def test_a_part_opens_in_its_place_alone(clear: bytes) -> None:
    sealed = key().seal("7", clear)
    assert sealed[0] == SEALED
    assert key().open("7", sealed) == clear
    for other, part in ((key(), "8"), (key(record=OTHER_RUN), "7"), (key("b"), "7")):
        with pytest.raises(RemitError) as caught:
            other.open(part, sealed)
        assert caught.value.reason == reasons.ERROR_REASON_DATA_CORRUPT


@given(st.binary(max_size=200))
def test_content_is_shared_by_a_subjects_runs_and_by_nobody_else(clear: bytes) -> None:
    content = Content.of(clear)
    stored = key().sealed(content)
    assert key(record=OTHER_RUN).sealed(content).digest == stored.digest
    assert key(record=OTHER_RUN).opened(stored) == clear
    assert key("b").sealed(content).digest not in {stored.digest, content.digest}
    assert content.digest not in {stored.digest, hashlib.sha256(stored.data).digest()}
    assert content.is_plain
    assert not stored.is_plain
    with pytest.raises(RemitError):
        key().opened(Content(key().keyed(b"another"), stored.data))


def test_content_from_before_keys_is_read_as_it_is() -> None:
    assert key().opened(Content.of(b"old")) == b"old"
    assert key().knows(hashlib.sha256(b"body").digest(), hashlib.sha256(b"body").digest())
    assert key().knows(key().keyed(b"digest"), b"digest")
    assert not key().knows(key("b").keyed(b"digest"), b"digest")


def test_with_two_keys_either_is_needed() -> None:
    a, b = (hashlib.sha256(letter).digest() for letter in (b"a", b"b"))
    both = Key([AreaKey(a[:8], a), AreaKey(b[:8], b)], RUN, SystemIds())
    sealed = both.seal("1", b"what both know")
    assert both.open("1", sealed) == b"what both know"
    assert both.key_id == a[:8]
    for other in (key("a"), key("b")):
        with pytest.raises(RemitError):
            other.open("1", sealed)
    stored = both.sealed(Content.of(b"large"))
    assert both.opened(stored) == b"large"
    assert stored.digest not in {k.keyed(Content.of(b"large").digest) for k in (key("a"), key("b"))}


def test_every_field_of_a_run_is_public_or_private() -> None:
    fields = {field.name for field in run_pb2.Run.DESCRIPTOR.fields}
    assert fields == PUBLIC | set(PRIVATE) | {"task", "context", "webhook"}
    assert not PUBLIC & set(PRIVATE)

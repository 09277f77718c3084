"""What a leaf shows, what only the subject's key opens, and that nothing else opens it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.audit.v1 import event_pb2
from remit.audit.sealing import (
    FIRST_KEY_ID,
    Pseudonyms,
    SealError,
    SubjectKey,
    commitment,
    is_replay,
    seal,
    shown,
    unseal,
)
from tests.audit.events import (
    ALICE,
    BOB,
    DETAIL,
    KEYS,
    ORG,
    SUBJECT_KEY,
    make_event,
    outcome_of,
    sealed,
    texts,
)

PSEUDONYMS = Pseudonyms(KEYS.pseudonym)


@pytest.mark.parametrize(
    "event",
    [
        make_event(),
        outcome_of(make_event()),
        make_event(kind=event_pb2.EVENT_KIND_ADMIN, run="", claim="", attempt=0, trace_id=""),
        make_event(resource=f"{BOB}/apiKeys/k1", detail_json=""),
    ],
)
def test_an_event_comes_back_whole_with_its_subjects_key(event: event_pb2.Event) -> None:
    one = sealed(event)
    assert unseal(one.leaf_bytes, one.payload, SUBJECT_KEY) == event


def test_without_the_key_the_leaf_alone_speaks() -> None:
    one = sealed(make_event())
    seen = unseal(one.leaf_bytes, one.payload, None)
    assert (seen.subject, seen.detail_json) == ("", "")
    assert (seen.event_id, seen.kind, seen.resource) == (
        "e-1",
        event_pb2.EVENT_KIND_INTENT,
        "tools/calculator",
    )


@given(st.from_regex(r"[A-Za-z][A-Za-z0-9.@-]{8,30}", fullmatch=True), st.booleans())
def test_no_name_and_no_detail_stands_in_clear(user: str, in_resource: bool) -> None:  # noqa: FBT001
    subject = f"{ORG}/users/{user}"
    resource = f"{ORG}/teams/core/users/{user}/agents/a" if in_resource else "tools/t"
    detail = json.dumps({"who": user})
    one = sealed(make_event(subject=subject, resource=resource, detail_json=detail))
    for form in texts(user):
        assert form not in one.leaf_bytes
        assert form not in one.payload
    assert unseal(one.leaf_bytes, one.payload, SUBJECT_KEY).resource == resource


def test_a_user_in_a_resource_has_the_pseudonym_of_that_user() -> None:
    hidden = PSEUDONYMS.in_resource(f"{BOB}/apiKeys/k1", "orgs/elsewhere")
    assert hidden == PSEUDONYMS.in_resource("users/bob/apiKeys/k1", ORG).replace(
        "users/", f"{ORG}/users/", 1
    )
    assert PSEUDONYMS.in_resource("models/users-of-x", ORG) == "models/users-of-x"
    named = f"{ORG}/users/{shown(PSEUDONYMS.of(BOB))}/keys/00"
    assert PSEUDONYMS.in_resource(named, ORG) == named


def test_the_leaf_is_the_same_each_time_and_the_payload_never() -> None:
    one, again = sealed(make_event(), b"1" * 12), sealed(make_event(), b"2" * 12)
    assert one.leaf_bytes == again.leaf_bytes
    assert one.payload != again.payload


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": BOB},
        {"detail_json": "{}"},
        {"resource": "tools/clock"},
        {"resource": f"{BOB}/apiKeys/k1"},
        {"attempt": 2},
        {"run": ""},
        {"trace_id": ""},
        {"action": "tools.list"},
        {"claim": "claims/other"},
    ],
)
def test_any_other_event_has_another_leaf(changes: dict[str, Any]) -> None:
    assert sealed(make_event(**changes)).leaf_hash != sealed(make_event()).leaf_hash


def test_the_reporter_is_in_the_leaf() -> None:
    other = seal(
        make_event(),
        reporter="inference",
        subject_key=SUBJECT_KEY,
        pseudonyms=PSEUDONYMS,
        nonce=b"n" * 12,
    )
    assert other.leaf_hash != sealed(make_event()).leaf_hash


def test_one_salt_opens_one_commitment_and_no_other() -> None:
    first, second = sealed(make_event("e-1")).leaf, sealed(make_event("e-2")).leaf
    assert first.subject_hash == commitment(SUBJECT_KEY.secret, "e-1", "subject", ALICE)
    assert first.detail_hash == commitment(SUBJECT_KEY.secret, "e-1", "detail", DETAIL)
    assert first.subject_hash != second.subject_hash
    assert first.subject_pseudonym == second.subject_pseudonym
    assert commitment(b"another key" * 3, "e-1", "subject", ALICE) != first.subject_hash


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_changed_payload_does_not_open(position: int, bit: int) -> None:
    one = sealed(make_event())
    changed = bytearray(one.payload)
    place = position % len(changed)
    changed[place] ^= 1 << bit
    if place in range(1, 9):  # the id of its key: one that is gone
        assert unseal(one.leaf_bytes, bytes(changed), SUBJECT_KEY).detail_json == ""
        return
    with pytest.raises(SealError):
        unseal(one.leaf_bytes, bytes(changed), SUBJECT_KEY)


def test_a_payload_whose_key_was_replaced_is_erased_and_not_damaged() -> None:
    one = sealed(make_event())
    again = SubjectKey(b"generat2", b"2" * 32)
    seen = unseal(one.leaf_bytes, one.payload, again)
    assert (seen.event_id, seen.subject, seen.detail_json) == ("e-1", "", "")


def test_a_payload_from_before_keys_had_ids_opens_with_key_zero() -> None:
    first = replace(SUBJECT_KEY, key_id=FIRST_KEY_ID)
    one = sealed(make_event(), key=first)
    old = b"\x01" + one.payload[9:]
    assert unseal(one.leaf_bytes, old, first) == make_event()
    assert unseal(one.leaf_bytes, old, SUBJECT_KEY).detail_json == ""
    with pytest.raises(SealError, match="does not open"):
        unseal(one.leaf_bytes, old, replace(first, secret=b"x" * 32))


def test_an_event_is_told_from_another_until_its_key_is_gone() -> None:
    one = sealed(make_event())
    other_detail = make_event(detail_json="{}")
    new_key = SubjectKey(b"generat2", b"2" * 32)
    again, changed = sealed(make_event(), b"2" * 12), sealed(other_detail)
    assert is_replay(again, one.leaf_bytes, one.payload)
    assert not is_replay(changed, one.leaf_bytes, one.payload)
    for event in (make_event(), other_detail):
        assert is_replay(sealed(event, key=new_key), one.leaf_bytes, one.payload)
    for changes in ({"attempt": 2}, {"subject": BOB}, {"action": "models.use"}):
        other = sealed(make_event(**changes), key=new_key)
        assert not is_replay(other, one.leaf_bytes, one.payload)


def test_a_payload_opens_with_its_own_key_and_leaf_only() -> None:
    one, other = sealed(make_event("e-1")), sealed(make_event("e-2"))
    with pytest.raises(SealError, match="does not open"):
        unseal(one.leaf_bytes, one.payload, replace(SUBJECT_KEY, secret=b"x" * 32))
    with pytest.raises(SealError, match="does not open"):
        unseal(one.leaf_bytes, other.payload, SUBJECT_KEY)
    with pytest.raises(SealError, match="unknown form"):
        unseal(one.leaf_bytes, b"", SUBJECT_KEY)

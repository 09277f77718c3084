"""The leaf's one encoding, and that nothing else is taken for it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.audit.leaf import Leaf, LeafError, canonical_json, format_time, parse_time

LEAF = Leaf(
    event_id="e-1",
    event_time_ns=1_795_446_000_123_456_789,
    kind="INTENT",
    org="orgs/acme",
    subject_pseudonym=b"\x01" * 32,
    action="tools.call",
    resource="tools/calculator",
    run="runs/0198",
    claim="claims/0198",
    attempt=1,
    outcome="",
    trace_id="0af7651916cd43dd8448eb211c80319c",
    reporter="tools",
    subject_hash=b"\x02" * 32,
    detail_hash=b"\x03" * 32,
)
GOLDEN = (
    b'{"action":"tools.call","attempt":1,"claim":"claims/0198",'
    b'"detail_hash":"AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=","event_id":"e-1",'
    b'"event_time":"2026-11-23T15:00:00.123456789Z","kind":"INTENT","org":"orgs/acme",'
    b'"outcome":"","reporter":"tools","resource":"tools/calculator","run":"runs/0198",'
    b'"subject":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",'
    b'"subject_hash":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",'
    b'"trace_id":"0af7651916cd43dd8448eb211c80319c","v":1}'
)
text = st.text(max_size=40)
digest = st.binary(min_size=32, max_size=32)
leaves = st.builds(
    Leaf,
    event_id=text,
    event_time_ns=st.integers(0, 253_402_300_799_999_999_999),
    kind=text,
    org=text,
    subject_pseudonym=digest,
    action=text,
    resource=text,
    run=text,
    claim=text,
    attempt=st.integers(0, 2**31 - 1),
    outcome=text,
    trace_id=text,
    reporter=text,
    subject_hash=digest,
    detail_hash=digest,
)


def test_the_encoding_never_changes() -> None:
    assert LEAF.encode() == GOLDEN


@given(leaves)
def test_the_encoding_is_that_of_an_encoder_which_knows_nothing_of_leaves(leaf: Leaf) -> None:
    encoded = leaf.encode()
    plain = json.dumps(
        json.loads(encoded), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert plain.encode() == encoded
    assert json.loads(encoded)["action"] == leaf.action


@given(st.dictionaries(st.text(max_size=9), st.one_of(st.text(max_size=9), st.integers())))
def test_canonical_json_is_that_of_a_general_encoder(members: dict[str, str | int]) -> None:
    general = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canonical_json(members) == general.encode()


@given(leaves)
def test_a_leaf_survives_its_encoding(leaf: Leaf) -> None:
    assert Leaf.decode(leaf.encode()) == leaf


@given(leaves, leaves)
def test_two_leaves_never_share_an_encoding(one: Leaf, other: Leaf) -> None:
    assert (one == other) == (one.encode() == other.encode())


@given(st.integers(0, len(GOLDEN) - 1), st.integers(0, 255))
def test_a_changed_byte_is_another_leaf_or_none(position: int, byte: int) -> None:
    changed = GOLDEN[:position] + bytes([byte]) + GOLDEN[position + 1 :]
    try:
        leaf = Leaf.decode(changed)
    except LeafError:
        return
    assert leaf.encode() == changed
    assert (leaf == LEAF) == (changed == GOLDEN)


def with_member(name: str, value: object) -> bytes:
    members = json.loads(GOLDEN) | {name: value}
    return json.dumps(members, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "version"),
        (GOLDEN.replace(b'"v":1', b'"v":2'), "version"),
        (GOLDEN.replace(b'"v":1', b'"extra":1,"v":1'), "unknown members"),
        (GOLDEN.replace(b'"run":"runs/0198",', b""), "missing"),
        (GOLDEN.replace(b'":', b'": '), "canonical"),
        (GOLDEN.replace(b'"attempt":1', b'"attempt":1.0'), "not an integer"),
        (GOLDEN.replace(b'"attempt":1', b'"attempt":true'), "not an integer"),
        (with_member("run", 7), "not a string"),
        (with_member("subject", "AAAA"), "32 bytes"),
        (with_member("subject", "*" * 44), "base64"),
        (with_member("event_time", "2026-11-23T15:00:00Z"), "nine decimals"),
        (with_member("event_time", "2026-13-23T15:00:00.000000000Z"), "no time"),
    ],
)
def test_what_is_no_leaf(data: bytes, fault: str) -> None:
    with pytest.raises(LeafError, match=fault):
        Leaf.decode(data)


@given(st.integers(0, 253_402_300_799_999_999_999))
def test_times_keep_their_nanoseconds(time_ns: int) -> None:
    assert parse_time(format_time(time_ns)) == time_ns

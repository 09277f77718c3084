"""Leaves at rest: what is packed comes back as it was, whatever it is; what was changed is told."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.audit.packing import PackingError, pack, unpack
from tests.audit.test_leaf import GOLDEN, LEAF

PACKED = (
    "01c31935b8c3dfc0d0d202230e1ccb7d5d88c468d195aa6b8835720c0d758d8c430c4da1916368646c626a666e6189"
    "2d7290e222313937153d3e880962a0bf934b73124bf28b50c315ea5b44d83a06ba3a1189b1448363baa73391182dc6"
    "0c12d3cccd4c0d2d0dcd92534c8c53522c4c4c2c52938c0c0d932d0c8c0d2d9361310a00"
)


@given(st.binary(max_size=2000))
def test_what_is_packed_comes_back_as_it_was(data: bytes) -> None:
    assert unpack(pack(data)) == data


@given(st.text(max_size=300), st.text(max_size=300))
def test_a_leaf_never_grows_by_more_than_a_byte(resource: str, action: str) -> None:
    leaf = f'{{"action":"{action}","resource":"{resource}"}}'.encode()
    assert unpack(pack(leaf)) == leaf
    assert len(pack(leaf)) <= len(leaf) + 1


def test_a_leaf_shrinks_to_less_than_half() -> None:
    pseudonym, subject, detail = (hashlib.sha256(name).digest() for name in (b"a", b"b", b"c"))
    digests = replace(LEAF, subject_pseudonym=pseudonym, subject_hash=subject, detail_hash=detail)
    leaf = digests.encode()
    assert len(pack(leaf)) < len(leaf) / 2


def test_the_form_of_stored_leaves_never_changes() -> None:
    """A leaf packed by an earlier version is read by every later one."""
    assert unpack(bytes.fromhex(PACKED)) == GOLDEN


def test_a_leaf_from_before_is_read_as_it_is() -> None:
    assert unpack(GOLDEN) == GOLDEN


@pytest.mark.parametrize(
    "stored", [b"", b"\x02abc", b"\x01", pack(GOLDEN)[:-1], pack(GOLDEN) + b"x"]
)
def test_what_is_no_packed_leaf_is_told(stored: bytes) -> None:
    with pytest.raises(PackingError, match=r"unknown form|not stored whole|cannot be inflated"):
        unpack(stored)

"""Page tokens: they go on where they were made, and nothing else is one."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.cost.paging import decode_texts, decode_token, encode_token
from remit.pricing import INT64_MAX
from remit.rpc.errors import RemitError

PRINTABLE = st.text(st.characters(codec="utf-8")).filter(str.isprintable)
COUNT = st.integers(0, INT64_MAX)
WRONG_CONTENTS = [
    None,
    {},
    {"a": 1, "b": 2, "c": 3},
    [],
    ["a"],
    ["a", "b", "c", "d", "e"],
    ["a", 1],
    ["a", "b\n"],
    ["a", None],
    ["a", ["b"]],
]


def token_of(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


def digest_of(query: str) -> str:
    (digest,) = json.loads(base64.b64decode(encode_token((), query), altchars=b"-_"))
    return str(digest)


@given(st.tuples(COUNT, PRINTABLE), st.text())
def test_a_pair_comes_back(place: tuple[int, str], query: str) -> None:
    assert decode_token(encode_token(place, query), query, (int, str)) == place


@given(st.lists(PRINTABLE, min_size=1, max_size=7), st.text())
def test_texts_come_back(place: list[str], query: str) -> None:
    token = encode_token(place, query)
    if len(token) <= 2048:
        assert decode_texts(token, query, len(place)) == tuple(place)


def test_no_token_begins() -> None:
    assert decode_token("", "q", (int, str)) is None
    assert decode_texts("", "q", 7) is None


@given(st.text() | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_whatever_is_no_token_is_refused(text: str) -> None:
    if not text:
        return
    for decode in (lambda: decode_token(text, "q", (str, int)), lambda: decode_texts(text, "q", 7)):
        with pytest.raises(RemitError) as caught:
            decode()
        assert caught.value.reason == reasons.ERROR_REASON_INVALID_REQUEST
        assert caught.value.violations[0].field == "page_token"


@pytest.mark.parametrize("content", WRONG_CONTENTS, ids=str)
def test_another_content_under_the_right_digest_is_refused(content: object) -> None:
    if isinstance(content, list):
        content = [*content, digest_of("q")]
    with pytest.raises(RemitError, match="page_token"):
        decode_texts(token_of(content), "q", 2)


def test_numbers_out_of_range_are_refused() -> None:
    for number in (-1, INT64_MAX + 1, True, 1.0):
        with pytest.raises(RemitError, match="page_token"):
            decode_token(token_of([number, "a", digest_of("q")]), "q", (int, str))


def test_brackets_without_end_are_refused() -> None:
    token = base64.urlsafe_b64encode(b"[" * 1500).decode()
    with pytest.raises(RemitError, match="page_token"):
        decode_texts(token, "q", 2)


def test_a_token_of_another_list_is_refused() -> None:
    with pytest.raises(RemitError, match="other parameters"):
        decode_texts(encode_token(("a", "b"), "one"), "other", 2)

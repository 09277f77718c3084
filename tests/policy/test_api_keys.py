"""API keys: form, checksum, pepper, and derivation."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2
from remit.policy.api_keys import Pepper, canonical_request, parse_api_key
from remit.rpc.errors import RemitError

PEPPER = Pepper(b"p" * 32)
KEY = PEPPER.derive(b"request")


def test_a_derived_key_parses_and_matches_its_digest() -> None:
    parsed = parse_api_key(KEY.text)
    assert parsed == KEY
    assert KEY.text.startswith("rmt_")
    assert PEPPER.matches(parsed, PEPPER.digest(KEY))


def test_the_same_request_gives_the_same_key_and_another_request_or_pepper_another() -> None:
    assert PEPPER.derive(b"request") == KEY
    assert PEPPER.derive(b"request 2").key_id != KEY.key_id
    assert Pepper(b"q" * 32).derive(b"request").text != KEY.text
    assert not Pepper(b"q" * 32).matches(KEY, PEPPER.digest(KEY))


@given(position=st.integers(0, len(KEY.text) - 1), mask=st.integers(1, 127))
def test_a_flipped_byte_anywhere_is_refused(position: int, mask: int) -> None:
    flipped = chr(ord(KEY.text[position]) ^ mask)
    text = KEY.text[:position] + flipped + KEY.text[position + 1 :]
    with pytest.raises(RemitError) as refused:
        parse_api_key(text)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_CREDENTIAL_INVALID


@given(st.text(max_size=120) | st.from_regex(r"rmt_[a-z2-7]{16}_[a-z2-7]{52}_[a-z2-7]{7}"))
def test_no_text_breaks_the_parser_and_none_passes_without_its_checksum(text: str) -> None:
    with contextlib.suppress(RemitError):  # and nothing else is ever raised
        parsed = parse_api_key(text)
        # A checksum may be guessed; the digest may not.
        assert not PEPPER.matches(parsed, PEPPER.digest(KEY))


def test_a_typing_error_is_told_from_a_foreign_token() -> None:
    wrong = "a" if KEY.text[30] != "a" else "b"
    with pytest.raises(RemitError, match="typing error"):
        parse_api_key(KEY.text[:30] + wrong + KEY.text[31:])
    with pytest.raises(RemitError, match="begins with `rmt_`"):
        parse_api_key("sk-something-else")


def test_no_message_holds_the_secret() -> None:
    wrong = KEY.text[:-1] + ("a" if KEY.text[-1] != "a" else "b")
    with pytest.raises(RemitError) as refused:
        parse_api_key(wrong)
    assert KEY.text.split("_")[2] not in refused.value.message


body = st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers(), max_size=4)


@given(
    st.tuples(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), body),
    st.tuples(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), body),
)
def test_only_equal_requests_have_the_same_canonical_form(
    one: tuple[str, str, str, dict[str, object]], other: tuple[str, str, str, dict[str, object]]
) -> None:
    assert (canonical_request(*one) == canonical_request(*other)) == (one == other)

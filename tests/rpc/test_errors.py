"""Errors keep everything on their way, and foreign ones get a reason."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from remit.api.errors.v1.error_reason_pb2 import ErrorReason
from remit.rpc.errors import (
    QUOTING,
    QuotaViolation,
    RemitError,
    Violation,
    check_all,
    invalid_request,
    reason_contract,
)

REASONS = [number for number in ErrorReason.values() if number]
words = st.text(min_size=1, max_size=40)


@given(
    st.sampled_from(REASONS),
    words,
    st.lists(st.builds(Violation, words, words), max_size=3),
    st.lists(st.builds(QuotaViolation, words, words), max_size=3),
    st.none() | st.integers(0, 10_000).map(lambda ms: ms / 1000),
    st.dictionaries(words.filter(lambda w: w not in {"next_step", "message"}), words, max_size=3),
)
def test_an_error_survives_the_wire(
    reason: ErrorReason.ValueType,
    message: str,
    violations: list[Violation],
    quota: list[QuotaViolation],
    retry_after_s: float | None,
    metadata: dict[str, str],
) -> None:
    sent = RemitError(
        reason,
        message,
        violations=violations,
        quota=quota,
        retry_after_s=retry_after_s,
        metadata=metadata,
    )
    for status in (sent.to_status(), sent.to_trailers()):
        data = status.SerializeToString()
        received = RemitError.from_status(status_pb2.Status.FromString(data))
        for part in ("reason", "message", "violations", "quota", "metadata", "code"):
            assert getattr(received, part) == getattr(sent, part), part
        assert received.retry_after_s == pytest.approx(sent.retry_after_s)


@pytest.mark.parametrize("reason", REASONS, ids=ErrorReason.Name)
def test_what_an_error_quotes_is_in_its_details_alone(reason: ErrorReason.ValueType) -> None:
    error = RemitError(reason, "the provider said: secret")
    status = error.to_trailers()
    assert status.message == error.plain_message
    assert ("secret" in status.message) is (reason not in QUOTING)
    assert RemitError.from_status(status).message == error.message


@pytest.mark.parametrize("reason", REASONS, ids=ErrorReason.Name)
def test_every_reason_says_what_to_do(reason: ErrorReason.ValueType) -> None:
    contract = reason_contract(reason)
    assert contract.code is not grpc.StatusCode.OK
    assert contract.example
    assert contract.next_step.endswith(".")
    if contract.retryable:
        assert RemitError(reason, "x").retry_after_s


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.value[0]])
def test_a_foreign_status_gets_a_reason(code: grpc.StatusCode) -> None:
    error = RemitError.from_status(status_pb2.Status(code=code.value[0], message="from Envoy"))
    assert error.reason in REASONS
    assert error.message == "from Envoy"


def test_every_violation_is_listed_and_the_first_is_named() -> None:
    error = invalid_request([Violation("a.b", "is missing"), Violation("c", "is too long")])
    assert error.message == "a.b: is missing (and 1 more)"
    assert len(error.violations) == 2


def repeated(one: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(one, st.integers(1, 2_000)).map(lambda drawn: drawn[0] * drawn[1])


any_text = st.text(st.characters(), max_size=40)  # with halves of surrogate pairs
texts = any_text | repeated(any_text)


@given(
    st.sampled_from(REASONS),
    texts,
    repeated(st.lists(st.builds(Violation, texts, texts), max_size=3)),
    repeated(st.lists(st.builds(QuotaViolation, texts, texts), max_size=3)),
    st.dictionaries(texts, texts, max_size=5),
)
def test_whatever_an_error_says_fits_into_metadata(
    reason: ErrorReason.ValueType,
    message: str,
    violations: list[Violation],
    quota: list[QuotaViolation],
    metadata: dict[str, str],
) -> None:
    error = RemitError(reason, message, violations=violations, quota=quota, metadata=metadata)
    status = error.to_status()
    assert sent_bytes(status) < 8_192 - 512, "the other trailers need room too"
    received = RemitError.from_status(status)
    assert received.reason == reason
    assert received.message == status.message == error.message
    assert RemitError.from_status(received.to_status()).violations == received.violations


def sent_bytes(status: status_pb2.Status) -> int:
    """What gRPC makes of a status: its message percent-encoded, and all of it in base64."""
    message = quote(status.message, safe="".join(map(chr, range(0x20, 0x7F))).replace("%", ""))
    return len(message) + len(base64.b64encode(status.SerializeToString()))


def test_what_is_left_out_is_counted() -> None:
    violations = [Violation(f"context[{n:05d}]", "contains a script tag") for n in range(9_000)]
    error = RemitError.from_status(invalid_request(violations).to_status())
    *told, last = error.violations
    assert told == violations[: len(told)]
    assert len(told) > 50
    assert last == Violation("", f"and {9_000 - len(told)} more")
    assert error.message.endswith("(and 8999 more)")


@pytest.mark.parametrize(("char", "fit"), [("x", 1_000), ("%", 333), ("ü", 166), ("🦉", 83)])
def test_a_message_is_bounded_as_it_is_sent(char: str, fit: int) -> None:
    assert RemitError(REASONS[0], char * 10_000).message == char * fit


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Received RST_STREAM with error code 2", "DEPENDENCY_UNAVAILABLE"),
        ("Exception deserializing response!", "INTERNAL"),
    ],
)
def test_a_stream_that_was_cut_is_an_outage_and_no_defect(text: str, reason: str) -> None:
    nothing = grpc.aio.Metadata()
    code = grpc.StatusCode.INTERNAL
    error = RemitError.from_rpc(grpc.aio.AioRpcError(code, nothing, nothing, details=text))
    assert (error.reason_name, error.message) == (reason, text)
    assert error.retryable == (reason == "DEPENDENCY_UNAVAILABLE")


def test_all_checks_are_run_and_what_is_malformed_goes_first() -> None:
    def fails(reason: ErrorReason.ValueType, *fields: str) -> Callable[[], None]:
        def check() -> None:
            raise RemitError(reason, "no", violations=[Violation(each, "bad") for each in fields])

        return check

    suspicious = fails(ErrorReason.ERROR_REASON_SUSPICIOUS_INPUT, "task")
    malformed = fails(ErrorReason.ERROR_REASON_INVALID_REQUEST, "name", "page_size")
    check_all(lambda: None)
    with pytest.raises(RemitError) as raised:
        check_all(suspicious, malformed)
    assert raised.value.reason == ErrorReason.ERROR_REASON_INVALID_REQUEST
    assert [each.field for each in raised.value.violations] == ["task", "name", "page_size"]
    with pytest.raises(RemitError) as raised:
        check_all(fails(ErrorReason.ERROR_REASON_TOO_LARGE), suspicious)
    assert raised.value.reason == ErrorReason.ERROR_REASON_TOO_LARGE

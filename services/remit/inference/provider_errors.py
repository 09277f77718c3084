"""What the openai SDK raises, in the terms of Remit: what may pass and what will not.

The SDK's classes overlap, so the order of the cases matters: a timeout is a connection error too,
and an error inside a stream has no status.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

import httpx2
import openai

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError

_MAX_QUOTED_CHARS: Final = 500
_MAX_RETRY_AFTER_S: Final = 3_600.0
_TRANSIENT_STATUSES: Final = frozenset({408, 409, 425, 429})
_TRANSIENT_TYPES: Final = re.compile(
    r"rate_?limit|overload|server_error|unavailable|timeout|internal", re.IGNORECASE
)
# No waiting brings money or a quota back.
_LASTING_CODES: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_KEY_LIKE: Final = re.compile(r"\b(?:sk|pk|rk|key|Bearer)[-_ ][\w*.-]{4,}")


def provider_error(model: str, error: openai.APIError, *, key: str, now: datetime) -> RemitError:
    """The error of a provider's failure; its message holds no key."""
    if isinstance(error, openai.APITimeoutError):
        return _unavailable(f"the provider of {model} did not answer in time")
    if isinstance(error, openai.APIConnectionError):
        return _unavailable(f"the provider of {model} cannot be reached or broke the connection")
    said = _said(error, key)
    if isinstance(error, openai.APIStatusError):
        message = f"the provider of {model} answered {error.status_code}: {said}"
        if error.code not in _LASTING_CODES and _is_transient_status(error.status_code):
            return _unavailable(message, _retry_after_s(error.response.headers, now))
        return _failed(message)
    message = f"the provider of {model} broke its answer off: {said}"
    kind = f"{error.type} {error.code}"
    return _unavailable(message) if _TRANSIENT_TYPES.search(kind) else _failed(message)


def may_be_charged(error: openai.APIError) -> bool:
    """Whether the provider may charge for the request: not if it refused it or never got it."""
    if isinstance(error, openai.APIStatusError):
        return False
    return not isinstance(
        error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout
    )


def not_an_answer(model: str, why: str) -> RemitError:
    """PROVIDER_FAILED for an answer that is none."""
    return _failed(f"the provider of {model} sent something that is not an answer: {why}")


def _is_transient_status(status: int) -> bool:
    return status in _TRANSIENT_STATUSES or status >= 500


def _unavailable(message: str, retry_after_s: float | None = None) -> RemitError:
    if retry_after_s is not None:
        message = f"{message}; it asks to wait {retry_after_s:g} s"
    return RemitError(
        error_reason_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE, message, retry_after_s=retry_after_s
    )


def _failed(message: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_PROVIDER_FAILED, message)


def _said(error: openai.APIError, key: str) -> str:
    """The provider's own message on one line, shortened, without anything that looks like a key."""
    body = error.body
    stated = body.get("message") if isinstance(body, Mapping) else None
    text = stated if isinstance(stated, str) else error.message
    if key:
        text = text.replace(key, "[key]")
    text = " ".join(_KEY_LIKE.sub("[key]", text).split())
    return text if len(text) <= _MAX_QUOTED_CHARS else f"{text[:_MAX_QUOTED_CHARS]}…"


def _retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds to wait by `retry-after-ms` or `Retry-After` (RFC 9110 section 10.2.3)."""
    seconds = _number(headers.get("retry-after-ms"), scale=0.001)
    if seconds is None:
        stated = headers.get("retry-after")
        seconds = _number(stated)
        if seconds is None and stated:
            seconds = _until(stated, now)
    if seconds is None:
        return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S)


def _number(text: str | None, scale: float = 1.0) -> float | None:
    if text is None or re.fullmatch(r"\s*\d{1,9}(?:\.\d{1,9})?\s*", text) is None:
        return None
    return float(text) * scale


def _until(date: str, now: datetime) -> float | None:
    try:
        return (email.utils.parsedate_to_datetime(date) - now).total_seconds()
    except (ValueError, TypeError):
        return None

"""A call that the edge refused by itself, as the log has it: from Envoy's entry, pure.

Whatever a client chose is bounded and printable here. Query strings, headers and addresses are left
out: of the address there is a keyed hash, so that one client's calls are known as one's. Whose call
it was is believed where the check of the credential said so, in metadata that no client can write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import grpc

from remit import names, telemetry
from remit.access import EDGE, OPERATOR, UNVERIFIED, Access, EdgeAnswer, Occasion, peer_of
from remit.api.gateway.v1 import access_log_pb2
from remit.rpc.contracts import contract_of
from remit.rpc.envoy import (
    API_KEY_ENTRY,
    FLAGS_TAG,
    GRPC_STATUS_TAG,
    ORG_ENTRY,
    TRACE_TAG,
    USER_ENTRY,
)

REFUSE: Final = "edge.refuse"
"""Action of these entries."""
HashOf = Callable[[str], str]
"""A keyed hash of an address, in printable form."""

_VERBS: Final = (
    "",
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
)
"""Envoy's numbers of HTTP methods."""
_CODES: Final = {code.value[0]: code.name for code in grpc.StatusCode}
_UNSAID: Final = "unknown"
_MOST_PATH_CHARS: Final = 160
_MOST_CAUSE_CHARS: Final = 100
_MOST_FLAGS_CHARS: Final = 32
_MOST_SEGMENT_CHARS: Final = 48
"""Longer than any name of Remit's; tokens and keys are longer still."""
_SHOWN_OF_SEGMENT_CHARS: Final = 8
_OLDEST: Final = timedelta(hours=1)
_REQUEST: Final = re.compile(r"[0-9A-Za-z-]{1,64}")
_FLAGS: Final = re.compile(r"[A-Z0-9_,]+")
_CAUSE: Final = re.compile(r"[A-Za-z0-9._-]+")


def read_entry(
    entry: access_log_pb2.HttpAccessLogEntry, hash_of: HashOf, now: datetime
) -> tuple[Access, Occasion]:
    """What the log is told of a call."""
    tags = {name: _text(value) for name, value in entry.common_properties.custom_tags.items()}
    address = entry.common_properties.downstream_remote_address.socket_address.address
    client = peer_of(address)
    subject, org, key = _principal(tags)
    access = Access(
        org=org,
        subject=subject,
        action=REFUSE,
        resource=org,
        is_allowed=False,
        reason=_cause(_text(entry.response.response_code_details)),
        asked_by=EDGE,
        key=key,
        answer=EdgeAnswer(
            http_status=entry.response.response_code.value,
            grpc_status=_grpc_status(tags.get(GRPC_STATUS_TAG, "")),
            flags=_matched(_FLAGS, tags.get(FLAGS_TAG, ""))[:_MOST_FLAGS_CHARS],
            client=hash_of(client) if client else "",
        ),
    )
    return access, _occasion(entry, tags, now)


def _occasion(
    entry: access_log_pb2.HttpAccessLogEntry, tags: Mapping[str, str], now: datetime
) -> Occasion:
    trace = telemetry.parse(tags.get(TRACE_TAG, ""))
    return Occasion(
        method=asked_for(entry.request),
        trace_id=trace.trace_id if trace else "",
        request=_matched(_REQUEST, _text(entry.request.request_id)),
        time=_time(entry.common_properties, now),
    )


def asked_for(request: access_log_pb2.HttpRequestProperties) -> str:
    """The RPC, as entries of policy name it; else HTTP method and path, without the query.

    Of a path's longer segments the beginning stands: a key may have come to stand there.
    """
    path = _text(request.path).partition("?")[0].partition("#")[0]
    if contract_of(path) is not None:
        return path.removeprefix("/")
    number = request.request_method
    verb = _VERBS[number] if 0 <= number < len(_VERBS) else ""
    shown = "/".join(_segment(each) for each in path[: 4 * _MOST_PATH_CHARS].split("/"))
    return f"{verb} {shown}".strip()[:_MOST_PATH_CHARS]


def _segment(text: str) -> str:
    if len(text) <= _MOST_SEGMENT_CHARS:
        return text
    return f"{text[:_SHOWN_OF_SEGMENT_CHARS]}..."


def _principal(tags: Mapping[str, str]) -> tuple[str, str, str]:
    """Subject, org and API key; whoever was not checked stands under the operator."""
    user, org, key = (tags.get(entry, "") for entry in (USER_ENTRY, ORG_ENTRY, API_KEY_ENTRY))
    if not names.is_name("user", user) or names.org_of(user) != org:
        return UNVERIFIED, OPERATOR, ""
    return user, org, key if names.is_name("apiKey", key) else ""


def _cause(details: str) -> str:
    """Envoy's name for what happened; what follows in braces may differ for each call."""
    return _matched(_CAUSE, details.partition("{")[0])[:_MOST_CAUSE_CHARS] or _UNSAID


def _grpc_status(number: str) -> str:
    return _CODES.get(int(number), "") if re.fullmatch(r"[0-9]{1,2}", number) else ""


def _time(common: access_log_pb2.AccessLogCommon, now: datetime) -> datetime:
    """When the call began, if that can be: another machine's clock says so."""
    try:
        began = common.start_time.ToDatetime(tzinfo=UTC)
    except ValueError:
        return now
    return began if now - _OLDEST <= began <= now else now


def _matched(pattern: re.Pattern[str], text: str) -> str:
    return text if pattern.fullmatch(text) else ""


def _text(value: bytes) -> str:
    """Printable, whatever bytes a client sent."""
    text = value.decode(errors="backslashreplace")
    return text if text.isprintable() else ascii(text)[1:-1]

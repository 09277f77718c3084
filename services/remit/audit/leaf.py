"""The leaf: the bytes that the log hashes for one event, and that an export holds.

A leaf is a JSON object in canonical form (RFC 8785, of which only strings and integers are used):
keys sorted, no white space, UTF-8. So an auditor can read it without any software of Remit, and one
event has exactly one encoding. Version 1 has these members, every one always present:

==================== ===============================================================================
``v``                1
``event_id``         identifier, unique in the log
``event_time``       when the reporter saw it, RFC 3339 in UTC with nine decimals
``kind``             INTENT, OUTCOME, ADMIN, READ, ALERT or ACCESS
``org``              ``orgs/{org}``
``subject``          pseudonym: HMAC-SHA256 of the user's name under the log's pseudonym key
``action``           such as ``tools.call``
``resource``         such as ``tools/calculator``; users in it stand by pseudonym, ``users/~...``
``run``, ``claim``   names, or empty
``attempt``          attempt of the claim
``outcome``          SUCCEEDED, FAILED, REFUSED, CANCELLED, IN_DOUBT, or empty
``trace_id``         32 hex digits, or empty
``reporter``         the service that reported it
``subject_hash``     salted commitment to the user's name (see `remit.audit.sealing`)
``detail_hash``      salted commitment to the detail
==================== ===============================================================================

Hashes and pseudonyms are 32 bytes in base64 (RFC 4648 section 4). Nothing in a leaf names a person
or quotes a detail, and whoever lacks the subject's key cannot test a guess against the commitments:
the leaf can stay for ever, while the key, and with it the payload, may go.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

VERSION = 1
NANOS_PER_S = 1_000_000_000
_HASH_BYTES = 32
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{9})Z")
_TEXTS = (
    "event_id",
    "kind",
    "org",
    "action",
    "resource",
    "run",
    "claim",
    "outcome",
    "trace_id",
    "reporter",
)
_HASHES = {
    "subject": "subject_pseudonym",
    "subject_hash": "subject_hash",
    "detail_hash": "detail_hash",
}
_quoted = json.encoder.encode_basestring
"""A string as json writes it that leaves all but quotes, backslashes and controls as it is."""
_MEMBERS = frozenset({"v", "event_time", "attempt", *_TEXTS, *_HASHES})


class LeafError(ValueError):
    """Bytes are not a leaf; the message says why."""


@dataclass(frozen=True)
class Leaf:
    """What the log states about an event for ever. `event_time_ns` is Unix time in nanoseconds."""

    event_id: str
    event_time_ns: int
    kind: str
    org: str
    subject_pseudonym: bytes
    action: str
    resource: str
    run: str
    claim: str
    attempt: int
    outcome: str
    trace_id: str
    reporter: str
    subject_hash: bytes
    detail_hash: bytes

    def encode(self) -> bytes:
        """Return the leaf's bytes, as hashed."""
        # Written out: every event is encoded, and a general encoder takes several times as long.
        return (
            f'{{"action":{_quoted(self.action)},"attempt":{self.attempt:d}'
            f',"claim":{_quoted(self.claim)},"detail_hash":"{_base64(self.detail_hash)}"'
            f',"event_id":{_quoted(self.event_id)}'
            f',"event_time":"{format_time(self.event_time_ns)}","kind":{_quoted(self.kind)}'
            f',"org":{_quoted(self.org)},"outcome":{_quoted(self.outcome)}'
            f',"reporter":{_quoted(self.reporter)},"resource":{_quoted(self.resource)}'
            f',"run":{_quoted(self.run)},"subject":"{_base64(self.subject_pseudonym)}"'
            f',"subject_hash":"{_base64(self.subject_hash)}","trace_id":{_quoted(self.trace_id)}'
            f',"v":{VERSION}}}'
        ).encode()

    @classmethod
    def decode(cls, data: bytes) -> Leaf:
        """Read a leaf.

        Raises:
            LeafError: the bytes are not the one encoding of a leaf of version 1.

        """
        members = _parse(data)
        fields: dict[str, Any] = {name: _text(members, name) for name in _TEXTS}
        fields |= {field: _hash(members, name) for name, field in _HASHES.items()}
        fields["event_time_ns"] = parse_time(_text(members, "event_time"))
        fields["attempt"] = _number(members, "attempt")
        leaf = cls(**fields)
        if leaf.encode() != data:
            raise LeafError("the leaf is not in canonical form")
        return leaf


def canonical_json(members: Mapping[str, str | int]) -> bytes:
    """Return strings and integers as canonical JSON (RFC 8785), in UTF-8.

    Members are sorted by code points, as RFC 8785 does for names without astral characters.
    """
    written = (
        f"{_quoted(name)}:{value if isinstance(value, int) else _quoted(value)}"
        for name, value in sorted(members.items())
    )
    return f"{{{','.join(written)}}}".encode()


def format_time(time_ns: int) -> str:
    """Return Unix nanoseconds as RFC 3339 in UTC with nine decimals."""
    seconds, nanos = divmod(time_ns, NANOS_PER_S)
    return f"{_second(seconds)}.{nanos:09d}Z"


@lru_cache(64)
def _second(seconds: int) -> str:
    """The part of a time that the events of one second share."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def _base64(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode()


def parse_time(text: str) -> int:
    """Return Unix nanoseconds of a time as `format_time` writes it.

    Raises:
        LeafError: it is written in another way.

    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise LeafError("event_time is not RFC 3339 in UTC with nine decimals")
    try:
        seconds = datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise LeafError("event_time is no time") from error
    return int(seconds) * NANOS_PER_S + int(match[2])


def _parse(data: bytes) -> dict[str, object]:
    try:
        members = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LeafError("the leaf is not JSON") from error
    if not isinstance(members, dict) or members.get("v") != VERSION:
        raise LeafError(f"the leaf is not of version {VERSION}")
    if members.keys() != _MEMBERS:
        raise LeafError("the leaf has missing or unknown members")
    return members


def _text(members: Mapping[str, object], name: str) -> str:
    value = members[name]
    if not isinstance(value, str):
        raise LeafError(f"{name} is not a string")
    return value


def _number(members: Mapping[str, object], name: str) -> int:
    value = members[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise LeafError(f"{name} is not an integer")
    return value


def _hash(members: Mapping[str, object], name: str) -> bytes:
    try:
        value = base64.b64decode(_text(members, name), validate=True)
    except binascii.Error as error:
        raise LeafError(f"{name} is not base64") from error
    if len(value) != _HASH_BYTES:
        raise LeafError(f"{name} does not have {_HASH_BYTES} bytes")
    return value

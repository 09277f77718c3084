"""Sealing: what an event may show for ever, and what only its subject's key opens.

Two keys are at work. The log's pseudonym key turns a user's name into a full-length HMAC, so that
the events of one user can be found together. The subject's own key, random and kept in another
database, opens everything that is about a person: for the event of id ``e``,

- ``salt   = HMAC-SHA256(subject key, "remit/salt/v1" 00 e)``
- ``subject_hash = HMAC-SHA256(salt, "subject" 00 user's name)``, ``detail_hash`` likewise
- ``payload key = HMAC-SHA256(subject key, "remit/payload/v1" 00 e)``

and the payload is AES-256-GCM under the payload key, bound to the leaf's hash. Whoever is given one
salt can check one commitment and learns nothing of any other event. Without the subject's key the
payload is noise and no guess can be tested against a commitment, so deleting that key erases the
person's data while leaf, tree and proofs stay as they are.

A payload begins with its form and the id of its key: ``02 key_id[8] nonce[12] encrypted``. One
whose key is not the subject's current one was erased. Payloads of the form ``01 nonce[12]
encrypted`` are older than ids are; their key is key zero.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from remit.api.audit.v1 import event_pb2
from remit.audit.leaf import NANOS_PER_S, Leaf, canonical_json
from remit.audit.merkle import leaf_hash

KEY_BYTES = 32
NONCE_BYTES = 12
KEY_ID_BYTES = 8
FIRST_KEY_ID = bytes(KEY_ID_BYTES)
"""Of the keys that were made before keys had ids."""
_FORM = b"\x02"
_FORM_WITHOUT_ID = b"\x01"
LOST_PAYLOAD = b"\x00"
"""Stands where a leaf was put back after a loss: its payload is gone (`reconciliation`)."""
_KIND_PREFIX = "EVENT_KIND_"
_OUTCOME_PREFIX = "OUTCOME_"
_USER = re.compile(r"(^|/)users/([^/]+)")
_PSEUDONYM = re.compile(r"~[A-Za-z0-9_-]{43}")  # no user's name begins so


class SealError(ValueError):
    """A payload does not open with its subject's key, or does not fit its leaf."""


@dataclass(frozen=True)
class SubjectKey:
    """The key of a subject: 32 random bytes, and the id of 8 that tells it from one before."""

    key_id: bytes
    secret: bytes


@dataclass(frozen=True)
class SealedEvent:
    """An event as the log stores it."""

    leaf: Leaf
    leaf_bytes: bytes
    leaf_hash: bytes
    payload: bytes


class _Keyed:
    """HMAC-SHA256 under one key, set up once: setting up costs more than a message does."""

    def __init__(self, key: bytes) -> None:
        self._fresh = HMAC(key, SHA256())

    def digest(self, message: bytes) -> bytes:
        """Return the HMAC of a message, 32 bytes."""
        mac = self._fresh.copy()
        mac.update(message)
        return mac.finalize()


class Pseudonyms:
    """Turns users into pseudonyms: HMAC-SHA256 in full length under the log's own key."""

    def __init__(self, key: bytes) -> None:
        self._keyed = _Keyed(key)

    def of(self, subject: str) -> bytes:
        """Return the pseudonym of `orgs/{org}/users/{user}`, 32 bytes."""
        return self._keyed.digest(b"remit/subject/v1\x00" + subject.encode())

    def of_client(self, address: str) -> str:
        """Return the pseudonym of a client's address, 16 bytes, as it stands in an entry."""
        return shown(self._keyed.digest(b"remit/client/v1\x00" + address.encode())[:16])

    def in_resource(self, resource: str, org: str) -> str:
        """Return a resource name with every user in it replaced by a pseudonym."""
        owner = "/".join(resource.split("/")[:2]) if resource.startswith("orgs/") else org

        def hide(match: re.Match[str]) -> str:
            if _PSEUDONYM.fullmatch(match[2]):
                return match[0]
            pseudonym = self.of(f"{owner}/users/{match[2]}")
            return f"{match[1]}users/{shown(pseudonym)}"

        return _USER.sub(hide, resource)


def shown(pseudonym: bytes) -> str:
    """Return a pseudonym as it stands in a resource's name."""
    return "~" + base64.urlsafe_b64encode(pseudonym).decode().rstrip("=")


def seal(
    event: event_pb2.Event,
    *,
    reporter: str,
    subject_key: SubjectKey,
    pseudonyms: Pseudonyms,
    nonce: bytes,
) -> SealedEvent:
    """Return the leaf and the encrypted payload of an event.

    The leaf depends on nothing but the event, its reporter and the two keys: the same event sealed
    again has the same leaf, which is how a replay is told from another event with the same id.
    The nonce is 12 random bytes, new for each sealing.
    """
    keyed = _Keyed(subject_key.secret)
    leaf = _leaf(event, reporter, _salted(keyed, event.event_id), pseudonyms)
    leaf_bytes = leaf.encode()
    hashed = leaf_hash(leaf_bytes)
    clear = canonical_json(
        {"subject": event.subject, "resource": event.resource, "detail_json": event.detail_json}
    )
    key = _derived(keyed, b"remit/payload/v1", event.event_id)
    encrypted = AESGCM(key).encrypt(nonce, clear, hashed)
    payload = _FORM + subject_key.key_id + nonce + encrypted
    return SealedEvent(leaf, leaf_bytes, hashed, payload)


def unseal(leaf_bytes: bytes, payload: bytes, subject_key: SubjectKey | None) -> event_pb2.Event:
    """Return the event of a leaf; without the key of its payload, only what the leaf itself says.

    The key of a payload is gone when the subject has none, or has another one.

    So it is with a payload that was lost, too.

    Raises:
        LeafError: the leaf is malformed.
        SealError: the payload does not open, or is not what the leaf commits to.

    """
    leaf = Leaf.decode(leaf_bytes)
    event = _public_part(leaf)
    if payload == LOST_PAYLOAD:
        return event
    key_id, encrypted = _split(leaf, payload)
    if subject_key is None or subject_key.key_id != key_id:
        return event
    keyed = _Keyed(subject_key.secret)
    clear = _opened(leaf, leaf_hash(leaf_bytes), encrypted, keyed)
    event.subject, event.resource = clear["subject"], clear["resource"]
    event.detail_json = clear["detail_json"]
    salted = _salted(keyed, leaf.event_id)
    committed = (
        _committed(salted, "subject", event.subject),
        _committed(salted, "detail", event.detail_json),
    )
    if committed != (leaf.subject_hash, leaf.detail_hash):
        raise SealError(f"the payload of {leaf.event_id} is not what its leaf commits to")
    return event


def is_replay(sealed: SealedEvent, leaf_bytes: bytes, payload: bytes) -> bool:
    """Whether a stored event of the same id is the same, as far as it can be told.

    Where both have one key, the leaves must be equal. Of an event whose key was destroyed nobody
    can say what was committed to: it is the same if all that its leaf shows is.

    Raises:
        LeafError: the stored leaf is malformed.
        SealError: the stored payload has an unknown form.

    """
    if sealed.leaf_bytes == leaf_bytes:
        return True
    stored = Leaf.decode(leaf_bytes)
    if payload == LOST_PAYLOAD:
        return False  # whose key it was is lost too, and a leaf that came back is what it was
    if _split(stored, payload)[0] == _split(sealed.leaf, sealed.payload)[0]:
        return False
    public = (replace(leaf, subject_hash=b"", detail_hash=b"") for leaf in (stored, sealed.leaf))
    return next(public) == next(public)


def area_key(subject_key: SubjectKey, area: str) -> bytes:
    """Return the key under which an area, such as `tools`, seals what it stores of the subject.

    One area's key tells nothing of another's, nor of those under which the log's payloads are.
    """
    return _derived(_Keyed(subject_key.secret), b"remit/area/v1", area)


def commitment(subject_key: bytes, event_id: str, field: str, value: str) -> bytes:
    """Return the salted commitment of an event to a value, 32 bytes."""
    return _committed(_salted(_Keyed(subject_key), event_id), field, value)


def _salted(subject: _Keyed, event_id: str) -> _Keyed:
    return _Keyed(_derived(subject, b"remit/salt/v1", event_id))


def _committed(salted: _Keyed, field: str, value: str) -> bytes:
    return salted.digest(field.encode() + b"\x00" + value.encode())


def _derived(subject: _Keyed, purpose: bytes, event_id: str) -> bytes:
    return subject.digest(purpose + b"\x00" + event_id.encode())


def _leaf(event: event_pb2.Event, reporter: str, salted: _Keyed, pseudonyms: Pseudonyms) -> Leaf:
    time = event.event_time
    kind = event_pb2.EventKind.Name(event.kind).removeprefix(_KIND_PREFIX)
    outcome = event_pb2.Outcome.Name(event.outcome).removeprefix(_OUTCOME_PREFIX)
    return Leaf(
        event_id=event.event_id,
        event_time_ns=time.seconds * NANOS_PER_S + time.nanos,
        kind=kind,
        org=event.org,
        subject_pseudonym=pseudonyms.of(event.subject),
        action=event.action,
        resource=pseudonyms.in_resource(event.resource, event.org),
        run=event.run,
        claim=event.claim,
        attempt=event.attempt,
        outcome="" if event.outcome == event_pb2.OUTCOME_UNSPECIFIED else outcome,
        trace_id=event.trace_id,
        reporter=reporter,
        subject_hash=_committed(salted, "subject", event.subject),
        detail_hash=_committed(salted, "detail", event.detail_json),
    )


def _public_part(leaf: Leaf) -> event_pb2.Event:
    event = event_pb2.Event(
        event_id=leaf.event_id,
        kind=event_pb2.EventKind.Value(_KIND_PREFIX + leaf.kind),
        org=leaf.org,
        action=leaf.action,
        resource=leaf.resource,
        run=leaf.run,
        claim=leaf.claim,
        attempt=leaf.attempt,
        outcome=event_pb2.Outcome.Value(_OUTCOME_PREFIX + (leaf.outcome or "UNSPECIFIED")),
        trace_id=leaf.trace_id,
    )
    event.event_time.FromNanoseconds(leaf.event_time_ns)
    return event


def _split(leaf: Leaf, payload: bytes) -> tuple[bytes, bytes]:
    """Return the id of a payload's key, and nonce and ciphertext."""
    start = 1 + KEY_ID_BYTES
    if payload[:1] == _FORM and len(payload) > start + NONCE_BYTES:
        return payload[1:start], payload[start:]
    if payload[:1] == _FORM_WITHOUT_ID and len(payload) > 1 + NONCE_BYTES:
        return FIRST_KEY_ID, payload[1:]
    raise SealError(f"the payload of {leaf.event_id} has an unknown form")


def _opened(leaf: Leaf, hashed: bytes, encrypted: bytes, subject: _Keyed) -> dict[str, str]:
    nonce, ciphertext = encrypted[:NONCE_BYTES], encrypted[NONCE_BYTES:]
    key = _derived(subject, b"remit/payload/v1", leaf.event_id)
    try:
        clear: dict[str, str] = json.loads(AESGCM(key).decrypt(nonce, ciphertext, hashed))
    except InvalidTag as error:
        raise SealError(f"the payload of {leaf.event_id} does not open with its key") from error
    return clear

"""Events, keys and logs for the tests of audit."""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from remit.api.audit.v1 import event_pb2
from remit.audit.checkpoints import CheckpointSigner
from remit.audit.erasing import Eraser
from remit.audit.key_files import LogKeys, MasterKey
from remit.audit.keyring import SubjectKeyring
from remit.audit.log import AuditLog
from remit.audit.note import Signer
from remit.audit.sealing import Pseudonyms, SealedEvent, SubjectKey, seal
from remit.audit.signing_keys import SigningKeys
from remit.audit.store import LogStore
from remit.audit.wrapping import FileKeyWrapper
from remit.postgres import Database
from remit.rpc.ids import SystemIds

ORG = "orgs/acme"
ALICE = "orgs/acme/users/alice"
BOB = "orgs/acme/users/bob"
EVE = "orgs/other/users/eve"
RUN = "runs/0198c0de-0000-7000-8000-000000000001"
NOW = datetime(2026, 11, 23, 15, 0, tzinfo=UTC)
KEYS = LogKeys(Signer.generate("remit.internal/audit/test"), MasterKey(b"m" * 32), b"p" * 32)
SUBJECT_KEY = SubjectKey(b"generat1", bytes(range(32)))
DETAIL = '{"arguments":"sha256:secret-of-alice"}'


class FakeClock:
    """A clock that the test moves."""

    def __init__(self, now: datetime = NOW) -> None:
        self.time = now
        self.elapsed_s = 0.0

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.elapsed_s

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        self.elapsed_s += seconds


def claim_name() -> str:
    return f"claims/{uuid.uuid4()}"


def make_event(event_id: str = "e-1", **changes: object) -> event_pb2.Event:
    """An intent of alice, unless told otherwise."""
    fields: dict[str, object] = {
        "event_id": event_id,
        "kind": event_pb2.EVENT_KIND_INTENT,
        "org": ORG,
        "subject": ALICE,
        "action": "tools.call",
        "resource": "tools/calculator",
        "run": RUN,
        "claim": "claims/0198c0de-0000-7000-8000-0000000000aa",
        "attempt": 1,
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "detail_json": DETAIL,
    }
    event = event_pb2.Event(**(fields | changes))  # type: ignore[arg-type]
    if "event_time" not in changes:
        event.event_time.FromDatetime(NOW)
    return event


def outcome_of(event: event_pb2.Event) -> event_pb2.Event:
    outcome = event_pb2.Event()
    outcome.CopyFrom(event)
    outcome.event_id = event.event_id + "-outcome"
    outcome.kind = event_pb2.EVENT_KIND_OUTCOME
    outcome.outcome = event_pb2.OUTCOME_SUCCEEDED
    return outcome


def sealed(
    event: event_pb2.Event, nonce: bytes = b"n" * 12, key: SubjectKey = SUBJECT_KEY
) -> SealedEvent:
    return seal(
        event,
        reporter="tools",
        subject_key=key,
        pseudonyms=Pseudonyms(KEYS.pseudonym),
        nonce=nonce,
    )


@dataclass(frozen=True)
class Log:
    """Everything of a log, over two fresh databases."""

    database: Database
    keys_database: Database
    store: LogStore
    log: AuditLog
    keyring: SubjectKeyring
    checkpoints: CheckpointSigner
    clock: FakeClock

    async def append(self, *events: event_pb2.Event) -> list[object]:
        return list(await self.log.append(events, "tools"))


def make_log(database: Database, keys_database: Database, clock: FakeClock | None = None) -> Log:
    """One replica of a log."""
    clock = clock or FakeClock()
    store = LogStore(database, max_batch=1024, max_queue=16_384)
    keyring = make_keyring(keys_database, clock)
    log = AuditLog(store, keyring, Pseudonyms(KEYS.pseudonym), SystemIds(clock))
    checkpoints = CheckpointSigner(database, store, SigningKeys(KEYS.signer), interval_ms=10)
    return Log(database, keys_database, store, log, keyring, checkpoints, clock)


def make_keyring(
    database: Database, clock: FakeClock, master: MasterKey = KEYS.master, cache_size: int = 1000
) -> SubjectKeyring:
    return SubjectKeyring(
        database,
        FileKeyWrapper(master, SystemIds(clock)),
        clock=clock,
        ids=SystemIds(clock),
        cache_size=cache_size,
        cache_ttl_s=60,
    )


def texts(text: str) -> list[bytes]:
    """The forms in which a text could lie around in clear: as it is, and in base64."""
    return [text.encode(), base64.b64encode(text.encode()).rstrip(b"=")[:-1]]


def make_eraser(log: Log, destroyer: Database | None) -> Eraser:
    """One replica's eraser, over the databases and the clock of a log."""
    return Eraser(
        log.database,
        log.log,
        log.keyring,
        Pseudonyms(KEYS.pseudonym),
        destroyer,
        clock=log.clock,
    )

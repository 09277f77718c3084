"""Ways to the audit service over gRPC: as the effect gate appends, and one event in each RPC."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

from remit.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from remit.effects.batching import Batcher, opening_limits
from remit.effects.settings import EffectSettings
from remit.rpc.errors import RemitError
from remit.rpc.identity import TlsIdentity
from remit.rpc.mesh import Mesh
from tests.bench.cost_servers import GATE, Server, keys, look_at, server, token_of
from tests.bench.ledger_ways import BATCHED, EACH
from tests.bench.log_ways import Effects
from tests.bench.pairs import Look, Way
from tests.bench.payers import USERS, Payer, payers
from tests.ports import free_ports

_APPEND: Final = "/remit.api.audit.v1.AuditService/AppendEvents"
_CLOSE: Final = "/remit.api.audit.v1.AuditService/AppendOutcomes"
_AT_ONCE: Final = 50
"""So few that a service which commits them one by one does so in time."""
Stub = audit_service_pb2_grpc.AuditServiceStub
Entry = audit_service_pb2.Entry
Answers = Sequence[int | RemitError]


class _Entries:
    """Entries with the remits of those who act, signed once each."""

    def __init__(self) -> None:
        self._tokens: dict[Payer, str] = {}
        self._effects = Effects()

    def intent(self, payer: Payer, claim: str) -> Entry:
        token = self._tokens.get(payer)
        if token is None:
            token = self._tokens[payer] = token_of(payer)
        return Entry(event=self._effects.began(payer, claim), remit=token)

    def outcome(self, claim: str) -> Entry:
        return Entry(event=self._effects.ended(claim))


class _Appending:
    def __init__(self, audit: Stub) -> None:
        self._audit = audit

    async def open(self, entries: Sequence[Entry]) -> Answers:
        request = audit_service_pb2.AppendEventsRequest(entries=entries)
        return _answers((await self._audit.AppendEvents(request)).results)

    async def close(self, entries: Sequence[Entry]) -> Answers:
        request = audit_service_pb2.AppendOutcomesRequest(entries=entries)
        return _answers((await self._audit.AppendOutcomes(request)).results)


class RpcWay:
    """An RPC for each event."""

    def __init__(self, audit: Stub, entries: _Entries) -> None:
        self._appending = _Appending(audit)
        self._entries = entries

    async def reserve(self, payer: Payer, claim: str) -> None:
        """Appends the intent."""
        _placed(await self._appending.open([self._entries.intent(payer, claim)]))

    async def settle(self, claim: str) -> None:
        """Appends the outcome."""
        _placed(await self._appending.close([self._entries.outcome(claim)]))


class GateWay:
    """Many events in one RPC, gathered as the gate gathers intents.

    The gate does not wait for its outcomes, and lets them linger for company. Here somebody waits,
    so they go as intents do.
    """

    def __init__(self, audit: Stub, entries: _Entries) -> None:
        appending, settings = _Appending(audit), EffectSettings()
        self._entries = entries
        self._intents: Batcher[Entry, int] = Batcher(
            appending.open, name="intents", **opening_limits(settings, _APPEND)
        )
        self._outcomes: Batcher[Entry, int] = Batcher(
            appending.close, name="outcomes", **opening_limits(settings, _CLOSE)
        )

    async def reserve(self, payer: Payer, claim: str) -> None:
        """Appends the intent."""
        await self._intents.ask(self._entries.intent(payer, claim))

    async def settle(self, claim: str) -> None:
        """Appends the outcome."""
        await self._outcomes.ask(self._entries.outcome(claim))


@contextlib.asynccontextmanager
async def grpc_ways(
    tls: Path, dsn: str, keys_dsn: str, keys_dir: Path, postgres: int
) -> AsyncIterator[Mapping[str, tuple[Way, Look]]]:
    """The ways over gRPC, each with its look: to a service that batches and to one that does not.

    They are replicas of one log, of which only one is loaded at a time.
    """
    mesh = f"127.0.0.1:{free_ports(1)[0]}"
    facts = {"keys_dsn": keys_dsn, "keys_dir": keys_dir}
    anchors = [keys_dir / f"{way}.anchor" for way in (EACH, BATCHED)]
    async with (
        keys(tls, mesh),
        server(
            tls, dsn, mesh, area="audit", max_batch=1, anchor_file=anchors[0], **facts
        ) as unbatched,
        server(tls, dsn, mesh, area="audit", anchor_file=anchors[1], **facts) as batching,
        _audit(tls, unbatched) as each,
        _audit(tls, batching) as batched,
    ):
        entries = _Entries()
        for audit in (batched, each):
            await _known(audit, entries)
        look = look_at(unbatched, postgres, area="audit")
        look_batching = look_at(batching, postgres, area="audit")
        yield {
            EACH: (RpcWay(each, entries), look),
            BATCHED: (RpcWay(batched, entries), look_batching),
            GATE: (GateWay(batched, entries), look_batching),
        }


async def _known(audit: Stub, entries: _Entries) -> None:
    """Appends an event of each who acts: their keys are made and remembered once."""
    acting = payers(USERS)
    for at in range(0, len(acting), _AT_ONCE):
        intents = [
            entries.intent(payer, f"claims/{uuid4()}") for payer in acting[at : at + _AT_ONCE]
        ]
        _placed(await _Appending(audit).open(intents))


@contextlib.asynccontextmanager
async def _audit(tls: Path, served: Server) -> AsyncIterator[Stub]:
    address, identity = f"127.0.0.1:{served.port}", TlsIdentity.load(tls / "tools")
    async with Mesh.connect(address, identity, party="audit") as connection:
        yield connection.stub(Stub)


def _answers(results: Sequence[audit_service_pb2.AppendResult]) -> Answers:
    return [
        RemitError.from_status(result.error) if result.HasField("error") else result.leaf_index
        for result in results
    ]


def _placed(answers: Answers) -> None:
    for answer in answers:
        if isinstance(answer, RemitError):
            raise answer

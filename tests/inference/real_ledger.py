"""The inference service before the real ledger, and a provider that counts the tokens it makes.

A token costs one nano-USD and a prompt nothing, so that money and tokens are the same number.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import yaml
from starlette.responses import Response, StreamingResponse

from remit.api.cost.v1 import cost_service_pb2, cost_service_pb2_grpc
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.cost.accounts import balance_key, overrun_account
from remit.cost.admission import DefaultBudget
from remit.cost.books import Balance
from remit.cost.checks import ledger_faults
from remit.cost.ledger import Rules
from remit.cost.periods import Period
from remit.cost.prices import PriceList, Unlisted, read_prices
from remit.cost.public_prices import PublicPrices
from remit.cost.service import CostService
from remit.cost.store import LedgerStore, select_balances
from remit.postgres import Database
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from remit.rpc.guard import Guard
from remit.rpc.memory import MemoryMesh
from remit.rpc.remits import RemitVerifier
from tests.effects.world import World, connected
from tests.inference.openai_server import OpenAIServer, Script, delta
from tests.inference.service_world import ALICE, InferenceWorld, OneKey

ORG = "orgs/acme"
PROMPT_TOKENS: Final = 5
NAMES: Final = ("exact", "bytes", "whole", "builtin-rules")


def _a_nano_a_token(folder: Path) -> PriceList:
    """Each model's price, from a file."""
    file = folder / "prices.yaml"
    rates = {"output_nanos_per_million": 1_000_000}
    file.write_text(yaml.safe_dump({"prices": {f"models/{name}": rates for name in NAMES}}))
    return PriceList(
        read_prices(file),
        PublicPrices(cache_size=1),
        unlisted_models=Unlisted.REFUSE,
        unlisted_tools=Unlisted.REFUSE,
    )


class Ledger(CostService):
    """The real service, whose extensions may be slow or away, and are counted."""

    def __init__(self, database: Database, world: World, limit: int, folder: Path) -> None:
        self.database = database
        self.world = world
        self.extensions = 0
        self.outage = error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
        """How an extension fails while cost is away."""
        self.hangs = asyncio.Event()
        """Set: an extension is never answered."""
        rules = Rules(DefaultBudget(Period.TOTAL, limit), timedelta(seconds=5))
        clock = SystemClock()
        super().__init__(
            store=LedgerStore(database, rules, clock, max_batch=64, max_queue=4096),
            prices=_a_nano_a_token(folder),
            verifier=RemitVerifier(OneKey(), clock),
        )

    async def BatchExtendReservations(
        self, request: cost_service_pb2.BatchExtendReservationsRequest, context: Any
    ) -> cost_service_pb2.BatchExtendReservationsResponse:
        self.extensions += 1
        if self.hangs.is_set():
            await asyncio.Event().wait()
        if "cost" in self.world.away:
            raise RemitError(self.outage, "cost is away")
        return await super().BatchExtendReservations(request, context)

    async def spent(self) -> tuple[int, int, int]:
        """Held and posted by the org, and the operator's overrun, at one moment."""
        day = SystemClock().now().date()
        accounts = (ORG, ALICE, overrun_account(ORG))
        keys = [balance_key(account, Period.TOTAL, day) for account in accounts]
        async with self.database.acquire() as connection:
            found = await select_balances(connection, keys)
        org, alice, overrun = (found.get(key, Balance()) for key in keys)
        assert alice == org
        return org.pending_nanos, org.posted_nanos, overrun.posted_nanos

    async def check(self) -> None:
        """The books are sound."""
        async with self.database.acquire() as connection:
            assert await ledger_faults(connection, 5) == []

    def mesh(self) -> MemoryMesh:
        """The gate's neighbours with this one among them."""
        mesh = connected(self.world)
        clock = SystemClock()
        guard = Guard(
            audience=options_pb2.CALLER_COST,
            verifier=RemitVerifier(OneKey(), clock),
            clock=clock,
            max_in_flight=1000,
        )
        mesh.add(guard, cost_service_pb2_grpc.add_CostServiceServicer_to_server, self)
        return mesh


@dataclass
class Paying:
    """The service, the ledger and the model's voice."""

    inference: InferenceWorld
    ledger: Ledger
    claims: Database
    voice: Voice

    @property
    def world(self) -> World:
        return self.inference.world

    async def closed(self) -> tuple[int, int, int]:
        """Held, posted and overrun when nothing is left open."""
        await self.inference.settled_down()
        await self.ledger.check()
        held, posted, overrun = await self.ledger.spent()
        assert held == 0
        return held, posted, overrun


@dataclass
class Voice:
    """A model that says a token of one byte each time it may, and counts them."""

    made: int = 0
    speaks_freely: bool = False
    """Whether it says all that it can."""
    may_say: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the connection was closed."""

    def say(self, tokens: int) -> None:
        """Lets it say so many more."""
        for _ in range(tokens):
            self.may_say.release()

    def script(self, length: int | None = None) -> Script:
        """Says `length` tokens in each answer, or goes on for ever."""

        async def answer(_body: dict[str, Any]) -> Response:
            return StreamingResponse(self._events(length), media_type="text/event-stream")

        return answer

    async def _events(self, length: int | None) -> AsyncIterator[bytes]:
        said = 0
        try:
            while said != length:
                await (asyncio.sleep(0) if self.speaks_freely else self.may_say.acquire())
                said += 1
                self.made += 1
                yield _event(delta(content="x"), said)
            yield _event(delta(finish_reason="stop"), said)
        finally:
            self.hung_up.set()


def _event(chunk: dict[str, Any], said: int) -> bytes:
    counts = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": said}
    return f"data: {json.dumps(chunk | {'usage': counts})}\n\n".encode()


def models(provider: OpenAIServer) -> list[dict[str, object]]:
    """One that counts and stops, one that stops alone, one that does neither, and the rules."""
    at_provider: dict[str, object] = {
        "engine": "openai",
        "base_url": provider.base_url,
        "provider_model": "voice",
        "context_tokens": 100_000,
        "max_output_tokens": 10_000,
    }
    stops = {"stop_stops_bill": True, "unsent_tokens": 1}
    return [
        {"name": "exact", **at_provider, **stops, "continuous_usage": True},
        {"name": "bytes", **at_provider, **stops},
        {"name": "whole", **at_provider, "max_output_tokens": 100},
        {
            "name": "builtin-rules",
            "engine": "builtin-rules",
            "context_tokens": 1_000_000,
            "max_output_tokens": 1_000,
        },
    ]


async def read(paying: Paying, request: Any, tokens: int) -> None:
    """Reads so many tokens of a stream, then leaves."""
    async with contextlib.aclosing(paying.inference.stream(request)) as pieces:
        came = 0
        async for piece in pieces:
            came += len(piece.text_delta)
            if came >= tokens:
                return

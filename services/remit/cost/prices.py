"""What things cost: the operator's file, then what is shipped, then public list prices.

Each of them may state other prices at other times. A price is chosen by the time at which a hold
begins, in the ledger's own time, and pinned there, so that what changes later changes no bill that
was begun. What no list knows is refused by name, unless a setting says that such models or tools
are free; a free one is pinned with the source `unlisted`, which tells it from a price of zero.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from remit import names
from remit.api.errors.v1 import error_reason_pb2
from remit.cost.price_files import SHIPPED, Rates, read_price_file
from remit.cost.price_timelines import Timeline
from remit.cost.public_prices import PublicModel, PublicPrices
from remit.cost.reservations import Price, Usage
from remit.rpc.errors import RemitError

UNLISTED: Final = "unlisted"


class Unlisted(StrEnum):
    """What happens to an item that no price list knows."""

    REFUSE = "refuse"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class ItemPrices:
    """What the lists say of one item, for a request within a bound: a price at any time."""

    item: str
    list_item: str
    bound: Usage
    stated: Sequence[Timeline[Price]]
    """Of the files, the one that goes first at the front."""
    public: PublicModel | None
    allows_unlisted: bool

    def at(self, moment: datetime) -> Price:
        """The price at a moment. Raises PRICE_UNKNOWN."""
        for timeline in self.stated:
            price = timeline.at(moment)
            if price is not None:
                return price
        rates = self.public.rates(self.bound, moment) if self.public else None
        if rates is not None:
            return make_price(self.item, rates, "genai-prices")
        if self.allows_unlisted:
            return make_price(self.item, Rates(), UNLISTED)
        raise _unknown(self.item, self.list_item)


FilePrices: TypeAlias = Sequence[Mapping[str, Timeline[Price]]]
"""What price files state, the file that counts first before the others."""


class PriceList:
    """Prices by item, from files in order of precedence and from the public list."""

    def __init__(
        self,
        files: FilePrices,
        public: PublicPrices,
        *,
        unlisted_models: Unlisted,
        unlisted_tools: Unlisted,
    ) -> None:
        self._files = files
        self._public = public
        self._unlisted_models = unlisted_models
        self._unlisted_tools = unlisted_tools

    @property
    def items(self) -> frozenset[str]:
        """What the files state a price of."""
        return frozenset(item for file in self._files for item in file)

    async def prices_of(self, item: str, list_item: str, bound: Usage) -> ItemPrices:
        """What is known of an item; which price counts is chosen when the time of a hold is known.

        `list_item` is its name in public lists, `provider/model`, or empty.
        """
        stated = [file[item] for file in self._files if item in file]
        # A file that states a price for ever leaves nothing to look up.
        asks_public = list_item and not any(timeline.is_for_ever for timeline in stated)
        public = await self._public.model(list_item) if asks_public else None
        return ItemPrices(item, list_item, bound, stated, public, self._allows_unlisted(item))

    def _allows_unlisted(self, item: str) -> bool:
        kind = self._unlisted_models if names.is_name("model", item) else self._unlisted_tools
        return kind is Unlisted.FREE


def read_prices(own_file: Path | None) -> FilePrices:
    """The operator's file, then the shipped one. Raises CONFIGURATION_INVALID."""
    shipped = _of_file(SHIPPED, "shipped")
    return [_of_file(own_file, "file"), shipped] if own_file else [shipped]


def make_price(item: str, rates: Rates, source: str) -> Price:
    """A price with its version."""
    cached = rates.cached_input_nanos_per_million
    amounts = (
        rates.input_nanos_per_million,
        rates.input_nanos_per_million if cached is None else cached,
        rates.output_nanos_per_million,
        rates.call_nanos,
    )
    version = hashlib.sha256(json.dumps([item, *amounts]).encode()).hexdigest()
    return Price(version, source, *amounts)


def _of_file(path: Path, source: str) -> Mapping[str, Timeline[Price]]:
    return {
        item: rates.map(partial(make_price, item, source=source))
        for item, rates in read_price_file(path).items()
    }


def _unknown(item: str, list_item: str) -> RemitError:
    also = f", nor for {list_item} in the public list" if list_item else ""
    return RemitError(
        error_reason_pb2.ERROR_REASON_PRICE_UNKNOWN,
        f"no price is known for {item}{also}",
        metadata={"item": item},
    )

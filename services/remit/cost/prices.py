"""What things cost: the operator's file, then what is shipped, then public list prices.

A price is pinned when money is reserved, so a file that changes later changes no bill that was
begun. What no list knows is refused by name, unless a setting says that such models or tools are
free; a free one is pinned with the source `unlisted`, which tells it from a price of zero.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from remit import names
from remit.api.errors.v1 import error_reason_pb2
from remit.cost.price_files import SHIPPED, Rates, read_price_file
from remit.cost.public_prices import PublicPrices
from remit.cost.reservations import Price, Usage
from remit.rpc.errors import RemitError

_UNLISTED: Final = "unlisted"


class Unlisted(StrEnum):
    """What happens to an item that no price list knows."""

    REFUSE = "refuse"
    FREE = "free"


class PriceList:
    """Prices by item."""

    def __init__(
        self,
        prices: Mapping[str, Price],
        public: PublicPrices,
        *,
        unlisted_models: Unlisted,
        unlisted_tools: Unlisted,
    ) -> None:
        self._prices = prices
        self._public = public
        self._unlisted_models = unlisted_models
        self._unlisted_tools = unlisted_tools

    async def price(self, item: str, list_item: str, bound: Usage, now: datetime) -> Price:
        """The price of an item now. Raises PRICE_UNKNOWN.

        `list_item` is its name in public lists, `provider/model`, or empty.
        """
        listed = self._prices.get(item)
        if listed is not None:
            return listed
        rates = await self._public.rates(list_item, bound, now) if list_item else None
        if rates is not None:
            return make_price(item, rates, "genai-prices")
        if self._allows_unlisted(item):
            return make_price(item, Rates(), _UNLISTED)
        raise _unknown(item, list_item)

    def _allows_unlisted(self, item: str) -> bool:
        kind = self._unlisted_models if names.is_name("model", item) else self._unlisted_tools
        return kind is Unlisted.FREE


def read_prices(own_file: Path | None) -> dict[str, Price]:
    """The shipped prices under those of the operator's file. Raises CONFIGURATION_INVALID."""
    prices = _of_file(SHIPPED, "shipped")
    return prices | (_of_file(own_file, "file") if own_file else {})


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


def _of_file(path: Path, source: str) -> dict[str, Price]:
    return {item: make_price(item, rates, source) for item, rates in read_price_file(path).items()}


def _unknown(item: str, list_item: str) -> RemitError:
    also = f", nor for {list_item} in the public list" if list_item else ""
    return RemitError(
        error_reason_pb2.ERROR_REASON_PRICE_UNKNOWN,
        f"no price is known for {item}{also}",
        metadata={"item": item},
    )

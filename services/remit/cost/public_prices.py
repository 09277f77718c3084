"""List prices of public providers, from the price data of genai-prices, offline.

It is imported lazily and in a thread: it costs a second and a half of CPU, and a service whose
models are all in its own files never needs it. An unknown model is unknown, never free.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from remit.cost.price_files import Rates
from remit.cost.reservations import Usage
from remit.pricing import nanos_of_usd

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo

_REQUESTS_OF_A_RATE: Final = 1000


class PublicModel:
    """A model of the public list."""

    def __init__(self, info: ModelInfo) -> None:
        self._info = info

    def rates(self, bound: Usage, moment: datetime) -> Rates | None:
        """The rates in force at a moment for a request within `bound`; None if they are not known.

        A provider may charge by the date or by the time of day; and where it charges large prompts
        by a dearer tier, the dearest tier that the bound can reach counts.
        """
        return _rates_of(self._info.get_prices(moment), bound)


class PublicPrices:
    """Looks models up by `provider/model`. Remembers `cache_size` answers, unknown ones too."""

    def __init__(self, *, cache_size: int) -> None:
        self._cache_size = cache_size
        self._models: OrderedDict[str, PublicModel | None] = OrderedDict()

    async def model(self, list_item: str) -> PublicModel | None:
        """The model of that name; None if the list does not know it."""
        if list_item in self._models:
            self._models.move_to_end(list_item)
            return self._models[list_item]
        model = await asyncio.to_thread(_find_model, list_item)
        self._models[list_item] = model
        if len(self._models) > self._cache_size:
            self._models.popitem(last=False)
        return model


def _find_model(list_item: str) -> PublicModel | None:
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - slow; see above

    provider, slash, model = list_item.partition("/")
    if not (provider and slash and model):
        return None
    try:
        return PublicModel(get_snapshot().find_provider_model(model, None, provider, None)[1])
    except LookupError:
        return None


def _rates_of(prices: Any, bound: Usage) -> Rates | None:  # noqa: ANN401 - keys vary by model
    """Rates of a ModelPrice, whose amounts are US dollars for a million tokens or 1000 requests."""
    input_usd = _dearest(prices, bound, "input_mtok")
    output_usd = _dearest(prices, bound, "output_mtok", "output_reasoning_mtok")
    call_usd = _dearest(prices, bound, "requests_kcount")
    if (bound.input_tokens and input_usd is None) or (bound.output_tokens and output_usd is None):
        return None
    if input_usd is None and output_usd is None and call_usd is None:
        return None
    cached_usd = _dearest(prices, bound, "cache_read_mtok")
    return Rates(
        input_nanos_per_million=_nanos(input_usd),
        cached_input_nanos_per_million=None if cached_usd is None else _nanos(cached_usd),
        output_nanos_per_million=_nanos(output_usd),
        call_nanos=_nanos(call_usd, _REQUESTS_OF_A_RATE),
    )


def _dearest(prices: Any, bound: Usage, *keys: str) -> Decimal | None:  # noqa: ANN401
    rates = [rate for key in keys for rate in _reachable(getattr(prices, key, None), bound)]
    return max(rates, default=None)


def _reachable(rate: Any, bound: Usage) -> Iterator[Decimal]:  # noqa: ANN401 - Decimal or tiers
    """The rates that a request within the bound may be charged by."""
    if rate is None:
        return
    if isinstance(rate, Decimal):
        yield rate
        return
    yield rate.base
    yield from (tier.price for tier in rate.tiers if bound.input_tokens > tier.start)


def _nanos(usd: Decimal | None, count: int = 1) -> int:
    """Nano-USD; a rate that the list does not state is not charged."""
    return nanos_of_usd(usd, count) if usd is not None else 0

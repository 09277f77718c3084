"""`remit prices`: what models and tools cost, now and later, and who says so."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final, TypeVar

import click

from remit.api.cost.v1 import price_service_pb2, price_service_pb2_grpc
from remit.api.inference.v1 import model_service_pb2, model_service_pb2_grpc
from remit.api.tools.v1 import tool_service_pb2, tool_service_pb2_grpc
from remit.cli import documents
from remit.cli.client import Edge, Listing, Session, client_options, collect, new_request_id
from remit.cli.output import Column
from remit.cli.parameters import MOST_LISTED, Decorated, Start, Usd, limit_option, timestamp
from remit.cli.wording import local_time, usd

ItemPrice = price_service_pb2.ItemPrice
PriceChange = price_service_pb2.PriceChange
Priced = TypeVar("Priced", ItemPrice, PriceChange)

_RATES: Final = {
    "input/M": "input_nanos_per_million",
    "cached/M": "cached_input_nanos_per_million",
    "output/M": "output_nanos_per_million",
    "call": "call_nanos",
}


def _rate_columns(_row: type[Priced], without: str) -> list[Column[Priced]]:
    """A column for each rate; `without` stands where there is no price, for that is not zero."""

    def column(head: str, rate: str) -> Column[Priced]:
        def cell(priced: Priced) -> str:
            return usd(getattr(priced.price, rate)) if priced.HasField("price") else without

        return Column(head, cell, "right", keep=True)

    return [column(head, rate) for head, rate in _RATES.items()]


def _source(price: ItemPrice) -> str:
    if price.HasField("price"):
        return price.source
    return "nobody; refused" if price.refused else "nobody; let pass"


def _begin(price: ItemPrice) -> str:
    is_current = price.state == ItemPrice.STATE_CURRENT
    return "now" if is_current else local_time(price.start_time)


_COLUMNS: Final = (
    Column[ItemPrice]("item", lambda p: p.item, keep=True),
    *_rate_columns(ItemPrice, "unknown"),
    Column[ItemPrice]("from", _begin, keep=True),
    Column[ItemPrice]("until", lambda p: local_time(p.end_time), keep=True),
    Column[ItemPrice]("stated by", _source, keep=True),
)
_CHANGE_COLUMNS: Final = (
    Column[PriceChange]("change", lambda c: str(c.sequence), "right", keep=True),
    Column[PriceChange]("item", lambda c: c.item, keep=True),
    *_rate_columns(PriceChange, "deleted"),
    Column[PriceChange]("from", lambda c: local_time(c.start_time), keep=True),
    Column[PriceChange]("made", lambda c: local_time(c.create_time), keep=True),
    Column[PriceChange]("by", lambda c: c.subject, keep=True),
)

_request_id_option = click.option(
    "--request-id", default="", help="Names this request, so that it can be repeated."
)
_list_item_option = click.option(
    "--list-item", default="", metavar="NAME", help="Its name in public lists, PROVIDER/MODEL."
)


def _rate_option(name: str, what: str) -> Callable[[Decorated], Decorated]:
    return click.option(f"--{name}", type=Usd(), metavar="USD", help=f"USD for {what}.")


@click.group(
    epilog="\b\nExamples:\n  remit prices list\n"
    "  remit prices set models/mine --input 0.05 --output 0.20"
)
def command() -> None:
    """List and set what models and tools cost your org.

    Rates of tokens are for a million of them. A price that your org sets goes before those of the
    installation. A hold keeps the price of the time at which it began.
    """


@command.command(
    "list",
    epilog="\b\nExamples:\n  remit prices list\n"
    "  remit prices list --json | jq '.prices[] | select(.price | not) | .item'",
)
@limit_option
@client_options
def list_prices(*, session: Session, limit: int) -> None:
    """List what every model and tool costs, now and as scheduled.

    A price that nobody knows is shown as unknown, never as zero.
    """
    listing = session.run(lambda edge: _all_prices(edge, limit))
    session.output.listing("prices", listing.items, _COLUMNS, more=listing.more)


@command.command(
    "show",
    epilog="\b\nExamples:\n  remit prices show tools/calculator\n"
    "  remit prices show models/mini --list-item openai/gpt-5-mini --json",
)
@click.argument("item")
@_list_item_option
@limit_option
@client_options
def show(*, session: Session, item: str, list_item: str, limit: int) -> None:
    """Show what ITEM costs, now and as scheduled, and what your org ever changed, latest first."""
    prices, changes = session.run(lambda edge: _item(edge, item, list_item, limit))
    if session.output.as_json:
        session.output.document(
            {
                "prices": [documents.of_message(price) for price in prices],
                "changes": [documents.of_message(change) for change in changes.items],
                "more": changes.more,
            }
        )
        return
    session.output.table(prices, _COLUMNS)
    session.output.line("")
    session.output.listing("changes", changes.items, _CHANGE_COLUMNS, more=changes.more)


@command.command(
    "set",
    epilog="\b\nExamples:\n  remit prices set tools/search --call 0.000005\n"
    "  remit prices set models/mine --input 0.05 --cached-input 0.01 --output 0.20\n"
    "  remit prices set models/mine --input 0.04 --output 0.16 --from 2027-01-01T00:00:00Z",
)
@click.argument("item")
@_rate_option("input", "a million input tokens")
@_rate_option("cached-input", "a million cached input tokens; the input rate, if not stated")
@_rate_option("output", "a million output tokens")
@_rate_option("call", "each call")
@click.option("--from", "start", type=Start(), help="From when on; at once, if not stated.")
@_request_id_option
@client_options
def set_price(
    *, session: Session, item: str, start: datetime | None, request_id: str, **rates: int | None
) -> None:
    """Set what ITEM costs your org; rates that are not stated are 0, but one must be.

    ITEM is models/NAME or tools/NAME. A price of the past cannot be set: bills are not rewritten.
    """
    request = price_service_pb2.SetPriceRequest(
        item=item,
        input_nanos_per_million=rates["input"],
        cached_input_nanos_per_million=rates["cached_input"],
        output_nanos_per_million=rates["output"],
        call_nanos=rates["call"],
        start_time=timestamp(start),
        request_id=request_id or new_request_id(),
    )
    _show_change(session, session.run(lambda edge: _set(edge, request)))


@command.command(
    "delete",
    epilog="\b\nExamples:\n  remit prices delete models/mine\n"
    "  remit prices delete models/mine --from 2027-01-01T00:00:00Z",
)
@click.argument("item")
@click.option("--from", "start", type=Start(), help="From when on; at once, if not stated.")
@_request_id_option
@client_options
def delete(*, session: Session, item: str, start: datetime | None, request_id: str) -> None:
    """End your org's own price of ITEM, and withdraw what is scheduled for then or later.

    From then on it costs what the installation says.
    """
    request = price_service_pb2.DeletePriceRequest(
        item=item, start_time=timestamp(start), request_id=request_id or new_request_id()
    )
    _show_change(session, session.run(lambda edge: _delete(edge, request)))


def _show_change(session: Session, change: PriceChange) -> None:
    if session.output.as_json:
        session.output.document({"change": documents.of_message(change)})
    else:
        session.output.table([change], _CHANGE_COLUMNS)


# ------------------------------------------------------------------------------------------ calls


async def _set(edge: Edge, request: price_service_pb2.SetPriceRequest) -> PriceChange:
    stub = edge.stub(price_service_pb2_grpc.PriceServiceStub)
    return (await stub.SetPrice(request, metadata=edge.metadata)).change


async def _delete(edge: Edge, request: price_service_pb2.DeletePriceRequest) -> PriceChange:
    stub = edge.stub(price_service_pb2_grpc.PriceServiceStub)
    return (await stub.DeletePrice(request, metadata=edge.metadata)).change


async def _item(
    edge: Edge, item: str, list_item: str, limit: int
) -> tuple[list[ItemPrice], Listing[PriceChange]]:
    stub = edge.stub(price_service_pb2_grpc.PriceServiceStub)

    async def fetch(size: int, token: str) -> price_service_pb2.ListPriceChangesResponse:
        request = price_service_pb2.ListPriceChangesRequest(
            item=item, page_size=size, page_token=token
        )
        return await stub.ListPriceChanges(request, metadata=edge.metadata)

    prices = await _prices_of(edge, item, list_item or await _list_item(edge, item))
    return prices, await collect(fetch, lambda page: page.changes, limit)


async def _all_prices(edge: Edge, limit: int) -> Listing[ItemPrice]:
    """What is stated anywhere, and every model and tool besides, known or not."""
    stub = edge.stub(price_service_pb2_grpc.PriceServiceStub)

    async def fetch(size: int, token: str) -> price_service_pb2.ListPricesResponse:
        request = price_service_pb2.ListPricesRequest(page_size=size, page_token=token)
        return await stub.ListPrices(request, metadata=edge.metadata)

    stated = (await collect(fetch, lambda page: page.prices, MOST_LISTED)).items
    by_item: dict[str, list[ItemPrice]] = {}
    for price in stated:
        by_item.setdefault(price.item, []).append(price)
    for item, list_item in sorted((await _items(edge)).items()):
        # A list of all items knows no public names, so models that have one are asked for by it.
        if list_item or item not in by_item:
            by_item[item] = await _prices_of(edge, item, list_item)
    prices = [price for item in sorted(by_item) for price in by_item[item]]
    return Listing(prices[:limit], len(prices) > limit)


async def _prices_of(edge: Edge, item: str, list_item: str) -> list[ItemPrice]:
    stub = edge.stub(price_service_pb2_grpc.PriceServiceStub)
    request = price_service_pb2.ListPricesRequest(item=item, list_item=list_item)
    return list((await stub.ListPrices(request, metadata=edge.metadata)).prices)


async def _list_item(edge: Edge, item: str) -> str:
    return (await _items(edge)).get(item, "") if item.startswith("models/") else ""


async def _items(edge: Edge) -> dict[str, str]:
    """The models and tools of the installation, with their names in public price lists."""
    models = edge.stub(model_service_pb2_grpc.ModelServiceStub)
    tools = edge.stub(tool_service_pb2_grpc.ToolServiceStub)

    async def fetch_models(size: int, token: str) -> model_service_pb2.ListModelsResponse:
        request = model_service_pb2.ListModelsRequest(page_size=size, page_token=token)
        return await models.ListModels(request, metadata=edge.metadata)

    async def fetch_tools(size: int, token: str) -> tool_service_pb2.ListToolsResponse:
        request = tool_service_pb2.ListToolsRequest(page_size=size, page_token=token)
        return await tools.ListTools(request, metadata=edge.metadata)

    found_models = await collect(fetch_models, lambda page: page.models, MOST_LISTED)
    found_tools = await collect(fetch_tools, lambda page: page.tools, MOST_LISTED)
    return {tool.name: "" for tool in found_tools.items} | {
        model.name: model.list_item for model in found_models.items
    }

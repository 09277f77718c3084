"""`remit prices`: what is asked for, and that an unknown price is never shown as a zero."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import timestamp_pb2

from remit.api.cost.v1 import price_service_pb2, reservation_pb2
from remit.api.inference.v1 import model_service_pb2
from remit.api.tools.v1 import tool_pb2, tool_service_pb2
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer

ItemPrice = price_service_pb2.ItemPrice
NEW_YEAR = timestamp_pb2.Timestamp(seconds=1_798_761_600)


def item_price(item: str, nanos: int | None, **fields: Any) -> ItemPrice:
    price = None if nanos is None else reservation_pb2.Price(call_nanos=nanos)
    values: dict[str, Any] = {"state": ItemPrice.STATE_CURRENT, "source": "file"} | fields
    return ItemPrice(item=item, price=price, **values)


def change(nanos: int | None, **fields: Any) -> price_service_pb2.PriceChange:
    price = None if nanos is None else reservation_pb2.Price(call_nanos=nanos)
    return price_service_pb2.PriceChange(
        sequence=3, item="tools/clock", price=price, subject="orgs/local/users/alice", **fields
    )


STATED = [
    item_price("models/mini", None, source="unlisted", refused=True),
    item_price("tools/clock", 1_000, end_time=NEW_YEAR),
    item_price("tools/clock", 2_000, start_time=NEW_YEAR, state=ItemPrice.STATE_SCHEDULED),
]
BY_NAME = {
    "models/mini": item_price("models/mini", 0, source="genai-prices"),
    "models/own": item_price("models/own", None, source="unlisted", refused=True),
    "tools/mine": item_price("tools/mine", None, source="unlisted"),
    "tools/clock": STATED[1],
}


@pytest.fixture
def priced(edge: EdgeServer) -> EdgeServer:
    """An edge with two models and two tools, of which one has a stated price."""

    def prices(
        request: price_service_pb2.ListPricesRequest,
    ) -> price_service_pb2.ListPricesResponse:
        found = [BY_NAME[request.item]] if request.item else STATED
        return price_service_pb2.ListPricesResponse(prices=found)

    edge.answers["ListPrices"] = prices
    edge.answers["ListModels"] = lambda _: model_service_pb2.ListModelsResponse(
        models=[
            model_service_pb2.Model(name="models/mini", list_item="openai/gpt-5-mini"),
            model_service_pb2.Model(name="models/own"),
        ]
    )
    edge.answers["ListTools"] = lambda _: tool_service_pb2.ListToolsResponse(
        tools=[tool_pb2.Tool(name="tools/clock"), tool_pb2.Tool(name="tools/mine")]
    )
    return edge


def test_every_model_and_tool_is_listed_and_an_unknown_price_is_unknown(
    remit: Remit, priced: EdgeServer
) -> None:
    _, mini, own, clock, later, mine = remit("prices", "list").out.splitlines()

    assert mini.split()[:3] == ["models/mini", "0.00", "USD"]
    assert mini.endswith("genai-prices")
    assert own.split()[:5] == ["models/own", *["unknown"] * 4]
    assert own.endswith("nobody; refused")
    assert "0.000001 USD" in clock
    assert "now" in clock
    assert "0.000002 USD" in later
    assert "now" not in later
    assert mine.split()[:5] == ["tools/mine", *["unknown"] * 4]
    assert mine.endswith("nobody; let pass")
    asked = {request.item: request.list_item for request in priced.requests("ListPrices")}
    assert asked["models/mini"] == "openai/gpt-5-mini"
    assert "tools/clock" not in asked


def test_machines_find_no_price_where_none_is_known(remit: Remit, priced: EdgeServer) -> None:
    (document,) = remit("prices", "list", "--json").documents

    unknown = [price["item"] for price in document["prices"] if "price" not in price]
    assert unknown == ["models/own", "tools/mine"]
    assert document["more"] is False
    (document,) = remit("prices", "list", "--json", "--limit", "2").documents
    assert (len(document["prices"]), document["more"]) == (2, True)


def test_prices_show(remit: Remit, priced: EdgeServer) -> None:
    priced.answers["ListPriceChanges"] = lambda _: price_service_pb2.ListPriceChangesResponse(
        changes=[change(None), change(7)]
    )
    out = remit("prices", "show", "tools/clock").out
    assert "0.000001 USD" in out
    assert "deleted" in out
    assert "0.000000007 USD" in out
    (document,) = remit("prices", "show", "models/mini", "--json").documents
    assert document["prices"][0]["source"] == "genai-prices"
    assert len(document["changes"]) == 2
    assert priced.requests("ListPrices")[-1].list_item == "openai/gpt-5-mini"


def test_prices_set(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["SetPrice"] = lambda request: price_service_pb2.SetPriceResponse(
        change=change(request.call_nanos, start_time=request.start_time)
    )
    line = ("prices", "set", "models/m", "--input", "0.05", "--output", "0", "--request-id", "a")
    outcome = remit(*line, "--from", "2027-01-01T00:00:00Z")
    (request,) = edge.requests("SetPrice")
    assert (request.item, request.request_id, request.start_time) == ("models/m", "a", NEW_YEAR)
    assert request.input_nanos_per_million == 50_000_000
    stated = [field.name for field, _ in request.ListFields() if field.name.endswith("million")]
    assert stated == ["input_nanos_per_million", "output_nanos_per_million"], "0 is stated, too"
    assert "orgs/local/users/alice" in outcome.out
    (document,) = remit("prices", "set", "tools/t", "--call", "0.1", "--json").documents
    assert document["change"]["price"]["call_nanos"] == 100_000_000
    assert not edge.requests("SetPrice")[1].HasField("start_time")


def test_a_price_that_is_no_amount_is_a_wrong_command_line(remit: Remit, edge: EdgeServer) -> None:
    for amount in ("much", "-1", "9223372037", "0.0000000001"):
        assert remit("prices", "set", "tools/t", "--call", amount).code == 2
    assert edge.calls == []


def test_prices_delete(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["DeletePrice"] = lambda _: price_service_pb2.DeletePriceResponse(
        change=change(None)
    )
    outcome = remit("prices", "delete", "tools/clock", "--from", "2027-01-01T00:00:00Z")
    (request,) = edge.requests("DeletePrice")
    assert (request.item, request.start_time) == ("tools/clock", NEW_YEAR)
    assert "deleted" in outcome.out

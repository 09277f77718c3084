"""`remit spend`: tables and their chart, the tree of a run, CSV, FOCUS, wrong command lines."""

from __future__ import annotations

import csv
import io
from fractions import Fraction
from typing import Any

import pytest
from rich.console import Console

from remit.api.cost.v1 import cost_report_service_pb2 as report_pb2
from remit.api.cost.v1 import reservation_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.usage.v1 import usage_pb2
from remit.cli import output
from remit.cli.focus import COLUMNS
from remit.rpc.errors import RemitError
from tests.cli.conftest import Remit
from tests.cli.edge_server import EdgeServer

RUNS = [f"runs/0198a5b0-0000-7000-8000-00000000000{number}" for number in range(5)]


def row(key: str, nanos: int, **fields: Any) -> report_pb2.SpendRow:
    usage = usage_pb2.Usage(input_tokens=1_000, cached_input_tokens=10, output_tokens=20, calls=3)
    return report_pb2.SpendRow(key=key, posted_nanos=nanos, effects=2, usage=usage, **fields)


def sums(*rows: report_pb2.SpendRow, token: str = "") -> report_pb2.ListSpendResponse:
    total = row("", sum(each.posted_nanos for each in rows))
    return report_pb2.ListSpendResponse(rows=rows, total=total, next_page_token=token)


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the command believe that it prints to a terminal of 80 cells, without colours."""
    monkeypatch.setenv("TERM", "xterm")

    def console(**options: Any) -> Console:
        plain = {"width": 80, "force_terminal": True, "color_system": None}
        return Console(**options | plain)

    monkeypatch.setattr(output, "Console", console)


# ------------------------------------------------------------------------------------------ tables


def test_days_and_months_are_in_order_of_time(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListSpend"] = lambda _: sums(row("2026-11", 1), row("2026-10", 5))

    lines = remit("spend", "--by", "month").out.splitlines()
    (document,) = remit("spend", "--by", "month", "--json").documents

    assert [line.split()[0] for line in lines] == ["MONTH", "2026-10", "2026-11", "total"]
    assert [found["key"] for found in document["rows"]] == ["2026-10", "2026-11"]
    request = edge.requests("ListSpend")[0]
    assert request.group_by == report_pb2.ListSpendRequest.DIMENSION_MONTH


def test_a_pipe_gets_every_column_and_no_chart(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListSpend"] = lambda _: sums(row("agents/clerk", 5))

    head, first, total = remit("spend", "--by", "agent").out.splitlines()

    assert head.split("  ")[0] == "AGENT"
    assert [word for word in ("HELD", "OVERRUN", "SHARE") if word in head] == ["HELD", "OVERRUN"]
    cells = "agents/clerk  0.000000005 USD  0.00 USD  0.00 USD        2      1,000          20"
    assert first == cells
    assert total.startswith("total")


def test_what_nobody_knows_the_price_of_is_unknown_and_not_nothing(
    remit: Remit, edge: EdgeServer
) -> None:
    known, part = row("models/a", 0), row("models/b", 5, unpriced_effects=1)
    edge.answers["ListSpend"] = lambda _: sums(known, part, row("tools/c", 0, unpriced_effects=2))

    _, *lines, _ = remit("spend", "--by", "item").out.splitlines()
    rows = read_csv(remit("spend", "--by", "item", "--csv").out)
    (document,) = remit("spend", "--by", "item", "--json").documents

    assert ["unknown" in line for line in lines] == [False, True, True]
    assert "0.000000005 USD + unknown" in lines[1]
    assert lines[2].split()[:2] == ["tools/c", "unknown"]
    assert [each["unpriced_effects"] for each in rows] == ["0", "1", "2"]
    assert [each["unpriced_effects"] for each in document["rows"]] == [0, 1, 2]


def test_the_bill_of_a_run_tells_what_is_unknown(remit: Remit, edge: EdgeServer) -> None:
    whole = row(RUNS[0], 5, unpriced_effects=1)
    bill = [
        report_pb2.RunSpend(run=RUNS[0], own=row(RUNS[0], 5), whole=whole),
        report_pb2.RunSpend(
            run=RUNS[1],
            parent=RUNS[0],
            own=row(RUNS[1], 0, unpriced_effects=1),
            whole=row(RUNS[1], 0, unpriced_effects=1),
        ),
    ]
    edge.answers["GetRunSpend"] = lambda _: report_pb2.GetRunSpendResponse(runs=bill)

    _, first, second = remit("spend", "--run", RUNS[0]).out.splitlines()
    rows = read_csv(remit("spend", "--run", RUNS[0], "--csv").out)

    assert "0.000000005 USD + unknown" in first
    assert second.count("unknown") == 2
    assert [each["own_unpriced_effects"] for each in rows] == ["0", "1"]


@pytest.mark.usefixtures("terminal")
def test_a_terminal_gets_a_chart_within_its_width(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListSpend"] = lambda _: sums(row("tools/a", 80), row("tools/b", 40))

    lines = remit("spend", "--by", "tool").out.splitlines()

    head, first, second, total = (line.rstrip() for line in lines)
    assert head.split()[-1] == "SHARE"
    assert "HELD" not in head, "there is none"
    bars = [line.split()[-1] for line in (first, second)]
    assert set(bars[0]) == {"█"}
    assert 4 <= len(bars[0]) <= 24
    half, odd = divmod(len(bars[0]), 2)
    assert bars[1] == "█" * half + "▌" * odd
    assert "█" not in total
    assert max(map(len, lines)) <= 80


@pytest.mark.usefixtures("terminal")
def test_money_that_is_held_has_its_column_in_a_terminal(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListSpend"] = lambda _: sums(row("x", 80, pending_nanos=7))

    head = remit("spend").out.splitlines()[0]

    assert "HELD" in head
    assert "OVERRUN" not in head


@pytest.mark.usefixtures("terminal")
def test_nothing_spent_has_a_table_of_its_total(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListSpend"] = lambda _: sums()

    assert [line.split()[0] for line in remit("spend").out.splitlines()] == ["USER", "total"]


@pytest.mark.usefixtures("terminal")
def test_no_chart_is_squeezed_into_what_is_full(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListSpend"] = lambda _: sums(row("orgs/acme/users/" + "a" * 12, 80))

    shown = remit("spend").out

    assert "SHARE" not in shown
    assert "a" * 12 in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.usefixtures("terminal")
def test_names_and_money_are_never_cut(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListSpend"] = lambda _: sums(row("orgs/acme/users/" + "a" * 90, 80))

    head, first, _ = remit("spend").out.splitlines()

    assert head.split() == ["USER", "SPENT"]
    assert first == "orgs/acme/users/" + "a" * 90 + "  0.00000008 USD"


def test_what_a_limit_leaves_out_is_said(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListSpend"] = lambda _: sums(row("a", 2), row("b", 1), token="more")

    assert (
        "there are more; raise --limit. The total is of all." in remit("spend", "--limit", "2").out
    )


# --------------------------------------------------------------------------------------------- CSV


def test_csv_has_every_row_exactly(remit: Remit, edge: EdgeServer) -> None:
    pages = {"": sums(row("b", 2 * 10**9, overrun_nanos=1), token="t"), "t": sums(row("a", 1))}
    edge.answers["ListSpend"] = lambda request: pages[request.page_token]

    found = read_csv(remit("spend", "--by", "agent", "--csv").out)

    assert [each["agent"] for each in found] == ["b", "a"]
    assert found[0] == {
        "agent": "b",
        "spent_usd": "2.000000000",
        "held_usd": "0.000000000",
        "overrun_usd": "0.000000001",
        "effects": "2",
        "calls": "3",
        "input_tokens": "1000",
        "cached_input_tokens": "10",
        "output_tokens": "20",
        "unpriced_effects": "0",
    }
    assert [request.page_size for request in edge.requests("ListSpend")] == [200, 200]


def test_csv_within_a_limit_warns_of_the_rest(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["ListSpend"] = lambda _: sums(row("a", 2), token="more")

    outcome = remit("spend", "--csv", "--limit", "1")

    assert len(read_csv(outcome.out)) == 1
    assert "there are more rows" in outcome.err


# ------------------------------------------------------------------------------------ trees of runs


def a_tree() -> report_pb2.GetRunSpendResponse:
    response = report_pb2.GetRunSpendResponse()
    for number, parent, own, whole in ((0, -1, 1, 15), (1, 0, 2, 6), (2, 1, 4, 4), (3, 0, 8, 8)):
        response.runs.add(
            run=RUNS[number],
            parent="" if parent < 0 else RUNS[parent],
            agent=f"agents/a{number}",
            own=row(RUNS[number], own, pending_nanos=7),
            whole=row(RUNS[number], whole),
        )
    return response


def test_a_run_is_shown_as_a_tree_with_own_and_whole_cost(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["GetRunSpend"] = lambda _: a_tree()

    lines = remit("spend", "--run", RUNS[0].removeprefix("runs/")).out.splitlines()

    assert edge.requests("GetRunSpend")[0].run == RUNS[0]
    assert lines[0].split()[:3] == ["RUN", "WHOLE", "OWN"]
    assert [line[:8] for line in lines[1:]] == ["a0  0198", "├─ a1  0", "│  └─ a2", "└─ a3  0"]
    assert "0.000000015 USD  0.000000001 USD  0.000000007 USD" in lines[1]


@pytest.mark.usefixtures("terminal")
def test_a_tree_in_a_narrow_terminal_loses_counts_and_no_money(
    remit: Remit, edge: EdgeServer
) -> None:
    edge.answers["GetRunSpend"] = lambda _: a_tree()

    head, first, *_, last = remit("spend", "--run", RUNS[0]).out.splitlines()

    assert head.split() == ["RUN", "WHOLE", "OWN", "HELD"]
    assert "0.000000015 USD  0.000000001 USD  0.000000007 USD" in first
    assert last.startswith(f"└─ a3  {RUNS[3].removeprefix('runs/')}  ")


def test_the_json_of_a_tree_is_the_whole_answer(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["GetRunSpend"] = lambda _: a_tree()

    (document,) = remit("spend", "--run", RUNS[0], "--json").documents

    assert [run["whole"]["posted_nanos"] for run in document["runs"]] == [15, 6, 4, 8]
    assert document["runs"][2]["parent"] == RUNS[1]


def test_the_csv_of_a_tree_adds_up(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["GetRunSpend"] = lambda _: a_tree()

    found = read_csv(remit("spend", "--run", RUNS[0], "--csv").out)

    assert sum(Fraction(each["own_usd"]) for each in found) == Fraction(found[0]["whole_usd"])
    assert found[1]["parent"] == RUNS[0]


def test_a_run_that_spent_nothing_is_shown_with_zeros(remit: Remit, edge: EdgeServer) -> None:
    edge.answers["GetRunSpend"] = lambda _: report_pb2.GetRunSpendResponse(
        runs=[report_pb2.RunSpend(run=RUNS[0])]
    )

    (_, only) = remit("spend", "--run", RUNS[0]).out.splitlines()

    assert only.startswith(f"-  {RUNS[0].removeprefix('runs/')}  0.00 USD")


def test_a_tree_that_is_too_large_fails(remit: Remit, edge: EdgeServer) -> None:
    def refuse(_: object) -> Any:
        raise RemitError(error_reason_pb2.ERROR_REASON_TOO_LARGE, "too many sub-runs")

    edge.answers["GetRunSpend"] = refuse

    outcome = remit("spend", "--run", RUNS[0])

    assert outcome.code != 0
    assert "[TOO_LARGE]" in outcome.err


# ------------------------------------------------------------------------------------------- FOCUS


def a_charge(day: str, posted_nanos: int) -> report_pb2.Charge:
    return report_pb2.Charge(
        day=day,
        user="orgs/acme/users/alice",
        item="tools/calculator",
        price=reservation_pb2.Price(version="a" * 64, call_nanos=1_000),
        price_source="shipped",
        posted_nanos=posted_nanos,
        effects=1,
        usage=usage_pb2.Usage(calls=2),
    )


def test_focus_is_exported_page_by_page(remit: Remit, edge: EdgeServer) -> None:
    pages = {
        "": report_pb2.ListChargesResponse(
            charges=[a_charge("2026-11-23", 2_000)], next_page_token="t"
        ),
        "t": report_pb2.ListChargesResponse(charges=[a_charge("2026-11-24", 2_000)]),
    }
    edge.answers["ListCharges"] = lambda request: pages[request.page_token]

    outcome = remit("spend", "--focus", "--since", "2026-11-01T00:00:00Z")

    found = read_csv(outcome.out)
    assert outcome.out.splitlines()[0].split(",") == list(COLUMNS)
    assert [each["ChargePeriodStart"][:10] for each in found] == ["2026-11-23", "2026-11-24"]
    assert sum(Fraction(each["BilledCost"]) for each in found) == Fraction(4_000, 10**9)
    first, second = edge.requests("ListCharges")
    assert first.start_time == second.start_time
    assert (first.page_size, second.page_token) == (200, "t")


def test_an_export_that_breaks_off_fails(remit: Remit, edge: EdgeServer) -> None:
    def break_off(request: Any) -> Any:
        if request.page_token:
            raise RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away")
        return report_pb2.ListChargesResponse(
            charges=[a_charge("2026-11-23", 2_000)], next_page_token="t"
        )

    edge.answers["ListCharges"] = break_off

    assert remit("spend", "--focus").code == 3


# ------------------------------------------------------------------------------ wrong command lines


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("--csv", "--json"), "--csv and --json are two forms"),
        (("--csv", "--focus"), "--csv and --focus are two forms"),
        (("--focus", "--by", "user"), "--by does not go with --focus"),
        (("--focus", "--limit", "50"), "--limit does not go with --focus"),
        (("--focus", "--run", "x"), "--run does not go with --focus"),
        (("--run", "x", "--by", "user"), "--by does not go with --run"),
        (("--run", "x", "--since", "1d"), "--since does not go with --run"),
        (("--run", "x", "--until", "1d"), "--until does not go with --run"),
        (("--run", "x", "--limit", "9"), "--limit does not go with --run"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    remit: Remit, edge: EdgeServer, arguments: tuple[str, ...], fault: str
) -> None:
    outcome = remit("spend", *arguments)

    assert outcome.code == 2
    assert fault in outcome.err
    assert not edge.calls

"""`remit spend --run`: what a run and the runs below it spent, each alone and with all below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from remit.api.cost.v1 import cost_report_service_pb2, cost_report_service_pb2_grpc
from remit.cli import documents
from remit.cli.client import Edge, Session
from remit.cli.csv_lines import plain_usd, write_csv
from remit.cli.output import Column
from remit.cli.spend_table import show, spent
from remit.cli.wording import last_part, usd

RunSpend = cost_report_service_pb2.RunSpend


@dataclass(frozen=True)
class _Branch:
    """A run and what is drawn before it."""

    lead: str
    spend: RunSpend

    @property
    def label(self) -> str:
        """Agent and run, at the end of their branch."""
        spend = self.spend
        return f"{self.lead}{last_part(spend.agent) or '-'}  {last_part(spend.run)}"


_COLUMNS: Final = (
    Column[_Branch]("run", lambda b: b.label, keep=True),
    Column[_Branch]("whole", lambda b: spent(b.spend.whole), "right", keep=True),
    Column[_Branch]("own", lambda b: spent(b.spend.own), "right", keep=True),
    Column[_Branch]("held", lambda b: usd(b.spend.own.pending_nanos), "right", keep=True),
    Column[_Branch]("overrun", lambda b: usd(b.spend.own.overrun_nanos), "right", keep=True),
    Column[_Branch]("effects", lambda b: f"{b.spend.own.effects:,}", "right"),
    Column[_Branch]("tokens in", lambda b: f"{b.spend.own.usage.input_tokens:,}", "right"),
    Column[_Branch]("tokens out", lambda b: f"{b.spend.own.usage.output_tokens:,}", "right"),
)
_CSV: Final[Sequence[tuple[str, Callable[[RunSpend], str]]]] = (
    ("run", lambda s: s.run),
    ("parent", lambda s: s.parent),
    ("agent", lambda s: s.agent),
    ("whole_usd", lambda s: plain_usd(s.whole.posted_nanos)),
    ("own_usd", lambda s: plain_usd(s.own.posted_nanos)),
    ("own_held_usd", lambda s: plain_usd(s.own.pending_nanos)),
    ("own_overrun_usd", lambda s: plain_usd(s.own.overrun_nanos)),
    ("own_effects", lambda s: str(s.own.effects)),
    ("own_calls", lambda s: str(s.own.usage.calls)),
    ("own_input_tokens", lambda s: str(s.own.usage.input_tokens)),
    ("own_cached_input_tokens", lambda s: str(s.own.usage.cached_input_tokens)),
    ("own_output_tokens", lambda s: str(s.own.usage.output_tokens)),
    ("own_unpriced_effects", lambda s: str(s.own.unpriced_effects)),
)


def show_run(session: Session, run: str, *, as_csv: bool) -> None:
    """Prints the bill of a run in the form that was asked for. Raises RemitError."""
    response = session.run(lambda edge: _bill(edge, run))
    if as_csv:
        rows = [[cell(spend) for _, cell in _CSV] for spend in response.runs]
        write_csv([[head for head, _ in _CSV], *rows])
    elif session.output.as_json:
        session.output.document(documents.of_message(response))
    else:
        show(
            session.output,
            list(_branches(response.runs)),
            _COLUMNS,
            lambda branch: branch.spend.whole.posted_nanos,
        )


async def _bill(edge: Edge, run: str) -> cost_report_service_pb2.GetRunSpendResponse:
    stub = edge.stub(cost_report_service_pb2_grpc.CostReportServiceStub)
    request = cost_report_service_pb2.GetRunSpendRequest(run=run)
    return await stub.GetRunSpend(request, metadata=edge.metadata)


def _branches(spends: Sequence[RunSpend]) -> Iterator[_Branch]:
    """The runs with the lines of their tree; each comes before its sub-runs."""
    last_of = {spend.parent: spend.run for spend in spends}
    leads_below = {"": ""}
    for spend in spends:
        above = leads_below[spend.parent]
        is_last = last_of[spend.parent] == spend.run
        own, below = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        if not spend.parent:
            own = below = ""
        leads_below[spend.run] = above + below
        yield _Branch(above + own, spend)

"""`remit runs tree`: a run with the runs that it started, and those that these started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import click

from remit.api.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, run_pb2
from remit.cli import documents
from remit.cli.client import Edge, Session, client_options, collect
from remit.cli.output import Line
from remit.cli.parameters import full_name, limit_option
from remit.cli.run_view import STATE_STYLES, duration_s, state_name, task_of
from remit.cli.wording import last_part, span, usd

_TASK_CHARS: Final = 60


@dataclass(frozen=True)
class Branch:
    """A run and what it started; `is_whole` says whether all of that is here."""

    run: run_pb2.Run
    below: tuple[Branch, ...]
    is_whole: bool


@click.command(
    "tree",
    epilog="\b\nExamples:\n  remit runs tree 01981a2b-...\n"
    "  remit runs tree --json 01981a2b-... | jq '.sub_runs[].run.state'",
)
@click.argument("name")
@limit_option
@client_options
def command(*, session: Session, name: str, limit: int) -> None:
    """Show the run NAME with its sub-runs, at any depth, in the order in which they were started.

    Costs are of the whole tree below each run. --limit bounds the sub-runs of each run.
    """
    branch = session.run(lambda edge: _tree(edge, full_name("runs", name), limit))
    if session.output.as_json:
        session.output.document(_document(branch))
        return
    session.output.lines(_lines(branch, "", ""))


async def _tree(edge: Edge, name: str, limit: int) -> Branch:
    stub = edge.stub(agent_service_pb2_grpc.AgentServiceStub)
    request = agent_service_pb2.GetRunRequest(name=name)
    run = (await stub.GetRun(request, metadata=edge.metadata)).run
    return await _branch(edge, run, limit)


async def _branch(edge: Edge, run: run_pb2.Run, limit: int) -> Branch:
    """The run with all below it; a line of runs has an end, so this has one."""
    stub = edge.stub(agent_service_pb2_grpc.AgentServiceStub)

    async def fetch(size: int, token: str) -> agent_service_pb2.ListRunsResponse:
        request = agent_service_pb2.ListRunsRequest(
            parent=run.name, page_size=size, page_token=token
        )
        return await stub.ListRuns(request, metadata=edge.metadata)

    listing = await collect(fetch, lambda page: page.runs, limit)
    below = [await _branch(edge, found, limit) for found in reversed(listing.items)]
    return Branch(run, tuple(below), is_whole=not listing.more)


def _document(branch: Branch) -> documents.Document:
    return {
        "run": documents.of_message(branch.run),
        "sub_runs": [_document(below) for below in branch.below],
        "more": not branch.is_whole,
    }


def _lines(branch: Branch, lead: str, lead_below: str) -> Iterator[Line]:
    yield Line(f"{lead}{_told(branch.run)}", STATE_STYLES.get(branch.run.state, ""))
    for number, below in enumerate(branch.below, start=1):
        is_last = number == len(branch.below) and branch.is_whole
        own, further = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        yield from _lines(below, lead_below + own, lead_below + further)
    if not branch.is_whole:
        yield Line(f"{lead_below}└─ … there are more; raise --limit", "yellow")


def _told(run: run_pb2.Run) -> str:
    length_s = duration_s(run)
    took = f" after {span(length_s)}" if length_s is not None else ""
    task = task_of(run, _TASK_CHARS)
    state = f"{state_name(run.state)}{took}"
    return f"{last_part(run.agent)}  {last_part(run.name)}  {state}  {usd(run.cost_nanos)}  {task}"

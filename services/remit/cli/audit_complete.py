"""`remit audit verify --complete`: whether the log has all that happened, asked of the mesh."""

from __future__ import annotations

from typing import Final

import click

from remit.api.audit.v1 import (
    audit_query_service_pb2,
    audit_query_service_pb2_grpc,
    log_difference_pb2,
)
from remit.cli import checks, documents, exit_codes
from remit.cli.client import Edge, Session
from remit.cli.output import Column, Output
from remit.cli.wording import local_time

Found = log_difference_pb2.LogDifference
Step = audit_query_service_pb2.CheckCompletenessResponse
Query = audit_query_service_pb2_grpc.AuditQueryServiceStub
_COUNTS: Final = ("attempts", "events", "reservations", "calls", "after_cut")

complete_option = click.option(
    "--complete",
    is_flag=True,
    help="Ask a running mesh whether the log has all that happened, instead of verifying FILE: log,"
    " ledger, claims and journals are compared. It needs no FILE and no --key.",
)
_COLUMNS: Final = (
    Column[Found]("difference", checks.kind_of, keep=True),
    Column[Found]("claim", lambda f: f.claim, keep=True),
    Column[Found]("attempt", lambda f: str(f.attempt or "-"), "right"),
    Column[Found](
        "leaf", lambda f: str(f.leaf_index) if f.HasField("leaf_index") else "-", "right"
    ),
    Column[Found]("service", lambda f: f.service or "-"),
    Column[Found]("explanation", lambda f: f.explanation),
)


def check_completeness(session: Session) -> int:
    """Runs a whole check and prints it; returns the exit code. Raises RemitError."""
    result = session.run(lambda edge: _checked(edge, session.output))
    _show(session.output, result)
    return exit_codes.OK if result.is_clean else exit_codes.DIFFERENT


async def _checked(edge: Edge, output: Output) -> checks.Result[Step]:
    stub, request = edge.stub(Query), audit_query_service_pb2.CheckCompletenessRequest()
    return await checks.followed(
        lambda asked: stub.CheckCompleteness(asked, metadata=edge.metadata),
        request,
        _COUNTS,
        checks.progress(output, "the log"),
    )


def _show(output: Output, result: checks.Result[Step]) -> None:
    cut = result.first or Step()  # its cut is the one that all of the check has passed
    if output.as_json:
        output.document(
            {
                "complete": result.is_clean,
                "cut_time": documents.of_message(cut).get("cut_time"),
                "tree_size": cut.tree_size,
                **result.counts,
                **result.document(),
            }
        )
        return
    counts = result.counts
    compared = (
        f"{counts['attempts']:,} attempts, {counts['events']:,} entries,"
        f" {counts['reservations']:,} reservations and {counts['calls']:,} calls of journals,"
        f" before {local_time(cut.cut_time)}"
    )
    if result.is_clean:
        output.line(f"audit: the log is complete: {compared}", "green")
        return
    checks.show_differences(output, result, _COLUMNS, "audit")
    output.line(f"audit: the log is NOT complete, in {result.places}: {compared}", "bold red")

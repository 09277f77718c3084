"""`remit limits`: how often users, API keys and the org may start runs, and have how many."""

from __future__ import annotations

from typing import Any, Final

import click
from google.protobuf import duration_pb2

from remit.api.policy.v1 import rate_limit_service_pb2, rate_limit_service_pb2_grpc
from remit.cli import documents
from remit.cli.client import Edge, Listing, Session, client_options, collect, new_request_id
from remit.cli.output import Column
from remit.cli.parameters import limit_option
from remit.cli.wording import local_time

RateLimit = rate_limit_service_pb2.RateLimit
_NONE: Final = "none"
_MAX_RUNS: Final = 10_000
_MAX_WINDOW_S: Final = 86_400


class Runs(click.ParamType[int]):
    """A number of runs, or `none`."""

    name = "runs"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int:
        """Return the number as the contract has it: 0 is no limit."""
        if value == _NONE:
            return 0
        number: int = click.IntRange(1, _MAX_RUNS).convert(value, param, ctx)
        return number


def _runs(limit: RateLimit) -> str:
    return str(limit.max_runs) if limit.max_runs else "no limit"


_COLUMNS: Final = (
    Column[RateLimit]("for", lambda limit: limit.principal, keep=True),
    Column[RateLimit]("runs", _runs, "right", keep=True),
    Column[RateLimit](
        "in any",
        lambda limit: f"{limit.window.seconds} s" if limit.max_runs else "-",
        "right",
        keep=True,
    ),
    Column[RateLimit](
        "unfinished", lambda limit: str(limit.max_unfinished_runs or "any"), "right", keep=True
    ),
    Column[RateLimit]("set", lambda limit: local_time(limit.update_time), keep=True),
)
_request_id = click.option(
    "--request-id", default="", help="Names this request, so that it can be repeated."
)


@click.group(
    epilog="\b\nExamples:\n  remit limits list\n"
    "  remit limits set orgs/local/users/batch 1000 --window 60\n"
    "  remit limits delete orgs/local/users/batch"
)
def command() -> None:
    """List, set and delete limits of how often runs may be started. Also `remit limit`.

    A run counts against the limits of its user, of the API key and of the org. Whoever has no limit
    of their own has that of settings: for a user 10 runs in any 60 s, unless the operator chose
    otherwise.
    """


@command.command(
    "list",
    epilog="\b\nExamples:\n  remit limits list\n"
    "  remit limits list --json | jq '.rate_limits[] | select(.max_runs == 0).principal'",
)
@limit_option
@client_options
def list_limits(*, session: Session, limit: int) -> None:
    """List the limits that were set in your org; for all others those of settings hold."""
    listing = session.run(lambda edge: _limits(edge, limit))
    session.output.listing("rate_limits", listing.items, _COLUMNS, more=listing.more)


@command.command(
    "set",
    epilog="\b\nExamples:\n  remit limits set orgs/local/users/batch 1000 --window 60\n"
    "  remit limits set orgs/local/users/load none\n"
    "  remit limits set orgs/local 100 --window 3600 --unfinished 20",
)
@click.argument("principal")
@click.argument("max_runs", metavar="RUNS", type=Runs())
@click.option(
    "--window",
    "window_s",
    type=click.IntRange(1, _MAX_WINDOW_S),
    metavar="SECONDS",
    default=60,
    show_default=True,
    help="Length of every window in which at most so many runs start.",
)
@click.option(
    "--unfinished",
    "max_unfinished_runs",
    type=click.IntRange(0, _MAX_RUNS),
    metavar="RUNS",
    default=0,
    help="Runs at once that have not ended; not for an API key.  [default: 0, any number]",
)
@_request_id
@client_options
def set_limit(
    *,
    session: Session,
    principal: str,
    max_runs: int,
    window_s: int,
    max_unfinished_runs: int,
    request_id: str,
) -> None:
    """Let PRINCIPAL start at most RUNS runs in any window; RUNS is 1 to 10000, or `none`.

    PRINCIPAL is the full name of a user, of an API key or of your org. A limit that is there is
    replaced. It holds within seconds, and counts what was started before.
    """
    request = rate_limit_service_pb2.SetRateLimitRequest(
        principal=principal,
        max_runs=max_runs,
        window=duration_pb2.Duration(seconds=window_s),
        max_unfinished_runs=max_unfinished_runs,
        request_id=request_id or new_request_id(),
    )
    limit = session.run(lambda edge: _set(edge, request))
    if session.output.as_json:
        session.output.document({"rate_limit": documents.of_message(limit)})
    else:
        session.output.table([limit], _COLUMNS)


@command.command("delete", epilog="\b\nExamples:\n  remit limits delete orgs/local/users/batch")
@click.argument("principal")
@_request_id
@client_options
def delete_limit(*, session: Session, principal: str, request_id: str) -> None:
    """Delete the limit of PRINCIPAL; that of settings holds for it again."""
    request = rate_limit_service_pb2.DeleteRateLimitRequest(
        principal=principal, request_id=request_id or new_request_id()
    )
    limit = session.run(lambda edge: _delete(edge, request))
    if session.output.as_json:
        session.output.document({"rate_limit": documents.of_message(limit)})
    else:
        session.output.line(f"the limit of {limit.principal} is deleted; that of settings holds")


async def _limits(edge: Edge, limit: int) -> Listing[RateLimit]:
    stub = edge.stub(rate_limit_service_pb2_grpc.RateLimitServiceStub)

    async def fetch(size: int, token: str) -> rate_limit_service_pb2.ListRateLimitsResponse:
        request = rate_limit_service_pb2.ListRateLimitsRequest(page_size=size, page_token=token)
        return await stub.ListRateLimits(request, metadata=edge.metadata)

    return await collect(fetch, lambda page: page.rate_limits, limit)


async def _set(edge: Edge, request: rate_limit_service_pb2.SetRateLimitRequest) -> RateLimit:
    stub = edge.stub(rate_limit_service_pb2_grpc.RateLimitServiceStub)
    return (await stub.SetRateLimit(request, metadata=edge.metadata)).rate_limit


async def _delete(edge: Edge, request: rate_limit_service_pb2.DeleteRateLimitRequest) -> RateLimit:
    stub = edge.stub(rate_limit_service_pb2_grpc.RateLimitServiceStub)
    return (await stub.DeleteRateLimit(request, metadata=edge.metadata)).rate_limit

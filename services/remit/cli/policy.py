"""`remit policy`: the policies in force, their versions, and changing them."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from remit.api.policy.v1 import (
    policy_admin_service_pb2,
    policy_admin_service_pb2_grpc,
    policy_set_pb2,
    policy_set_service_pb2,
    policy_set_service_pb2_grpc,
)
from remit.cli import documents
from remit.cli.client import Edge, Listing, Session, client_options, collect, new_request_id
from remit.cli.output import Column, Output
from remit.cli.parameters import limit_option
from remit.cli.policy_cases import test_cases
from remit.cli.policy_files import policy_files
from remit.cli.policy_shadow import shadow
from remit.cli.policy_simulate import simulate
from remit.cli.wording import local_time

if TYPE_CHECKING:
    from collections.abc import Iterable

PolicySet = policy_set_pb2.PolicySet
Difference = policy_set_pb2.PolicyDifference
_KINDS: Final = {
    Difference.KIND_ADDED: "added",
    Difference.KIND_REMOVED: "removed",
    Difference.KIND_CHANGED: "changed",
}
_COLOURS: Final = {"+": "green", "-": "red", "@": "cyan"}
_SHOWN_DIGEST: Final = 12


def _origin(version: PolicySet) -> str:
    name = PolicySet.Origin.DESCRIPTOR.values_by_number.get(version.origin)
    word = name.name.removeprefix("ORIGIN_").lower() if name else "unknown"
    return f"{word} of {version.source_version}" if version.source_version else word


_COLUMNS: Final = (
    Column[PolicySet]("version", lambda v: str(v.version), "right", keep=True),
    Column[PolicySet]("in force since", lambda v: local_time(v.create_time), keep=True),
    Column[PolicySet]("by", lambda v: v.author or "-", keep=True),
    Column[PolicySet]("as", _origin, keep=True),
    Column[PolicySet]("policies", lambda v: str(v.policy_count or "-"), "right"),
    Column[PolicySet]("digest", lambda v: v.digest.hex()[:_SHOWN_DIGEST], keep=True),
    Column[PolicySet]("message", lambda v: v.message or "-"),
)

_folder = click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
_version = click.option(
    "--version", type=click.IntRange(min=1), default=None, help="A version of the history."
)
_message = click.option(
    "-m", "--message", default="", help="Why, for the history and the audit log."
)
_expected = click.option(
    "--expected",
    type=click.IntRange(min=1),
    default=None,
    help="Version that must be in force still.  [default: the one in force now]",
)
_request_id = click.option(
    "--request-id", default="", help="Names this request, so that it can be repeated."
)


@click.group(
    epilog="\b\nExamples:\n  remit policy show > before.cedar\n"
    "  remit policy test policies cases.yaml\n  remit policy diff policies\n"
    "  remit policy push policies -m 'mail for the core team'\n  remit policy rollback 3\n"
    "  remit policy shadow start policies"
)
def command() -> None:
    """Show, test, compare, try, push and roll back the policies.

    They hold for every org of the mesh; admins of the org that operates it change them.
    """


command.add_command(test_cases)
command.add_command(simulate)
command.add_command(shadow)


@command.command(
    "show",
    epilog="\b\nExamples:\n  remit policy show\n  remit policy show --version 3 --into policies\n"
    "  remit policy show --schema",
)
@_version
@click.option("--schema", is_flag=True, help="Show the schema that policies must fit instead.")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the files into this folder, which must be new or empty.",
)
@client_options
def show(*, session: Session, version: int | None, schema: bool, into: Path | None) -> None:
    """Show the policies in force, or those of an earlier version."""
    found = session.run(lambda edge: _get(edge, version or 0))
    if into is not None:
        _write(into, found.files)
    if session.output.as_json:
        session.output.document(documents.of_message(found))
    elif into is not None:
        session.output.line(f"{len(found.files)} files of version {found.policy_set.version}")
    else:
        session.output.line((found.schema if schema else found.policies).rstrip("\n"))


@command.command(
    "diff",
    epilog="\b\nExamples:\n  remit policy diff policies\n  remit policy diff --from 3 --to 5\n"
    "  remit policy diff policies --json | jq -r '.differences[].policy_id'",
)
@click.argument(
    "folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--from", "earlier", type=click.IntRange(min=1), help="Version.  [default: that in force]"
)
@click.option(
    "--to", "later", type=click.IntRange(min=1), help="Version.  [default: that in force]"
)
@client_options
def diff(*, session: Session, folder: Path | None, earlier: int | None, later: int | None) -> None:
    """Show which policies differ between two versions, or from those in FOLDER.

    Policies in a FOLDER are checked as by a push: what would be refused is refused here.
    """
    if folder is not None and later is not None:
        message = "compare with a FOLDER or with --to, not with both"
        raise click.UsageError(message)
    request = policy_set_service_pb2.DiffPolicySetsRequest(
        from_version=earlier or 0,
        to_version=later or 0,
        files=policy_files(folder) if folder else (),
    )
    found = session.run(lambda edge: _diff(edge, request))
    if session.output.as_json:
        session.output.document(documents.of_message(found))
        return
    for difference in found.differences:
        _show_difference(session.output, difference)
    if not found.differences:
        session.output.line("no policy differs", "dim")


@command.command(
    "push",
    epilog="\b\nExamples:\n  remit policy push policies -m 'mail for the core team'\n"
    "  remit policy push policies --expected 7",
)
@_folder
@_message
@_expected
@_request_id
@client_options
def push(
    *, session: Session, folder: Path, message: str, expected: int | None, request_id: str
) -> None:
    """Put the *.cedar files in FOLDER in force; what is not among them is not in force any more.

    They must parse, fit the schema, and let an administrator with a working key push again.
    """
    files = policy_files(folder)

    async def work(edge: Edge) -> PolicySet:
        stub = edge.stub(policy_set_service_pb2_grpc.PolicySetServiceStub)
        request = policy_set_service_pb2.PushPolicySetRequest(
            files=files,
            message=message,
            expected_version=expected or (await _get(edge, 0)).policy_set.version,
            request_id=request_id or new_request_id(),
        )
        return (await stub.PushPolicySet(request, metadata=edge.metadata)).policy_set

    _show_version(session.output, session.run(work))


@command.command(
    "rollback",
    epilog="\b\nExamples:\n  remit policy history\n  remit policy rollback 3 -m 'mail was lost'",
)
@click.argument("version", type=click.IntRange(min=1))
@_message
@_expected
@_request_id
@client_options
def rollback(
    *, session: Session, version: int, message: str, expected: int | None, request_id: str
) -> None:
    """Put the files of VERSION in force again, as a new version."""

    async def work(edge: Edge) -> PolicySet:
        stub = edge.stub(policy_set_service_pb2_grpc.PolicySetServiceStub)
        request = policy_set_service_pb2.RollbackPolicySetRequest(
            version=version,
            message=message,
            expected_version=expected or (await _get(edge, 0)).policy_set.version,
            request_id=request_id or new_request_id(),
        )
        return (await stub.RollbackPolicySet(request, metadata=edge.metadata)).policy_set

    _show_version(session.output, session.run(work))


@command.command(
    "history",
    epilog="\b\nExamples:\n  remit policy history\n"
    "  remit policy history --json | jq '.policy_sets[0].version'",
)
@limit_option
@client_options
def history(*, session: Session, limit: int) -> None:
    """List the versions of the policies, the one in force first."""
    listing = session.run(lambda edge: _versions(edge, limit))
    session.output.listing("policy_sets", listing.items, _COLUMNS, more=listing.more)


async def _get(edge: Edge, version: int) -> policy_admin_service_pb2.GetPolicySetResponse:
    stub = edge.stub(policy_admin_service_pb2_grpc.PolicyAdminServiceStub)
    request = policy_admin_service_pb2.GetPolicySetRequest(version=version)
    return await stub.GetPolicySet(request, metadata=edge.metadata)


async def _diff(
    edge: Edge, request: policy_set_service_pb2.DiffPolicySetsRequest
) -> policy_set_service_pb2.DiffPolicySetsResponse:
    stub = edge.stub(policy_set_service_pb2_grpc.PolicySetServiceStub)
    return await stub.DiffPolicySets(request, metadata=edge.metadata)


async def _versions(edge: Edge, limit: int) -> Listing[PolicySet]:
    stub = edge.stub(policy_set_service_pb2_grpc.PolicySetServiceStub)

    async def fetch(size: int, token: str) -> policy_set_service_pb2.ListPolicySetsResponse:
        request = policy_set_service_pb2.ListPolicySetsRequest(page_size=size, page_token=token)
        return await stub.ListPolicySets(request, metadata=edge.metadata)

    return await collect(fetch, lambda page: page.policy_sets, limit)


def _write(folder: Path, files: Iterable[policy_set_pb2.PolicyFile]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        message = f"{folder} is not empty"
        raise click.UsageError(message)
    for file in files:
        # The service is believed no name that would leave the folder.
        (folder / Path(file.name).name).write_text(file.text, encoding="utf-8")


def _show_version(output: Output, version: PolicySet) -> None:
    if output.as_json:
        output.document({"policy_set": documents.of_message(version)})
    else:
        output.table([version], _COLUMNS)


def _show_difference(output: Output, difference: Difference) -> None:
    kind = _KINDS.get(difference.kind, "unknown")
    where = f"{difference.file}:{difference.line}"
    output.line(f"{kind} {difference.policy_id} ({difference.effect}, {where})", "bold")
    changed = difflib.unified_diff(
        difference.before.splitlines(), difference.after.splitlines(), lineterm="", n=2
    )
    for line in list(changed)[2:]:
        output.line(f"  {line}", _COLOURS.get(line[:1], ""))

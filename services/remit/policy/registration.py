"""What a run is registered with: built from what its first remit is asked with.

A sub-run is registered under its parent: for the same subject, with no more than the parent may use
or pass on, and below the parent's account, so that it spends every limit above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from remit import names
from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_PERMISSION_DENIED
from remit.api.policy.v1 import policy_service_pb2
from remit.policy.entities import Principal
from remit.policy.runs import Registration, registered_otherwise
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.remits import Remit

CREATE_RUN: Final = "runs.create"
"""Permission of every method that starts a run."""
_MAX_GRANTS: Final = 256
_MAX_DEPTH: Final = 8
"""Runs on one path. The agent service allows fewer; this bounds the length of an account's name."""

_Request = policy_service_pb2.IssueRemitRequest | policy_service_pb2.DelegateRemitRequest


def check_issue(request: policy_service_pb2.IssueRemitRequest) -> None:
    """Raise INVALID_REQUEST with everything that is wrong with a request for a run's remit."""
    found = _violations(request)
    if request.client_remit and not request.agent:
        found.append(Violation("agent", "must be stated with the client's remit"))
    if found:
        raise invalid_request(found)


def check_delegation(request: policy_service_pb2.DelegateRemitRequest) -> None:
    """Raise INVALID_REQUEST with everything that is wrong with a request for a sub-run's remit."""
    found = _violations(request)
    if not request.agent:
        found.append(Violation("agent", "must be stated"))
    if found:
        raise invalid_request(found)


def check_starts_runs(client: Remit) -> None:
    """Raise PERMISSION_DENIED for the remit of a client who asked the edge for something else."""
    if CREATE_RUN not in client.permissions:
        raise RemitError(
            ERROR_REASON_PERMISSION_DENIED,
            f"the remit of {client.subject} was not issued for {CREATE_RUN}",
            metadata={"permission": CREATE_RUN},
        )


def run_violations(run: str, field: str, token: int) -> list[Violation]:
    """What is wrong with a run's name and a fencing token."""
    found = []
    if not names.is_name("run", run):
        found.append(Violation("run", "must be `runs/{uuid}`"))
    if token < 1:
        found.append(Violation(field, "must be 1 or more"))
    return found


def registration_of(
    principal: Principal, request: policy_service_pb2.IssueRemitRequest
) -> Registration:
    """Build what a request registers for the run's principal."""
    account = names.account_path(
        principal.user, team=principal.team, agent=request.agent, run=request.run
    )
    return Registration(
        run=request.run,
        subject=principal.user,
        team=principal.team,
        roles=principal.roles,
        agent=request.agent,
        tools=_names(request.tools),
        models=_names(request.models),
        account=account[-1],
        max_cost_nanos=request.max_cost_nanos if request.HasField("max_cost_nanos") else None,
        delegable_tools=_names(request.delegable_tools),
        delegable_models=_names(request.delegable_models),
    )


def sub_registration(
    parent: Registration, request: policy_service_pb2.DelegateRemitRequest
) -> Registration:
    """Build what a request registers for a sub-run.

    Raises:
        RemitError: PERMISSION_DENIED if it names what its parent may neither use nor pass on, or
            stands too deep.

    """
    wanted = Registration(
        run=request.run,
        subject=parent.subject,
        team=parent.team,
        roles=parent.roles,
        agent=request.agent,
        tools=_names(request.tools),
        models=_names(request.models),
        account=names.nested_account(parent.account, agent=request.agent, run=request.run),
        max_cost_nanos=request.max_cost_nanos if request.HasField("max_cost_nanos") else None,
        parent=parent.run,
        delegable_tools=_names(request.delegable_tools),
        delegable_models=_names(request.delegable_models),
        outer_limits_nanos=(*parent.outer_limits_nanos, parent.max_cost_nanos),
    )
    if len(wanted.outer_limits_nanos) >= _MAX_DEPTH:
        raise _beyond(parent, f"a run below {_MAX_DEPTH - 1} others")
    if exceeding := wanted.exceeds(parent):
        raise _beyond(parent, ", ".join(exceeding))
    return wanted


def check_restated(known: Registration, request: policy_service_pb2.IssueRemitRequest) -> None:
    """Refuse a renewal that states another grant than the registered one. Stating none is fine."""
    if not request.agent:
        return
    owner = Principal(known.subject, names.org_of(known.subject), known.team, known.roles)
    if not known.same_grant(registration_of(owner, request)):
        raise registered_otherwise(known.run)


def _violations(request: _Request) -> list[Violation]:
    found = run_violations(request.run, "fencing_token", request.fencing_token)
    if request.agent and not names.is_name("agent", request.agent):
        found.append(Violation("agent", "must be `agents/{agent}`"))
    for kind, field in (("tool", "tools"), ("model", "models")):
        found += _list_violations(kind, field, getattr(request, field))
        passed_on = f"delegable_{field}"
        found += _list_violations(kind, passed_on, getattr(request, passed_on))
    if request.HasField("max_cost_nanos") and request.max_cost_nanos < 0:
        found.append(Violation("max_cost_nanos", "must not be negative"))
    return found


def _list_violations(kind: str, field: str, values: Sequence[str]) -> list[Violation]:
    if len(values) > _MAX_GRANTS:
        return [Violation(field, f"must hold at most {_MAX_GRANTS} names")]
    return [
        Violation(f"{field}[{index}]", f"must be `{kind}s/{{{kind}}}`")
        for index, value in enumerate(values)
        if not names.is_name(kind, value)
    ]


def _names(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(set(values)))


def _beyond(parent: Registration, what: str) -> RemitError:
    return RemitError(
        ERROR_REASON_PERMISSION_DENIED,
        f"{parent.run} may not pass on what it does not have: {what}",
        metadata={"permission": "runs.delegate"},
    )

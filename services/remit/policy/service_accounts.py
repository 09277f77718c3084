"""Service accounts: which API keys may be made for them, and what they may make. Pure."""

from __future__ import annotations

from dataclasses import replace

from remit.policy.authority import denied
from remit.policy.entities import SERVICE_ACCOUNT
from remit.policy.store import NewApiKey, ServiceAccount
from remit.rpc.errors import Violation, invalid_request
from remit.rpc.remits import Remit


def fitted(key: NewApiKey, account: ServiceAccount | None) -> NewApiKey:
    """The key within the team and the roles of the account that it is for; None: for a person.

    Raises:
        RemitError: INVALID_REQUEST if it states another team, or a role that the account lacks.

    """
    if account is None:
        return key
    found = []
    if key.team not in {"", account.team}:
        whose = account.team or "no team"
        found.append(Violation("team", f"{account.name} is of {whose}; its API keys are as well"))
    if not set(key.roles) <= set(account.roles):
        may = ", ".join(account.roles)
        found.append(Violation("roles", f"API keys of {account.name} may have {may}"))
    if found:
        raise invalid_request(found)
    return replace(key, team=account.team)


def check_maker(caller: Remit, action: str, resource: str, *, for_account: bool) -> None:
    """Raise PERMISSION_DENIED if a service account would get hold of the API key of a person.

    With it, it could do what is for people alone.
    """
    if SERVICE_ACCOUNT in caller.roles and not for_account:
        reason = "a service account makes no API keys for people"
        raise denied(caller, action, resource, reason)

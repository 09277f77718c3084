"""Whether those for whom something is asked still count: fences, API keys, principals. Pure.

What is looked at was read from the database a moment before, in one statement for a whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from remit.api.errors.v1.error_reason_pb2 import (
    ERROR_REASON_CREDENTIAL_REVOKED,
    ERROR_REASON_FENCED,
    ERROR_REASON_PRINCIPAL_DISABLED,
)
from remit.policy.api_keys import shown
from remit.policy.entities import Principal
from remit.policy.runs import Fences, fenced
from remit.rpc.errors import RemitError
from remit.rpc.remits import Remit


def facts_about(remits: Sequence[Remit]) -> tuple[list[str], list[str], list[str]]:
    """Of which runs, API keys and principals a decision must know where they stand."""
    runs = [remit.run for remit in remits if remit.is_run]
    keys = [remit.api_key for remit in remits if remit.api_key]
    return runs, keys, [each for remit in remits for each in (remit.subject, remit.org)]


def facts_about_client(client: Remit | RemitError) -> tuple[list[str], list[str]]:
    """Of which API keys and principals a new run must know; of none where nobody is known."""
    _, keys, principals = facts_about([client] if isinstance(client, Remit) else [])
    return keys, principals


def check_fence(fences: Fences, remit: Remit) -> None:
    """Refuse the remit of a worker that lost its run; a run without a fence is not known here."""
    if not remit.is_run:
        return
    min_token = fences.min_tokens.get(remit.run)
    if min_token is None:
        raise RemitError(ERROR_REASON_FENCED, f"{remit.run} is not registered with policy")
    if remit.fencing_token < min_token:
        raise fenced(remit.run, remit.fencing_token, min_token)


def lapsed(fences: Fences, principal: Principal, api_key: str = "") -> RemitError | None:
    """Why nothing may be asked for a principal, or with the API key behind its remit, any more.

    CREDENTIAL_REVOKED or PRINCIPAL_DISABLED, as the edge would say it; None if both count.
    """
    if api_key and api_key not in fences.api_keys:
        return RemitError(ERROR_REASON_CREDENTIAL_REVOKED, f"{shown(api_key)} was revoked")
    for each in (principal.user, principal.org):
        if each in fences.disabled:
            return RemitError(ERROR_REASON_PRINCIPAL_DISABLED, f"{each} is disabled")
    return None


def check_counts(fences: Fences, principal: Principal, api_key: str = "") -> None:
    """Raise what `lapsed` tells: no remit of a run is issued any more."""
    error = lapsed(fences, principal, api_key)
    if error is not None:
        raise error

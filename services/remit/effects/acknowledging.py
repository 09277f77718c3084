"""Results that their callers have recorded: what may be dropped, and what each claim is answered.

A result is committed here before its caller is answered, so that nothing is lost on the way. A run
then stores it in its journal. Kept in both places, every conversation would be stored twice; so the
caller says when its own commit is done, and the gate keeps digest and outcome alone (ADR 16).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from google.rpc import status_pb2

from remit import names
from remit.api.errors.v1 import error_reason_pb2
from remit.effects.claims import Outcome
from remit.rpc.errors import RemitError, Violation, invalid_request

MAX_CLAIMS: Final = 256

_OK: Final = status_pb2.Status()


def claim_ids(claims: Sequence[str]) -> list[str]:
    """The identifiers of claims by their names. Raises INVALID_REQUEST with every fault."""
    if len(claims) > MAX_CLAIMS:
        raise invalid_request(
            [Violation("claims", f"has {len(claims)} names; at most {MAX_CLAIMS} are allowed")]
        )
    faults = [
        Violation(f"claims[{place}]", "must be the name of a claim, claims/{claim}")
        for place, claim in enumerate(claims)
        if not names.is_name("claim", claim)
    ]
    if faults:
        raise invalid_request(faults)
    return [names.parse("claim", claim)[0] for claim in claims]


def acknowledged(claim: str, outcomes: Mapping[str, Outcome | None]) -> status_pb2.Status:
    """The answer for one claim, from the outcomes of those that the caller presented."""
    if claim not in outcomes:
        return RemitError(
            error_reason_pb2.ERROR_REASON_RESOURCE_NOT_FOUND,
            f"{names.claim_name(claim)} does not exist, or was presented by another service",
        ).to_status()
    outcome = outcomes[claim]
    if outcome is not Outcome.SUCCEEDED:
        return RemitError(
            error_reason_pb2.ERROR_REASON_INVALID_STATE,
            f"{names.claim_name(claim)} has no result to record: it is {outcome or 'not ended'}",
        ).to_status()
    return _OK

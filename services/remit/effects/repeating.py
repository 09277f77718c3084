"""A call that repeats one whose outcome is unknown: the doubt must be there, and be of that call.

The repetition has a key and a claim of its own, so the doubt stays on record as what it is. Whether
it may happen is a person's to say; what is checked here is that there is something to repeat. A
late result may still resolve the doubt after this look, which is the risk that the person takes.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from remit import names
from remit.api.errors.v1 import error_reason_pb2
from remit.effects.claims import Outcome, State
from remit.effects.effect import EffectRequest
from remit.postgres import Database
from remit.rpc.errors import RemitError

_SELECT: Final = """
SELECT c.body_digest, a.state, a.outcome
FROM effect_claims c JOIN effect_attempts a USING (claim, attempt)
WHERE c.claim = $1 AND c.org = $2 AND c.principal = $3 AND c.method = $4
"""


async def check_doubt(database: Database, request: EffectRequest) -> None:
    """See that what `request` repeats is in doubt; nothing to see where it repeats nothing.

    Raises RESOURCE_NOT_FOUND for a claim that the principal has not, KEY_REUSED for one of another
    call, INVALID_STATE for one whose outcome is known: its own key tells it.
    """
    if not request.repeats_claim:
        return
    claim = UUID(names.parse("claim", request.repeats_claim)[0])
    row = await database.fetchrow(
        _SELECT, claim, request.remit.org, request.principal, request.method
    )
    if row is None:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_RESOURCE_NOT_FOUND,
            f"{request.principal} has no {request.repeats_claim} to repeat",
        )
    if row["body_digest"] != request.body_digest:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_KEY_REUSED,
            f"{request.repeats_claim} is of another call than the one that would repeat it",
        )
    if row["state"] != State.IN_DOUBT and row["outcome"] != Outcome.IN_DOUBT:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_INVALID_STATE,
            f"{request.repeats_claim} is not in doubt; its own request_id tells its outcome",
        )

"""Tool calls whose outcome is unknown: whether they are made again, and what becomes of the rest.

Pure. A doubt is never guessed away: a call that could happen twice is repeated only once a person
has approved just that, and a run whose doubt nobody has decided about ends with it.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, auto
from typing import Final

from remit.agent.definitions import OnDoubt
from remit.agent.failures import Verdict
from remit.agent.journal import ToolCall
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.approvals import APPROVAL_STATE
from remit.rpc.errors import RemitError

_HAPPENED: Final = frozenset(
    {reasons.ERROR_REASON_TOOL_FAILED, reasons.ERROR_REASON_OUTPUT_REFUSED}
)
"""Failures of a call that was made: the repetition has an outcome, and it is known."""


class Again(Enum):
    """Whether a call in doubt is made once more."""

    NO = auto()
    FREELY = auto()
    """Doing it twice does no harm."""
    IF_APPROVED = auto()
    """A person decides."""


def again(on_doubt: OnDoubt, call: ToolCall, *, is_idempotent: bool, max_attempts: int) -> Again:
    """What the definition wants done about a call in doubt."""
    if on_doubt is OnDoubt.FAIL or call.attempt >= max_attempts:
        return Again.NO
    if is_idempotent:
        return Again.FREELY
    return Again.IF_APPROVED if on_doubt is OnDoubt.ASK else Again.NO


def known_by_now(call: ToolCall, error: RemitError) -> ToolCall | None:
    """The attempt before of a repetition that is refused because its doubt was resolved.

    It is asked for under its own key, which tells its outcome.
    """
    if not call.repeats_claim or error.reason != reasons.ERROR_REASON_INVALID_STATE:
        return None
    return replace(call, attempt=call.attempt - 1, repeats_claim="")


def what_is_left(call: ToolCall, verdict: Verdict, error: RemitError) -> RemitError:
    """The error that a failed call is recorded with.

    A repetition that was never made leaves the doubt as it was. Where a person said no, the model
    is told why and goes on; where nobody said anything, the doubt ends the run: a model that hears
    of a failure alone may ask for the same once more.
    """
    if not call.repeats_claim or verdict is not Verdict.TELL_MODEL or error.reason in _HAPPENED:
        return error
    if error.metadata.get(APPROVAL_STATE) == "DENIED":
        return error
    return RemitError(
        reasons.ERROR_REASON_EFFECT_IN_DOUBT,
        f"whether {call.tool} took effect is unknown, and it was not repeated: {error.message}",
        metadata={"claim": call.repeats_claim},
    )

"""What the exit code of `remit` means; scripts may rely on it. This is the only table of them.

A run that failed ends with the code of its own error's reason, so that a script sees the same code
whether a budget refused the request or stopped the run. Reasons stand here by name because the help
prints this table and must not wait for grpc to load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from remit.rpc.errors import RemitError

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNHEALTHY: Final = 3
NOT_ALLOWED: Final = 4
NOT_FOUND: Final = 5
REFUSED: Final = 6
INVALID: Final = 7
ALREADY_RUNNING: Final = 8
DIFFERENT: Final = 9
FORKED: Final = 10
INTERRUPTED: Final = 130

CONFIGURATION: Final = INVALID


@dataclass(frozen=True)
class Meaning:
    """What a code says, and the ErrorReasons (without prefix) that end with it."""

    code: int
    text: str
    reasons: tuple[str, ...] = ()


MEANINGS: Final = (
    Meaning(OK, "done"),
    Meaning(
        FAILED,
        "it failed: the run, the call, or a verification",
        (
            "FENCED",
            "EFFECT_IN_PROGRESS",
            "EFFECT_IN_DOUBT",
            "RESERVATION_CLOSED",
            "INVALID_STATE",
            "TOOL_FAILED",
            "PROVIDER_FAILED",
            "INTERNAL",
            "METHOD_UNKNOWN",
            "RESULT_NOT_KEPT",
            "SUBJECT_ERASED",
            "POLICY_VERSION_CONFLICT",
            "EVENTS_ARCHIVED",
            "APPROVAL_CLOSED",
            "APPROVAL_MISMATCH",
            "APPROVAL_ALREADY_GIVEN",
        ),
    ),
    Meaning(USAGE, "the command line is wrong"),
    Meaning(
        UNHEALTHY,
        "the mesh, or something it needs, is not running, not healthy or too slow",
        (
            "DEPENDENCY_UNAVAILABLE",
            "PROVIDER_UNAVAILABLE",
            "IDENTITY_PROVIDER_UNAVAILABLE",
            "DEADLINE_EXCEEDED",
            "LOG_ROLLED_BACK",
        ),
    ),
    Meaning(
        NOT_ALLOWED,
        "not allowed: the API key is missing, wrong or revoked, or policy denies",
        (
            "CREDENTIAL_MISSING",
            "CREDENTIAL_INVALID",
            "CREDENTIAL_REVOKED",
            "IDENTITY_NOT_MAPPED",
            "PRINCIPAL_DISABLED",
            "REMIT_INVALID",
            "CALLER_NOT_ALLOWED",
            "PERMISSION_DENIED",
            "APPROVAL_REQUIRED",
            "APPROVAL_NOT_YOURS",
            "OUTPUT_REFUSED",
        ),
    ),
    Meaning(
        NOT_FOUND,
        "no such agent, tool, model, run, conversation or other thing",
        (
            "AGENT_NOT_FOUND",
            "TOOL_NOT_FOUND",
            "MODEL_NOT_FOUND",
            "RUN_NOT_FOUND",
            "CONVERSATION_NOT_FOUND",
            "BUDGET_NOT_FOUND",
            "RESOURCE_NOT_FOUND",
            "APPROVAL_NOT_FOUND",
        ),
    ),
    Meaning(
        REFUSED,
        "refused by a budget, a price or a limit",
        (
            "BUDGET_EXHAUSTED",
            "PRICE_UNKNOWN",
            "OVERLOADED",
            "RUN_LIMIT_REACHED",
            "RATE_LIMITED",
            "CONCURRENCY_LIMITED",
        ),
    ),
    Meaning(
        INVALID,
        "invalid input: a request, a setting, a file or the state directory",
        (
            "INVALID_REQUEST",
            "SUSPICIOUS_INPUT",
            "INVALID_TOOL_ARGUMENTS",
            "KEY_REUSED",
            "PRINCIPAL_EXISTS",
            "TOO_LARGE",
            "CONFIGURATION_INVALID",
            "POLICY_INVALID",
            "POLICY_LOCKOUT",
            "DATA_CORRUPT",
        ),
    ),
    Meaning(ALREADY_RUNNING, "a mesh already runs on this state directory"),
    Meaning(DIFFERENT, "a check was made, and the ledger or the log differs from what happened"),
    Meaning(FORKED, "a witness refused: the audit log shows another past, or is another log"),
    Meaning(INTERRUPTED, "cancelled or interrupted", ("CANCELLED",)),
)

_OF_REASON: Final = {reason: row.code for row in MEANINGS for reason in row.reasons}


def of_reason(reason_name: str) -> int:
    """The exit code of an ErrorReason, named without its prefix. Raises KeyError."""
    return _OF_REASON[reason_name]


def of_error(error: RemitError) -> int:
    """The exit code that tells this error."""
    return of_reason(error.reason_name)


def help_text() -> str:
    """The table as a block for a command's help."""
    rows = [f"  {row.code:>3}  {row.text}" for row in MEANINGS]
    return "\b\nExit codes:\n" + "\n".join(rows)

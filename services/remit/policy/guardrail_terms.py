"""What `@guardrails("tools.personal_data.output=redact")` on a policy says, and where it may stand.

It stands on a permit of `guardrails.apply`, whose scope and conditions say for whom. Such a policy
permits nothing that anybody does: it adds what is screened. A forbid of that action would take away
what another policy wants, so there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from remit.guardrails import Wanted, parse_wanted
from remit.policy import approval_terms
from remit.policy.schema import APPLY_GUARDRAILS

ANNOTATION: Final = "guardrails"


def terms_of(
    annotations: Mapping[str, str | None], effect: str, actions: frozenset[str] | None
) -> Wanted | None:
    """What a policy wants screened; None for one that is about something else.

    `actions` are those that its scope names. Raises ValueError with all that is wrong.
    """
    is_about_it = actions == frozenset({APPLY_GUARDRAILS})
    if ANNOTATION not in annotations:
        if is_about_it:
            message = f"says nothing about {APPLY_GUARDRAILS} without @{ANNOTATION}"
            raise ValueError(message)
        return None
    faults = []
    if not is_about_it or effect != "permit":
        faults.append(
            f'stands on `permit (principal, action == Action::"{APPLY_GUARDRAILS}", ...)`'
        )
    if approval_terms.ANNOTATION in annotations:
        faults.append(f"does not go with @{approval_terms.ANNOTATION}")
    wanted = Wanted()
    try:
        wanted = parse_wanted(annotations[ANNOTATION] or "")
    except ValueError as error:
        faults.append(str(error))
    if faults:
        raise ValueError("; ".join(f"@{ANNOTATION} {fault}" for fault in faults))
    return wanted

"""What a person approves: one exact action, named by a digest that policy and gate make alike.

The gate states what it will execute, policy what it knows of it from the remit; where the two
digests differ nothing is asked and nothing is allowed. The version of the policies is policy's own
to know, so it enters afterwards: what is approved is bound to both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Final

DIGEST_BYTES: Final = 32
APPROVAL: Final = "approval"
"""Metadata of an error: the approval that it speaks of."""
APPROVAL_STATE: Final = "approval_state"
"""Metadata of an error: where that approval stands, such as `DENIED`."""
_ACTION: Final = b"remit/approved-action/v1\n"
_APPROVAL: Final = b"remit/approval/v1\n"


@dataclass(frozen=True)
class ExactAction:
    """All that an approval holds for; any other value of any field is another action."""

    claim: str
    """`claims/{claim}`: the one call that may be made."""
    subject: str
    team: str
    agent: str
    """Empty outside runs, as `run`."""
    run: str
    action: str
    resource: str
    permission_class: int
    definition_digest: bytes
    """Of the tool's or model's definition."""
    arguments_digest: bytes
    cost_bound_nanos: int
    """The most that it can cost, in nano-USD."""
    repeats_claim: str = ""
    """The claim in doubt that it repeats, `claims/{claim}`; empty for any other effect."""

    def digest(self) -> bytes:
        """SHA-256 over every field, 32 bytes."""
        fields = {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in dataclasses.asdict(self).items()
        }
        if not self.repeats_claim:
            # What repeats nothing has the digest that it had before there were repetitions.
            del fields["repeats_claim"]
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(_ACTION + canonical.encode()).digest()


def approval_digest(action_digest: bytes, policy_epoch: int) -> bytes:
    """What an approval is bound to: the exact action under one version of the policies."""
    return hashlib.sha256(_APPROVAL + action_digest + policy_epoch.to_bytes(8, "big")).digest()

"""The arguments that people are shown before they approve, which an erasure must reach too.

They are stored under the key that policy has of whoever the effect is for, bound to the exact
action: in another approval's place they do not open. Once the subject is erased nobody can read
them, and the approval is shown without them.
"""

from __future__ import annotations

from dataclasses import replace

from remit.approvals import ExactAction
from remit.policy.approval_rows import ApprovalRow, Asked
from remit.rpc.errors import RemitError
from remit.rpc.ids import IdSource
from remit.subject_keys import NONCE_BYTES, SubjectKeys, is_erased


class ApprovalArguments:
    """Seals what is asked, opens what is shown."""

    def __init__(self, keys: SubjectKeys, ids: IdSource) -> None:
        self._keys = keys
        self._ids = ids

    async def sealed(self, asked: Asked) -> Asked:
        """What may be stored of it. Raises DEPENDENCY_UNAVAILABLE without the subject's key."""
        if not asked.arguments:
            return asked
        key = await self._keys.for_writing(asked.action.subject)
        nonce = self._ids.token_bytes(NONCE_BYTES)
        sealed = key.seal(
            asked.arguments, bound_to=_place(asked.action, asked.action_digest), nonce=nonce
        )
        return replace(asked, arguments=sealed)

    async def opened(self, row: ApprovalRow) -> ApprovalRow:
        """The approval as it may be shown. Raises DEPENDENCY_UNAVAILABLE, DATA_CORRUPT."""
        if not row.arguments:
            return row
        place = _place(row.action, row.action_digest)
        try:
            clear = await self._keys.opened(row.requester, row.arguments, bound_to=place)
        except RemitError as error:
            if not is_erased(error):
                raise
            clear = b""
        return replace(row, arguments=clear)


def _place(action: ExactAction, action_digest: bytes) -> bytes:
    """The record's name, which is no decision's."""
    return b"approval/" + action.claim.encode() + b"/" + action_digest

"""The keys that a replica signs with and believes, read anew when it meets one that it lacks.

While the log's key is being replaced, replicas differ for a while: one signs with the old key,
another with the new one already. Whoever has the new files knows both keys. Whoever has the old
ones meets a checkpoint of a stranger, and looks once more into its folder before it says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from remit.api.errors.v1 import error_reason_pb2
from remit.audit.key_chain import KeyChain
from remit.audit.key_files import LogKeys
from remit.audit.note import Checkpoint, NoteError, Signer
from remit.rpc.errors import RemitError


class SigningKeys:
    """The signer in force and its chain. `load` reads the key files; None: they never change."""

    def __init__(
        self,
        signer: Signer,
        rotations: Sequence[str] = (),
        *,
        load: Callable[[], LogKeys] | None = None,
    ) -> None:
        self.signer = signer
        self.chain = KeyChain.read(signer.verifier(), rotations)
        self._load = load

    async def opened(self, note: str) -> Checkpoint:
        """Return the checkpoint in a note that the log signed, with any of its keys.

        Raises:
            RemitError: CONFIGURATION_INVALID: none of the keys signed it, nor one of the folder's.

        """
        try:
            return self.chain.open_checkpoint(note)
        except NoteError:
            await self._reload()
        try:
            return self.chain.open_checkpoint(note)
        except NoteError as error:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
                f"the key {self.signer.name} did not sign the log's last checkpoint: {error}. If"
                " the log's key was rotated, give this replica the new key files and start it anew",
            ) from error

    async def _reload(self) -> None:
        if self._load is None:
            return
        found = await asyncio.to_thread(self._load)
        self.chain = KeyChain.read(found.signer.verifier(), found.rotations)
        self.signer = found.signer

"""Streams may go on, where a test is about something else."""

from __future__ import annotations

from typing import Final, cast

from remit.rpc.permission import StreamPermission, StreamPermissions


class _Kept:
    async def renew(self) -> None:
        """Nothing is taken away."""


class _AllKept:
    def of(self, _contract: object, _call: object) -> StreamPermission:
        return cast("StreamPermission", _Kept())


PERMITTED: Final = cast("StreamPermissions", _AllKept())

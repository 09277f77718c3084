"""A call that broke is made again for a moment; for calls that are safe to repeat."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

from remit.client.breaks import is_break
from remit.client.resumption import Resumption
from remit.rpc.errors import RemitError

Response = TypeVar("Response")
Metadata: TypeAlias = tuple[tuple[str, str], ...]


async def repeated(
    method: Callable[..., Awaitable[Response]],
    request: object,
    metadata: Metadata,
    resumption: Resumption,
) -> Response:
    """The answer; what broke is asked again for as long as nothing answers. Raises RemitError."""
    clock = resumption.clock
    give_up = clock.monotonic() + resumption.patience.unanswered_s
    failures = 0
    while True:
        try:
            return await method(request, metadata=metadata)
        except RemitError as error:
            failures += 1
            pause_s = resumption.pause_s(failures, error)
            if not is_break(error) or clock.monotonic() + pause_s >= give_up:
                raise
        await resumption.pause(pause_s)

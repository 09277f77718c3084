"""Shrinking what is to be sealed: PostgreSQL cannot compress what is encrypted.

Most entries of a journal are small and say the same words, so a dictionary stands before each. The
first byte tells the form: 0 is the bytes as they are, 1 is raw deflate (RFC 1951) with the
dictionary below. A dictionary is never changed; another one gets another number.
"""

from __future__ import annotations

import zlib
from typing import Final

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError

_PLAIN: Final = b"\x00"
_DEFLATED: Final = b"\x01"
_LEAST_BYTES: Final = 48
"""Below this nothing is tried: the time would buy a few bytes."""
_SMALL_BYTES: Final = 4096
"""Up to here a window of 4 KiB is enough; a larger one costs more to set up than it saves."""
_SMALL: Final = (-12, 4)
_LARGE: Final = (-15, 8)
"""Bits of the window, without header and checksum, and memory level."""
_MOST_BYTES: Final = 1 << 26
"""Of one content, far above any: a row that was changed by hand must not fill the memory."""
# Deflate finds what stands near the end more cheaply: there is what most entries say.
_DICTIONARY: Final = (
    b'{"error":"}{"text":"{"value":"{"path":"{"query":"{"results":[{"title":"url":"https://'
    b"RESOURCE_EXHAUSTED DEPENDENCY_UNAVAILABLE TOOL_FAILED remit.internal"
    b"type.googleapis.com/google.rpc.ErrorInfo type.googleapis.com/google.rpc.RetryInfo"
    b"text/plain application/json artifacts content count name status result value "
    b" the of and to in is that for it with as was on are be this by "
    b"tools/web_search tools/write_file tools/read_file tools/calculator expression "
    b"agents/researcher agents/assistant orgs/default/users/ models/builtin-rules"
    b"conversations/0 claims/0 runs/0 answering using tools thinking"
)


def pack(clear: bytes) -> bytes:
    """The bytes in their shorter form, never longer than they are by more than one."""
    if len(clear) < _LEAST_BYTES:
        return _PLAIN + clear
    window, memory = _SMALL if len(clear) <= _SMALL_BYTES else _LARGE
    deflater = zlib.compressobj(
        6, zlib.DEFLATED, window, memory, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY
    )
    packed = _DEFLATED + deflater.compress(clear) + deflater.flush()
    return packed if len(packed) <= len(clear) else _PLAIN + clear


def unpack(packed: bytes) -> bytes:
    """What was packed. Raises DATA_CORRUPT."""
    if packed[:1] == _PLAIN:
        return packed[1:]
    if packed[:1] != _DEFLATED:
        raise _corrupt("is packed in an unknown form")
    inflater = zlib.decompressobj(-15, _DICTIONARY)
    try:
        clear = inflater.decompress(packed[1:], _MOST_BYTES)
    except zlib.error as error:
        raise _corrupt("cannot be inflated") from error
    if not inflater.eof or inflater.unused_data:
        raise _corrupt("is not packed whole")
    return clear


def _corrupt(fault: str) -> RemitError:
    return RemitError(reasons.ERROR_REASON_DATA_CORRUPT, f"something that a journal holds {fault}")

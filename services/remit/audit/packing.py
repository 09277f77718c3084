"""How a leaf rests in the database: deflated against what every leaf says.

Most of a leaf is member names and words that all leaves share, so it shrinks to half and less. The
log hashes, proves and exports the leaf's own bytes; a packed leaf is a matter of this store alone,
and what was changed in it shows when its hash is compared.

The first byte tells the form: ``{`` is the leaf itself, 1 is raw deflate (RFC 1951) with the
dictionary below. A dictionary is never changed; another one gets another number.
"""

from __future__ import annotations

import zlib
from typing import Final

_PLAIN: Final = b"{"
_DEFLATED: Final = b"\x01"
_WINDOW_BITS: Final = -12
"""Raw deflate over the last 4 KiB; a larger window costs more to set up than it saves."""
_MEMORY_LEVEL: Final = 4
_MAX_BYTES: Final = 1 << 20
"""Of a leaf, far above any: a packed row that was changed by hand must not fill the memory."""
# Deflate finds what stands near the end more cheaply: there is what most leaves say.
_DICTIONARY: Final = (
    b'ADMINREADFAILEDREFUSEDCANCELLEDIN_DOUBT"orgs/users/~teams/agents/apiKeys/budgets/policies'
    b'"reporter":"audit","reporter":"policy","reporter":"cost","reporter":"agent",'
    b'{"action":"tools.call","action":"models.generate","attempt":1,"claim":"claims/",'
    b'"detail_hash":"=","event_id":"-1-intent-1-succeeded","event_time":"2026-01-01T00:00:00.'
    b'000000000Z","kind":"INTENT","kind":"OUTCOME","org":"orgs/","outcome":"",'
    b'"outcome":"SUCCEEDED","reporter":"inference","reporter":"tools","resource":"tools/",'
    b'"resource":"models/","run":"runs/","subject":"=","subject_hash":"=","trace_id":"","v":1}'
)


class PackingError(ValueError):
    """A stored leaf has no form that is known here."""


def pack(leaf: bytes) -> bytes:
    """The leaf as it is stored; never longer than it is by more than a byte."""
    deflater = zlib.compressobj(
        6, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY
    )
    packed = _DEFLATED + deflater.compress(leaf) + deflater.flush()
    return packed if len(packed) < len(leaf) or leaf[:1] != _PLAIN else leaf


def unpack(stored: bytes) -> bytes:
    """The bytes that were hashed. Raises PackingError."""
    if stored[:1] == _PLAIN:
        return stored
    if stored[:1] != _DEFLATED:
        raise PackingError("is stored in an unknown form")
    inflater = zlib.decompressobj(_WINDOW_BITS, _DICTIONARY)
    try:
        leaf = inflater.decompress(stored[1:], _MAX_BYTES)
    except zlib.error as error:
        raise PackingError("cannot be inflated") from error
    if not inflater.eof or inflater.unused_data:
        raise PackingError("is not stored whole")
    return leaf

"""A DNS server for tests: answers what it is told for one name, and changes its mind when told.

Only what a resolver asks of it: one question a packet, A records, TTL 0 (RFC 1035, section 4).
"""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import Mapping, Sequence
from typing import Final, cast

_A: Final = 1
_HEADER_BYTES: Final = 12


class NameServer(asyncio.DatagramProtocol):
    """Names with their addresses; a name that is not there does not exist."""

    def __init__(self, addresses: Mapping[str, Sequence[str]]) -> None:
        self.addresses = dict(addresses)
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        self._transport.sendto(self.answer(data), addr)

    def answer(self, query: bytes) -> bytes:
        """The answer to one query."""
        name, end = _name(query)
        question = query[_HEADER_BYTES : end + 4]
        [kind] = struct.unpack_from("!H", query, end)
        known = self.addresses.get(name.lower())
        found = known or () if kind == _A else ()
        code = 0 if known is not None else 3  # NXDOMAIN
        header = query[:2] + struct.pack("!HHHHH", 0x8580 | code, 1, len(found), 0, 0)
        return header + question + b"".join(map(_record, found))


def _name(query: bytes) -> tuple[str, int]:
    """The name of the question and where its type begins."""
    labels, place = [], _HEADER_BYTES
    while length := query[place]:
        labels.append(query[place + 1 : place + 1 + length].decode("ascii"))
        place += length + 1
    return ".".join(labels), place + 1


def _record(address: str) -> bytes:
    """An A record for the name of the question, which a pointer repeats."""
    return struct.pack("!HHHIH", 0xC00C, _A, 1, 0, 4) + ipaddress.IPv4Address(address).packed

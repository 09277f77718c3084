"""Everything that a mesh stores, looked through for texts that must not be there.

Every value of every row of every database counts, and every file of a folder: as it is, in base64
and in hex, and what comes out where a part of it can be decompressed.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import asyncpg
import pyarrow as pa

from remit.postgres import DATABASES

_TABLES: Final = """
    SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
"""
_OFFSETS: Final = (0, 1, 2, 8, 9, 21)
"""Where something compressed may begin, behind forms, numbers, ids of keys and nonces."""
_DEFLATED: Final = (15, -15, -12)
_FRAMES: Final = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_LEAST_BYTES: Final = 33
"""Less holds no compressed text of 33 random characters and more; hashes are such."""


def traces_of(texts: Sequence[str], value: bytes, *, is_binary: bool = True) -> set[str]:
    """Those of the texts that a value holds, in whatever form; text is not compressed."""
    found: set[str] = set()
    for shape in map(bytes.lower, _shapes(value) if is_binary else (value,)):
        found |= {text for form, text in _forms_of(tuple(texts)) if form in shape}
    return found


async def in_databases(socket: str, texts: Sequence[str]) -> dict[str, set[str]]:
    """Those of the texts that any row holds, by table and column."""
    found: dict[str, set[str]] = {}
    async for place, value in _values(socket):
        raw = value if isinstance(value, bytes) else str(value).encode()
        if traces := traces_of(texts, raw, is_binary=raw is value):
            found.setdefault(place, set()).update(traces)
    return found


def in_files(folder: Path, texts: Sequence[str]) -> dict[str, set[str]]:
    """Those of the texts that any file of a folder holds, its name included."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    looked = {str(file): traces_of(texts, str(file).encode() + file.read_bytes()) for file in files}
    return {file: traces for file, traces in looked.items() if traces}


@contextlib.asynccontextmanager
async def planted(socket: str, text: str) -> AsyncIterator[list[str]]:
    """Rows that hold a text in each form that a search must find; yields their places."""
    raw = text.encode()
    lines: dict[str, Any] = {
        "clear": raw,
        "inside": b"\x02" + bytes(range(32)) + raw + b"more",
        "base64": base64.b64encode(b"xy" + raw),
        "hex": raw.hex().encode(),
        "zlib": b"\x01" + zlib.compress(raw * 9),
        "deflated": b"\x01" + zlib.compress(raw * 9)[2:-4],
        "zstd": b"12345678" + pa.compress(raw * 9, "zstd", asbytes=True),
    }
    connection = await asyncpg.connect(host=socket, user="postgres", database="remit_tools")
    try:
        columns = ", ".join(f'"{name}" bytea' for name in lines)
        await connection.execute(f"CREATE TABLE planted ({columns}, text text, document jsonb)")
        slots = ", ".join(f"${number}" for number in range(1, len(lines) + 1))
        await connection.execute(
            f"INSERT INTO planted VALUES ({slots}, '{text}', '{{\"a\": [\"{text}\"]}}')",  # noqa: S608 - a test's
            *lines.values(),
        )
        yield [f"remit_tools.public.planted.{name}" for name in (*lines, "text", "document")]
    finally:
        await connection.execute("DROP TABLE IF EXISTS planted")
        await connection.close()


async def _values(socket: str) -> AsyncIterator[tuple[str, object]]:
    for database in DATABASES:
        name = f"remit_{database}"
        connection = await asyncpg.connect(host=socket, user="postgres", database=name)
        try:
            for table in [row[0] for row in await connection.fetch(_TABLES)]:
                async with connection.transaction():
                    async for row in connection.cursor(f"SELECT * FROM {table}"):  # noqa: S608 - of the catalogue
                        for column, value in row.items():
                            yield f"{name}.{table}.{column}", value
        finally:
            await connection.close()


@functools.cache
def _forms_of(texts: tuple[str, ...]) -> tuple[tuple[bytes, str], ...]:
    return tuple((form, text) for text in texts for form in _forms(text))


def _forms(text: str) -> Iterator[bytes]:
    raw = text.encode()
    yield raw.lower()
    yield raw.hex().encode()
    for ahead in range(3):
        # The first and the last characters depend on what stands beside.
        whole = base64.b64encode(b"\0" * ahead + raw).rstrip(b"=")
        yield whole[4 if ahead else 0 : -2].lower()


def _shapes(value: bytes) -> Iterator[bytes]:
    yield value
    if len(value) < _LEAST_BYTES:
        return
    for offset in _OFFSETS:
        for bits in _DEFLATED:
            inflater = zlib.decompressobj(bits)
            clear = b""
            with contextlib.suppress(zlib.error):
                clear = inflater.decompress(value[offset:], 1 << 20)
            if len(clear) >= _LEAST_BYTES:
                yield clear
    for magic, codec in _FRAMES.items():
        place = value.find(magic)
        if place >= 0:
            with contextlib.suppress(OSError):
                yield pa.CompressedInputStream(pa.BufferReader(value[place:]), codec).read()

"""Puts an engine into the inference service that counts what it makes, outside every process.

Python imports this file at its start if it is on the path. Where a model is declared with the
engine `openai`, one stands in that makes tokens itself. It writes each token down before it hands
it on, so that the count survives the process, and reports what it made: nothing is on its way to
anybody. The product knows nothing of it.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import sys
import types
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

FOLDER = os.environ.get("PYTHON_COUNTS_FOLDER", "")
BEGUN = "begun"
ASKED = re.compile(r"(\d+) tokens, (\d+) ms each")


class Counts:
    """What this process made: a line for each token, and one for each prompt that was read."""

    def __init__(self, folder: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = os.open(folder / f"{os.getpid()}-{uuid.uuid4()}", flags)

    def begun(self, key: str, input_tokens: int) -> None:
        """A prompt was read."""
        os.write(self._file, f"{key} {BEGUN} {input_tokens}\n".encode())

    def token(self, key: str) -> None:
        """A token was made."""
        os.write(self._file, f"{key}\n".encode())


class CountingEngine:
    """Makes as many tokens as the prompt asks for, at the pace that it asks for."""

    stop_stops_bill = True
    measures_confidence = False
    unsent_tokens = 0

    def __init__(self, declaration: Any, **_: object) -> None:
        self._declaration = declaration
        self._engine: Any = importlib.import_module("remit.inference.engine")
        self._protos: Any = importlib.import_module("remit.api.inference.v1.message_pb2")
        self._usage: Any = importlib.import_module("remit.api.usage.v1.usage_pb2").Usage
        self._counts = Counts(Path(FOLDER))

    def bound(self, request: Any) -> Any:
        """As other engines."""
        return self._engine.upper_bound(request)

    def not_ready_reason(self) -> str:
        """Ready."""
        return ""

    async def close(self) -> None:
        """Nothing is open."""

    async def generate(self, request: Any, progress: Any) -> AsyncGenerator[Any, None]:
        """One word a token. Each is written down in the same step in which it is reported."""
        text = request.messages[-1].text
        found = ASKED.search(text)
        asked, pause_ms = map(int, found.groups()) if found else (1, 0)
        key, input_tokens = request.request_id, len(text.split())
        progress.owed = True
        self._counts.begun(key, input_tokens)
        usage = self._usage(input_tokens=input_tokens, calls=1)
        progress.reported = usage
        made = min(asked, request.max_output_tokens)
        for number in range(1, made + 1):
            if hasattr(self._engine, "Growth"):
                yield self._engine.Growth(number)
            await asyncio.sleep(pause_ms / 1000)
            self._counts.token(key)
            usage = self._usage(input_tokens=input_tokens, output_tokens=number, calls=1)
            progress.reported = usage
            progress.generated_bytes += len("word ")
            progress.chunk_received()
            yield self._engine.TextDelta("word ")
        message = self._protos.Message(role=self._protos.ROLE_ASSISTANT, text="word " * made)
        yield self._engine.Turn(message, self._protos.FINISH_REASON_STOP, usage)

    def used(self, _request: Any, progress: Any) -> Any:
        """What was made."""
        return progress.reported or self._usage()


def _restart_at_once() -> None:
    """The supervisor waits longer after each death in a row; a storm kills too often for that."""
    process = importlib.import_module("remit.local.process")
    process.Backoff.delay_s = lambda _backoff, _deaths: 0.1


def _prepare() -> None:
    program, command = sys.orig_argv[:-2], sys.orig_argv[-2:]
    if command == ["serve", "inference"]:
        module = types.ModuleType("remit.inference.openai_engine")
        module.OpenAIEngine = CountingEngine  # type: ignore[attr-defined]
        sys.modules[module.__name__] = module
    elif "remit.cli.main" in program and "up" in program:
        _restart_at_once()


if FOLDER:
    _prepare()

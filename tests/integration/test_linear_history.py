"""A long run is stored once: what all databases hold together grows with the conversation.

100 model calls over a conversation of 200,000 tokens, through every real service. The provider is a
server on loopback that writes text and asks for one file after another, of uneven sizes. The text
is English; a second conversation is noise, which nothing can store in less than its size.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from starlette.responses import Response

from remit.api.agent.v1 import run_pb2
from tests.inference.openai_server import OpenAIServer, call_delta, chunks, delta, running, usage
from tests.integration.clients import a_run, followed, result_of
from tests.integration.conftest import RunningMesh, started_mesh
from tests.storage import at_rest, grown, stored
from tests.waiting import eventually

CALLS: Final = 100
TOKENS: Final = 200_000
BYTES_PER_TOKEN: Final = 4
MOST_TIMES: Final = 3.0
MOST_TIMES_NOISE: Final = 3.5
DOCS: Final = Path(__file__).parents[2] / "docs"

AGENT: Final = f"""
name: historian
display_name: Historian
description: Reads one file after another.
instructions: Read every file.
model: scripted
tools: [read_file]
max_steps: {CALLS}
max_duration_s: 600
max_cost_usd: 10
"""
MODELS: Final = """
models:
  - name: builtin-rules
    engine: builtin-rules
    description: For the run before.
    context_tokens: 1048576
    max_output_tokens: 16384
  - name: scripted
    engine: openai
    description: A script.
    base_url: {base_url}
    provider_model: scripted
    context_tokens: 4000000
    max_output_tokens: 8000
"""
PRICES: Final = """
prices:
  models/scripted:
    input_nanos_per_million: 1000
    output_nanos_per_million: 1000
"""


@dataclass
class Provider:
    """What the model says, and what it was told."""

    turns: Sequence[str]
    conversation: list[dict[str, Any]] = field(default_factory=list)
    """As it was sent last."""

    async def answer(self, body: dict[str, Any]) -> Response:
        """The next turn: text and one more file, and at the last step text alone."""
        self.conversation = body["messages"]
        step = 1 + sum(message["role"] == "assistant" for message in self.conversation)
        text = self.turns[step - 1]
        said = [delta(role="assistant", content="")]
        said += [delta(content=text[at : at + 500]) for at in range(0, len(text), 500)]
        if step < CALLS:
            path = json.dumps({"path": f"{step}.txt"})
            said.append(call_delta(0, id=f"call-{step}", name="read_file", arguments=path))
        finish = delta(finish_reason="tool_calls" if step < CALLS else "stop")
        tokens = self.size_bytes // BYTES_PER_TOKEN, len(text) // BYTES_PER_TOKEN
        return await chunks(*said, finish, usage(*tokens))(body)

    @property
    def size_bytes(self) -> int:
        """Of all texts and arguments that were exchanged, the last answer included."""
        return len(self.turns[-1].encode()) + sum(map(_bytes_of, self.conversation))


def _bytes_of(message: dict[str, Any]) -> int:
    calls = message.get("tool_calls") or ()
    arguments = sum(len(call["function"]["arguments"].encode()) for call in calls)
    return len((message.get("content") or "").encode()) + arguments


def english(chance: random.Random, total: int) -> str:
    """The pages of this project, as often as it takes."""
    pages = sorted(DOCS.rglob("*.md"))
    text = "".join(chance.choice(pages).read_text() for _ in range(4 * len(pages)))
    ascii_text = text.encode("ascii", "replace").decode()
    assert len(ascii_text) >= total
    return ascii_text[:total]


def noise(chance: random.Random, total: int) -> str:
    """Six random bits a character."""
    return base64.b64encode(chance.randbytes(total)).decode()[:total]


def uneven(chance: random.Random, text: str, pieces: int) -> Iterator[str]:
    """The text in pieces, each between a half and three halves of their mean."""
    mean = len(text) // pieces
    cuts = [mean * n + chance.randint(-mean // 4, mean // 4) for n in range(1, pieces)]
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        yield text[start:end]


@pytest.mark.storm
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("write", "most"), [(english, MOST_TIMES), (noise, MOST_TIMES_NOISE)], ids=["english", "noise"]
)
async def test_a_long_conversation_is_stored_less_than_three_times(
    tmp_path: Path, write: Any, most: float
) -> None:
    chance = random.Random(write.__name__)  # noqa: S311 - not a secret
    total = TOKENS * BYTES_PER_TOKEN
    provider = Provider(list(uneven(chance, write(chance, total // 4), CALLS)))
    files = list(uneven(chance, write(chance, total * 3 // 4), CALLS - 1))
    async with running() as server:
        server.script = provider.answer
        with started_mesh(environment=_environment(tmp_path, server, files)) as mesh:
            before = await _before(mesh)
            asked = a_run("Read all files.", agent="agents/historian")
            events = await followed(mesh.address, mesh.api_key, asked, timeout_s=300)
            run = result_of(events)
            assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run.error
            assert run.usage.calls == 2 * CALLS - 1
            await eventually(lambda: at_rest(_socket(mesh)), 60)
            added = grown(before, await stored(_socket(mesh)))
    size = provider.size_bytes
    assert size >= total
    times = sum(added.values()) / size
    shares = [f"{table} {grew / size:.3f}" for table, grew in added.items()]
    told = "\n".join([f"{size} bytes of {write.__name__} are stored {times:.2f} times", *shares])
    print(told)  # noqa: T201 - what was measured
    assert times < most, told


async def _before(mesh: RunningMesh) -> dict[str, int]:
    """What is stored before: the first row of a table brings its first pages."""
    first = result_of(await followed(mesh.address, mesh.api_key, a_run()))
    assert first.state == run_pb2.RUN_STATE_SUCCEEDED, first.error
    await eventually(lambda: at_rest(_socket(mesh)), 60)
    return await stored(_socket(mesh))


def _environment(folder: Path, server: OpenAIServer, files: Sequence[str]) -> dict[str, str]:
    folder.chmod(0o755)
    agents, readable = folder / "agents", folder / "files"
    for made in (agents, readable):
        made.mkdir()
    (agents / "historian.yaml").write_text(AGENT)
    (folder / "models.yaml").write_text(MODELS.format(base_url=server.base_url))
    (folder / "prices.yaml").write_text(PRICES)
    for step, text in enumerate(files, start=1):
        (readable / f"{step}.txt").write_text(text)
    return {
        "REMIT_AGENT_AGENTS_DIR": str(agents),
        "REMIT_INFERENCE_MODELS_FILE": str(folder / "models.yaml"),
        "REMIT_COST_PRICES_FILE": str(folder / "prices.yaml"),
        "REMIT_TOOLS_FOLDERS": str(readable),
    }


def _socket(mesh: RunningMesh) -> str:
    return str(json.loads((mesh.state / "mesh.json").read_text())["postgres_socket"])

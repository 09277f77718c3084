"""A mesh in a storm: what runs do there, the clients that go on, and the kills.

Outside the mesh stand what it cannot take back and what it cannot know: a mail server, whose
mailbox counts the mails, a receiver of webhooks, and a model, which says the same whenever it is
asked the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from starlette.responses import Response

from remit.api.agent.v1 import run_pb2
from remit.client import Client, RemitError, is_break
from remit.client.requests import new_request_id
from remit.policy.schema import SHIPPED_POLICIES
from tests.inference import openai_server
from tests.integration.clients import a_run, followed
from tests.integration.conftest import RunningMesh, started_mesh
from tests.integration.crash_hook import sitecustomize as crash_hook
from tests.integration.petitions import AGENTS, POLICY, Fate, fate_of
from tests.scratch import scratch_folder
from tests.tools.receiver import Receiver, receiving
from tests.tools.smtp_server import Mailbox, smtp_server
from tests.waiting import eventually, in_time

AREAS: Final = tuple(crash_hook.STEPS)
OUTSIDE_POINTS: Final = ("envoy", "postgres")
"""Parts that have no points of their own: they die at those of a service."""
COORDINATED: Final = 4
"""Every so many runs one hands its task to another agent."""
TOLD: Final = 5
"""Every so many runs one has its end told to a webhook."""
_RUNS_OF_A_CONVERSATION: Final = 4
LEASE_S: Final = 2.0
CLAIM_POLL_S: Final = 0.3
_REACHED_WITHIN_S: Final = 15.0
_UP_WITHIN_S: Final = 60.0
_MOST_SKIPPED: Final = 2
_AGENT: Final[dict[str, Any]] = {
    "description": "Does what a task of the storm asks.",
    "instructions": "Do exactly what the task asks.",
    "model": "storm",
    "max_steps": 8,
    "max_duration_s": 1200,
    "max_cost_usd": 1,
    "on_doubt": "retry_idempotent",
}
_AGENTS: Final = (
    {"name": "storm-clerk", "display_name": "Clerk", "tools": ["write_file", "send_email"]},
    {"name": "storm-chief", "display_name": "Chief", "agents": ["storm-clerk"]},
    *AGENTS,
)
_MODEL: Final = {
    "name": "storm",
    "engine": "openai",
    "description": "Says what a task of the storm needs.",
    "provider_model": "storm",
    "context_tokens": 100_000,
    "max_output_tokens": 500,
    "stop_stops_bill": True,
    "unsent_tokens": 1,
}
_PRICES: Final = {
    "prices": {
        "models/storm": {"input_nanos_per_million": 50_000_000, "output_nanos_per_million": 50_000}
    }
}


# ------------------------------------------------------------------------- what is said and done


def a_task(number: int) -> dict[str, str]:
    """Agent and task of a run."""
    fate = fate_of(number)
    if fate is not None:
        return {"agent": fate.agent, "task": f"Do storm {number}"}
    if number % COORDINATED == COORDINATED - 1:
        return {"agent": "agents/storm-chief", "task": f"Have storm {number} done"}
    return {"agent": "agents/storm-clerk", "task": f"Do storm {number}"}


def expected_result(number: int) -> str:
    """What a run ends with that nothing went wrong for."""
    done = f"Storm {number} is done"
    return f"I was told: {done}" if a_task(number)["agent"].endswith("chief") else done


def path_of(number: int) -> str:
    """The file that a run writes."""
    return f"storm/{number}.txt"


def recipient_of(number: int) -> str:
    """The only reader of a run's mail."""
    return f"storm-{number}@example.org"


def mail_of(number: int) -> dict[str, Any]:
    """The mail that a run sends."""
    subject = f"Storm {number}"
    return {"to": [recipient_of(number)], "subject": subject, "body": "It is written."}


async def model(body: dict[str, Any]) -> Response:
    """The next turn: what a conversation has so far decides it alone."""
    said = body["messages"]
    # What stands before the last task are the exchanges of earlier runs of the conversation.
    begins = max(n for n, message in enumerate(said) if message["role"] == "user")
    said = said[begins:]
    task = said[0]["content"]
    number = int(re.findall(r"storm (\d+)", task)[0])
    answers = [str(message["content"]) for message in said if message["role"] == "tool"]
    offered = {tool["function"]["name"] for tool in body.get("tools", ())}
    turns = list(_turns(number, offered))
    made = sum(message["role"] == "assistant" for message in said)
    if made < len(turns):
        return await _calls(turns[made])(body)
    return await openai_server.says(_conclusion(number, answers))(body)


def _turns(number: int, offered: set[str]) -> list[list[tuple[str, dict[str, Any]]]]:
    chief = [name for name in offered if name.startswith("agents_")]
    if chief:
        return [[(chief[0], {"task": f"Do storm {number}"})]]
    write = ("write_file", {"path": path_of(number), "content": f"Storm {number}"})
    send = ("send_email", mail_of(number))
    return [[write, send]] if number % 3 == 0 else [[write], [send]]


def _calls(calls: Sequence[tuple[str, dict[str, Any]]]) -> openai_server.Script:
    deltas = [
        openai_server.call_delta(n, id=f"call-{n}", name=name, arguments=json.dumps(arguments))
        for n, (name, arguments) in enumerate(calls)
    ]
    end = openai_server.delta(finish_reason="tool_calls")
    return openai_server.chunks(*deltas, end, openai_server.usage(50, 10))


def _conclusion(number: int, answers: Sequence[str]) -> str:
    """What was asked for is done, unless a call failed: then the run must not look like the others.

    The answer of another agent is passed on.
    """
    told = [found for text in answers for found in re.findall(r'"answer": ?"([^"]*)"', text)]
    if told:
        return f"I was told: {told[0]}"
    good = all('"path"' in text or '"message_id"' in text for text in answers)
    return f"Storm {number} is done" if good else f"Storm {number} failed: {answers}"


# ------------------------------------------------------------------------------------ the world


@dataclass(frozen=True)
class StormWorld:
    """A running mesh that may be killed at its points, and the mailbox outside it."""

    mesh: RunningMesh
    mailbox: Mailbox
    receiver: Receiver
    orders: Path
    """Folder in which points are armed."""

    @property
    def written(self) -> dict[str, str]:
        """Every file that runs have written, by its path in the workspace."""
        folders = (self.mesh.state / "workspace").glob("orgs/*/users/*/storm/*.txt")
        return {f"storm/{file.name}": file.read_text() for file in folders}

    def mails(self) -> Counter[str]:
        """How many mails each recipient has."""
        return Counter(to for envelope in self.mailbox.envelopes for to in envelope.rcpt_tos)


@contextlib.asynccontextmanager
async def storm_world(
    replicas: Mapping[str, int] | None = None, environment: Mapping[str, str] | None = None
) -> AsyncIterator[StormWorld]:
    """The mesh with short leases, before a model and a mail server of the test's."""
    mailbox = Mailbox()
    with scratch_folder("remit-storm-") as folder:
        (folder / "orders").mkdir()
        async with (
            openai_server.running() as provider,
            smtp_server(mailbox) as smtp_port,
            receiving() as receiver,
        ):
            provider.script = model
            facts = _environment(folder, provider.base_url, smtp_port) | dict(environment or {})
            with started_mesh(replicas, environment=facts) as mesh:
                yield StormWorld(mesh, mailbox, receiver, folder / "orders")


def _environment(folder: Path, base_url: str, smtp_port: int) -> dict[str, str]:
    agents = folder / "agents"
    agents.mkdir()
    for agent in _AGENTS:
        (agents / f"{agent['name']}.yaml").write_text(yaml.safe_dump(_AGENT | agent))
    policies = folder / "policies"
    policies.mkdir()
    (policies / "petitions.cedar").write_text(POLICY)
    for shipped in SHIPPED_POLICIES.glob("*.cedar"):
        (policies / shipped.name).write_text(shipped.read_text())
    models = folder / "models.yaml"
    models.write_text(yaml.safe_dump({"models": [_MODEL | {"base_url": base_url}]}))
    prices = folder / "prices.yaml"
    prices.write_text(yaml.safe_dump(_PRICES))
    gates = {
        f"REMIT_{gate}_EFFECT_{name}": value
        for gate in ("INFERENCE", "TOOLS")
        for name, value in (("LEASE_S", str(LEASE_S)), ("SWEEP_S", "0.5"))
    }
    return gates | {
        # Names that begin with PYTHON reach every service; of others each gets its own alone.
        "PYTHONPATH": os.pathsep.join(
            [str(Path(crash_hook.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "PYTHON_CRASH_FOLDER": str(folder / "orders"),
        "REMIT_AGENT_AGENTS_DIR": str(agents),
        "REMIT_AGENT_LEASE_S": str(LEASE_S),
        "REMIT_AGENT_CLAIM_POLL_S": str(CLAIM_POLL_S),
        "REMIT_AGENT_RETRY_CAP_S": "2",
        "REMIT_AGENT_WEBHOOK_LEASE_S": "5",
        "REMIT_AGENT_WEBHOOK_MAX_TRIES": "100",
        "REMIT_AGENT_WEBHOOK_NETWORKS": "127.0.0.0/8,::1/128",
        "REMIT_AGENT_WEBHOOK_POLL_S": "0.2",
        "REMIT_AGENT_WEBHOOK_RETRY_BASE_S": "0.2",
        "REMIT_AGENT_WEBHOOK_RETRY_CAP_S": "2",
        "REMIT_COST_PRICES_FILE": str(prices),
        # So small that every turn extends its hold.
        "REMIT_INFERENCE_LEASE_TOKENS": "8",
        "REMIT_INFERENCE_MODELS_FILE": str(models),
        "REMIT_POLICY_POLICIES_DIR": str(policies),
        "REMIT_TOOLS_SMTP_PORT": str(smtp_port),
        "REMIT_TOOLS_WEBHOOK_NETWORKS": "127.0.0.0/8,::1/128",
    }


# ---------------------------------------------------------------------------------- the clients


@dataclass
class Crowd:
    """Clients that start one run after another and follow each to its end."""

    world: StormWorld
    size: int
    patience_s: float = 60
    """How long a client follows one stream before it opens another."""
    fates: Sequence[Fate] = ()
    """Further clients, one for each, whose runs ask people and meet this."""
    histories: dict[int, list[run_pb2.RunEvent]] = field(default_factory=dict)
    _begun: Counter[Fate | None] = field(default_factory=Counter)
    _stopping: bool = False
    _working: list[asyncio.Task[None]] = field(default_factory=list)

    def begin(self) -> None:
        """Lets the clients in."""
        kinds: list[Fate | None] = [*[None] * self.size, *self.fates]
        self._working = [asyncio.create_task(self._work(fate)) for fate in kinds]

    async def have_done(self, more: int, timeout_s: float = 90) -> None:
        """Waits until so many more runs have ended. Raises what ended a client."""
        wanted = len(self.histories) + more

        def done() -> bool:
            self._check()
            return len(self.histories) >= wanted

        await eventually(done, timeout_s)

    async def leave(self, timeout_s: float) -> None:
        """Starts no more runs and waits for those that are under way."""
        self._stopping = True
        await in_time(asyncio.gather(*self._working), timeout_s)

    def _check(self) -> None:
        for task in self._working:
            if task.done():
                task.result()

    async def _work(self, fate: Fate | None) -> None:
        mesh = self.world.mesh
        async with Client(mesh.address, mesh.api_key) as client:
            while not self._stopping:
                conversation = await _another_conversation(client)
                for _ in range(_RUNS_OF_A_CONVERSATION):
                    if not self._stopping:
                        await self._one_run(conversation, fate)

    async def _one_run(self, conversation: str, fate: Fate | None) -> None:
        mesh = self.world.mesh
        number = (fate.first if fate else 0) + self._begun[fate]
        self._begun[fate] += 1
        webhook = self.world.receiver.url if number % TOLD == 0 else ""
        request = a_run(**a_task(number), conversation=conversation, webhook=webhook)
        self.histories[number] = await followed(
            mesh.address, mesh.api_key, request, timeout_s=self.patience_s
        )


async def _another_conversation(client: Client) -> str:
    """A conversation for some runs, after another one that was begun and deleted."""
    brief, given_up = await _conversation(client), new_request_id()
    await _through(lambda: client.conversations.delete(brief, request_id=given_up))
    return await _conversation(client)


async def _conversation(client: Client) -> str:
    request_id = new_request_id()
    begun = await _through(lambda: client.conversations.create(request_id=request_id))
    return str(begun.name)


async def _through(call: Callable[[], Awaitable[Any]]) -> Any:
    """What a call answers, asked again over outages that are longer than the client's patience."""

    async def answered() -> tuple[Any] | None:
        try:
            return (await call(),)
        except RemitError as error:
            if not (is_break(error) or error.retryable):
                raise
            return None

    (answer,) = await eventually(answered, 120)
    return answer


# ------------------------------------------------------------------------------------ the kills


@dataclass(frozen=True)
class Kill:
    """A death: of `part`, when `area` passes a point for the next time but `skipped`."""

    part: str
    area: str
    point: str
    skipped: int

    @property
    def kind(self) -> str:
        """The point, or what dies at it besides the service itself."""
        return self.point if self.part.startswith(self.area) else f"{self.part} at {self.point}"


def schedule(chance: random.Random, *, outside: int, more: int) -> list[Kill]:
    """Every point of every service once, `outside` for Envoy and PostgreSQL each, `more` drawn."""
    everything = [(area, point) for area in AREAS for point in crash_hook.points(area)]
    drawn = [(f"{area}-0", area, point) for area, point in everything]
    drawn += [(f"{area}-0", area, point) for area, point in chance.choices(everything, k=more)]
    for part in OUTSIDE_POINTS:
        drawn += [(part, area, point) for area, point in chance.choices(everything, k=outside)]
    kills = [Kill(*one, skipped=chance.randint(0, _MOST_SKIPPED)) for one in drawn]
    chance.shuffle(kills)
    return kills


def arm(
    orders: Path, kill: Kill, *, number: int = 0, victim: int = 0, sent: int = signal.SIGKILL
) -> tuple[Path, Path]:
    """Arms a point. Returns the order's file, and the one that it becomes when it is carried out.

    The signal goes to `victim`, or to whoever passes the point.
    """
    armed, fired = orders / kill.area, orders / f"{kill.area}-{number}.fired"
    draft = armed.with_suffix(".new")
    draft.write_text(f"{kill.point}\n{kill.skipped}\n{victim}\n{int(sent)}\n{fired}")
    draft.rename(armed)
    return armed, fired


@dataclass
class Storm:
    """Kills one after another while the crowd goes on."""

    world: StormWorld
    struck: list[Kill] = field(default_factory=list)
    missed: list[Kill] = field(default_factory=list)
    """Whose point was not passed in time."""
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def rage(self, kills: Sequence[Kill], *, lanes: int = 2) -> None:
        """Carries out the kills, up to `lanes` at once, no two of one part."""
        left = iter(kills)

        async def lane() -> None:
            for kill in left:
                await self._strike(kill)

        async with asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(lane())

    async def _strike(self, kill: Kill) -> None:
        """Arms a point and waits until the part that it is for has died and is back."""
        parts = sorted({kill.part, f"{kill.area}-0"})
        async with contextlib.AsyncExitStack() as stack:
            for part in parts:
                await stack.enter_async_context(self._locks.setdefault(part, asyncio.Lock()))
            pid = await eventually(lambda: self.world.mesh.pid(kill.part), _UP_WITHIN_S)
            victim = 0 if kill.part == f"{kill.area}-0" else pid
            number = len(self.struck) + len(self.missed)
            armed, fired = arm(self.world.orders, kill, number=number, victim=victim)
            try:
                await eventually(fired.exists, _REACHED_WITHIN_S)
            except AssertionError:
                with contextlib.suppress(FileNotFoundError):
                    armed.unlink()
                    self.missed.append(kill)
                    return
            self.struck.append(kill)
            await eventually(lambda: self.world.mesh.pid(kill.part) not in {0, pid}, _UP_WITHIN_S)

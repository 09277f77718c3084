"""`remit demo`: the whole promise in one command, on a mesh of its own that it takes away again.

It starts six services, PostgreSQL and Envoy, runs an agent that needs a tool, exports the audit
log, stops everything, and only then verifies the export with a public key saved before the run.
Whatever is not as promised fails it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import click

from remit.api.agent.v1 import agent_service_pb2, run_pb2
from remit.api.audit.v1 import audit_query_service_pb2, audit_query_service_pb2_grpc, event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.audit.evidence import VerificationError
from remit.audit.verifier import verify_export
from remit.cli import exit_codes
from remit.cli.audit import export_to
from remit.cli.audit_verify import verified_line
from remit.cli.client import Edge, Session, new_request_id
from remit.cli.output import Output
from remit.cli.run import exit_code_of, start
from remit.cli.run_display import display_for
from remit.cli.wording import usd
from remit.gateway.topology import Topology
from remit.local.mesh import LocalMesh, MeshOptions
from remit.local.ports import check_ports
from remit.local.state import StateDirectory
from remit.rpc.clock import Clock, SystemClock
from remit.rpc.errors import RemitError

TASK: Final = "What is 17 * 23?"
_ANSWER: Final = re.compile(r"(?<![0-9.,])391(?![0-9])")
_RECORD_TIMEOUT_S: Final = 15.0
"""How long the outcomes of the last effects may take to be in the log."""
_POLL_S: Final = 0.1
_PORT_ATTEMPTS: Final = 50
_PORTS: Final = range(20_000, 31_000, 100)
"""First ports to try where the defaults are taken: all are below the ephemeral range."""
Result = TypeVar("Result")


class DemoError(click.ClickException):
    """Something is not as promised."""


@dataclass(frozen=True)
class Evidence:
    """What is left when every process has stopped."""

    run: run_pb2.Run
    export: Path
    public_key: str


@click.command(epilog="\b\nExamples:\n  remit demo\n  remit demo --keep")
@click.option("--keep", is_flag=True, help="Keep the folder with the state and the export.")
def command(*, keep: bool) -> int:
    """Start a mesh in a temporary folder, run an agent in it, stop it, verify its record.

    Takes other ports where the default ones are in use. Exit code 0 only if the answer is right, it
    was paid for, and the audit log verifies offline. A failed demo keeps its folder, for its logs.
    """
    folder = Path(tempfile.mkdtemp(prefix="remit-demo-"))
    if os.geteuid() == 0:
        folder.chmod(0o711)  # the database server runs as another user and must pass through
    story = Story(Output(as_json=False), SystemClock())
    failed = True
    try:
        evidence = asyncio.run(Demo(folder, story).run())
        _check_run(evidence.run)
        _check_record(story, evidence)
        failed = False
    except RemitError as error:
        failed = error.reason != error_reason_pb2.ERROR_REASON_CANCELLED
        raise
    finally:
        if not (failed or keep):
            shutil.rmtree(folder)
        else:
            story.tell(f"kept: {folder} (logs in {folder / 'state' / 'logs'})")
    return exit_codes.OK


class Story:
    """Tells each stage with the time since the start; it is the mesh's reporter too."""

    def __init__(self, output: Output, clock: Clock) -> None:
        self.output = output
        self._clock = clock
        self._began = clock.monotonic()

    def tell(self, text: str, style: str = "") -> None:
        """Prints a stage."""
        self.output.line(f"[{self._clock.monotonic() - self._began:5.1f} s] {text}", style)

    def part(self, name: str, state: str, detail: str = "") -> None:
        """Prints what a part of the mesh came to; what is on its way is left out."""
        if state in {"ready", "died", "killed"}:
            self.tell(f"{name} {state} {detail}".rstrip(), "" if state == "ready" else "red")

    def note(self, message: str) -> None:
        """Prints what the mesh says."""
        self.tell(message)


class Demo:
    """The part that needs a running mesh."""

    def __init__(self, folder: Path, story: Story) -> None:
        self._folder = folder
        self._story = story
        self._stop = asyncio.Event()

    async def run(self) -> Evidence:
        """Starts the mesh, runs the agent, exports the log and stops everything.

        Raises:
            RemitError: what failed; CANCELLED if the person interrupted it.

        """
        state = StateDirectory.open(self._folder / "state")
        topology = free_topology(str(state.folder / "tls"), random.SystemRandom().choice)
        self._story.tell(f"starting a mesh of its own at {topology.edge} in {self._folder}")
        mesh = LocalMesh(state, MeshOptions(topology=topology), self._story, SystemClock())
        with state.locked(), self._signals(mesh):
            async with mesh.running(self._stop):
                evidence = await self._unless_stopped(self._work(state, str(topology.edge)))
        self._story.tell("every process has stopped")
        return evidence

    async def _work(self, state: StateDirectory, address: str) -> Evidence:
        public_key = state.audit_key_file.read_text(encoding="ascii")
        export = self._folder / "log.export"
        session = Session(address, "", state.folder, self._story.output)
        async with session.edge() as edge:
            self._story.tell(f"asking the agent: {TASK}", "bold")
            run = await self._ask(edge)
            await _until_recorded(edge, run)
            written = await export_to(edge, export)
        self._story.tell(f"exported {written.tree_size} entries of the audit log")
        return Evidence(run, export, public_key)

    async def _ask(self, edge: Edge) -> run_pb2.Run:
        request = agent_service_pb2.CreateRunRequest(
            agent="agents/assistant", task=TASK, request_id=new_request_id()
        )
        with display_for(self._story.output) as display:
            return await start(edge, request, display).to_end()

    async def _unless_stopped(self, work: Awaitable[Result]) -> Result:
        """The result of the work. Raises CANCELLED if Ctrl-C came first."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                raise RemitError(error_reason_pb2.ERROR_REASON_CANCELLED, "the demo was stopped")
            return task.result()
        finally:
            task.cancel()
            stopping.cancel()
            await asyncio.gather(task, stopping, return_exceptions=True)

    @contextlib.contextmanager
    def _signals(self, mesh: LocalMesh) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if self._stop.is_set():
                mesh.kill()
            self._stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def free_topology(tls_dir: str, choose: Callable[[range], int]) -> Topology:
    """The default ports, or others that `choose` takes from a range where one of them is taken.

    Raises:
        RemitError: CONFIGURATION_INVALID if none were found.

    """
    topology = Topology.default(tls_dir=tls_dir)
    for _ in range(_PORT_ATTEMPTS):
        try:
            check_ports(topology)
        except RemitError:
            base = choose(_PORTS)
            topology = Topology.default(port_base=base, edge_port=base + 2, tls_dir=tls_dir)
        else:
            return topology
    raise RemitError(
        error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID,
        f"no free ports were found between {_PORTS.start} and {_PORTS.stop}",
    )


async def _until_recorded(edge: Edge, run: run_pb2.Run) -> None:
    """Waits until each intent of the run has its outcome in the log. Raises DemoError."""
    try:
        async with asyncio.timeout(_RECORD_TIMEOUT_S):
            while not await _is_recorded(edge, run):  # noqa: ASYNC110 - a service is asked
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise DemoError(
            f"the outcomes of {run.name} were not in the audit log after {_RECORD_TIMEOUT_S:g} s"
        ) from error


async def _is_recorded(edge: Edge, run: run_pb2.Run) -> bool:
    stub = edge.stub(audit_query_service_pb2_grpc.AuditQueryServiceStub)
    request = audit_query_service_pb2.ListEventsRequest(run=run.name, page_size=200)
    events = [e.event for e in (await stub.ListEvents(request, metadata=edge.metadata)).events]
    intents = {e.claim for e in events if e.kind == event_pb2.EVENT_KIND_INTENT}
    outcomes = {e.claim for e in events if e.kind == event_pb2.EVENT_KIND_OUTCOME}
    return bool(intents) and intents == outcomes


def _check_run(run: run_pb2.Run) -> None:
    if exit_code_of(run) != exit_codes.OK:
        raise DemoError("the run did not succeed; its error is above")
    if not _ANSWER.search(run.result):
        raise DemoError(f"{TASK} was answered with {run.result!r}, not with 391")
    if run.cost_nanos <= 0:
        raise DemoError(f"the run cost {usd(run.cost_nanos)}: effects must be paid for")


def _check_record(story: Story, evidence: Evidence) -> None:
    try:
        report = verify_export(evidence.export, evidence.public_key)
    except VerificationError as error:
        raise DemoError(f"audit: NOT verified: {error}") from error
    position = evidence.run.last_leaf_index
    if not (evidence.run.HasField("last_leaf_index") and position < report.tree_size):
        raise DemoError(f"leaf {position}, the run's newest effect, is not in the export")
    story.tell("verifying the export, with nothing else left running")
    story.output.line(f"answer  {evidence.run.result}", "bold green")
    story.output.line(f"cost    {usd(evidence.run.cost_nanos)}")
    story.output.line(verified_line(report), "green")

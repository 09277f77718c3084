"""How each part of a local mesh is, asked of the parts themselves."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg

from remit.gateway.topology import Topology
from remit.local.envoy_process import EnvoyProcess
from remit.local.probes import not_ready
from remit.local.state import StateDirectory, corrupt, read_small
from remit.rpc.contracts import AREAS

_CONNECT_TIMEOUT_S: Final = 2.0
_NOT_RUNNING: Final = "no `remit up` runs on this folder"


@dataclass(frozen=True)
class Part:
    """One part: an empty detail means healthy."""

    name: str
    address: str
    healthy: bool
    detail: str
    pid: int | None
    restarts: int


async def examine(state: StateDirectory) -> list[Part]:
    """Asks every part at once; takes no longer than the slowest answer.

    Raises:
        RemitError: CONFIGURATION_INVALID or DATA_CORRUPT about a file of the state directory.

    """
    topology = Topology.load(state.topology_file)
    known = _mesh(state)
    running = state.is_locked()
    envoy = EnvoyProcess(topology)
    questions = {
        "postgres": ("embedded", _postgres(str(known.get("postgres_socket", "")))),
        "envoy": (str(topology.edge), _envoy(envoy)),
    }
    for area in AREAS:
        for index, replica in enumerate(topology.replicas[area]):
            question = not_ready(replica.host, replica.http_port)
            questions[f"{area}-{index}"] = (str(replica), question)
    answers = await asyncio.gather(*(question for _, question in questions.values()))
    return [
        _part(name, address, answer if running else _NOT_RUNNING, known)
        for (name, (address, _)), answer in zip(questions.items(), answers, strict=True)
    ]


def _part(name: str, address: str, detail: str, known: dict[str, Any]) -> Part:
    facts = known.get("parts", {}).get(name, {})
    pid = facts.get("pid")
    return Part(
        name=name,
        address=address,
        healthy=not detail,
        detail=detail,
        pid=pid if detail != _NOT_RUNNING else None,
        restarts=int(facts.get("restarts", 0)),
    )


def _mesh(state: StateDirectory) -> dict[str, Any]:
    """What the running `remit up` wrote last; empty if it wrote nothing yet."""
    if not state.mesh_file.exists():
        return {}
    try:
        document = json.loads(read_small(state.mesh_file))
    except ValueError as error:
        raise corrupt(state.mesh_file, "it is written anew by `remit up`; move it away") from error
    return document if isinstance(document, dict) else {}


async def _envoy(envoy: EnvoyProcess) -> str:
    reason = await envoy.not_live()
    if reason:
        return reason
    return "; ".join(await envoy.unhealthy_replicas())


async def _postgres(socket_folder: str) -> str:
    """Asks for one row as the user who runs the mesh, the only one who is let in."""
    if not socket_folder or not await asyncio.to_thread(Path(socket_folder).exists):
        return "its socket is not there"
    try:
        connection = await asyncpg.connect(
            host=socket_folder, user="postgres", database="postgres", timeout=_CONNECT_TIMEOUT_S
        )
        await connection.close()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return str(error) or type(error).__name__
    return ""

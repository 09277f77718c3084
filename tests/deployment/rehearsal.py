"""docker-compose.yml without an engine: its services as processes of this machine.

Each container becomes a process with the command and the environment that the file states. What
an engine would isolate is mapped: a volume is a folder, a path below a mount is a path below that
folder, a service's name is loopback, and every port is another one. Order, jobs, health checks and
the stop follow the file. PostgreSQL's own entry point is played by `_initialise_postgres`.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from remit.gateway.topology import Topology
from remit.local.envoy_process import find_envoy
from remit.local.postgres_server import _account, _programs
from remit.local.probes import not_ready
from remit.local.tethered import Tie, signal_session, spawn_tethered
from tests.deployment import dockerfile
from tests.deployment.compose import Compose, Service
from tests.ports import free_ports
from tests.waiting import eventually, in_time

ENTRYPOINTS: Final = {"remit": (sys.executable, "-m", "remit.cli.main")}
LOOPBACK: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 60.0
_STAGES: Final = dockerfile.stages(dockerfile.FILE.read_text(encoding="utf-8"))
_PATH: Final = re.compile(r"(?<![\w.-])/(?:installation|etc|var|run)(?:/[\w.-]+)*")
_ANY: Final = "0.0.0.0"  # noqa: S104 - what a container listens on
_PASSED_ON: Final = ("PATH", "LANG", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT")


class Rehearsal:
    """The processes of one compose file, in a folder of their own."""

    def __init__(self, compose: Compose, folder: Path) -> None:
        self.compose = compose
        self.folder = folder
        self.services = {service.name: service for service in compose.of_profile()}
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        topology = Topology.parse(yaml.safe_load(compose.config("topology")), source="compose")
        ports = [5432, *(address.port for _, address in topology.listeners())]
        self.ports = dict(zip(ports, free_ports(len(ports)), strict=True))
        self.edge = f"{LOOPBACK}:{self.ports[topology.edge.port]}"
        self._done: dict[str, asyncio.Task[None]] = {}

    async def up(self) -> None:
        """Starts everything in the order of the file; returns when every health check passes."""
        for name in self.services:
            self._done[name] = asyncio.create_task(self._start(self.services[name]), name=name)
        await asyncio.gather(*self._done.values())
        await asyncio.gather(*(self._healthy(s) for s in self.services.values() if not s.is_job))

    async def run_again(self, name: str) -> None:
        """Runs a job once more, as the next `up` does."""
        await self._start(self.services[name])

    async def execute(self, name: str, *command: str) -> str:
        """`docker compose exec NAME COMMAND`; returns what it printed."""
        process = await asyncio.create_subprocess_exec(
            *self._program(command, self.services[name]),
            env=self.environment(self.services[name]),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        return output.decode()

    async def stop(self, name: str) -> int:
        """Stops one service as an engine does; returns its exit code."""
        process = self.processes[name]
        if process.returncode is None:
            process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
        return await in_time(process.wait(), 30)

    async def down(self) -> dict[str, int]:
        """Stops what depends on others before them; returns exit codes in the order of ends."""
        codes: dict[str, int] = {}
        running = [name for name in self.services if not self.services[name].is_job]
        while running:
            last = [
                name
                for name in running
                if not any(name in self.services[other].needs for other in running)
            ]
            ended = await asyncio.gather(*(self.stop(name) for name in last))
            codes |= dict(zip(last, ended, strict=True))
            running = [name for name in running if name not in last]
        return codes

    async def kill(self) -> None:
        """Leaves nothing behind, whatever happened."""
        for task in self._done.values():
            task.cancel()
        await asyncio.gather(*self._done.values(), return_exceptions=True)
        for process in self.processes.values():
            # The id of one that ended may be somebody else's by now: a busy machine hands out all
            # of them within minutes.
            if process.returncode is None:
                signal_session(process.pid, signal.SIGKILL)
                await process.wait()

    def log(self, name: str) -> str:
        """What a service printed."""
        file = self.folder / f"{name}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    # ------------------------------------------------------------------------------- mapping

    def volume(self, name: str) -> Path:
        """The folder that stands for a volume."""
        made = self.folder / "volumes" / name
        made.mkdir(parents=True, exist_ok=True)
        return made

    def root(self, service: Service) -> Path:
        """The container's root: its mounts as links to volumes, and its config files."""
        root = self.folder / "roots" / service.name
        if root.exists():
            return root
        for mount in service.mounts:
            place = root / mount.target.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(self.volume(mount.source))
        for target, name in service.configs.items():
            file = root / target.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self._content(name))
        return root

    def mapped(self, text: str, service: Service) -> str:
        """What `text` means to the process that stands for `service`."""
        text = _PATH.sub(lambda match: f"{self.root(service)}{match[0]}", text)
        names = "|".join(map(re.escape, self.services))
        text = re.sub(rf"\b({names}):(?=\d)", f"{LOOPBACK}:", text).replace(_ANY, LOOPBACK)
        return re.sub(r"\b\d{4}\b", lambda match: self._port(match[0]), text)

    def _port(self, number: str) -> str:
        return str(self.ports.get(int(number), number))

    def environment(self, service: Service) -> dict[str, str]:
        """The environment of the container, and what any process of this machine needs."""
        image = dockerfile.variables(_STAGES[-1]) if service.is_remit else {}
        image.pop("PATH", None)
        own = {name: self.mapped(value, service) for name, value in service.environment.items()}
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return passed | image | own

    def _content(self, config: str) -> str:
        content = self.compose.config(config)
        if config != "topology":
            return content
        return str(yaml.safe_dump(self._on_loopback(yaml.safe_load(content))))

    def _on_loopback(self, node: Any) -> Any:
        if isinstance(node, dict):
            moved = {key: self._on_loopback(value) for key, value in node.items()}
            if "host" in moved:
                moved["host"] = LOOPBACK
                moved |= {k: self.ports[v] for k, v in node.items() if k.endswith("port")}
            return moved
        return [self._on_loopback(item) for item in node] if isinstance(node, list) else node

    def _program(self, words: Sequence[str], service: Service) -> list[str]:
        first, *rest = [self.mapped(word, service) for word in words]
        return [*ENTRYPOINTS.get(first, (first,)), *rest]

    # ------------------------------------------------------------------------------ processes

    async def _start(self, service: Service) -> None:
        for name, condition in service.needs.items():
            await self._done[name]
            if condition == "service_healthy":
                await self._healthy(self.services[name])
        command, tie = await self._command(service)
        output = os.open(
            self.folder / f"{service.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND
        )
        try:
            process = await spawn_tethered(
                command, tie, output, environment=self.environment(service)
            )
        finally:
            os.close(output)
        self.processes[service.name] = process
        if service.is_job:
            code = await in_time(process.wait(), START_TIMEOUT_S)
            assert code == 0, f"{service.name} ended with {code}: {self.log(service.name)}"

    async def _command(self, service: Service) -> tuple[list[str], Tie]:
        if service.name == "postgres":
            return await self._initialise_postgres(service)
        if service.name == "gateway":
            assert service.entrypoint == ["/usr/local/bin/envoy"]
            return [str(find_envoy(None)), *self._envoy_arguments(service)], Tie()
        assert service.is_remit
        entry = dockerfile.one(_STAGES[-1], "ENTRYPOINT").words
        return self._program([*entry, *service.command], service), Tie()

    def _envoy_arguments(self, service: Service) -> list[str]:
        """Envoy's own paths stand in the file that the job rendered, where no mapping saw them."""
        words = [self.mapped(word, service) for word in service.command]
        rendered = words.index("--config-path") + 1
        text = Path(words[rendered]).read_text(encoding="utf-8")
        assert '"/etc/remit/tls/mesh/cert.pem"' in text
        own = self.folder / "envoy.json"
        own.write_text(text.replace('"/etc/remit/', f'"{self.root(service)}/etc/remit/'))
        words[rendered] = str(own)
        return words

    async def _initialise_postgres(self, service: Service) -> tuple[list[str], Tie]:
        """What the image's entry point does: initdb with the password's file, then the command."""
        account, data = _account(), self.folder / "pgdata"
        programs = _programs(self.folder, account)
        tie = Tie(signal.SIGINT, account.uid, account.gid, folder=self.folder)
        password = self.folder / "pg-password"
        shutil.copyfile(
            self.mapped(service.environment["POSTGRES_PASSWORD_FILE"], service), password
        )
        data.mkdir(mode=0o700)
        for path in (data, password):
            account.owns(path)
        initdb = await spawn_tethered(
            [
                *(str(programs / "initdb"), "-D", str(data), "--username=postgres"),
                *("--auth=scram-sha-256", f"--pwfile={password}", "--no-sync"),
                *service.environment["POSTGRES_INITDB_ARGS"].split(),
            ],
            tie,
            subprocess.DEVNULL,
        )
        assert await initdb.wait() == 0
        program, *arguments = service.command
        assert program == "postgres"
        where = f"-c listen_addresses={LOOPBACK} -c port={self.ports[5432]}".split()
        return [
            *(str(programs / "postgres"), "-D", str(data), *where),
            *("-c", "unix_socket_directories=", *arguments),
        ], tie

    async def _healthy(self, service: Service) -> None:
        async def healthy() -> bool:
            process = self.processes[service.name]
            assert process.returncode is None, f"{service.name} ended: {self.log(service.name)}"
            return await self._passes(service)

        await eventually(healthy, START_TIMEOUT_S)

    async def _passes(self, service: Service) -> bool:
        """Its health check, or the image's; without either, as for Envoy, all is well."""
        if not (service.health or service.is_remit):
            return True
        if not await self._listens(service):
            return False  # asked without a process: on a busy machine probes cost much
        command = service.health or dockerfile.one(_STAGES[-1], "HEALTHCHECK").words
        if service.name == "postgres":
            command = [str(_programs(self.folder, _account()) / command[0]), *command[1:]]
        process = await asyncio.create_subprocess_exec(
            *self._program(command, service),
            env=self.environment(service) | {"PGPORT": str(self.ports[5432])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return await process.wait() == 0

    async def _listens(self, service: Service) -> bool:
        """Whether the plain port of a service, if it has one, says that it is ready."""
        ports = [int(v) for k, v in self.environment(service).items() if k.endswith("_HTTP_PORT")]
        return not [port for port in ports if await not_ready(LOOPBACK, port)]

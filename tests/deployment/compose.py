"""Reads docker-compose.yml as Compose does: variables, anchors, mounts, dependencies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
FILE: Final = ROOT / "docker-compose.yml"
IMAGE: Final = "remit:local"
_VARIABLE: Final = re.compile(r"\$\{[A-Z_]+:-(?P<default>[^}]*)\}")


@dataclass(frozen=True)
class Mount:
    """A volume or a folder of this repository, and where a container sees it."""

    source: str
    target: str
    read_only: bool
    is_volume: bool


class Service:
    """One service of the file."""

    def __init__(self, name: str, document: Mapping[str, Any]) -> None:
        self.name = name
        self.document = document

    @property
    def image(self) -> str:
        return str(self.document["image"])

    @property
    def is_remit(self) -> bool:
        return self.image == IMAGE

    @property
    def is_job(self) -> bool:
        return self.is_remit and self.document.get("restart") == "no"

    @property
    def profiles(self) -> list[str]:
        return list(self.document.get("profiles", ()))

    @property
    def entrypoint(self) -> list[str]:
        return [str(word) for word in self.document.get("entrypoint", ())]

    @property
    def command(self) -> list[str]:
        return [str(word) for word in self.document.get("command", ())]

    @property
    def environment(self) -> dict[str, str]:
        found = self.document.get("environment", {})
        assert isinstance(found, dict), f"{self.name}: write the environment as a map"
        return {key: str(value) for key, value in found.items()}

    @property
    def networks(self) -> set[str]:
        return set(self.document.get("networks", ()))

    @property
    def needs(self) -> dict[str, str]:
        """Services that come before, with what is awaited of them."""
        found = self.document.get("depends_on", {})
        return {name: str(value["condition"]) for name, value in found.items()}

    @property
    def restarted_with(self) -> set[str]:
        """Services whose restart by Compose restarts this one."""
        found = self.document.get("depends_on", {})
        return {name for name, value in found.items() if value.get("restart")}

    @property
    def mounts(self) -> list[Mount]:
        return [_mount(entry) for entry in self.document.get("volumes", ())]

    @property
    def configs(self) -> dict[str, str]:
        """Path in the container to the name of a config."""
        return {entry["target"]: entry["source"] for entry in self.document.get("configs", ())}

    @property
    def health(self) -> list[str]:
        """The command of its health check; empty for the image's own."""
        test = self.document.get("healthcheck", {}).get("test", ())
        assert not test or test[0] == "CMD", self.name
        return [str(word) for word in test[1:]]


class Compose:
    """The file, and the configuration files beside it, some of which `files` may replace."""

    def __init__(self, document: dict[str, Any], files: Mapping[str, str] | None = None) -> None:
        self.document = document
        self._files = files or {}
        self.services = {
            name: Service(name, document) for name, document in self.document["services"].items()
        }

    @classmethod
    def load(cls) -> Compose:
        return cls.parse(FILE.read_text(encoding="utf-8"))

    @classmethod
    def parse(cls, text: str, files: Mapping[str, str] | None = None) -> Compose:
        """The file with no variable set."""
        return cls(interpolated(yaml.safe_load(text)), files)

    def config(self, name: str) -> str:
        """What a config holds: a file's text, or content that stands here."""
        config = self.document["configs"][name]
        if "content" in config:
            return str(config["content"])
        file = str(config["file"])
        return self._files.get(file) or (ROOT / file).read_text(encoding="utf-8")

    def of_profile(self, *profiles: str) -> Iterator[Service]:
        for service in self.services.values():
            if not service.profiles or set(service.profiles) & set(profiles):
                yield service


def interpolated(node: Any) -> Any:
    """Replaces `${NAME:-default}` by its default, in values as Compose does, after YAML."""
    if isinstance(node, dict):
        return {key: interpolated(value) for key, value in node.items()}
    if isinstance(node, list):
        return [interpolated(value) for value in node]
    if not isinstance(node, str):
        return node
    replaced = _VARIABLE.sub(lambda match: match["default"], node)
    assert "${" not in replaced, "a variable without default, or in a form not read here"
    return replaced


def _mount(entry: str | Mapping[str, Any]) -> Mount:
    if isinstance(entry, str):
        source, target, *mode = entry.split(":")
        return Mount(source, target, "ro" in mode, is_volume=not source.startswith("."))
    assert entry["type"] == "volume"
    return Mount(entry["source"], entry["target"], bool(entry.get("read_only")), is_volume=True)

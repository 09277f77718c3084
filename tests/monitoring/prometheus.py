"""A real Prometheus that scrapes a running mesh: every replica and the gateway."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from remit.gateway.topology import Topology
from scripts import alerts
from tests.ports import free_ports
from tests.programs import program
from tests.waiting import PATIENCE

START_TIMEOUT_S = 120.0
EVERY_MS = 500
RATE_OVER = "2m"
"""Stands for Grafana's `$__rate_interval`: all of a short test."""


@dataclass(frozen=True)
class Sample:
    """One series of an instant query's result."""

    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Prometheus:
    """Prometheus and its HTTP API."""

    address: str

    def query(self, expr: str) -> list[Sample]:
        """The result of an instant query; a scalar has no labels. Raises if it is wrong."""
        data = self._get("query", query=expr)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(row["metric"], float(row["value"][1])) for row in data["result"]]

    def panel_query(self, expr: str) -> list[Sample]:
        """The result of a panel's query, without the series that are no number now."""
        given = expr.replace("$__rate_interval", RATE_OVER).replace("$agent", ".*")
        return [sample for sample in self.query(given) if not math.isnan(sample.value)]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health and state."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def series(self, selector: str) -> list[dict[str, str]]:
        """The labels of every series that a selector finds."""
        found: list[dict[str, str]] = self._get("series", **{"match[]": selector})
        return found

    def is_ready(self) -> bool:
        """Whether it serves."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def _get(self, what: str, **parameters: str) -> Any:
        url = f"http://{self.address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10 * PATIENCE) as answer:
            return json.load(answer)["data"]


@contextlib.contextmanager
def scraping(topology: Topology, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus with the shipped rules, ended with the body."""
    binary = program("prometheus", package="prometheus")
    (port,) = free_ports(1)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration(topology)))
    command = [
        str(binary),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    prometheus = Prometheus(f"127.0.0.1:{port}")
    with (
        (folder / "prometheus.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            _until_ready(prometheus, process, folder / "prometheus.log")
            yield prometheus
        finally:
            process.terminate()


def configuration(topology: Topology) -> dict[str, Any]:
    """A scrape configuration like that of docs/MONITORING.md, from a topology."""
    jobs = [
        {
            "job_name": area,
            "static_configs": [{"targets": [f"{r.host}:{r.http_port}" for r in replicas]}],
        }
        for area, replicas in topology.replicas.items()
    ]
    gateway = {
        "job_name": "gateway",
        "metrics_path": "/stats/prometheus",
        "static_configs": [{"targets": [str(topology.stats)]}],
    }
    interval = f"{EVERY_MS}ms"
    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [str(alerts.FILE)],
        "scrape_configs": [*jobs, gateway],
    }


def _until_ready(prometheus: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + START_TIMEOUT_S
    while not prometheus.is_ready():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < give_up, log.read_text()
        time.sleep(0.1)

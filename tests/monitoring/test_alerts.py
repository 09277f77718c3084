"""Every alert fires when it should, stays quiet when it should, and says what to do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from remit.api.errors.v1 import error_reason_pb2
from scripts import alerts
from tests.golden import assert_golden
from tests.monitoring.alert_cases import CASES, promtool_file
from tests.monitoring.registry import names_in, own_series
from tests.programs import program

RUNBOOK = Path(__file__).parents[2] / alerts.RUNBOOK
OTHERS = re.compile(r"envoy_(cluster|access_logs)_\w+|up")
"""Series that are not ours; test_live.py finds each of them in a real scrape."""
RULES = (*alerts.RECORDS, *alerts.ALERTS)
REASON = re.compile(r"[A-Z][A-Z_]*[A-Z]")


@pytest.mark.golden
def test_the_rules_are_rendered_from_the_alerts() -> None:
    assert_golden(alerts.FILE, alerts.rendered())


def test_prometheus_reads_the_rules() -> None:
    promtool = program("promtool", package="prometheus")
    checked = subprocess.run(
        [promtool, "check", "rules", "--lint-fatal", str(alerts.FILE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(RULES)} rules found" in checked.stdout


def test_alerts_fire_and_stay_quiet(tmp_path: Path) -> None:
    promtool = program("promtool", package="prometheus")
    cases = tmp_path / "cases.yaml"
    cases.write_text(yaml.safe_dump(promtool_file()))
    tested = subprocess.run(
        [promtool, "test", "rules", str(cases)], capture_output=True, text=True, check=False
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("alert", alerts.ALERTS, ids=lambda alert: alert.name)
def test_an_alert_is_complete(alert: alerts.Alert) -> None:
    assert alert.severity in {alerts.CRITICAL, alerts.WARNING}
    assert alert.summary
    assert alert.description.endswith(".")
    mine = [case for case in CASES if case.alert == alert.name]
    assert any(case.fires for case in mine)
    assert any(case.quiet for case in mine)


@pytest.mark.parametrize("alert", alerts.ALERTS, ids=lambda alert: alert.name)
def test_an_alert_has_its_section_in_the_runbook(alert: alerts.Alert) -> None:
    _, heading, section = RUNBOOK.read_text().partition(f"\n### {alert.name}\n")
    assert heading, f"{alerts.RUNBOOK} has no section {alert.name}"
    assert len(section.partition("\n#")[0].strip()) > 80, "it says what to look at and what to do"
    assert alert.anchor == re.sub(r"[^a-z0-9-]", "", alert.name.lower())


def test_the_runbook_has_no_section_without_an_alert() -> None:
    sections = set(re.findall(r"^### (Remit\w+)$", RUNBOOK.read_text(), re.MULTILINE))
    assert sections == {alert.name for alert in alerts.ALERTS}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_reads_only_what_there_is(rule: alerts.Record | alerts.Alert) -> None:
    recorded = {record.name for record in alerts.RECORDS}
    unknown = {
        name
        for name in names_in(rule.expr)
        if name not in own_series() and name not in recorded and not OTHERS.fullmatch(name)
    }
    assert not unknown


def test_reasons_in_rules_exist() -> None:
    reasons = {
        name.removeprefix("ERROR_REASON_")
        for name in error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name
    }
    results = re.findall(r'(?:result|decision)[=!]~"([^"]*)"', alerts.rendered())
    named = {word for words in results for word in words.split("|")}
    assert named <= reasons | {"ALLOW", "DENY"}
    assert named & reasons


@pytest.mark.parametrize(
    "file", ["k8s/components/observability/prometheus.yaml", "compose/prometheus.yaml"]
)
def test_the_shipped_scrape_jobs_are_those_that_alerts_know(file: str) -> None:
    jobs = re.findall(r"job_name: (\S+)", (alerts.ROOT / file).read_text())
    assert sorted(jobs) == sorted(alerts.JOBS.split("|"))

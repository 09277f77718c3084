"""For each alert: series that fire it, what it then says, and series that must not fire it.

Values are promtool's: `a+bxn` begins at a and adds b for n more samples, one a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from remit.rpc.contracts import AREAS
from scripts import alerts

Series = Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """One alert under test. `says` is its summary with labels and value filled in."""

    alert: str
    fires: Series
    says: str
    labels: Mapping[str, str] = field(default_factory=dict)
    quiet: Series = field(default_factory=dict)
    explains: str = ""
    """The description filled in, where it has anything to fill in."""
    at: str = "40m"


NOT_READY: Final = {f'remit_ready{{area="{area}"}}': "0+0x60" for area in AREAS}
"""Every service is there, and none can do its work."""
READ_AT: Final = "https://docs.example.com/monitoring.html"
GATEWAY: Final = 'up{job="gateway"}'
OLDEST: Final = 'remit_effects_standing_oldest_seconds{action="tools.call",state="%s"}'
MESH_COST: Final = 'envoy_cluster_name="mesh_cost"'


def swinging(*values: int, times: int = 20) -> str:
    """Samples that go through these values again and again, as under load."""
    return " ".join(map(str, values * times))


CASES: Final = (
    Case(
        "RemitQueueGrowing",
        fires={"agent_queue_length": "0+1x60"},
        says="40 runs wait for a worker, and they become more",
        quiet={"agent_queue_length": "50+0x60"},
    ),
    Case(
        "RemitQueueStuck",
        # Full, so that it cannot grow; and the runs being worked on do not end.
        fires={
            "agent_queue_length": "1000+0x60",
            'agent_requests_total{agent="agents/a",state="SUCCEEDED"}': "0+10x20 200+0x40",
            'agent_runs_claimed_total{origin="queue"}': "0+10x20 200+0x40",
        },
        says="1000 runs wait for a worker and none is taken",
        quiet={
            "agent_queue_length": "1000+0x60",
            'agent_requests_total{agent="agents/a",state="SUCCEEDED"}': "0+0x60",
            'agent_runs_claimed_total{origin="queue"}': "0 0 0 0+1x60",
        },
    ),
    Case(
        "RemitQueueStuck",
        # Nothing ever ended here.
        fires={"agent_queue_length": "3+0x60"},
        says="3 runs wait for a worker and none is taken",
        quiet={
            "agent_queue_length": "3+0x60",
            'agent_requests_total{agent="agents/a",state="FAILED"}': "0+1x60",
        },
    ),
    Case(
        "RemitRunsSlow",
        fires=dict.fromkeys(
            (
                'agent_execution_seconds_bucket{agent="agents/a",le="60"}',
                'agent_execution_seconds_bucket{agent="agents/a",le="+Inf"}',
            ),
            "0+60x60",
        ),
        says="one run in twenty of agents/a takes more than 57s",
        labels={"agent": "agents/a"},
        quiet=dict.fromkeys(
            (
                'agent_execution_seconds_bucket{agent="agents/a",le="1"}',
                'agent_execution_seconds_bucket{agent="agents/a",le="+Inf"}',
            ),
            "0+60x60",
        ),
    ),
    Case(
        "RemitRunErrors",
        fires={
            'agent_requests_total{agent="agents/a",state="FAILED"}': "0+10x60",
            'agent_requests_total{agent="agents/a",state="SUCCEEDED"}': "0+30x60",
        },
        says="25% of the runs of agents/a fail",
        labels={"agent": "agents/a"},
        quiet={
            'agent_requests_total{agent="agents/a",state="FAILED"}': "0+1x60",
            'agent_requests_total{agent="agents/a",state="CANCELLED"}': "0+100x60",
        },
    ),
    Case(
        "RemitRunsWait",
        fires={'agent_runs_waiting{reason="PROVIDER_UNAVAILABLE"}': "3+0x60"},
        says="runs have waited for 15 minutes because of PROVIDER_UNAVAILABLE",
        explains="3 runs try the same step again and again; they fail at their own deadline.",
        labels={"reason": "PROVIDER_UNAVAILABLE"},
        quiet={'agent_runs_waiting{reason="PROVIDER_UNAVAILABLE"}': "0 3 0 3+0x10 0+0x60"},
    ),
    Case(
        "RemitAdoptionStorm",
        fires={'agent_runs_claimed_total{origin="orphan"}': "0+5x60"},
        says="50 runs lost their worker within 10 minutes",
        quiet={
            'agent_runs_claimed_total{origin="orphan"}': "0+1x60",
            'agent_runs_claimed_total{origin="queue"}': "0+1000x60",
        },
    ),
    Case(
        "RemitWebhooksGivenUp",
        fires={'agent_webhooks_total{state="FAILED"}': "0+1x60"},
        says="40 webhooks were given up within an hour",
        quiet={
            'agent_webhooks_total{state="FAILED"}': "0+0.2x60",
            'agent_webhooks_total{state="DELIVERED"}': "0+1000x60",
        },
    ),
    Case(
        "RemitApprovalsLapse",
        # Both replicas see the same.
        fires={
            f'remit_approvals_waited_ratio{{instance="{replica}"}}': "0.8+0.001x60"
            for replica in ("h:1", "h:2")
        },
        says="an approval has waited for people for 84% of its time",
        # Half of its time is a person's; and one that has minutes is late before anybody reads it.
        quiet={"remit_approvals_waited_ratio": "0.5+0x36 0.9+0x10"},
    ),
    Case(
        "RemitEffectsInDoubt",
        # The series appears with its first event.
        fires={'remit_effects_total{action="tools.call",outcome="IN_DOUBT"}': "_x35 1+0x5"},
        says="effects started and nobody knows whether they took place",
        labels={"action": "tools.call"},
        quiet={
            'remit_effects_total{action="tools.call",outcome="IN_DOUBT"}': "7+0x60",
            'remit_effects_total{action="tools.call",outcome="FAILED"}': "0+1x60",
            'remit_claims_lapsed_total{state="REFUSED"}': "0+1x60",
        },
    ),
    Case(
        "RemitEffectsInDoubt",
        fires={'remit_claims_lapsed_total{state="IN_DOUBT"}': "0+0x30 0+1x10"},
        says="effects started and nobody knows whether they took place",
        labels={"state": "IN_DOUBT"},
    ),
    Case(
        "RemitAuditLag",
        fires={OLDEST % "UNCLOSED": "0+60x60"},
        says="an effect of tools.call ended 40m 0s ago and is not settled and recorded",
        labels={"action": "tools.call"},
        quiet={
            OLDEST % "UNCLOSED": "9+0x60",
            OLDEST % "STARTED": "0+60x60",
        },
    ),
    Case(
        "RemitHoldsOld",
        fires={'remit_holds_oldest_seconds{action="models.generate"}': "0+60x60"},
        says="money has been held for 40m 0s by one effect",
        labels={"action": "models.generate"},
        quiet={'remit_holds_oldest_seconds{action="models.generate"}': "300+0x60"},
    ),
    Case(
        "RemitHoldsLeaked",
        fires={
            "remit_ledger_held_nanos": "500+0x60",
            'remit_holds_open_nanos{action="tools.call"}': "0+0x60",
            'remit_effects_standing{action="tools.call",state="CLAIMED"}': "0+0x60",
        },
        says="the ledger holds 500 nano-USD that no open effect accounts for",
        # Closings wait for audit, and attempts that were refused do not name their holds.
        quiet={
            "remit_ledger_held_nanos": "500+0x60",
            'remit_holds_open_nanos{action="tools.call"}': "400+0x60",
            OLDEST % "UNCLOSED": "0+60x60",
        },
    ),
    Case(
        "RemitHoldsLeaked",
        # A busy mesh: attempts stand open at all times, what they hold swings, some 5000 are lost.
        fires={
            "remit_ledger_held_nanos": swinging(9000, 7000, 8200),
            'remit_holds_open_nanos{action="tools.call"}': swinging(1000, 1100, 900),
            'remit_holds_open_nanos{action="models.generate"}': swinging(2500, 1400, 2000),
            'remit_effects_standing{action="tools.call",state="STARTED"}': "3+0x60",
            'remit_effects_standing{action="tools.call",state="CLAIMED"}': "1+0x60",
            OLDEST % "CLAIMED": "1+0x60",
            OLDEST % "STARTED": "300+0x60",
        },
        says="the ledger holds 4500 nano-USD that no open effect accounts for",
        # As busy, and nothing lost: the ledger is often looked at before the attempts are.
        quiet={
            "remit_ledger_held_nanos": swinging(4000, 3000, 3500),
            'remit_holds_open_nanos{action="tools.call"}': swinging(1000, 1100, 900),
            'remit_holds_open_nanos{action="models.generate"}': swinging(2500, 2000, 2500),
            'remit_effects_standing{action="tools.call",state="STARTED"}': "3+0x60",
        },
    ),
    Case(
        "RemitHoldsUnclaimed",
        fires={"remit_ledger_holds_unclaimed": "2+0x60"},
        says="2 holds in the ledger belong to no claim",
        quiet={"remit_ledger_holds_unclaimed": swinging(0, 0, 0, 0, 1)},
    ),
    Case(
        "RemitHoldsOverdue",
        fires={"remit_ledger_holds_overdue": "3+0x60"},
        says="3 holds are open although their claims have ended or lost their owners",
        quiet={"remit_ledger_holds_overdue": swinging(0, 0, 0, 0, 1)},
    ),
    Case(
        "RemitOverrun",
        fires={'remit_overrun_nanos_total{item="models/a"}': "_x60 250+0x10"},
        says="models/a billed 250 nano-USD more than was held",
        labels={"item": "models/a"},
        quiet={'remit_overrun_nanos_total{item="models/a"}': "250+0x70"},
        at="70m",
    ),
    Case(
        "RemitBudgetReached",
        fires={
            'remit_budget_alerts_total{enforcement="HARD",level="LIMIT"}': "_x60 2+0x10",
            'remit_budget_alerts_total{enforcement="SOFT",level="LIMIT"}': "_x60 1+0x10",
        },
        says="3 budgets came to the level LIMIT within an hour",
        labels={"level": "LIMIT"},
        quiet={'remit_budget_alerts_total{enforcement="HARD",level="LIMIT"}': "3+0x70"},
        at="70m",
    ),
    Case(
        "RemitLogNotWritable",
        fires={
            'remit_audit_appends_total{kind="INTENT",result="DEPENDENCY_UNAVAILABLE"}': "0+1x60"
        },
        says="events cannot be appended to the audit log",
        quiet={
            'remit_audit_appends_total{kind="INTENT",result="OK"}': "0+100x60",
            'remit_audit_appends_total{kind="INTENT",result="KEY_REUSED"}': "0+1x60",
            'remit_commit_failures_total{writer="audit_log"}': "4+0x60",
        },
    ),
    Case(
        "RemitLogNotWritable",
        fires={'remit_commit_failures_total{writer="audit_log"}': "0+1x60"},
        says="events cannot be appended to the audit log",
    ),
    Case(
        "RemitCheckpointStale",
        fires={"remit_audit_checkpoint_timestamp_seconds": "0+0x60"},
        says="no signed checkpoint has covered the whole log for 40m 0s",
        quiet={"remit_audit_checkpoint_timestamp_seconds": "0+60x60"},
    ),
    Case(
        "RemitTilesFail",
        fires={'remit_audit_tiles_failures_total{reason="ENOSPC"}': "0+1x60"},
        says="tiles of the audit log are not written: ENOSPC",
        labels={"reason": "ENOSPC"},
        quiet={'remit_audit_tiles_failures_total{reason="ENOSPC"}': "9+0x60"},
    ),
    Case(
        "RemitArchiveFails",
        fires={"remit_audit_archive_failing": "1x60"},
        says="old months of the audit log are not archived",
        quiet={"remit_audit_archive_failing": "1x15 0x45"},
    ),
    Case(
        "RemitLogRolledBack",
        fires={"remit_audit_rolled_back": "0x10 1x50"},
        says="the audit log lacks entries that it had signed; no effect starts",
        quiet={"remit_audit_rolled_back": "0+0x60"},
    ),
    Case(
        "RemitCommitsFail",
        fires={'remit_commit_failures_total{writer="claims"}': "0+1x60"},
        says="commits of claims fail",
        labels={"writer": "claims"},
        quiet={'remit_commit_failures_total{writer="claims"}': "9+0x60"},
    ),
    Case(
        "RemitUndecided",
        fires={'remit_policy_decisions_total{kind="tool",decision="UNDECIDED"}': "0+1x60"},
        says="policy cannot decide: UNDECIDED",
        labels={"decision": "UNDECIDED"},
        quiet={
            'remit_policy_decisions_total{kind="tool",decision="DENY"}': "0+1x60",
            'remit_policy_decisions_total{kind="tool",decision="ALLOW"}': "0+1x60",
            'remit_policy_decisions_total{kind="tool",decision="FENCED"}': "0+1x60",
            'remit_policy_decisions_total{kind="tool",decision="APPROVAL_REQUIRED"}': "0+1x60",
        },
    ),
    Case(
        "RemitEdgeLogDropped",
        fires={"envoy_access_logs_grpc_access_log_logs_dropped": "0x20 0+5x40"},
        says="the gateway dropped 75 entries of what it refused by itself",
        labels={},
        quiet={
            "envoy_access_logs_grpc_access_log_logs_dropped": "7+0x60",
            "envoy_access_logs_grpc_access_log_logs_written": "0+1x60",
        },
    ),
    Case(
        "RemitServiceDown",
        fires={'up{job="agent",instance="h:1"}': "1+0x30 0+0x10"},
        says="agent h:1 does not answer Prometheus",
        labels={"job": "agent", "instance": "h:1"},
        quiet={
            'up{job="agent",instance="h:1"}': "1+0x60",
            'up{job="agent",instance="starting"}': "_x37 0 0 1",
            'up{job="other"}': "0+0x60",
        },
    ),
    Case(
        "RemitServiceNotReady",
        fires={'remit_ready{area="cost",job="cost",instance="h:1"}': "1+0x30 0+0x10"},
        says="a replica of cost is up and cannot do its work",
        explains="h:1/ready says why; mostly its database is away.",
        labels={"area": "cost", "job": "cost", "instance": "h:1"},
        quiet={'remit_ready{area="cost",instance="h:1"}': "1+0x38 0 1"},
    ),
    Case(
        "RemitServiceMissing",
        fires={**NOT_READY, 'remit_ready{area="tools"}': "_x60", GATEWAY: "1+0x60"},
        says="there is no replica of tools",
        labels={"area": "tools"},
        quiet={**NOT_READY, GATEWAY: "0+0x60"},
    ),
    Case(
        "RemitServiceMissing",
        fires=NOT_READY,
        says="there is no replica of gateway",
        labels={"area": "gateway", "job": "gateway"},
    ),
    Case(
        "RemitRpcErrors",
        fires={
            'remit_rpc_requests_total{method="/m",code="OK"}': "0+30x60",
            'remit_rpc_requests_total{method="/m",code="UNAVAILABLE"}': "0+10x60",
        },
        says="25% of the calls of /m fail",
        labels={"method": "/m"},
        quiet={
            'remit_rpc_requests_total{method="/m",code="OK"}': "0+30x60",
            'remit_rpc_requests_total{method="/m",code="PERMISSION_DENIED"}': "0+10x60",
        },
    ),
    Case(
        "RemitOverloaded",
        fires={'remit_rpc_overloaded_total{method="/m"}': "0+60x60"},
        says="/m refuses 1 calls a second for want of room",
        labels={"method": "/m"},
        # A burst that is over, and a budget that is used up.
        quiet={
            'remit_rpc_overloaded_total{method="/m"}': "0+0x34 500+0x10",
            'remit_rpc_requests_total{method="/m",code="RESOURCE_EXHAUSTED"}': "0+60x60",
        },
    ),
    Case(
        "RemitBreakerOpen",
        # Open between the scrapes, and at none of them.
        fires={
            f"envoy_cluster_upstream_rq_active_overflow{{{MESH_COST}}}": "0+60x60",
            f"envoy_cluster_upstream_rq_pending_overflow{{{MESH_COST}}}": "0+0x60",
            f"envoy_cluster_circuit_breakers_default_rq_open{{{MESH_COST}}}": "0+0x60",
        },
        says="the gateway refuses 1 calls a second to mesh_cost",
        labels={"envoy_cluster_name": "mesh_cost"},
        # A burst that is over, in a cluster whose connections were all in use.
        quiet={
            f"envoy_cluster_upstream_rq_active_overflow{{{MESH_COST}}}": "0+0x34 500+0x10",
            f"envoy_cluster_circuit_breakers_default_cx_open{{{MESH_COST}}}": "1+0x60",
        },
    ),
    Case(
        "RemitBreakerOpen",
        # No connection could be made, and too many calls waited for one.
        fires={f"envoy_cluster_upstream_rq_pending_overflow{{{MESH_COST}}}": "0+60x60"},
        says="the gateway refuses 1 calls a second to mesh_cost",
        labels={"envoy_cluster_name": "mesh_cost"},
    ),
    Case(
        "RemitRetriesHigh",
        fires={
            'envoy_cluster_upstream_rq_retry{envoy_cluster_name="mesh_cost"}': "0+20x60",
            'envoy_cluster_upstream_rq_total{envoy_cluster_name="mesh_cost"}': "0+100x60",
        },
        says="20% of the calls to mesh_cost are sent again",
        labels={"envoy_cluster_name": "mesh_cost"},
        quiet={
            'envoy_cluster_upstream_rq_retry{envoy_cluster_name="mesh_cost"}': "0+1x60",
            'envoy_cluster_upstream_rq_total{envoy_cluster_name="mesh_cost"}': "0+100x60",
        },
    ),
    Case(
        "RemitCertificateExpires",
        fires={
            "envoy_cluster_ssl_certificate_expiration_unix_time_seconds"
            '{envoy_cluster_name="mesh_cost"}': "93600+0x60"
        },
        says="a certificate of the gateway expires in 1d 1h 20m 0s",
        labels={"envoy_cluster_name": "mesh_cost"},
        quiet={
            "envoy_cluster_ssl_certificate_expiration_unix_time_seconds"
            '{envoy_cluster_name="mesh_cost"}': "9936000+0x60"
        },
    ),
)


def promtool_file() -> dict[str, Any]:
    """The cases in the form of `promtool test rules`; the first also where the runbook is told."""
    tests = [_test(case.fires, case, [_fired(case)]) for case in CASES]
    tests += [_test(case.quiet, case, []) for case in CASES if case.quiet]
    told = _test(CASES[0].fires, CASES[0], [_fired(CASES[0], READ_AT)])
    tests.append(told | {"external_labels": {alerts.RUNBOOK_LABEL: READ_AT}})
    return {"rule_files": [str(alerts.FILE)], "evaluation_interval": "1m", "tests": tests}


def _test(series: Series, case: Case, fired: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "name": f"{case.alert} {'fires' if fired else 'stays quiet'}",
        "input_series": [{"series": name, "values": value} for name, value in series.items()],
        "alert_rule_test": [{"eval_time": case.at, "alertname": case.alert, "exp_alerts": fired}],
    }


def _fired(case: Case, runbook: str = alerts.RUNBOOK) -> dict[str, Any]:
    alert = next(alert for alert in alerts.ALERTS if alert.name == case.alert)
    return {
        "exp_labels": {**case.labels, "severity": alert.severity},
        "exp_annotations": {
            "summary": case.says,
            "description": case.explains or alert.description,
            "runbook_url": f"{runbook}#{alert.anchor}",
        },
    }

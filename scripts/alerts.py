"""Prometheus rules of Remit, rendered from the alerts below: what wakes somebody, and why.

The file is golden: `make golden` renews it, `promtool` checks it, and each alert has a test of
series that fire it and of series that do not (tests/monitoring). Each alert links to the section of
docs/MONITORING.md that bears its name, wherever its people serve that page.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import yaml

from remit.rpc.contracts import AREAS

ROOT: Final = Path(__file__).resolve().parents[1]
FILE: Final = ROOT / "k8s/components/observability/rules" / "remit.rules.yaml"
RUNBOOK: Final = "docs/MONITORING.md"
RUNBOOK_LABEL: Final = "remit_runbook"
"""External label of a Prometheus that says where its people read the runbook."""
_RUNBOOK_URL: Final = (
    f"{{{{ with $externalLabels.{RUNBOOK_LABEL} }}}}{{{{ . }}}}{{{{ else }}}}{RUNBOOK}{{{{ end }}}}"
)
HEAD: Final = "# Made from scripts/alerts.py by `make golden`; not edited.\n"

CRITICAL: Final = "critical"
"""Somebody is woken: effects cannot start, or what is recorded is at risk."""
WARNING: Final = "warning"
"""Somebody looks within the working day."""

JOBS: Final = "|".join([*AREAS, "gateway"])
"""Scrape jobs are named by the service that they scrape."""
_FAULTS: Final = "INTERNAL|UNKNOWN|DATA_LOSS|UNAVAILABLE|DEADLINE_EXCEEDED"
"""Codes that are the mesh's fault and not the caller's."""
_CLUSTER: Final = "envoy_cluster_name"


@dataclass(frozen=True)
class Record:
    """A recording rule: `level:metric:operation`, as Prometheus names them."""

    name: str
    expr: str


@dataclass(frozen=True)
class Alert:
    """An alerting rule. `lasts` is how long it must hold before it fires."""

    name: str
    expr: str
    lasts: str
    severity: Literal["critical", "warning"]
    summary: str
    description: str

    @property
    def anchor(self) -> str:
        """The section of the runbook, as Markdown names it."""
        return self.name.lower()


def appeared(expr: str, over: str, *, by: str) -> str:
    """What a counter gained, also where its series is younger than the time looked at.

    `increase` takes the first value of a new series as its zero, so the first of a rare event would
    not count.
    """
    now, before = f"sum by ({by}) ({expr})", f"sum by ({by}) ({expr} offset {over})"
    return f"(sum by ({by}) (increase({expr}[{over}])) > 0 or ({now} unless {before}) > 0)"


RECORDS: Final = (
    Record(
        "agent_state:agent_requests:rate5m",
        "sum by (agent, state) (rate(agent_requests_total[5m]))",
    ),
    Record(
        "agent:agent_requests:failed_ratio5m",
        'sum by (agent) (agent_state:agent_requests:rate5m{state="FAILED"})'
        " / sum by (agent) (agent_state:agent_requests:rate5m)",
    ),
    Record(
        "agent:agent_execution_seconds:p95_5m",
        "histogram_quantile(0.95, sum by (le, agent) (rate(agent_execution_seconds_bucket[5m])))",
    ),
    Record(
        "method_code:remit_rpc_requests:rate5m",
        "sum by (method, code) (rate(remit_rpc_requests_total[5m]))",
    ),
    Record(
        "method:remit_rpc_requests:fault_ratio5m",
        # A method that never failed has no series of its failures: its ratio is 0, not unknown.
        f'(sum by (method) (method_code:remit_rpc_requests:rate5m{{code=~"{_FAULTS}"}})'
        " or sum by (method) (method_code:remit_rpc_requests:rate5m) * 0)"
        " / sum by (method) (method_code:remit_rpc_requests:rate5m)",
    ),
    Record(
        "cluster:envoy_upstream_rq:retry_ratio5m",
        f"sum by ({_CLUSTER}) (rate(envoy_cluster_upstream_rq_retry[5m]))"
        f" / sum by ({_CLUSTER}) (rate(envoy_cluster_upstream_rq_total[5m]))",
    ),
)

RUNS: Final = (
    Alert(
        "RemitQueueGrowing",
        "max(agent_queue_length) > 10"
        " and max(agent_queue_length) > max(agent_queue_length offset 5m)",
        "10m",
        WARNING,
        "{{ $value }} runs wait for a worker, and they become more",
        "More runs are accepted than worked on. At max_queued_runs new ones are refused.",
    ),
    Alert(
        "RemitQueueStuck",
        "max(agent_queue_length) > 0"
        " unless sum(increase(agent_requests_total[5m])) > 0"
        ' unless sum(increase(agent_runs_claimed_total{origin="queue"}[5m])) > 0',
        "10m",
        CRITICAL,
        "{{ $value }} runs wait for a worker and none is taken",
        "No run has been taken from the queue, and none has ended, for 15 minutes.",
    ),
    Alert(
        "RemitRunsSlow",
        "agent:agent_execution_seconds:p95_5m > 30",
        "10m",
        WARNING,
        "one run in twenty of {{ $labels.agent }} takes more than {{ $value | humanizeDuration }}",
        "The 95th percentile of the time from creation to end is above 30 s.",
    ),
    Alert(
        "RemitRunErrors",
        "agent:agent_requests:failed_ratio5m > 0.05",
        "10m",
        WARNING,
        "{{ $value | humanizePercentage }} of the runs of {{ $labels.agent }} fail",
        "More than one run in twenty ends as FAILED.",
    ),
    Alert(
        "RemitRunsWait",
        "sum by (reason) (agent_runs_waiting) > 0",
        "15m",
        WARNING,
        "runs have waited for 15 minutes because of {{ $labels.reason }}",
        "{{ $value }} runs try the same step again and again; they fail at their own deadline.",
    ),
    Alert(
        "RemitAdoptionStorm",
        'sum(increase(agent_runs_claimed_total{origin="orphan"}[10m])) > 20',
        "0m",
        WARNING,
        "{{ $value | humanize }} runs lost their worker within 10 minutes",
        "Agent replicas crash, are killed, or get too little processor time to renew their leases.",
    ),
    Alert(
        "RemitWebhooksGivenUp",
        'sum(increase(agent_webhooks_total{state="FAILED"}[1h])) > 20',
        "0m",
        WARNING,
        "{{ $value | humanize }} webhooks were given up within an hour",
        "The ends of these runs were told to nobody; `Run.webhook` of each says why.",
    ),
    Alert(
        "RemitApprovalsLapse",
        "max(remit_approvals_waited_ratio) > 0.8",
        "5m",
        WARNING,
        "an approval has waited for people for {{ $value | humanizePercentage }} of its time",
        "Nobody has decided about it. At the end of its time it expires, and its run is told no.",
    ),
)

EFFECTS: Final = (
    Alert(
        "RemitEffectsInDoubt",
        appeared('remit_effects_total{outcome="IN_DOUBT"}', "15m", by="action")
        + " or "
        + appeared('remit_claims_lapsed_total{state="IN_DOUBT"}', "15m", by="state"),
        "0m",
        WARNING,
        "effects started and nobody knows whether they took place",
        "Their whole holds are posted and each is in the log with its claim. A tool that is not"
        " idempotent is not called again.",
    ),
    Alert(
        "RemitAuditLag",
        'max by (action) (remit_effects_standing_oldest_seconds{state="UNCLOSED"}) > 60',
        "2m",
        CRITICAL,
        "an effect of {{ $labels.action }} ended {{ $value | humanizeDuration }} ago and is not"
        " settled and recorded",
        "Its hold stays and its outcome is missing in the log until cost and audit take them.",
    ),
    Alert(
        "RemitHoldsOld",
        "max by (action) (remit_holds_oldest_seconds) > 900",
        "5m",
        WARNING,
        "money has been held for {{ $value | humanizeDuration }} by one effect",
        "No model or tool call lasts as long; somebody's budget is smaller than it should be.",
    ),
    Alert(
        "RemitHoldsLeaked",
        # The two are looked at at different moments, so under load their difference swings about
        # 0: only what is above 0 at every look is a leak. An attempt names its hold once it has
        # started: where attempts cannot start or cannot be closed for long, RemitAuditLag speaks.
        "max(remit_ledger_held_nanos) - sum(max by (action) (remit_holds_open_nanos)) > 0"
        " unless"
        ' max(remit_effects_standing_oldest_seconds{state=~"CLAIMED|UNCLOSED"}) > 60',
        "30m",
        WARNING,
        "the ledger holds {{ $value }} nano-USD that no open effect accounts for",
        "For half an hour it has held more than all open effects, at every look.",
    ),
    Alert(
        "RemitHoldsUnclaimed",
        "max(remit_ledger_holds_unclaimed) > 0",
        "5m",
        CRITICAL,
        "{{ $value }} holds in the ledger belong to no claim",
        "Nothing will ever close them: claims are never deleted, so a database was restored or"
        " changed by hand. `remit cost check` names each.",
    ),
    Alert(
        "RemitHoldsOverdue",
        "max(remit_ledger_holds_overdue) > 0",
        "5m",
        WARNING,
        "{{ $value }} holds are open although their claims have ended or lost their owners",
        "Their sweeper should have closed them within the bound of the lag. `remit cost check`"
        " names each.",
    ),
    Alert(
        "RemitOverrun",
        appeared("remit_overrun_nanos_total", "1h", by="item"),
        "0m",
        WARNING,
        "{{ $labels.item }} billed {{ $value | humanize }} nano-USD more than was held",
        "The operator's overrun account pays the difference. The bound of this item is wrong.",
    ),
    Alert(
        "RemitBudgetReached",
        appeared("remit_budget_alerts_total", "1h", by="level"),
        "0m",
        WARNING,
        "{{ $value | humanize }} budgets came to the level {{ $labels.level }} within an hour",
        "WARNING: a share of a budget below its limit is spent. LIMIT: the whole is, and a HARD"
        " budget refuses what no longer fits.",
    ),
)

RECORD_KEEPING: Final = (
    Alert(
        "RemitLogNotWritable",
        "sum(rate(remit_audit_appends_total{result=~"
        '"DEPENDENCY_UNAVAILABLE|OVERLOADED|DATA_CORRUPT|INTERNAL"}[5m])) > 0'
        ' or sum(rate(remit_commit_failures_total{writer="audit_log"}[5m])) > 0',
        "2m",
        CRITICAL,
        "events cannot be appended to the audit log",
        "No effect starts without its record, so runs wait.",
    ),
    Alert(
        "RemitCheckpointStale",
        "time() - max(remit_audit_checkpoint_timestamp_seconds) > 120",
        "1m",
        CRITICAL,
        "no signed checkpoint has covered the whole log for {{ $value | humanizeDuration }}",
        "The newest leaves cannot be proved to an auditor. The log may not extend its last"
        " checkpoint, which is what a rolled back or damaged database looks like.",
    ),
    Alert(
        "RemitTilesFail",
        "sum by (reason) (rate(remit_audit_tiles_failures_total[5m])) > 0",
        "5m",
        WARNING,
        "tiles of the audit log are not written: {{ $labels.reason }}",
        "Mirrors and witnesses that read the folder fall behind. Appends go on. DATA_CORRUPT: the"
        " log does not extend what the folder has shown already.",
    ),
    Alert(
        "RemitArchiveFails",
        "max(remit_audit_archive_failing) > 0",
        "30m",
        WARNING,
        "old months of the audit log are not archived",
        "Its database grows. Nothing is lost: what was not archived stays there.",
    ),
    Alert(
        "RemitLogRolledBack",
        "max(remit_audit_rolled_back) > 0",
        "0m",
        CRITICAL,
        "the audit log lacks entries that it had signed; no effect starts",
        "Its database was restored from a backup, or replaced. `remit audit reconcile` brings it"
        " together again.",
    ),
    Alert(
        "RemitCommitsFail",
        'sum by (writer) (rate(remit_commit_failures_total{writer!="audit_log"}[5m])) > 0',
        "5m",
        CRITICAL,
        "commits of {{ $labels.writer }} fail",
        "Its callers get DEPENDENCY_UNAVAILABLE and ask again by their keys.",
    ),
    Alert(
        "RemitUndecided",
        "sum by (decision) (rate(remit_policy_decisions_total{"
        'decision!~"ALLOW|DENY|APPROVAL_REQUIRED|FENCED"}[5m])) > 0',
        "5m",
        WARNING,
        "policy cannot decide: {{ $labels.decision }}",
        "What is not decided is refused. UNDECIDED: a policy failed. What is ordinary is left"
        " out: APPROVAL_REQUIRED, where people decide, and FENCED, where a run's old worker was"
        " stopped.",
    ),
    Alert(
        "RemitEdgeLogDropped",
        "sum(increase(envoy_access_logs_grpc_access_log_logs_dropped[15m])) > 0",
        "0m",
        WARNING,
        "the gateway dropped {{ $value | humanize }} entries of what it refused by itself",
        "Audit was away for longer than the gateway's buffer lasts, or is flooded. Those calls were"
        " refused all the same; the log has no entry of them.",
    ),
)

SERVICES: Final = (
    Alert(
        "RemitServiceDown",
        f'up{{job=~"{JOBS}"}} == 0',
        # A pod is asked from its first moment, and may take two minutes to start.
        "3m",
        CRITICAL,
        "{{ $labels.job }} {{ $labels.instance }} does not answer Prometheus",
        "The process is gone or does not turn.",
    ),
    Alert(
        "RemitServiceNotReady",
        "remit_ready == 0",
        "2m",
        CRITICAL,
        "a replica of {{ $labels.area }} is up and cannot do its work",
        "{{ $labels.instance }}/ready says why; mostly its database is away.",
    ),
    Alert(
        "RemitServiceMissing",
        " or ".join(f'absent(remit_ready{{area="{area}"}})' for area in AREAS)
        # Envoy has no metric of ours.
        + """ or label_replace(absent(up{job="gateway"}), "area", "gateway", "", "")""",
        "2m",
        CRITICAL,
        "there is no replica of {{ $labels.area }}",
        "Prometheus finds none to ask: none runs, or the scrape configuration lacks it.",
    ),
    Alert(
        "RemitRpcErrors",
        "method:remit_rpc_requests:fault_ratio5m > 0.05",
        "5m",
        WARNING,
        "{{ $value | humanizePercentage }} of the calls of {{ $labels.method }} fail",
        "They end in codes that are the mesh's own fault.",
    ),
    Alert(
        "RemitOverloaded",
        "sum by (method) (rate(remit_rpc_overloaded_total[5m])) > 0",
        "10m",
        WARNING,
        "{{ $labels.method }} refuses {{ $value | humanize }} calls a second for want of room",
        "The service or its queue is full. Callers get OVERLOADED and try again later.",
    ),
    Alert(
        "RemitBreakerOpen",
        # The counter and not the gauges of open breakers: these show one moment of each scrape.
        " or ".join(
            f"sum by ({_CLUSTER}) (rate(envoy_cluster_upstream_rq_{what}_overflow[5m])) > 0"
            for what in ("active", "pending")
        ),
        "10m",
        WARNING,
        "the gateway refuses {{ $value | humanize }} calls a second to"
        " {{ $labels.envoy_cluster_name }}",
        "As many calls are in flight as its replicas admit; callers get RESOURCE_EXHAUSTED.",
    ),
    Alert(
        "RemitRetriesHigh",
        "cluster:envoy_upstream_rq:retry_ratio5m > 0.1",
        "5m",
        WARNING,
        "{{ $value | humanizePercentage }} of the calls to {{ $labels.envoy_cluster_name }} are"
        " sent again",
        "Replicas refuse or lose calls. Clients see nothing of it while the retries succeed.",
    ),
    Alert(
        "RemitCertificateExpires",
        f"min by ({_CLUSTER}) (envoy_cluster_ssl_certificate_expiration_unix_time_seconds)"
        " - time() < 7 * 86400",
        "15m",
        CRITICAL,
        "a certificate of the gateway expires in {{ $value | humanizeDuration }}",
        "Afterwards no service can be called through the mesh.",
    ),
)

GROUPS: Final = {
    "remit-runs": RUNS,
    "remit-effects": EFFECTS,
    "remit-records": RECORD_KEEPING,
    "remit-services": SERVICES,
}
ALERTS: Final = tuple(alert for alerts in GROUPS.values() for alert in alerts)


def rendered() -> str:
    """The rules as a file that Prometheus reads."""
    groups: list[dict[str, object]] = [
        {"name": "remit-recorded", "rules": [*map(_record, RECORDS)]}
    ]
    groups += [{"name": name, "rules": [*map(_alert, alerts)]} for name, alerts in GROUPS.items()]
    return HEAD + yaml.safe_dump({"groups": groups}, sort_keys=False, width=1000)


def _record(record: Record) -> dict[str, object]:
    return {"record": record.name, "expr": record.expr}


def _alert(alert: Alert) -> dict[str, object]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.lasts,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": _RUNBOOK_URL + f"#{alert.anchor}",
        },
    }

"""The dashboard's rows about the mesh itself: effects, money, the log, services, the gateway."""

from __future__ import annotations

from typing import Final

from scripts.dashboard_panels import (
    BYTES,
    COUNT,
    DOLLARS,
    INPUT,
    OPERATIONS_PER_S,
    OUTPUT,
    PROCESSING,
    REQUESTS_PER_S,
    RUNS,
    SECONDS,
    SHARE,
    USD_PER_NANO,
    Panel,
    Query,
    Row,
    by_service,
    quantiles,
    rate,
)

_RATE: Final = "[$__rate_interval]"

EFFECTS: Final = Row(
    "Effects",
    (
        Panel(
            "Effects by action and outcome",
            "Model and tool calls that ended. REFUSED was never started: see the decisions and"
            " the reservations.",
            OPERATIONS_PER_S,
            (Query(rate("remit_effects_total", "action, outcome"), "{{action}} {{outcome}}"),),
        ),
        Panel(
            "Effects in doubt",
            "Effects of the last hour that started and whose outcome nobody knows: a tool was cut"
            " off, or its service died. Each is in the log; ask the world what happened.",
            COUNT,
            (
                Query(
                    'sum by (action) (increase(remit_effects_total{outcome="IN_DOUBT"}[1h]))',
                    "{{action}}",
                ),
                Query(
                    'sum(increase(remit_claims_lapsed_total{state="IN_DOUBT"}[1h]))',
                    "found by a sweeper",
                ),
            ),
            most=1,
        ),
        Panel(
            "Time to start an effect",
            "Permission, budget and record: what the guarantees cost each effect. Rising: policy,"
            " cost or audit, or one of their databases.",
            SECONDS,
            quantiles("remit_effect_opening_seconds", by="action", shares=(0.5, 0.95)),
        ),
        Panel(
            "Calls with a known key",
            "REPLAY answers from the record. IN_PROGRESS: two replicas were asked at once."
            " KEY_REUSED: a client uses one request_id for different requests.",
            OPERATIONS_PER_S,
            (Query(rate("remit_effects_known_total", "action, answer"), "{{action}} {{answer}}"),),
        ),
        Panel(
            "Effects that stand open",
            "CLAIMED and STARTED are at work. UNCLOSED has ended and waits for its settlement or"
            " outcome; when it grows, cost or audit is away.",
            COUNT,
            (Query("max by (action, state) (remit_effects_standing)", "{{action}} {{state}}"),),
        ),
        Panel(
            "What sweepers do",
            "Claims whose owner died, closings left to the sweeper, closings that failed. Some"
            " after a crash are ordinary; a steady rate is not.",
            OPERATIONS_PER_S,
            (
                Query(rate("remit_claims_lapsed_total", "state"), "lapsed to {{state}}"),
                Query(f"sum(rate(remit_closings_swept_total{_RATE}))", "closings swept"),
                Query(rate("remit_closings_delayed_total", "reason"), "delayed {{reason}}"),
            ),
        ),
    ),
)

MONEY: Final = Row(
    "Holds and money",
    (
        Panel(
            "Open holds",
            "Effects that hold money. It follows the effects at work; a floor that does not go"
            " away is holds that nobody closes.",
            COUNT,
            (Query("max by (action) (remit_holds_open)", "{{action}}"),),
        ),
        Panel(
            "Age of the oldest hold",
            "Longer than the longest model call: its settlement is stuck. See `Effects that stand"
            " open`.",
            SECONDS,
            (Query("max by (action) (remit_holds_oldest_seconds)", "{{action}}"),),
            most=900,
        ),
        Panel(
            "Money held",
            "What the ledger holds and what open effects account for. The ledger above the effects"
            " for long is a leak.",
            DOLLARS,
            (
                Query(f"max(remit_ledger_held_nanos) / {USD_PER_NANO}", "ledger"),
                Query(f"sum(max by (action) (remit_holds_open_nanos)) / {USD_PER_NANO}", "effects"),
            ),
        ),
        Panel(
            "Holds that nobody closes",
            "Open holds whose claims do not exist, or have ended or lost their owners longer ago"
            " than the bound of the lag. Both are 0; else `remit cost check` names each.",
            COUNT,
            (
                Query("max(remit_ledger_holds_unclaimed)", "without a claim"),
                Query("max(remit_ledger_holds_overdue)", "overdue"),
            ),
            most=1,
        ),
        Panel(
            "Age of the oldest hold in the ledger",
            "0 where none is older than a minute. Above the age of the oldest hold by action, which"
            " claims tell: a hold without a claim.",
            SECONDS,
            (Query("max(remit_ledger_holds_oldest_seconds)", "ledger"),),
            most=900,
        ),
        Panel(
            "Spend per hour by item",
            "Money posted to budgets, as a rate per hour, by model and tool.",
            DOLLARS,
            (
                Query(
                    f"{rate('remit_spent_nanos_total', 'item')} * 3600 / {USD_PER_NANO}",
                    "{{item}}",
                ),
            ),
        ),
        Panel(
            "Overrun of the last hour",
            "Bills above their hold. The operator pays them: the bound of that item is wrong, or"
            " its provider charges more than it reports.",
            DOLLARS,
            (
                Query(
                    f"sum by (item) (increase(remit_overrun_nanos_total[1h])) / {USD_PER_NANO}",
                    "{{item}}",
                ),
            ),
            most=1e-9,
        ),
        Panel(
            "Budget alerts of the last day",
            "Budgets of which a share is spent (WARNING) or the whole (LIMIT);"
            " `remit budgets alerts` names them.",
            COUNT,
            (
                Query(
                    "sum by (enforcement, level) (increase(remit_budget_alerts_total[1d]))",
                    "{{enforcement}} {{level}}",
                ),
            ),
        ),
        Panel(
            "Holds asked for and closed",
            "BUDGET_EXHAUSTED: somebody's budget is used up; raise it or let it be.",
            OPERATIONS_PER_S,
            (
                Query(rate("remit_reservations_total", "result"), "{{result}}"),
                Query(rate("remit_reservations_closed_total", "state"), "{{state}}"),
            ),
        ),
        Panel(
            "Holds extended by result",
            "Streams that asked for more money. DEPENDENCY_UNAVAILABLE: policy or cost were away,"
            " and streams may have been cut for it.",
            OPERATIONS_PER_S,
            (Query(rate("remit_hold_extensions_total", "result"), "{{result}}"),),
        ),
        Panel(
            "Generations cut by cause",
            "Model turns that were ended before the model did. UNANSWERED is the mesh's fault: the"
            " lease ended before policy and cost answered.",
            OPERATIONS_PER_S,
            (Query(rate("remit_generations_cut_total", "model, cause"), "{{model}} {{cause}}"),),
        ),
    ),
)

AUDIT: Final = Row(
    "Audit log and permission",
    (
        Panel(
            "Audit lag",
            "Age of the oldest effect that has ended and is not settled and recorded yet. Seconds"
            " are ordinary; minutes mean that cost or audit does not take what it is given.",
            SECONDS,
            (
                Query(
                    'max by (action) (remit_effects_standing_oldest_seconds{state="UNCLOSED"})',
                    "{{action}}",
                ),
            ),
            most=60,
        ),
        Panel(
            "Events appended by kind and result",
            "Anything but OK keeps effects from starting: see the audit service and its database.",
            OPERATIONS_PER_S,
            (Query(rate("remit_audit_appends_total", "kind, result"), "{{kind}} {{result}}"),),
        ),
        Panel(
            "Leaves without a checkpoint",
            "Leaves that no signed checkpoint covers yet.",
            COUNT,
            (Query("max(remit_audit_tree_size) - max(remit_audit_checkpoint_size)", "leaves"),),
        ),
        Panel(
            "Age of the checkpoint",
            "Time since an audit replica last saw a signed checkpoint cover the whole log. Growing:"
            " none is alive, or the log does not extend its last checkpoint.",
            SECONDS,
            (Query("time() - max(remit_audit_checkpoint_timestamp_seconds)", "age"),),
            most=60,
        ),
        Panel(
            "Tiles behind the checkpoint",
            "Leaves that are signed and not in the folder of tiles yet, where one is set; and how"
            " often writing failed, by reason. Appends do not wait for it.",
            COUNT,
            (
                Query(
                    "max(remit_audit_checkpoint_size) - (max(remit_audit_tiles_size) > 0)",
                    "leaves",
                ),
                Query(rate("remit_audit_tiles_failures_total", "reason"), "failed {{reason}}"),
            ),
        ),
        Panel(
            "Log rolled back",
            "1 while a replica of audit appends nothing, because the log does not extend what it"
            " had signed: no effect starts until `remit audit reconcile`.",
            COUNT,
            (Query("max(remit_audit_rolled_back)", "rolled back"),),
        ),
        Panel(
            "Decisions of policy",
            "ALLOW and DENY are answers. UNDECIDED: a policy failed, see `decision_failed` in"
            " policy's log. Any other name is why the policies were not asked.",
            OPERATIONS_PER_S,
            (
                Query(
                    rate("remit_policy_decisions_total", "kind, decision"),
                    "{{kind}} {{decision}}",
                ),
            ),
        ),
        Panel(
            "Authorisations at the edge",
            "Client calls let in or refused, by reason. CREDENTIAL_INVALID in numbers: a client"
            " with a withdrawn key, or somebody who guesses.",
            REQUESTS_PER_S,
            (Query(rate("remit_edge_authorizations_total", "result"), "{{result}}"),),
        ),
    ),
)

SERVICES: Final = Row(
    "Services and databases",
    (
        Panel(
            "Ready replicas",
            "Replicas that can do their work. /ready of one that cannot says why.",
            COUNT,
            (Query("sum by (area) (remit_ready)", "{{area}}"),),
        ),
        Panel(
            "RPCs by service",
            "RPCs served by each gRPC service.",
            REQUESTS_PER_S,
            (
                Query(
                    f"sum by (service) ({by_service(f'rate(remit_rpc_requests_total{_RATE})')})",
                    "{{service}}",
                ),
            ),
        ),
        Panel(
            "RPC errors by service and code",
            "INTERNAL is a bug and its id is in the log. UNAVAILABLE: a dependency is away."
            " RESOURCE_EXHAUSTED: the service sheds load.",
            REQUESTS_PER_S,
            (
                Query(
                    "sum by (service, code) ("
                    + by_service(f'rate(remit_rpc_requests_total{{code!="OK"}}{_RATE})')
                    + ")",
                    "{{service}} {{code}}",
                ),
            ),
        ),
        Panel(
            "RPCs refused as overloaded",
            "RPCs refused with OVERLOADED, by method, since the service or its queue is full. More"
            " replicas, or find what is slow.",
            REQUESTS_PER_S,
            (Query(rate("remit_rpc_overloaded_total", "method"), "{{method}}"),),
        ),
        Panel(
            "RPC latency p95 by service",
            "Time from acceptance to end; streams are as long as they are followed.",
            SECONDS,
            (
                Query(
                    "histogram_quantile(0.95, sum by (le, service) ("
                    + by_service(f"rate(remit_rpc_seconds_bucket{_RATE})")
                    + "))",
                    "{{service}}",
                ),
            ),
        ),
        Panel(
            "RPCs in flight by service",
            "Near the service's max_in_flight, opening calls are refused with OVERLOADED.",
            COUNT,
            (Query(f"sum by (service) ({by_service('remit_rpc_in_flight')})", "{{service}}"),),
        ),
        Panel(
            "Group commit: commits",
            "Commits a second of each writer.",
            OPERATIONS_PER_S,
            (Query(rate("remit_commit_items_count", "writer"), "{{writer}}"),),
        ),
        Panel(
            "Group commit: items in a commit",
            "How many callers share one commit. It grows with load; that is what makes commits"
            " affordable.",
            COUNT,
            (
                Query(
                    f"{rate('remit_commit_items_sum', 'writer')}"
                    f" / {rate('remit_commit_items_count', 'writer')}",
                    "{{writer}}",
                ),
            ),
        ),
        Panel(
            "Commit time",
            "One commit with its statements. Rising for all writers: the database's disk.",
            SECONDS,
            quantiles("remit_commit_seconds", by="writer", shares=(0.5, 0.95)),
        ),
        Panel(
            "Commits that wait and commits that fail",
            "A queue that stays is a writer that is slower than its callers. Failures: the"
            " database is away or refuses.",
            COUNT,
            (
                Query("sum by (writer) (remit_commit_queue_length)", "{{writer}} waiting"),
                Query(
                    "sum by (writer) (increase(remit_commit_failures_total[5m]))",
                    "{{writer}} failed",
                ),
            ),
        ),
        Panel(
            "Processor time",
            "Share of one processor that each process uses. A service is one thread: at 100 % it"
            " needs another replica.",
            SHARE,
            (
                Query(
                    f"rate(process_cpu_seconds_total{_RATE}) and on (job, instance) remit_ready",
                    "{{job}} {{instance}}",
                ),
            ),
        ),
        Panel(
            "Memory",
            "Resident memory of each process.",
            BYTES,
            (
                Query(
                    "process_resident_memory_bytes and on (job, instance) remit_ready",
                    "{{job}} {{instance}}",
                ),
            ),
        ),
        Panel(
            "Spans lost",
            "The collector of traces is away, or slower than spans come: its queue is full."
            " Nothing else suffers.",
            COUNT,
            (Query("sum by (area) (increase(remit_spans_lost_total[5m]))", "{{area}}"),),
        ),
    ),
)

_CLUSTER: Final = "envoy_cluster_name"
_BREAKERS: Final = {
    "default_rq": "",
    "high_rq": " high",
    "default_rq_pending": " pending",
    "high_rq_pending": " high pending",
}
"""Envoy's breakers of calls, and how they are shown."""

GATEWAY: Final = Row(
    "Gateway",
    (
        Panel(
            "Responses at the edge",
            "HTTP responses to clients by class. gRPC errors are 200 here: see the RPC errors.",
            REQUESTS_PER_S,
            (
                Query(
                    rate(
                        "envoy_http_downstream_rq_xx",
                        "envoy_response_code_class",
                        where='envoy_http_conn_manager_prefix="edge"',
                    ),
                    "{{envoy_response_code_class}}xx",
                ),
            ),
        ),
        Panel(
            "Circuit breakers open",
            "1 while as many calls to a cluster are in flight, or `pending` a connection, as its"
            " replicas admit. `high` is the share of closing calls. It is looked at once a"
            " scrape: `Calls refused by breakers` misses nothing.",
            COUNT,
            tuple(
                Query(
                    f"max by ({_CLUSTER}) (envoy_cluster_circuit_breakers_{breaker}_open)",
                    f"{{{{{_CLUSTER}}}}}{legend}",
                )
                for breaker, legend in _BREAKERS.items()
            ),
            most=1,
        ),
        Panel(
            "Calls refused by breakers",
            "Calls that the gateway refused with RESOURCE_EXHAUSTED because a cluster's breaker was"
            " open. A burst is ordinary; if it lasts, more replicas.",
            REQUESTS_PER_S,
            (
                Query(
                    rate("envoy_cluster_upstream_rq_active_overflow", _CLUSTER),
                    f"{{{{{_CLUSTER}}}}}",
                ),
                Query(
                    rate("envoy_cluster_upstream_rq_pending_overflow", _CLUSTER),
                    f"{{{{{_CLUSTER}}}}} pending",
                ),
            ),
        ),
        Panel(
            "Retries by cluster",
            "Calls that the gateway sent again, and those that its retry budget kept it from"
            " sending. Some at a restart are ordinary.",
            OPERATIONS_PER_S,
            (
                Query(rate("envoy_cluster_upstream_rq_retry", _CLUSTER), f"{{{{{_CLUSTER}}}}}"),
                Query(
                    rate("envoy_cluster_upstream_rq_retry_overflow", _CLUSTER),
                    f"{{{{{_CLUSTER}}}}} over budget",
                ),
            ),
        ),
        Panel(
            "Calls by cluster",
            "Calls that the gateway passed on.",
            REQUESTS_PER_S,
            (Query(rate("envoy_cluster_upstream_rq_total", _CLUSTER), f"{{{{{_CLUSTER}}}}}"),),
        ),
        Panel(
            "Replicas shut out",
            "Replicas that the gateway sends nothing to, because their health check fails or they"
            " lost calls.",
            COUNT,
            (
                Query(
                    f"max by ({_CLUSTER}) (envoy_cluster_membership_total"
                    " - envoy_cluster_membership_healthy)",
                    f"{{{{{_CLUSTER}}}}}",
                ),
            ),
            most=1,
        ),
    ),
)

ROWS: Final = (RUNS, INPUT, PROCESSING, OUTPUT, EFFECTS, MONEY, AUDIT, SERVICES, GATEWAY)
"""The dashboard, from top to bottom."""

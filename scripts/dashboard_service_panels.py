"""The dashboard's rows about what the mesh runs on: services, their databases, the gateway."""

from __future__ import annotations

from typing import Final

from scripts.dashboard_panels import (
    BYTES,
    COUNT,
    OPERATIONS_PER_S,
    REQUESTS_PER_S,
    SECONDS,
    SHARE,
    Panel,
    Query,
    Row,
    by_service,
    quantiles,
    rate,
)

_RATE: Final = "[$__rate_interval]"

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

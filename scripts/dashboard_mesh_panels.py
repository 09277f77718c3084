"""The dashboard's rows about what the mesh promises: effects, money, the log and permission."""

from __future__ import annotations

from typing import Final

from scripts.dashboard_panels import (
    COUNT,
    DOLLARS,
    INPUT,
    OPERATIONS_PER_S,
    OUTPUT,
    PROCESSING,
    REQUESTS_PER_S,
    RUNS,
    SECONDS,
    USD_PER_NANO,
    Panel,
    Query,
    Row,
    quantiles,
    rate,
)
from scripts.dashboard_people_panels import APPROVALS
from scripts.dashboard_service_panels import GATEWAY, SERVICES

_RATE: Final = "[$__rate_interval]"
_EDGE_LOG: Final = "envoy_access_logs_grpc_access_log_logs"

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
            "Guardrail findings",
            "What guardrails found in tasks, prompts, answers, arguments and results, by what was"
            " done: flag leaves it, redact replaces it, refuse refuses the whole.",
            OPERATIONS_PER_S,
            (
                Query(
                    rate("remit_guardrail_findings_total", "detector, direction, mode"),
                    "{{detector}} {{direction}} {{mode}}",
                ),
            ),
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
            "Archiving fails",
            "1 while old months of the log are not archived or dropped although the retention says"
            " so; `archive_delayed` in audit's log says why. Nothing is lost meanwhile.",
            COUNT,
            (Query("max(remit_audit_archive_failing)", "failing"),),
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
            "ALLOW and DENY are answers, and APPROVAL_REQUIRED where people decide. UNDECIDED: a"
            " policy failed, see `decision_failed` in policy's log. Any other name is why the"
            " policies were not asked.",
            OPERATIONS_PER_S,
            (
                Query(
                    rate("remit_policy_decisions_total", "kind, decision"),
                    "{{kind}} {{decision}}",
                ),
            ),
        ),
        Panel(
            "Decisions on record",
            "Decisions that were stored to try policies on, and those that were dropped, by reason."
            " No decision waits for its record.",
            OPERATIONS_PER_S,
            (
                Query(
                    "sum(rate(remit_policy_decisions_recorded_total[$__rate_interval]))", "stored"
                ),
                Query(rate("remit_policy_decisions_dropped_total", "reason"), "dropped {{reason}}"),
            ),
        ),
        Panel(
            "Policies in shadow",
            "Decisions that a candidate saw, by how it compares. FAILED: a policy of it could not"
            " be evaluated. DROPPED: there were too many at once. `remit policy shadow show` tells"
            " which differ.",
            OPERATIONS_PER_S,
            (Query(rate("remit_policy_shadow_decisions_total", "outcome"), "{{outcome}}"),),
        ),
        Panel(
            "Policy epoch",
            "What the replicas of policy have loaded. They differ for a second after a change of"
            " policies or grants; for longer, one has lost its database.",
            COUNT,
            (
                Query("max(remit_policy_epoch)", "newest"),
                Query("min(remit_policy_epoch)", "oldest"),
            ),
        ),
        Panel(
            "Authorisations at the edge",
            "Client calls let in or refused, by reason. CREDENTIAL_INVALID in numbers: a client"
            " with a withdrawn key, or somebody who guesses.",
            REQUESTS_PER_S,
            (Query(rate("remit_edge_authorizations_total", "result"), "{{result}}"),),
        ),
        Panel(
            "Decisions told to the log",
            "RECORDED: the log has their entries. FOLDED: refusals counted without particulars, as"
            " in a flood. REFUSED: nothing was allowed for want of room. LOST: a defect. Waiting"
            " grows while audit takes nothing.",
            OPERATIONS_PER_S,
            (
                Query(rate("remit_accesses_total", "reporter, result"), "{{reporter}} {{result}}"),
                Query("sum by (reporter) (remit_accesses_waiting)", "waiting, {{reporter}}"),
            ),
        ),
        Panel(
            "Refused by the gateway alone",
            "Calls that came to no service and no policy: no such path, malformed, too large, over"
            " a limit, no service there. Written and not arrived for long: lost on the way."
            " Dropped: audit was away for longer than Envoy's buffer lasts.",
            OPERATIONS_PER_S,
            (
                Query(f"sum(rate({_EDGE_LOG}_written{_RATE}))", "written by Envoy"),
                Query(f"sum(rate(remit_edge_log_entries_total{_RATE}))", "arrived at audit"),
                Query(f"sum(rate({_EDGE_LOG}_dropped{_RATE}))", "dropped by Envoy"),
            ),
        ),
        Panel(
            "Rate limits by result",
            "Starts of runs that were counted: admitted, or refused by the limit of a user, an API"
            " key (api_key) or an org. UNCOUNTED or DEPENDENCY_UNAVAILABLE: the store of the limits"
            " is away.",
            REQUESTS_PER_S,
            (Query(rate("remit_policy_rate_limit_checks_total", "result"), "{{result}}"),),
        ),
    ),
)

ROWS: Final = (RUNS, INPUT, PROCESSING, OUTPUT, EFFECTS, APPROVALS, MONEY, AUDIT, SERVICES, GATEWAY)
"""The dashboard, from top to bottom."""

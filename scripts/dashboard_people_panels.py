"""The dashboard's row about people: what waits for them, how long they take, what they decide."""

from __future__ import annotations

from typing import Final

from scripts.dashboard_panels import (
    COUNT,
    OPERATIONS_PER_S,
    SECONDS,
    SHARE,
    Panel,
    Query,
    Row,
    quantiles,
    rate,
)

APPROVALS: Final = Row(
    "Approvals",
    (
        Panel(
            "Approvals that wait",
            "PENDING: nobody has decided yet; `remit approvals list` shows whom each asks."
            " APPROVED: given, and not used by its effect yet.",
            COUNT,
            (Query("max by (state) (remit_approvals_open)", "{{state}}"),),
        ),
        Panel(
            "Age of the oldest approval that waits",
            "Time since it was asked for. Its run holds no worker and no money meanwhile.",
            SECONDS,
            (Query("max by (state) (remit_approvals_open_oldest_seconds)", "{{state}}"),),
        ),
        Panel(
            "Time of an approval that is gone",
            "Largest share of its time for which one has waited for people. At 100 % it expires and"
            " its run is told no: remind those who are asked, or give them longer.",
            SHARE,
            (Query("max(remit_approvals_waited_ratio)", "waited"),),
            most=0.8,
            full_scale=1,
        ),
        Panel(
            "Approvals by what they became",
            "Asked for (PENDING), decided by people (APPROVED, DENIED), USED by their effects, or"
            " ended without one: EXPIRED where nobody decided in time, WITHDRAWN where the run"
            " ended or other policies ask anew.",
            OPERATIONS_PER_S,
            (Query(rate("remit_approvals_total", "state"), "{{state}}"),),
        ),
        Panel(
            "Time until people decide",
            "From asking until enough people have approved, or one has denied.",
            SECONDS,
            quantiles("remit_approval_decision_seconds", by="state", shares=(0.5, 0.95)),
        ),
    ),
)

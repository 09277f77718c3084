"""A run's bill by its journal and by the ledger: they add up, or each difference is named.

The journal counts what a call that ended says it cost. The ledger posts every attempt, also one
that failed, is in doubt or was made again. So the two may differ, and rightly; but not by a nano
more than can be named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from remit.agent.effect_records import Effects
from remit.api.agent.v1 import explanation_pb2, run_pb2
from remit.api.audit.v1 import event_pb2
from remit.api.cost.v1 import reservation_pb2

Bill = explanation_pb2.ExplainedBill
Difference = explanation_pb2.BillDifference
Explained = explanation_pb2.ExplainedAttempt
_HELD: Final = reservation_pb2.Reservation.STATE_HELD
_CUT: Final = frozenset({event_pb2.OUTCOME_FAILED, event_pb2.OUTCOME_CANCELLED})


def bill_of(
    run: run_pb2.Run, costs: Mapping[str, int], sub_runs_nanos: int, effects: Effects
) -> Bill:
    """The sums. `costs`: what the journal says that each claim cost, without a claim under ''."""
    reservations = [each.reservation for attempts in effects.by_claim.values() for each in attempts]
    bill = Bill(
        run_nanos=run.cost_nanos,
        posted_nanos=sum(each.posted_nanos for each in reservations),
        sub_runs_nanos=sub_runs_nanos,
        held_nanos=sum(each.hold_nanos for each in reservations if each.state == _HELD),
        overrun_nanos=sum(each.overrun_nanos for each in reservations),
    )
    if effects.has_ledger:
        claims = {**dict.fromkeys(effects.by_claim), **dict.fromkeys(costs)}
        found = [_of_claim(claim, costs, effects.by_claim.get(claim, ())) for claim in claims]
        found.append(_of_summary(run, sum(costs.values()) + sub_runs_nanos))
        bill.differences.extend(each for each in found if each.nanos)
    return bill


def _of_claim(claim: str, costs: Mapping[str, int], attempts: Sequence[Explained]) -> Difference:
    posted = sum(each.reservation.posted_nanos for each in attempts)
    nanos = posted - costs.get(claim, 0)
    return Difference(nanos=nanos, claim=claim, text=_why(claim, costs, attempts))


def _of_summary(run: run_pb2.Run, journal_nanos: int) -> Difference:
    text = f"the entries of the journal make {journal_nanos} nano-USD, and the run says another sum"
    return Difference(nanos=journal_nanos - run.cost_nanos, text=text)


def _why(claim: str, costs: Mapping[str, int], attempts: Sequence[Explained]) -> str:
    outcomes = {each.outcome for each in attempts}
    is_held = any(each.reservation.state == _HELD for each in attempts)
    causes = (
        (not claim, "the journal counts a cost of an effect that it does not name"),
        (not attempts, "the journal counts a cost, and neither ledger nor log knows the effect"),
        (is_held, "its hold is not settled yet"),
        (event_pb2.OUTCOME_IN_DOUBT in outcomes, "it is in doubt, and its whole hold was posted"),
        (claim not in costs, "the journal does not name this effect; it was paid for all the same"),
        (
            bool(outcomes & _CUT),
            "it did not succeed; what it used by then is paid for all the same",
        ),
        (True, "what the ledger posted is not what the journal counts"),
    )
    return next(text for applies, text in causes if applies)

"""Each difference between log, claims, ledger and journal is named; whatever agrees is not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.api.audit.v1 import log_difference_pb2
from remit.audit.completeness import (
    NEXT_STEPS,
    Attempt,
    Call,
    Difference,
    Key,
    Kind,
    Paid,
    Recorded,
    Sight,
    call_difference,
    difference,
)
from tests.audit.events import NOW, ORG, RUN

KEY = Key("claims/0198c0de-0000-7000-8000-0000000000aa", 2)
OTHER = Key("claims/0198c0de-0000-7000-8000-0000000000ab", 1)
LIMIT_S = 900.0
EARLY = datetime(2026, 11, 23, tzinfo=UTC)


def recorded(*outcomes: str, intents: tuple[int, ...] = (12,), **changes: Any) -> Recorded:
    told = [(20 + number, outcome) for number, outcome in enumerate(outcomes)]
    facts: dict[str, Any] = {"org": ORG, "run": RUN, "began": NOW} | changes
    return Recorded(intents=list(intents), outcomes=told, **facts)


def attempt(state: str = "CLOSED", outcome: str = "SUCCEEDED", **changes: Any) -> Attempt:
    facts: dict[str, Any] = {
        "service": "tools",
        "org": ORG,
        "run": RUN,
        "intent_leaf": None if state in {"CLAIMED", "REFUSED"} else 12,
        "began": NOW,
        "age_s": 1.0,
        "lapsed_s": None,
        "ended_s": 0.5 if outcome else None,
        "is_closed": state == "CLOSED",
        "closing_bound_s": 30.0,
    }
    return Attempt(state=state, outcome=outcome, **(facts | changes))


def an_open(state: str = "STARTED", **changes: Any) -> Attempt:
    return attempt(state, "", **changes)


def paid(nanos: int = 7) -> Paid:
    return Paid("tools", ORG, nanos, NOW)


def found(
    log: Recorded | None, claim: Attempt | None, ledger: Paid | None = None
) -> Difference | None:
    return difference(Sight(KEY, log, claim, ledger), open_limit_s=LIMIT_S)


AGREE = {
    "closed": (recorded("SUCCEEDED"), attempt(), paid()),
    "done, not closed yet": (recorded(), attempt("DONE"), paid()),
    "under way": (recorded(), an_open(), None),
    "asking for its permits": (None, an_open("CLAIMED"), None),
    "asking, with its intent there": (recorded(), an_open("CLAIMED"), None),
    "refused before its intent": (
        recorded("REFUSED", intents=()),
        attempt("REFUSED", "REFUSED", is_closed=True),
        paid(0),
    ),
    "refused after its intent": (
        recorded("REFUSED"),
        attempt("REFUSED", "REFUSED", is_closed=True),
        None,
    ),
    "in doubt": (recorded("IN_DOUBT"), attempt("IN_DOUBT", "IN_DOUBT", is_closed=True), paid()),
    "in doubt, not closed": (recorded(), attempt("IN_DOUBT", "IN_DOUBT"), None),
    "a doubt that was resolved": (recorded("IN_DOUBT", "SUCCEEDED"), attempt(), paid()),
    "a hold without a claim": (None, None, paid(0)),
    "just lapsed": (recorded(), an_open(lapsed_s=29.0), None),
}


@pytest.mark.parametrize("name", AGREE)
def test_what_agrees_is_no_difference(name: str) -> None:
    assert found(*AGREE[name]) is None


DIFFER: dict[str, tuple[Kind, Recorded | None, Attempt | None, Paid | None]] = {
    "no intent": (Kind.INTENT_MISSING, None, an_open(), None),
    "no intent, ended": (
        Kind.INTENT_MISSING,
        recorded("SUCCEEDED", intents=()),
        attempt(),
        None,
    ),
    "no intent, and it was stopped before the effect": (
        Kind.INTENT_MISSING,
        recorded("REFUSED", intents=()),
        attempt("REFUSED", "REFUSED", intent_leaf=12),
        None,
    ),
    "intent elsewhere": (
        Kind.INTENT_ELSEWHERE,
        recorded("SUCCEEDED", intents=(13,)),
        attempt(),
        None,
    ),
    "no outcome": (Kind.OUTCOME_MISSING, recorded(), attempt(), None),
    "the doubt alone": (Kind.OUTCOME_MISSING, recorded("IN_DOUBT"), attempt(), None),
    "another outcome": (Kind.OUTCOME_DIFFERS, recorded("FAILED"), attempt(), None),
    "another outcome beside": (
        Kind.OUTCOME_DIFFERS,
        recorded("SUCCEEDED", "FAILED"),
        attempt(),
        None,
    ),
    "overdue after its end": (
        Kind.OUTCOME_OVERDUE,
        recorded(),
        attempt("DONE", ended_s=31.0),
        None,
    ),
    "overdue after its owner": (Kind.OUTCOME_OVERDUE, recorded(), an_open(lapsed_s=31.0), None),
    "open too long": (Kind.OPEN_TOO_LONG, recorded(), an_open(age_s=901.0), None),
    "outcome while open": (Kind.OUTCOME_WHILE_OPEN, recorded("SUCCEEDED"), an_open(), None),
    "no attempt": (Kind.ATTEMPT_MISSING, recorded(), None, None),
    "no attempt, an outcome alone": (
        Kind.ATTEMPT_MISSING,
        recorded("REFUSED", intents=()),
        None,
        None,
    ),
    "another org": (Kind.OWNER_DIFFERS, recorded("SUCCEEDED", org="orgs/b"), attempt(), None),
    "another run": (Kind.OWNER_DIFFERS, recorded("SUCCEEDED", run=""), attempt(), None),
    "paid, nothing known": (Kind.PAID_WITHOUT_INTENT, None, None, paid()),
    "paid, refused before its intent": (
        Kind.PAID_WITHOUT_INTENT,
        recorded("REFUSED", intents=()),
        attempt("REFUSED", "REFUSED"),
        paid(),
    ),
}


@pytest.mark.parametrize("name", DIFFER)
def test_each_difference_is_named(name: str) -> None:
    kind, log, claim, ledger = DIFFER[name]
    told = found(log, claim, ledger)
    assert told is not None
    assert told.kind is kind
    assert (told.claim, told.attempt) == KEY
    assert told.explanation
    assert NEXT_STEPS[kind].endswith(".")


def test_a_difference_names_leaf_service_and_run() -> None:
    told = found(recorded("FAILED"), attempt())
    assert told is not None
    assert (told.leaf_index, told.service, told.run, told.org) == (20, "tools", RUN, ORG)
    assert told.explanation == "the log says FAILED at leaf 20, its claim SUCCEEDED"


def call(**changes: Any) -> Call:
    facts: dict[str, Any] = {
        "run": RUN,
        "sequence": 7,
        "org": ORG,
        "service": "tools",
        "claim": KEY.claim,
        "intent_leaf": 12,
        "began": NOW,
    }
    return Call(**(facts | changes))


def test_a_call_of_a_journal_has_its_intent_and_its_claim() -> None:
    assert call_difference(call(), KEY, is_known=True) is None
    assert call_difference(call(intent_leaf=None), None, is_known=True) is None


@pytest.mark.parametrize(
    ("stated", "intent_of", "is_known", "kind"),
    [
        (call(), None, True, Kind.JOURNAL_WITHOUT_INTENT),
        (call(), OTHER, True, Kind.JOURNAL_WITHOUT_INTENT),
        (call(), KEY, False, Kind.JOURNAL_WITHOUT_CLAIM),
        (call(intent_leaf=None), None, False, Kind.JOURNAL_WITHOUT_CLAIM),
    ],
)
def test_a_call_that_the_others_do_not_know_is_named(
    stated: Call, intent_of: Key | None, *, is_known: bool, kind: Kind
) -> None:
    told = call_difference(stated, intent_of, is_known=is_known)
    assert told is not None
    assert (told.kind, told.claim, told.run) == (kind, KEY.claim, RUN)
    assert "event 7" in told.explanation


def test_every_kind_of_the_contract_is_provoked_and_has_its_advice() -> None:
    contract = set(log_difference_pb2.LogDifference.Kind.values()) - {0}
    assert {int(kind) for kind in Kind} == contract == {int(kind) for kind in NEXT_STEPS}
    provoked = {case[0] for case in DIFFER.values()}
    assert set(Kind) - provoked == {Kind.JOURNAL_WITHOUT_INTENT, Kind.JOURNAL_WITHOUT_CLAIM}


ENDS = st.sampled_from(["SUCCEEDED", "FAILED", "CANCELLED"])


@given(
    ENDS,
    st.sampled_from([(), ("IN_DOUBT",)]),
    st.sampled_from([0, 7]),
    st.integers(min_value=0, max_value=4),
)
def test_an_effect_agrees_at_every_step_of_its_life(
    outcome: str, doubts: tuple[str, ...], posted_nanos: int, steps: int
) -> None:
    """The stores are written in one order; cut anywhere, they agree."""
    claim: Attempt | None = an_open("CLAIMED")
    log: Recorded | None = None
    if steps >= 1:
        log = recorded()
    if steps >= 2:
        claim = an_open()
    if steps >= 3:
        log, claim = recorded(*doubts), attempt("DONE", outcome)
    if steps >= 4:
        log, claim = recorded(*doubts, outcome), attempt("CLOSED", outcome)
    ledger = paid(posted_nanos if steps >= 3 else 0)
    assert found(log, claim, ledger) is None


def test_what_began_is_what_any_store_saw_first() -> None:
    sight = Sight(KEY, recorded(), replace(attempt(), began=EARLY), None)
    assert sight.began == EARLY

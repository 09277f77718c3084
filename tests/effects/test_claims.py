"""The rules between the states of an effect, as properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remit.effects.claims import (
    LAPSES,
    OPEN_STATES,
    TRANSITIONS,
    Admission,
    Attempt,
    Ended,
    Outcome,
    State,
    admit,
    may_pass,
)

BODY = b"a" * 32
OUTCOMES = {
    State.DONE: [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.CANCELLED],
    State.CLOSED: [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.CANCELLED],
    State.REFUSED: [Outcome.REFUSED],
    State.IN_DOUBT: [Outcome.IN_DOUBT],
}


@st.composite
def attempts(draw: st.DrawFn) -> Attempt:
    """Any attempt that the database can hold."""
    state = draw(st.sampled_from(State))
    ended = None
    if state not in OPEN_STATES:
        outcome = draw(st.sampled_from(OUTCOMES[state]))
        cancelled = outcome is Outcome.CANCELLED
        failed = outcome is Outcome.FAILED
        ended = Ended(
            outcome, b"", b"", b"", 0, repeatable=cancelled or (failed and draw(st.booleans()))
        )
    lease_left_s = draw(st.floats(-10, 10, allow_nan=False))
    return Attempt("c", draw(st.integers(1, 9)), state, "o", lease_left_s, BODY, 0, ended)


@given(attempts(), st.booleans(), st.booleans())
def test_another_body_never_gets_an_answer(a: Attempt, idem: bool, abandoned: bool) -> None:  # noqa: FBT001
    verdict = admit(a, b"b" * 32, idempotent=idem, abandoned=abandoned)
    assert verdict is Admission.KEY_REUSED


@given(attempts(), st.booleans())
def test_a_live_attempt_is_never_taken_over(a: Attempt, idempotent: bool) -> None:  # noqa: FBT001
    verdict = admit(a, BODY, idempotent=idempotent)
    if a.state in OPEN_STATES:
        assert (verdict is Admission.IN_PROGRESS) == (a.lease_left_s >= 0)


@given(attempts(), st.booleans())
def test_what_may_have_happened_is_not_repeated(a: Attempt, idempotent: bool) -> None:  # noqa: FBT001
    verdict = admit(a, BODY, idempotent=idempotent)
    if verdict is Admission.REPEAT and not idempotent:
        assert a.state is not State.IN_DOUBT
        assert a.state is State.REFUSED or (a.ended is not None and a.ended.repeatable)


@given(attempts(), st.booleans())
def test_only_an_end_that_stands_is_replayed(a: Attempt, idempotent: bool) -> None:  # noqa: FBT001
    if admit(a, BODY, idempotent=idempotent) is Admission.REPLAY:
        assert a.ended is not None
        assert a.ended.outcome in {Outcome.SUCCEEDED, Outcome.FAILED}
        assert not a.ended.repeatable


@given(attempts(), st.booleans())
def test_a_lapse_is_decided_in_two_looks(a: Attempt, idempotent: bool) -> None:  # noqa: FBT001
    if admit(a, BODY, idempotent=idempotent) is not Admission.LAPSED:
        return
    after = LAPSES[a.state]
    assert may_pass(a.state, after)
    ended = Ended(Outcome(after.value), b"", b"", b"", 0, repeatable=False)
    closed = Attempt("c", a.attempt, after, "o", a.lease_left_s, BODY, 0, ended)
    assert admit(closed, BODY, idempotent=idempotent) in {Admission.REPEAT, Admission.IN_DOUBT}


def test_nothing_leaves_a_final_state() -> None:
    assert not {before for before, _ in TRANSITIONS} & {State.CLOSED, State.REFUSED}


def test_nothing_is_done_without_having_started() -> None:
    assert {before for before, after in TRANSITIONS if after is State.DONE} == {
        State.STARTED,
        State.IN_DOUBT,
    }

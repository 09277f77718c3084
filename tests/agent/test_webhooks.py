"""What is told of a run's end, and what comes of a try to tell it."""

from __future__ import annotations

import json

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from remit import webhooks
from remit.agent.webhooks import Fate, Patience, call_of, event_of, fate_of, identifier, judge
from remit.api.agent.v1 import run_pb2
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.api.usage.v1 import usage_pb2
from remit.rpc.errors import RemitError

RUN = "runs/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
SECRET = "nobody else's business"
PATIENCE = Patience(max_tries=5, max_age_s=100.0, base_s=1.0, cap_s=8.0)


def ended(state: run_pb2.RunState.ValueType = run_pb2.RUN_STATE_SUCCEEDED) -> run_pb2.Run:
    run = run_pb2.Run(
        name=RUN,
        agent="agents/assistant",
        agent_version="ab" * 32,
        subject="orgs/acme/users/alice",
        task=SECRET,
        context={SECRET: SECRET},
        state=state,
        result=SECRET,
        usage=usage_pb2.Usage(input_tokens=10, calls=2),
        cost_nanos=1450,
        webhook=run_pb2.Webhook(url="https://example.com/ended", id=identifier(RUN)),
    )
    run.artifacts.add(name=SECRET)
    run.end_time.FromJsonString("2026-01-02T03:04:05Z")
    return run


def test_the_message_names_the_run_and_says_how_it_ended() -> None:
    assert event_of(ended()) == {
        "type": "run.ended",
        "timestamp": "2026-01-02T03:04:05Z",
        "data": {
            "name": RUN,
            "agent": "agents/assistant",
            "agent_version": "ab" * 32,
            "subject": "orgs/acme/users/alice",
            "state": "RUN_STATE_SUCCEEDED",
            "usage": {"input_tokens": "10", "calls": "2"},
            "cost_nanos": "1450",
            "end_time": "2026-01-02T03:04:05Z",
        },
    }


def test_what_people_and_models_wrote_stays_inside() -> None:
    run = ended(run_pb2.RUN_STATE_FAILED)
    run.error.CopyFrom(RemitError(reasons.ERROR_REASON_RUN_LIMIT_REACHED, SECRET).to_status())
    event = event_of(run)
    assert event["data"]["error_reason"] == "RUN_LIMIT_REACHED"
    assert SECRET not in json.dumps(event)


def test_each_try_is_a_call_of_its_own_with_the_same_message() -> None:
    first, again, second = call_of(ended(), 1), call_of(ended(), 1), call_of(ended(), 2)
    assert first == again
    assert first.tool == webhooks.TOOL
    assert (first.request_id, second.request_id) == (f"{RUN}/webhook/1", f"{RUN}/webhook/2")
    assert first.arguments == second.arguments
    arguments = json_format.MessageToDict(first.arguments)
    assert arguments["identifier"] == "run_ended_01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
    assert arguments["event"] == event_of(ended())


def failure(
    reason: reasons.ErrorReason.ValueType = reasons.ERROR_REASON_TOOL_FAILED, **metadata: str
) -> RemitError:
    return RemitError(reason, "why", metadata=metadata)


@pytest.mark.parametrize(
    ("error", "fate"),
    [
        (None, Fate.DELIVERED),
        (failure(), Fate.AGAIN),
        (failure(final="true"), Fate.GIVEN_UP),
        (failure(reasons.ERROR_REASON_BUDGET_EXHAUSTED), Fate.AGAIN),
        (failure(reasons.ERROR_REASON_PERMISSION_DENIED), Fate.GIVEN_UP),
        (failure(reasons.ERROR_REASON_PRINCIPAL_DISABLED), Fate.GIVEN_UP),
        (failure(reasons.ERROR_REASON_INTERNAL), Fate.AGAIN),
        (failure(reasons.ERROR_REASON_EFFECT_IN_DOUBT), Fate.AGAIN),
        (failure(reasons.ERROR_REASON_DEADLINE_EXCEEDED), Fate.AGAIN),
        (failure(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE), Fate.SAME_AGAIN),
        (failure(reasons.ERROR_REASON_EFFECT_IN_PROGRESS), Fate.SAME_AGAIN),
        (failure(reasons.ERROR_REASON_OVERLOADED), Fate.SAME_AGAIN),
        (failure(reasons.ERROR_REASON_CANCELLED), Fate.SAME_AGAIN),
        (failure(reasons.ERROR_REASON_DATA_CORRUPT), Fate.GIVEN_UP),
    ],
)
def test_what_comes_of_a_call(error: RemitError | None, fate: Fate) -> None:
    assert fate_of(error) is fate


def test_a_delivery_that_is_confirmed_is_over() -> None:
    verdict = judge(None, tries=2, age_s=1e9, patience=PATIENCE, chance=0.5)
    assert (verdict.state, verdict.tries) == (run_pb2.WEBHOOK_STATE_DELIVERED, 3)
    assert verdict.error is None


def test_tries_have_a_number_and_an_end() -> None:
    last = judge(failure(), tries=4, age_s=1, patience=PATIENCE, chance=0)
    assert (last.state, last.tries) == (run_pb2.WEBHOOK_STATE_FAILED, 5)
    old = judge(failure(), tries=0, age_s=99.9, patience=PATIENCE, chance=0)
    assert old.state == run_pb2.WEBHOOK_STATE_FAILED


def test_what_the_mesh_could_not_do_is_no_try_but_takes_time() -> None:
    away = failure(reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE)
    verdict = judge(away, tries=4, age_s=1, patience=PATIENCE, chance=0)
    assert (verdict.state, verdict.tries) == (run_pb2.WEBHOOK_STATE_PENDING, 4)
    verdict = judge(away, tries=4, age_s=100, patience=PATIENCE, chance=0)
    assert verdict.state == run_pb2.WEBHOOK_STATE_FAILED


@given(
    st.sampled_from([failure(), failure(reasons.ERROR_REASON_OVERLOADED)]),
    st.integers(0, 10),
    st.floats(0, 200),
    st.floats(0, 1, exclude_max=True),
)
def test_every_delivery_comes_to_an_end(
    error: RemitError, tries: int, age_s: float, chance: float
) -> None:
    verdict = judge(error, tries=tries, age_s=age_s, patience=PATIENCE, chance=chance)
    assert verdict.error is error
    if verdict.state == run_pb2.WEBHOOK_STATE_PENDING:
        assert 0 < verdict.wait_s <= max(PATIENCE.cap_s, error.retry_after_s or 0)
        assert age_s + verdict.wait_s <= PATIENCE.max_age_s
        assert verdict.tries < PATIENCE.max_tries or verdict.tries == tries
    else:
        assert verdict.state == run_pb2.WEBHOOK_STATE_FAILED

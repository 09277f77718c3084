"""Envoy's rate-limit service: whom it counts, what it answers, and what it does without a store."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

import pytest
from google.rpc import status_pb2
from structlog.testing import capture_logs

from remit.api.errors.v1 import error_reason_pb2
from remit.api.gateway.v1 import rate_limit_pb2
from remit.api.options.v1 import options_pb2
from remit.policy.limit_book import Limits, facts_of, meters_of
from remit.policy.limits import Limit, Meter, Refusal
from remit.policy.rate_limits import EdgeLimits, rate_limited
from remit.policy.settings import PolicySettings
from remit.rpc.envoy import RateLimitStub
from remit.rpc.errors import RemitError
from tests.monitoring.values import gained
from tests.policy.world import ALICE, BOB, ORG, MovedClock, World
from tests.rest import error_of

OK = rate_limit_pb2.RateLimitResponse.CODE_OK
OVER = rate_limit_pb2.RateLimitResponse.CODE_OVER_LIMIT
KEY = f"{ORG}/apiKeys/k"
LIMITS = Limits(Limit(10, 60), None, None)


def question(user: str = ALICE, **entries: str) -> rate_limit_pb2.RateLimitRequest:
    request = rate_limit_pb2.RateLimitRequest(domain="remit")
    facts = {"limit": "RATE_LIMIT_RUNS", **facts_of(user, KEY, ORG, LIMITS)} | entries
    descriptor = request.descriptors.add()
    for key, value in facts.items():
        descriptor.entries.add(key=key, value=value)
    return request


async def ask(
    world: World, request: rate_limit_pb2.RateLimitRequest
) -> rate_limit_pb2.RateLimitResponse:
    stub = world.mesh.as_caller(options_pb2.CALLER_PUBLIC).stub(RateLimitStub)
    response: rate_limit_pb2.RateLimitResponse = await stub.ShouldRateLimit(request)
    return response


def headers_of(response: rate_limit_pb2.RateLimitResponse) -> dict[str, str]:
    return {header.key: header.value for header in response.response_headers_to_add}


async def test_a_user_may_start_ten_runs_in_any_minute(world: World, clock: MovedClock) -> None:
    admitted = gained("remit_policy_rate_limit_checks_total", result="ADMITTED")
    refused = gained("remit_policy_rate_limit_checks_total", result="user")
    for _ in range(10):
        assert (await ask(world, question())).overall_code == OK
        clock.move(1)
    answer = await ask(world, question())
    assert answer.overall_code == OVER
    assert (admitted(), refused()) == (10, 1)
    headers = headers_of(answer)
    packed = headers["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(base64.b64decode(packed + "=" * (-len(packed) % 4)))
    error = RemitError.from_status(status)
    assert error.reason == error_reason_pb2.ERROR_REASON_RATE_LIMITED
    assert error.retry_after_s == 50
    assert headers["retry-after"] == "50"
    assert answer.raw_body == b"", "a browser's gRPC-Web has no body"
    assert (await ask(world, question(BOB))).overall_code == OK
    clock.move(50)
    assert (await ask(world, question())).overall_code == OK


async def test_a_rest_client_gets_json(world: World) -> None:
    for _ in range(10):
        await ask(world, question())
    answer = await ask(world, question(rest="POST"))
    assert headers_of(answer) == {"retry-after": "60", "content-type": "application/json"}
    error = error_of(json.loads(answer.raw_body))
    assert error.reason == error_reason_pb2.ERROR_REASON_RATE_LIMITED


@pytest.mark.parametrize(
    "entries",
    [
        {"user": "-"},
        {"api_key": "-"},
        {"org": "-"},
        {"user_runs": "-"},
        {"org_runs": "0/60"},
        {"api_key_runs": "1/60/2"},
        {"limit": "RATE_LIMIT_OTHER"},
    ],
)
async def test_what_it_does_not_understand_it_does_not_let_pass(
    world: World, entries: dict[str, str]
) -> None:
    with pytest.raises(RemitError) as refused:
        await ask(world, question(**entries))
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_INVALID_REQUEST


@pytest.mark.parametrize("change", ["domain", "descriptors", "none"])
async def test_a_question_of_another_form_is_refused(world: World, change: str) -> None:
    request = question()
    if change == "domain":
        request.domain = "other"
    elif change == "descriptors":
        request.descriptors.add()
    else:
        del request.descriptors[:]
    with pytest.raises(RemitError):
        await ask(world, request)


async def test_services_cannot_ask(world: World) -> None:
    stub = world.mesh.as_caller(options_pb2.CALLER_AGENT).stub(RateLimitStub)
    with pytest.raises(RemitError) as refused:
        await stub.ShouldRateLimit(question())
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_CALLER_NOT_ALLOWED


class AwayStore:
    async def admit(self, meters: Sequence[Meter]) -> tuple[Refusal, ...]:
        raise RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away")

    async def ping(self) -> None:
        raise AssertionError


async def test_a_store_that_is_away_refuses_or_counts_nothing_as_was_chosen(world: World) -> None:
    uncounted = gained("remit_policy_rate_limit_checks_total", result="UNCOUNTED")
    away = gained("remit_policy_rate_limit_checks_total", result="DEPENDENCY_UNAVAILABLE")
    closed, open_ = (EdgeLimits(AwayStore(), fail_open=f) for f in (False, True))
    with pytest.raises(RemitError):
        await closed.ShouldRateLimit(question(), None)  # type: ignore[arg-type]
    with capture_logs() as logs:
        answer = await open_.ShouldRateLimit(question(), None)  # type: ignore[arg-type]
    assert answer.overall_code == OK
    assert [entry["event"] for entry in logs] == ["run_not_counted"]
    assert (uncounted(), away()) == (1, 1)


async def test_limits_come_from_settings_and_zero_is_none() -> None:
    def told(**settings: int) -> Limits:
        return Limits.of_settings(PolicySettings(**settings))  # type: ignore[arg-type]

    assert told() == Limits(Limit(10, 60), None, None)
    chosen = told(run_limit_of_user=0, run_limit_of_org=7, run_limit_window_s=5)
    assert chosen == Limits(None, None, Limit(7, 5))


def test_what_the_edge_carries_is_read_as_it_was_written() -> None:
    limits = Limits(Limit(10, 60), None, Limit(10_000, 86_400))
    assert meters_of(facts_of(ALICE, KEY, ORG, limits)) == (
        Meter("user", ALICE, Limit(10, 60)),
        Meter("org", ORG, Limit(10_000, 86_400)),
    )


def test_the_error_waits_for_the_limit_that_is_free_last() -> None:
    soon = Refusal(Meter("user", ALICE, Limit(1, 60)), 5)
    late = Refusal(Meter("org", ORG, Limit(3, 60)), 7_000_001)
    error = rate_limited([soon, late])
    assert error.message == "orgs/acme may start 3 runs in any 60 s, and has"
    assert error.retry_after_s == 7.001, "rounded up: whoever waits so long finds the place"
    assert [q.subject for q in error.quota] == [ALICE, ORG]

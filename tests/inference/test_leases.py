"""Rolling leases before the real ledger: what is cut, what is billed, what the budget is spared."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from remit.api.audit.v1 import event_pb2
from remit.api.errors.v1 import error_reason_pb2
from remit.api.inference.v1 import message_pb2
from remit.api.inference.v1.inference_service_pb2 import GenerateTextRequest, GenerateTextResponse
from remit.inference.settings import InferenceSettings
from remit.postgres import Database
from remit.rpc.calls import remit_token
from remit.rpc.errors import RemitError
from tests.conftest import OpenDatabase, PostgresCluster
from tests.effects.world import World
from tests.inference.openai_server import OpenAIServer, chunks, delta, stalls_after, usage
from tests.inference.real_ledger import Ledger, Paying, Voice, models, read
from tests.inference.service_world import a_prompt, a_run, opened, token_of
from tests.monitoring.values import gained
from tests.waiting import eventually

BUDGET = message_pb2.FINISH_REASON_BUDGET
PERMISSION = message_pb2.FINISH_REASON_PERMISSION
DEADLINE = message_pb2.FINISH_REASON_DEADLINE
STOP = message_pb2.FINISH_REASON_STOP
UNAVAILABLE = error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
STEP = 40
"""Tokens of a lease here."""
RECHECK_S = 4.5
"""Policy is asked again when two thirds are over; the rest is for a machine that is busy."""

Open = Callable[..., Awaitable[Paying]]


@pytest.fixture
async def pay(
    postgres: PostgresCluster,
    database: OpenDatabase,
    world: World,
    provider: OpenAIServer,
    tmp_path: Path,
) -> AsyncIterator[Open]:
    """Opens the service before a ledger with so much money."""
    async with AsyncExitStack() as stack:

        async def opening(money: int = 10**6, **settings: Any) -> Paying:
            file = tmp_path / "models.yaml"
            file.write_text(yaml.safe_dump({"models": models(provider)}))
            ledger = Ledger(await database("cost"), world, money, tmp_path)
            given = {"lease_tokens": STEP, "lease_s": 0, "lease_wait_s": 20, "heartbeat_s": 0.05}
            chosen = InferenceSettings(
                dsn=postgres.dsn(await postgres.fresh("inference"), "remit_inference"),
                models_file=file,
                effect_sweep_s=0.05,
                effect_closing_linger_s=0.01,
                **given | settings,
            )
            claims = await stack.enter_async_context(Database.of(chosen, "inference"))
            inference = await stack.enter_async_context(opened(chosen, world, ledger.mesh()))
            tasks = [asyncio.ensure_future(work()) for work in inference.service.background]
            stack.push_async_callback(_ended, tasks)
            voice = Voice()
            provider.script = voice.script()
            return Paying(inference, ledger, claims, voice)

        yield opening


async def _ended(tasks: Sequence[asyncio.Future[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def ask(model: str = "exact", key: str = "key-1", **fields: Any) -> GenerateTextRequest:
    request = a_prompt("Write a poem", key=key, model=model, **fields)
    request.ClearField("tools")
    return request


async def failure(paying: Paying, request: GenerateTextRequest) -> RemitError:
    with pytest.raises(RemitError) as caught:
        await paying.inference.generate(request)
    return caught.value


def told(response: GenerateTextResponse) -> tuple[int, int, int, bool]:
    """Why a turn ended, the tokens of its text and of its bill, and whether that is a guess."""
    assert set(response.message.text) <= {"x"}
    assert response.cost_nanos == response.usage.output_tokens
    text = len(response.message.text)
    return response.finish_reason, text, response.cost_nanos, response.usage.estimated


# ---------------------------------------------------------------------------------- extending


async def test_a_stream_extends_its_lease_as_it_goes_and_pays_for_what_came(
    pay: Open, provider: OpenAIServer
) -> None:
    paying = await pay()
    provider.script = paying.voice.script(500)
    streaming = asyncio.ensure_future(paying.inference.streamed(ask()))
    for said in range(10, 481, 10):
        # It speaks on when the ledger has heard of it, so that every hold can be looked at.
        paying.voice.say(10)
        held = await eventually(partial(_held, paying, at_least=said))
        assert held <= said + STEP + 1
        await eventually(partial(_is_noted, paying))
    paying.voice.say(20)
    *_, last = await streaming
    assert told(last.response) == (STOP, 500, 500, False)
    assert await paying.closed() == (0, 500, 0)
    assert 500 / STEP <= paying.ledger.extensions <= 2 * 500 / STEP + 2
    questions = paying.world.questions
    assert len(questions) >= 1 + paying.ledger.extensions
    assert [q.continuing for q in questions] == [False] + [True] * (len(questions) - 1)


async def _is_noted(paying: Paying) -> bool:
    """Whether the claim says what the ledger holds for it."""
    noted = await paying.claims.fetchval("SELECT hold_nanos FROM effect_attempts")
    held, _, _ = await paying.ledger.spent()
    return bool(noted == held)


async def _held(paying: Paying, at_least: int) -> int:
    held, _, _ = await paying.ledger.spent()
    return held if held >= at_least else 0


async def test_a_short_answer_asks_for_nothing_more(pay: Open, provider: OpenAIServer) -> None:
    paying = await pay(lease_tokens=2_048)
    provider.script = paying.voice.script(500)
    paying.voice.speaks_freely = True
    assert told(await paying.inference.generate(ask())) == (STOP, 500, 500, False)
    assert paying.ledger.extensions == 0


async def test_an_engine_that_goes_on_charging_is_held_whole(
    pay: Open, provider: OpenAIServer
) -> None:
    paying = await pay()
    provider.script = paying.voice.script(90)
    asking = asyncio.ensure_future(paying.inference.generate(ask("whole")))
    assert await eventually(lambda: _held(paying, at_least=1)) == 100
    paying.voice.say(90)
    assert told(await asking) == (STOP, 90, 90, False)
    assert paying.ledger.extensions == 0


async def test_an_answer_that_comes_at_once_waits_for_its_money(
    pay: Open, provider: OpenAIServer
) -> None:
    paying = await pay()
    provider.script = chunks(
        delta(content="x" * 5_000), delta(finish_reason="stop"), usage(5, 5_000)
    )
    assert told(await paying.inference.generate(ask())) == (STOP, 5_000, 5_000, False)
    assert await paying.closed() == (0, 5_000, 0)


# ------------------------------------------------------------------------------- money ends


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_stream_ends_where_the_money_does_to_the_token(
    pay: Open, *, streamed: bool
) -> None:
    paying = await pay(money=105)
    cut = gained("remit_generations_cut_total", model="models/exact", cause="BUDGET")
    paying.voice.speaks_freely = True
    ask_ = paying.inference.streamed if streamed else None
    with capture_logs() as logs:
        if ask_ is None:
            response = await paying.inference.generate(ask())
        else:
            *pieces, last = await ask_(ask())
            response = last.response
            assert "".join(p.text_delta for p in pieces) == response.message.text
    assert told(response) == (BUDGET, 105, 105, False)
    await asyncio.wait_for(paying.voice.hung_up.wait(), 10)
    assert await paying.closed() == (0, 105, 0)
    assert "generation_cut" in {entry["event"] for entry in logs}
    assert cut() == 1
    again = await paying.inference.generate(ask())
    assert (again.replayed, again.message, again.finish_reason) == (True, response.message, BUDGET)
    assert await paying.closed() == (0, 105, 0)


async def test_without_a_count_the_bytes_bound_it_and_the_bill_is_an_estimate(pay: Open) -> None:
    paying = await pay(money=105)
    paying.voice.speaks_freely = True
    response = await paying.inference.generate(ask("bytes"))
    assert response.finish_reason == BUDGET
    assert len(response.message.text) == 105
    assert response.usage.output_tokens <= response.cost_nanos <= 105


async def test_the_rule_engine_says_no_word_that_is_not_paid_for(pay: Open) -> None:
    whole = (await (await pay(lease_tokens=4)).inference.generate(ask("builtin-rules"))).message
    paying = await pay(money=10, lease_tokens=4)
    response = await paying.inference.generate(ask("builtin-rules"))
    text = response.message.text
    assert response.finish_reason == BUDGET
    assert whole.text.startswith(text)
    assert 4 <= response.cost_nanos == -(-len(text.encode()) // 4) <= 10
    assert not response.usage.estimated
    assert await paying.closed() == (0, response.cost_nanos, 0)


async def test_streams_of_one_budget_never_spend_more_than_it(pay: Open) -> None:
    paying = await pay(money=700)
    paying.voice.speaks_freely = True
    answers = await asyncio.gather(
        *(paying.inference.generate(ask(key=f"key-{n}")) for n in range(8)),
        return_exceptions=True,
    )
    spent = [answer.cost_nanos for answer in answers if isinstance(answer, GenerateTextResponse)]
    for answer in answers:
        if isinstance(answer, GenerateTextResponse):
            assert told(answer)[0] == BUDGET
        else:
            assert isinstance(answer, RemitError)
            assert answer.reason == error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED
    assert await paying.closed() == (0, sum(spent), 0)
    assert 500 <= sum(spent) <= 700


@pytest.mark.parametrize("model", ["whole", "exact"])
async def test_an_upstream_that_returns_four_times_max_tokens_costs_the_budget_no_more(
    pay: Open, provider: OpenAIServer, model: str
) -> None:
    paying = await pay(money=110)
    provider.script = chunks(
        *(delta(content="xxxx") for _ in range(100)), delta(finish_reason="stop"), usage(5, 400)
    )
    overrun = gained("remit_overrun_nanos_total", item=f"models/{model}")
    with capture_logs() as logs:
        response = await paying.inference.generate(ask(model, max_output_tokens=100))
        assert await paying.closed() == (0, 100, 300)
    assert (len(response.message.text), response.usage.output_tokens) == (400, 400)
    assert response.cost_nanos == 100
    assert overrun() == 300
    (alert,) = [entry for entry in logs if entry["event"] == "bill_above_hold"]
    assert (alert["item"], alert["overrun_nanos"]) == (f"models/{model}", 300)


# ------------------------------------------------------------------- permission and time end


async def _three_said(paying: Paying) -> asyncio.Task[GenerateTextResponse]:
    """A stream of which three tokens came, whose model is silent now."""
    heard = asyncio.Event()

    async def listen() -> GenerateTextResponse:
        came = 0
        async for piece in paying.inference.stream(ask()):
            came += len(piece.text_delta)
            if came == 3:
                heard.set()
            if piece.HasField("response"):
                return piece.response
        raise AssertionError

    paying.voice.say(3)
    listening = asyncio.create_task(listen())
    await asyncio.wait_for(heard.wait(), 20)
    return listening


async def test_a_permission_that_is_withdrawn_ends_the_stream_by_the_next_look(pay: Open) -> None:
    paying = await pay(permission_recheck_s=RECHECK_S)
    listening = await _three_said(paying)
    paying.world.denied = True
    assert told(await asyncio.wait_for(listening, 30)) == (PERMISSION, 3, 3, False)
    await asyncio.wait_for(paying.voice.hung_up.wait(), 10)
    assert await paying.closed() == (0, 3, 0)


async def test_an_extension_asks_for_permission_first(pay: Open) -> None:
    paying = await pay()
    listening = await _three_said(paying)
    paying.world.denied = True
    paying.voice.say(30)
    reason, text, bill, _ = told(await asyncio.wait_for(listening, 30))
    assert (reason, text) == (PERMISSION, bill)
    assert paying.ledger.extensions == 0


async def test_a_fenced_worker_s_stream_is_cut_and_its_successor_asks_again(pay: Open) -> None:
    paying = await pay(permission_recheck_s=RECHECK_S)
    listening = await _three_said(paying)
    paying.world.of_another = True
    with pytest.raises(RemitError) as caught:
        await asyncio.wait_for(listening, 30)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_FENCED
    assert await paying.closed() == (0, 3, 0)
    paying.world.of_another = False
    listening = await _three_said(paying)
    listening.cancel()
    outcomes = [e for e in paying.world.events.values() if e.outcome]
    assert [e.outcome for e in outcomes] == [event_pb2.OUTCOME_CANCELLED]


async def test_at_the_deadline_the_text_so_far_is_the_answer(pay: Open) -> None:
    paying = await pay()
    paying.voice.say(3)
    with remit_token(token_of()):
        response = await paying.inference.stub().GenerateText(ask(), timeout=10.0)
    assert told(response) == (DEADLINE, 3, 3, False)
    assert await paying.closed() == (0, 3, 0)


# ------------------------------------------------------------------------------------ outages


@pytest.mark.parametrize("outage", ["away", "late", "hangs"])
async def test_without_the_ledger_a_stream_ends_inside_its_lease(pay: Open, outage: str) -> None:
    paying = await pay(lease_wait_s=0.3)
    listening = await _three_said(paying)
    if outage == "late":  # a killed replica's call ends so
        paying.ledger.outage = error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    if outage in {"away", "late"}:
        paying.world.away.add("cost")
    else:
        paying.ledger.hangs.set()
    paying.voice.say(1_000)
    with pytest.raises(RemitError) as caught:
        await asyncio.wait_for(listening, 30)
    assert (caught.value.reason, caught.value.retryable) == (UNAVAILABLE, True)
    await asyncio.wait_for(paying.voice.hung_up.wait(), 10)
    paying.world.away.clear()
    paying.ledger.hangs.clear()
    assert caught.value.metadata["cost_nanos"] == str(STEP + 1)
    await eventually(lambda: _is_spent(paying, STEP + 1), 20)


async def _is_spent(paying: Paying, nanos: int) -> bool:
    return await paying.ledger.spent() == (0, nanos, 0)


async def test_a_stream_waits_out_a_short_outage(pay: Open, provider: OpenAIServer) -> None:
    paying = await pay()
    provider.script = paying.voice.script(200)
    paying.world.away.add("cost")
    paying.voice.say(200)
    asking = asyncio.ensure_future(paying.inference.generate(ask()))
    # Reserving goes through: only extensions are away here.
    await eventually(lambda: paying.ledger.extensions >= 2)
    assert not asking.done()
    paying.world.away.clear()
    assert told(await asking) == (STOP, 200, 200, False)


async def test_without_policy_a_stream_ends_when_its_last_answer_is_too_old(pay: Open) -> None:
    paying = await pay(permission_recheck_s=RECHECK_S)
    listening = await _three_said(paying)
    paying.world.away.add("policy")
    with pytest.raises(RemitError) as caught:
        await asyncio.wait_for(listening, 30)
    assert caught.value.reason == UNAVAILABLE
    paying.world.away.clear()
    assert await paying.closed() == (0, 3, 0)


async def test_of_a_claim_that_died_what_it_holds_by_then_is_posted(pay: Open) -> None:
    paying = await pay(lease_wait_s=0.3)
    listening = await _three_said(paying)
    paying.voice.say(27)
    held = await eventually(lambda: _held(paying, at_least=STEP + 2))
    await eventually(lambda: _is_noted(paying))

    async def swept() -> bool:
        # Its owner lives here and renews the lease; a dead one would not.
        await paying.claims.execute("UPDATE effect_attempts SET lease_expires = '-infinity'")
        return await _is_spent(paying, held)

    await eventually(swept)
    paying.voice.say(1_000)
    with pytest.raises(RemitError) as caught:
        await asyncio.wait_for(listening, 30)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_EFFECT_IN_PROGRESS
    assert await paying.closed() == (0, held, 0)


# ---------------------------------------------------------------------- cancel and disconnect


async def test_who_leaves_pays_for_exactly_what_was_generated(pay: Open) -> None:
    paying = await pay()
    chance = random.Random(7)  # noqa: S311 - the same in every run
    for n in range(25):
        tokens = chance.randint(1, 90)
        paying.voice.say(tokens)
        await read(paying, ask(key=f"key-{n}"), tokens)
        await asyncio.wait_for(paying.voice.hung_up.wait(), 10)
        paying.voice.hung_up.clear()
    assert await paying.closed() == (0, paying.voice.made, 0)


async def test_a_cancelled_call_stops_the_model_and_pays_what_it_said(pay: Open) -> None:
    paying = await pay(lease_tokens=1)
    with remit_token(token_of(run=a_run(), models=("models/exact",))):
        call = asyncio.ensure_future(paying.inference.generate(ask(max_output_tokens=500)))
        paying.voice.say(57)
        # The last of them was heard: one more is held, and the one that may be under way.
        await eventually(lambda: _held(paying, at_least=57 + 2))
        call.cancel()
        await asyncio.wait({call})
    await asyncio.wait_for(paying.voice.hung_up.wait(), 10)
    assert await paying.closed() == (0, paying.voice.made, 0)


@pytest.mark.parametrize("model", ["bytes", "whole"])
async def test_of_an_engine_that_does_not_count_the_text_is_counted(
    pay: Open, provider: OpenAIServer, model: str
) -> None:
    paying = await pay()
    provider.script = stalls_after(provider, delta(content="x" * 9))
    await read(paying, ask(model), 9)
    await paying.inference.settled_down()
    (charged,) = await paying.ledger.database.fetch(
        "SELECT used_output_tokens, used_estimated FROM reservations"
    )
    assert tuple(charged) == (3, True)

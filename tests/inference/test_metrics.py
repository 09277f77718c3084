"""A model call is measured however it ends, under the names of the GenAI conventions."""

from __future__ import annotations

from typing import Any, cast

from remit.api.errors.v1 import error_reason_pb2
from remit.api.usage.v1.usage_pb2 import Usage
from remit.effects import Callers, EffectResult, Hold, Outcome, Permit
from remit.inference.builtin_rules import BuiltinRulesEngine
from remit.inference.declarations import BuiltinModel
from remit.inference.engine import Progress
from remit.inference.metrics import Measured
from remit.inference.models import DeclaredModel
from remit.rpc.errors import RemitError
from tests.monitoring.values import gained

CALL = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "builtin-rules",
    "gen_ai_request_model": "some-model",
}
PERMIT = Permit("k", "claims/c", 1, Callers("token", 0, deadline=0.0), cast("Hold", None))


class Ticking:
    """A clock on which two seconds pass from one look to the next."""

    def __init__(self) -> None:
        self._time = 0.0

    def monotonic(self) -> float:
        self._time += 2.0
        return self._time


def measured(result: EffectResult, *, chunks: int = 0) -> Measured:
    declaration = BuiltinModel(
        name="some-model", engine="builtin-rules", context_tokens=100, max_output_tokens=100
    )

    clock: Any = Ticking()
    progress = Progress(clock=clock)

    async def generation(_: Permit) -> EffectResult:
        for _chunk in range(chunks):
            progress.chunk_received()
        return result

    model = DeclaredModel(declaration, BuiltinRulesEngine())
    return Measured(generation, model, progress, clock)  # type: ignore[arg-type]


async def test_a_call_gives_its_time_its_tokens_and_their_rate() -> None:
    seconds = gained("gen_ai_client_operation_duration_seconds_sum", **CALL, error_type="")
    given = gained("gen_ai_client_token_usage_sum", **CALL, gen_ai_token_type="input")
    made = gained("gen_ai_client_token_usage_sum", **CALL, gen_ai_token_type="output")
    rate = gained("remit_generation_tokens_per_second_sum", model="some-model")
    used = Usage(input_tokens=30, output_tokens=8, calls=1)
    await measured(EffectResult(Outcome.SUCCEEDED, used))(PERMIT)
    assert (seconds(), given(), made(), rate()) == (2, 30, 8, 4)


async def test_a_failure_gives_its_reason_and_what_was_charged() -> None:
    failures = gained(
        "gen_ai_client_operation_duration_seconds_count", **CALL, error_type="PROVIDER_UNAVAILABLE"
    )
    calls = gained("gen_ai_client_token_usage_count", **CALL, gen_ai_token_type="output")
    rates = gained("remit_generation_tokens_per_second_count", model="some-model")
    error = RemitError(error_reason_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE, "away")
    await measured(EffectResult(Outcome.FAILED, Usage(), error=error))(PERMIT)
    assert (failures(), calls(), rates()) == (1, 0, 0)
    charged = Usage(input_tokens=30, output_tokens=1, calls=1)
    await measured(EffectResult(Outcome.FAILED, charged, error=error))(PERMIT)
    assert (failures(), calls(), rates()) == (2, 1, 0)


async def test_the_first_chunk_alone_is_timed_also_of_an_answer_that_breaks_off() -> None:
    seconds = gained("gen_ai_client_operation_time_to_first_chunk_seconds_sum", **CALL)
    calls = gained("gen_ai_client_operation_time_to_first_chunk_seconds_count", **CALL)
    error = RemitError(error_reason_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE, "broken")
    await measured(EffectResult(Outcome.FAILED, Usage(), error=error), chunks=3)(PERMIT)
    assert (seconds(), calls()) == (2, 1)
    await measured(EffectResult(Outcome.FAILED, Usage(), error=error), chunks=0)(PERMIT)
    assert calls() == 1, "no chunk came"

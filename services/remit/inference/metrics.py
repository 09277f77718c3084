"""What operators watch of model calls: the metrics of OpenTelemetry's GenAI conventions v1.41.

The names are the conventions' own as Prometheus writes them: dots become underscores, the unit goes
last, and a unit in braces is no unit. Beside them the rate at which tokens came.
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

from prometheus_client import Histogram

from remit.effects import EffectResult, Permit
from remit.inference.generation import Generation
from remit.inference.models import DeclaredModel
from remit.rpc.clock import Clock

OPERATION: Final = "chat"
PROVIDERS: Final = {"openai": "openai", "builtin-rules": "remit.builtin_rules"}
"""`gen_ai.provider.name` by engine. For `openai` it names the protocol, as the conventions ask of
endpoints that speak it; the model tells whose endpoint it is."""

_OPERATION_LABELS: Final = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
# The bucket boundaries are those that the conventions state.
TOKENS: Final = Histogram(
    "gen_ai_client_token_usage",
    "Tokens of one model call, by kind; estimated where the provider reports none.",
    [*_OPERATION_LABELS, "gen_ai_token_type"],
    buckets=tuple(4**power for power in range(14)),
)
SECONDS: Final = Histogram(
    "gen_ai_client_operation_duration_seconds",
    "Time of one model call in seconds; `error_type` is the reason of one that failed.",
    [*_OPERATION_LABELS, "error_type"],
    buckets=tuple(0.01 * 2**power for power in range(14)),
)
TOKENS_PER_SECOND: Final = Histogram(
    "remit_generation_tokens_per_second",
    "Output tokens of one successful model call by its time in seconds, by model.",
    ["model"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000),
)


class _Series(NamedTuple):
    input_tokens: Histogram
    output_tokens: Histogram
    tokens_per_second: Histogram


class Measured:
    """A generation that is counted when it ends, however it ends."""

    def __init__(self, generation: Generation, model: DeclaredModel, clock: Clock) -> None:
        self._generation = generation
        self._model = model.name
        self._provider = PROVIDERS[model.declaration.engine]
        self._clock = clock

    async def __call__(self, permit: Permit) -> EffectResult:
        """The effect."""
        started = self._clock.monotonic()
        result = await self._generation(permit)
        self._count(result, self._clock.monotonic() - started)
        return result

    def _count(self, result: EffectResult, seconds: float) -> None:
        error = result.error.reason_name if result.error is not None else ""
        _seconds(self._provider, self._model, error).observe(seconds)
        if not result.used.calls:
            return  # nothing reached the model, or nothing of it is charged
        series = _series(self._provider, self._model)
        series.input_tokens.observe(result.used.input_tokens)
        series.output_tokens.observe(result.used.output_tokens)
        if not error and seconds > 0:
            series.tokens_per_second.observe(result.used.output_tokens / seconds)


@functools.cache
def _seconds(provider: str, model: str, error: str) -> Histogram:
    return SECONDS.labels(OPERATION, provider, model, error)


@functools.cache
def _series(provider: str, model: str) -> _Series:
    return _Series(
        TOKENS.labels(OPERATION, provider, model, "input"),
        TOKENS.labels(OPERATION, provider, model, "output"),
        TOKENS_PER_SECOND.labels(model),
    )

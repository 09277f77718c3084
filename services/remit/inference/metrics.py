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
from remit.inference.engine import Progress
from remit.inference.generation import Generation
from remit.inference.models import DeclaredModel
from remit.rpc.clock import Clock
from remit.telemetry import table

TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - a kind of tokens, no secret
"""Of metrics alone: a span has an attribute for each type."""


def labels_of(*attributes: str) -> list[str]:
    """Attributes of the conventions as labels."""
    return [attribute.replace(".", "_") for attribute in attributes]


_CALL: Final = (table.GEN_AI_OPERATION, table.GEN_AI_PROVIDER, table.GEN_AI_REQUEST_MODEL)
# The bucket boundaries are those that the conventions state; of both times they are the same.
_SECONDS_BUCKETS: Final = tuple(0.01 * 2**power for power in range(14))
TOKENS: Final = Histogram(
    "gen_ai_client_token_usage",
    "Tokens of one model call, by kind; estimated where the provider reports none.",
    labels_of(*_CALL, TOKEN_TYPE),
    buckets=tuple(4**power for power in range(14)),
)
SECONDS: Final = Histogram(
    "gen_ai_client_operation_duration_seconds",
    "Time of one model call in seconds; `error_type` is the reason of one that failed.",
    labels_of(*_CALL, table.ERROR_TYPE),
    buckets=_SECONDS_BUCKETS,
)
FIRST_CHUNK_SECONDS: Final = Histogram(
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    "Time from a model call's start until the first chunk of its answer came, in seconds; of"
    " answers that come as a stream, also of those that fail later.",
    labels_of(*_CALL),
    buckets=_SECONDS_BUCKETS,
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

    def __init__(
        self, generation: Generation, model: DeclaredModel, progress: Progress, clock: Clock
    ) -> None:
        self._generation = generation
        self._progress = progress
        self._model = model.declaration.name
        self._provider = model.declaration.engine
        self._clock = clock

    async def __call__(self, permit: Permit) -> EffectResult:
        """The effect."""
        started = self._clock.monotonic()
        result = await self._generation(permit)
        self._count(result, self._clock.monotonic() - started)
        first = self._progress.first_chunk_time
        if first is not None:
            _first_chunk(self._provider, self._model).observe(first - started)
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
    return SECONDS.labels(table.CHAT, provider, model, error)


@functools.cache
def _first_chunk(provider: str, model: str) -> Histogram:
    return FIRST_CHUNK_SECONDS.labels(table.CHAT, provider, model)


@functools.cache
def _series(provider: str, model: str) -> _Series:
    return _Series(
        TOKENS.labels(table.CHAT, provider, model, "input"),
        TOKENS.labels(table.CHAT, provider, model, "output"),
        TOKENS_PER_SECOND.labels(model),
    )

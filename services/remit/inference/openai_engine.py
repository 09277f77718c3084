"""The engine `openai`: any endpoint that speaks the OpenAI chat completions protocol.

The SDK is used for its transport and its errors alone. Its retries are off: every attempt at a
provider is an effect of its own, with its own hold and intent. Chunks are read raw, which costs a
third of the typed models, and are checked by `chat_completions`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import openai
from httpx2 import AsyncByteStream, Limits, Response

from remit import telemetry
from remit.api.inference.v1.inference_service_pb2 import GenerateTextRequest
from remit.api.usage.v1.usage_pb2 import Usage
from remit.inference.chat_completions import Answer, FunctionNames, NotAnAnswer, request_body
from remit.inference.declarations import OpenAIModel
from remit.inference.engine import (
    Growth,
    Piece,
    Progress,
    TextDelta,
    Turn,
    counted_tokens,
    prompt_texts,
    tokens_of_bytes,
    upper_bound,
)
from remit.inference.provider_errors import may_be_charged, not_an_answer, provider_error
from remit.rpc.clock import Clock, SystemClock

# JSON and SSE around a piece of text; a chunk of one token has about 200 bytes of it.
_MAX_WIRE_BYTES_PER_TOKEN: Final = 2_048
_WIRE_BYTES_OF_FRAME: Final = 65_536

log = telemetry.logger(__name__)


class OpenAIEngine:
    """Calls one declared model at its provider."""

    def __init__(
        self,
        declaration: OpenAIModel,
        *,
        max_answer_bytes: int,
        max_connections: int,
        clock: Clock | None = None,
    ) -> None:
        self._declaration = declaration
        self._max_answer_bytes = max_answer_bytes
        self._clock = clock or SystemClock()
        self._client = _client(declaration, max_connections)

    @property
    def stop_stops_bill(self) -> bool:
        """As declared: the protocol does not say."""
        return self._declaration.stop_stops_bill

    @property
    def unsent_tokens(self) -> int:
        """As declared: what is generated between the last chunk read and the stop."""
        return self._declaration.unsent_tokens

    @property
    def measures_confidence(self) -> bool:
        """As declared: a provider that gives no log-probabilities may refuse who asks for them."""
        return self._declaration.logprobs

    def bound(self, request: GenerateTextRequest) -> Usage:
        """One token for each byte of the prompt, and all of `max_output_tokens`."""
        return upper_bound(request)

    def not_ready_reason(self) -> str:
        """Says so where the key is missing."""
        key = self._declaration.api_key
        return key.missing_reason() if key is not None else ""

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def generate(
        self, request: GenerateTextRequest, progress: Progress
    ) -> AsyncGenerator[Piece, None]:
        """Streams the provider's answer.

        Raises PROVIDER_UNAVAILABLE for limits, outages, timeouts and broken streams, and
        PROVIDER_FAILED for a refused request or an answer that is none.
        """
        functions = FunctionNames(request)
        answer = Answer(functions)
        key = self._key()
        try:
            async with aclosing(self._chunks(request, functions, key, progress)) as chunks:
                async for chunk in chunks:
                    text = answer.add(chunk)
                    self._keep_up(progress, answer)
                    if text:
                        yield TextDelta(text)
                    yield Growth(self._came(answer))
            message, finish_reason = answer.finished()
        except NotAnAnswer as error:
            raise not_an_answer(self._declaration.resource_name, str(error)) from None
        except openai.APIError as error:
            progress.owed = may_be_charged(error)
            raise provider_error(
                self._declaration.resource_name, error, key=key, now=self._clock.now()
            ) from None
        usage = self._reported(request, progress)
        yield Turn(message, finish_reason, usage, answer.probabilities.mean())

    def used(self, request: GenerateTextRequest, progress: Progress) -> Usage:
        """What the provider reported; else an estimate from the text that came."""
        if not progress.owed:
            return Usage()
        if progress.reported is not None:
            return _with_uncounted(progress.reported, progress.uncounted_bytes)
        return Usage(
            input_tokens=counted_tokens(prompt_texts(request)),
            output_tokens=tokens_of_bytes(progress.generated_bytes),
            calls=1,
            estimated=True,
        )

    def _keep_up(self, progress: Progress, answer: Answer) -> None:
        progress.chunk_received()
        progress.generated_bytes = answer.generated_bytes
        progress.reported = answer.usage
        progress.uncounted_bytes = answer.uncounted_bytes
        if answer.generated_bytes > self._max_answer_bytes:
            message = f"it has more than {self._max_answer_bytes} bytes"
            raise NotAnAnswer(message)

    def _came(self, answer: Answer) -> int:
        """The most tokens that what came can be: as counted by the provider, else its bytes.

        Byte-level tokenizers make no token of text without a byte.
        """
        if self._declaration.continuous_usage and answer.usage is not None:
            return answer.usage.output_tokens + answer.uncounted_bytes
        return answer.generated_bytes

    def _reported(self, request: GenerateTextRequest, progress: Progress) -> Usage:
        usage = self.used(request, progress)
        if usage.output_tokens > request.max_output_tokens:
            log.warning(
                "provider_exceeded_max_tokens",
                model=self._declaration.resource_name,
                asked=request.max_output_tokens,
                generated=usage.output_tokens,
            )
        return usage

    def _key(self) -> str:
        reference = self._declaration.api_key
        return reference.read() if reference is not None else ""

    async def _chunks(
        self, request: GenerateTextRequest, functions: FunctionNames, key: str, progress: Progress
    ) -> AsyncGenerator[object, None]:
        """The parsed chunks of the provider's stream, each of them JSON."""
        body = request_body(
            request,
            model=self._declaration.provider_model,
            max_tokens_parameter=self._declaration.max_tokens_parameter,
            functions=functions,
            logprobs=request.measure_confidence and self._declaration.logprobs,
            continuous_usage=self._declaration.continuous_usage,
        )
        progress.owed = True
        stream = await self._client.post(
            "/chat/completions",
            body=body,
            cast_to=object,
            stream=True,
            stream_cls=openai.AsyncStream[object],
            options={"headers": _headers(key), "max_retries": 0},
        )
        most = _max_wire_bytes(request.max_output_tokens, self._max_answer_bytes)
        stream.response.stream = _Bounded(stream.response, most)
        try:
            async for chunk in stream:
                yield chunk
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            message = "a chunk of it is not JSON"
            raise NotAnAnswer(message) from None
        finally:
            await stream.close()


class _Bounded(AsyncByteStream):
    """A response's bytes up to a bound: the SDK's own reader has none."""

    def __init__(self, response: Response, max_bytes: int) -> None:
        self._inner = response.stream
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received_bytes = 0
        async for data in self._inner:  # type: ignore[union-attr]
            received_bytes += len(data)
            if received_bytes > self._max_bytes:
                message = f"its stream has more than {self._max_bytes} bytes"
                raise NotAnAnswer(message)
            yield data

    async def aclose(self) -> None:
        await self._inner.aclose()  # type: ignore[union-attr]


def _with_uncounted(reported: Usage, uncounted_bytes: int) -> Usage:
    """What was reported, and an estimate of what came after it."""
    used = Usage()
    used.CopyFrom(reported)
    used.output_tokens += tokens_of_bytes(uncounted_bytes)
    used.estimated = used.estimated or uncounted_bytes > 0
    return used


def _client(declaration: OpenAIModel, max_connections: int) -> openai.AsyncOpenAI:
    timeout = openai.Timeout(
        declaration.idle_timeout_s,
        connect=declaration.connect_timeout_s,
        pool=declaration.connect_timeout_s,
    )
    http_client = openai.DefaultAsyncHttpxClient(
        timeout=timeout,
        limits=Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
        # A redirect could carry the prompt to a host that nobody declared.
        follow_redirects=False,
    )
    return openai.AsyncOpenAI(
        api_key="read-for-each-call",
        base_url=declaration.base_url,
        max_retries=0,
        timeout=timeout,
        http_client=http_client,
        default_headers={
            # Compressed, a small answer could unfold beyond every bound.
            "Accept-Encoding": "identity",
        },
    )


def _headers(key: str) -> dict[str, Any]:
    """The key in force now; without one the SDK's own header is left out."""
    authorization = f"Bearer {key}" if key else openai.omit
    # The SDK would add these from its own environment variables.
    return {
        "Authorization": authorization,
        "OpenAI-Organization": openai.omit,
        "OpenAI-Project": openai.omit,
    }


def _max_wire_bytes(max_output_tokens: int, max_answer_bytes: int) -> int:
    tokens = min(max_output_tokens, max_answer_bytes)
    return _WIRE_BYTES_OF_FRAME + tokens * _MAX_WIRE_BYTES_PER_TOKEN

"""Every name that a span of ours may bear: one table, pinned.

`gen_ai.*` and `error.type` are those of the OpenTelemetry semantic conventions for generative AI,
version 1.41.0 (https://github.com/open-telemetry/semantic-conventions/tree/v1.41.0/docs/gen-ai).
`rpc.*` and `net.*` are those that opentelemetry-instrumentation-grpc 0.66 writes on the spans of
served calls; spans of calls that are made bear the same. `remit.*` is ours: what the conventions
have no name for. What Envoy writes on its spans is Envoy's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

CONVENTIONS: Final = "1.41.0"

GEN_AI_OPERATION: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER: Final = "gen_ai.provider.name"
GEN_AI_AGENT_NAME: Final = "gen_ai.agent.name"
GEN_AI_AGENT_VERSION: Final = "gen_ai.agent.version"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
GEN_AI_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_TOOL_NAME: Final = "gen_ai.tool.name"
GEN_AI_TOOL_TYPE: Final = "gen_ai.tool.type"
GEN_AI_INPUT_MESSAGES: Final = "gen_ai.input.messages"
GEN_AI_OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
GEN_AI_TOOL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
GEN_AI_TOOL_RESULT: Final = "gen_ai.tool.call.result"
ERROR_TYPE: Final = "error.type"

RPC_SYSTEM: Final = "rpc.system"
RPC_SERVICE: Final = "rpc.service"
RPC_METHOD: Final = "rpc.method"
RPC_GRPC_STATUS_CODE: Final = "rpc.grpc.status_code"
RPC_USER_AGENT: Final = "rpc.user_agent"
NET_PEER_IP: Final = "net.peer.ip"
NET_PEER_PORT: Final = "net.peer.port"
NET_PEER_NAME: Final = "net.peer.name"

SERVICE: Final = "remit.service"
RUN: Final = "remit.run"
RUN_STATE: Final = "remit.run.state"
STEP: Final = "remit.step"
STAGE: Final = "remit.stage"
REPLICA: Final = "remit.replica"
FENCING_TOKEN: Final = "remit.fencing_token"  # noqa: S105 - a counter, no secret
MODEL_CALLS: Final = "remit.model_calls"
TOOL_CALLS: Final = "remit.tool_calls"
TASK_BYTES: Final = "remit.task.bytes"
RESULT_BYTES: Final = "remit.result.bytes"
INPUT_TOKENS: Final = "remit.input_tokens"
OUTPUT_TOKENS: Final = "remit.output_tokens"
COST_NANOS: Final = "remit.cost_nanos"
MESSAGES: Final = "remit.messages"
PROMPT_BYTES: Final = "remit.prompt.bytes"
TEXT_BYTES: Final = "remit.text.bytes"
ARGUMENTS_BYTES: Final = "remit.arguments.bytes"
ARTIFACTS: Final = "remit.artifacts"
CLAIM: Final = "remit.claim"
ATTEMPT: Final = "remit.attempt"
OUTCOME: Final = "remit.outcome"
REPLAYED: Final = "remit.replayed"

INVOKE_AGENT: Final = "invoke_agent"
CHAT: Final = "chat"
EXECUTE_TOOL: Final = "execute_tool"

MEANINGS: Final[Mapping[str, str]] = {
    GEN_AI_OPERATION: "`invoke_agent`, `chat` or `execute_tool`",
    GEN_AI_PROVIDER: "the engine that serves the model: `openai`, `builtin-rules`",
    GEN_AI_AGENT_NAME: "name of the agent",
    GEN_AI_AGENT_VERSION: "digest of the definition that the run keeps",
    GEN_AI_REQUEST_MODEL: "the model, without `models/`",
    GEN_AI_REQUEST_MAX_TOKENS: "most output tokens of the turn",
    GEN_AI_FINISH_REASONS: "why the turn ended",
    GEN_AI_INPUT_TOKENS: "tokens of the prompt, cached ones included",
    GEN_AI_CACHED_TOKENS: "tokens of the prompt that a cache served",
    GEN_AI_OUTPUT_TOKENS: "tokens that were generated",
    GEN_AI_TOOL_NAME: "the tool, without `tools/`",
    GEN_AI_TOOL_TYPE: "`function`",
    GEN_AI_INPUT_MESSAGES: "the prompt as JSON; only with content capture",
    GEN_AI_OUTPUT_MESSAGES: "the turn as JSON; only with content capture",
    GEN_AI_TOOL_ARGUMENTS: "arguments as JSON; only with content capture",
    GEN_AI_TOOL_RESULT: "the result as JSON; only with content capture",
    ERROR_TYPE: "the reason of an error (docs/ERRORS.md), or an exception's type",
    RPC_SYSTEM: "`grpc`",
    RPC_SERVICE: "service of the contract",
    RPC_METHOD: "method of the contract",
    RPC_GRPC_STATUS_CODE: "number of the canonical code",
    RPC_USER_AGENT: "the caller's library",
    NET_PEER_IP: "address of the caller, mostly Envoy's",
    NET_PEER_PORT: "port of the caller",
    NET_PEER_NAME: "name of the caller, if it is local",
    SERVICE: "the service, for viewers that do not show `service.name` of the resource",
    RUN: "`runs/{run}`",
    RUN_STATE: "final state of the run",
    STEP: "number of the model turn, from 1",
    STAGE: "`thinking`, `using tools`, `answering`",
    REPLICA: "replica of the agent service that did the work",
    FENCING_TOKEN: "the worker's token; grows when another replica takes the run over",
    MODEL_CALLS: "model turns of the run",
    TOOL_CALLS: "tool calls of the run, or those that a turn or a stage asks for",
    TASK_BYTES: "length of the task in bytes of UTF-8",
    RESULT_BYTES: "length of the result in bytes",
    INPUT_TOKENS: "input tokens of the whole run",
    OUTPUT_TOKENS: "output tokens of the whole run",
    COST_NANOS: "cost in nano-USD",
    MESSAGES: "messages of the prompt",
    PROMPT_BYTES: "length of the prompt in bytes of UTF-8",
    TEXT_BYTES: "length of the turn's text in bytes of UTF-8",
    ARGUMENTS_BYTES: "length of the arguments in bytes",
    ARTIFACTS: "artifacts that the tool made",
    CLAIM: "`claims/{claim}` of the effect, as in the audit log",
    ATTEMPT: "attempt of the claim, from 1",
    OUTCOME: "how the effect ended",
    REPLAYED: "true where the answer was recorded before and nothing was done",
}
"""Every attribute of ours and what it says; docs/TELEMETRY.md shows this table."""

CONTENT: Final = frozenset(
    {GEN_AI_INPUT_MESSAGES, GEN_AI_OUTPUT_MESSAGES, GEN_AI_TOOL_ARGUMENTS, GEN_AI_TOOL_RESULT}
)
"""Attributes that hold what users and models wrote."""

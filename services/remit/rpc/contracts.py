"""The contract of every RPC, read once from the descriptors.

Gateway, servers, clients, policy and docs take deadlines, callers, capacity and permissions from
here. The standard services that are not ours (health, reflection, Envoy's ext_authz, rate
limits and access log) have no option; their facts stand in one table at the end of this file.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor, descriptor_pb2, duration_pb2

from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.options.v1.options_pb2 import (
    AuditClass,
    Auth,
    Caller,
    Idempotency,
    Phase,
    RateLimit,
)
from remit.rpc.errors import RemitError

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024 + 65_536
"""Largest message of any RPC, in bytes; contracts ask for less."""

AREAS: Final = ("agent", "audit", "cost", "inference", "policy", "tools")
"""The six areas, in the order of their ports."""

SERVICE_MODULES: Final = (
    "remit.api.agent.v1.agent_catalog_service_pb2",
    "remit.api.agent.v1.agent_service_pb2",
    "remit.api.agent.v1.conversation_service_pb2",
    "remit.api.audit.v1.audit_query_service_pb2",
    "remit.api.audit.v1.audit_service_pb2",
    "remit.api.audit.v1.privacy_service_pb2",
    "remit.api.audit.v1.subject_key_service_pb2",
    "remit.api.cost.v1.cost_report_service_pb2",
    "remit.api.cost.v1.cost_service_pb2",
    "remit.api.cost.v1.price_service_pb2",
    "remit.api.inference.v1.inference_service_pb2",
    "remit.api.inference.v1.model_service_pb2",
    "remit.api.policy.v1.grant_service_pb2",
    "remit.api.policy.v1.approval_service_pb2",
    "remit.api.policy.v1.org_service_pb2",
    "remit.api.policy.v1.policy_admin_service_pb2",
    "remit.api.policy.v1.policy_service_pb2",
    "remit.api.policy.v1.policy_set_service_pb2",
    "remit.api.policy.v1.principal_service_pb2",
    "remit.api.policy.v1.rate_limit_service_pb2",
    "remit.api.tools.v1.tool_service_pb2",
)
"""Modules that hold a service; a test compares the list with the contracts on disk."""


@dataclass(frozen=True)
class StreamContract:
    """Bounds of a server stream; `resume` is the request field that resumes it, or empty.

    `permission_bound_s` is how long it outlasts its reader's permission, or zero where the stream
    itself sees to that.
    """

    idle_s: float
    max_life_s: float
    resume: str
    permission_bound_s: float = 0.0


@dataclass(frozen=True)
class HttpBinding:
    """The REST form of an RPC (google.api.HttpRule).

    `verb` is as `GET`, `path` as `/v1/{name=runs/*}`; `body` names the request field that the JSON
    body fills: `*` is the whole request, empty means that there is no body.
    """

    verb: str
    path: str
    body: str


@dataclass(frozen=True)
class MethodContract:
    """What an RPC promises and needs; see protos/remit/api/options/v1/options.proto."""

    path: str
    area: str
    idempotency: Idempotency.ValueType
    phase: Phase.ValueType
    deadline_s: float
    attempt_timeout_s: float | None
    callers: frozenset[Caller.ValueType]
    auth: Auth.ValueType
    permission: str
    resource: str
    key: str
    stream: StreamContract | None
    http: HttpBinding | None
    audit: AuditClass.ValueType
    max_request_bytes: int
    max_response_bytes: int
    max_in_flight: int
    rate_limit: RateLimit.ValueType

    @property
    def service(self) -> str:
        """Full name of the service."""
        return self.path.split("/")[1]

    @property
    def is_public(self) -> bool:
        """Whether clients outside the mesh may call it."""
        return options_pb2.CALLER_PUBLIC in self.callers

    @property
    def is_effect(self) -> bool:
        """Whether a call spends money or touches the world."""
        return self.audit == options_pb2.AUDIT_CLASS_EFFECT

    @property
    def may_retry(self) -> bool:
        """Whether the same call may be sent twice."""
        return self.idempotency in {
            options_pb2.IDEMPOTENCY_SAFE,
            options_pb2.IDEMPOTENCY_KEYED,
        }


@cache
def all_contracts() -> Mapping[str, MethodContract]:
    """Every RPC of ours by its path `/package.Service/Method`, in alphabetical order."""
    found = {}
    for module in SERVICE_MODULES:
        file = importlib.import_module(module).DESCRIPTOR
        for service in file.services_by_name.values():
            for method in service.methods:
                contract = _read(method)
                found[contract.path] = contract
    return MappingProxyType(dict(sorted(found.items())))


def contract_of(path: str) -> MethodContract | None:
    """The contract of an RPC of ours or of the standard table; None for anything else."""
    return all_contracts().get(path) or STANDARD_CONTRACTS.get(path)


def contracts_of(area: str) -> tuple[MethodContract, ...]:
    """The RPCs of one area."""
    return tuple(c for c in all_contracts().values() if c.area == area)


def method_unknown(path: str) -> RemitError:
    """METHOD_UNKNOWN."""
    return RemitError(
        error_reason_pb2.ERROR_REASON_METHOD_UNKNOWN, f"{path} is not in the contracts"
    )


def public_services() -> tuple[str, ...]:
    """Full names of the services with at least one RPC for clients outside the mesh."""
    return tuple(sorted({c.service for c in all_contracts().values() if c.is_public}))


def permissions() -> tuple[str, ...]:
    """Every policy action that a contract names."""
    return tuple(sorted({c.permission for c in all_contracts().values() if c.permission}))


def _read(method: descriptor.MethodDescriptor) -> MethodContract:
    options = method.GetOptions()
    path = f"/{method.containing_service.full_name}/{method.name}"
    if not options.HasExtension(options_pb2.method):
        message = f"{path} states no contract"
        raise ValueError(message)
    stated = options.Extensions[options_pb2.method]
    return MethodContract(
        path=path,
        area=method.containing_service.full_name.split(".")[2],
        idempotency=stated.idempotency,
        phase=stated.phase,
        deadline_s=_seconds(stated.deadline),
        attempt_timeout_s=(
            _seconds(stated.attempt_timeout) if stated.HasField("attempt_timeout") else None
        ),
        callers=frozenset(stated.callers),
        auth=stated.auth,
        permission=stated.permission,
        resource=stated.resource,
        key=stated.key,
        stream=_stream(stated),
        http=_http(options),
        audit=stated.audit,
        max_request_bytes=stated.max_request_bytes,
        max_response_bytes=stated.max_response_bytes,
        max_in_flight=stated.max_in_flight,
        rate_limit=stated.rate_limit,
    )


def _stream(stated: options_pb2.MethodContract) -> StreamContract | None:
    if not stated.HasField("stream"):
        return None
    return StreamContract(
        idle_s=_seconds(stated.stream.idle),
        max_life_s=_seconds(stated.stream.max_life),
        resume=stated.stream.resume,
        permission_bound_s=_seconds(stated.stream.permission_bound),
    )


def _http(options: descriptor_pb2.MethodOptions) -> HttpBinding | None:
    # The types of googleapis-common-protos know extensions as plain field descriptors.
    annotation: Any = annotations_pb2.http
    if not options.HasExtension(annotation):
        return None
    rule: http_pb2.HttpRule = options.Extensions[annotation]
    verb = rule.WhichOneof("pattern") or ""
    return HttpBinding(verb.upper(), getattr(rule, verb), rule.body)


def _seconds(duration: duration_pb2.Duration) -> float:
    return duration.ToNanoseconds() / 1e9


def _standard(path: str, **facts: object) -> MethodContract:
    base: dict[str, object] = {
        "path": path,
        "area": "",
        "idempotency": options_pb2.IDEMPOTENCY_SAFE,
        "phase": options_pb2.PHASE_CLOSE,
        "deadline_s": 5.0,
        "attempt_timeout_s": 1.0,
        "callers": frozenset(
            value for value in Caller.values() if value != options_pb2.CALLER_UNSPECIFIED
        ),
        "auth": options_pb2.AUTH_NONE,
        "permission": "",
        "resource": "",
        "key": "",
        "stream": None,
        "http": None,
        "audit": options_pb2.AUDIT_CLASS_NONE,
        "max_request_bytes": 65_536,
        "max_response_bytes": 1_048_576,
        "max_in_flight": 64,
        "rate_limit": options_pb2.RATE_LIMIT_UNSPECIFIED,
    }
    return MethodContract(**(base | facts))  # type: ignore[arg-type]


_LONG_STREAM: Final = StreamContract(idle_s=3600.0, max_life_s=86_400.0, resume="")

STANDARD_CONTRACTS: Final[Mapping[str, MethodContract]] = MappingProxyType(
    {
        contract.path: contract
        for contract in (
            _standard("/grpc.health.v1.Health/Check"),
            _standard("/grpc.health.v1.Health/Watch", deadline_s=86_400.0, stream=_LONG_STREAM),
            _standard(
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                deadline_s=60.0,
                stream=StreamContract(60.0, 60.0, ""),
            ),
            _standard(
                "/envoy.service.auth.v3.Authorization/Check",
                area="policy",
                phase=options_pb2.PHASE_OPEN,
                callers=frozenset({options_pb2.CALLER_PUBLIC}),
                auth=options_pb2.AUTH_CREDENTIAL,
                deadline_s=2.0,
                max_in_flight=1024,
            ),
            _standard(
                "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
                area="policy",
                # Sent again it would count again.
                idempotency=options_pb2.IDEMPOTENCY_NONE,
                phase=options_pb2.PHASE_OPEN,
                callers=frozenset({options_pb2.CALLER_PUBLIC}),
                # Who calls was found out by the check before; the edge alone may ask.
                auth=options_pb2.AUTH_CREDENTIAL,
                deadline_s=2.0,
                max_in_flight=1024,
            ),
            _standard(
                "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs",
                area="audit",
                idempotency=options_pb2.IDEMPOTENCY_NONE,
                phase=options_pb2.PHASE_OTHER,
                # The edge alone may tell; it speaks for clients and so counts as one.
                callers=frozenset({options_pb2.CALLER_PUBLIC}),
                auth=options_pb2.AUTH_CREDENTIAL,
                deadline_s=86_400.0,
                attempt_timeout_s=None,
                stream=_LONG_STREAM,
                # A full buffer of the edge's, and one more entry of a call with long headers.
                max_request_bytes=262_144,
                max_response_bytes=1024,
                # One stream of each of an Envoy's threads.
                max_in_flight=256,
            ),
        )
    }
)
"""Standard services: health and reflection for all, Envoy's questions for the edge alone."""

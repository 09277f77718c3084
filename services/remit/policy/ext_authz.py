"""Envoy's external authorisation: exchanges a client's credential for a remit, call by call.

A credential is an API key, or a token of an identity provider that the edge has checked before.

The edge listener asks here before it routes (envoy.service.auth.v3.Authorization/Check). The answer
removes the credential and sets `remit-token`, whatever the client sent under that name; or it
refuses with an error that a gRPC client reads like any other of Remit's: code, message, details.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import grpc
from google.protobuf import struct_pb2
from google.rpc import status_pb2

from remit.access import peer_of
from remit.access_recorder import AccessRecorder
from remit.api.errors.v1.error_reason_pb2 import (
    ERROR_REASON_CALLER_NOT_ALLOWED,
    ERROR_REASON_CREDENTIAL_INVALID,
    ERROR_REASON_CREDENTIAL_MISSING,
    ERROR_REASON_PERMISSION_DENIED,
)
from remit.api.gateway.v1 import authorization_pb2
from remit.api.options.v1 import options_pb2
from remit.oidc import Issuer
from remit.policy.api_keys import shown_start
from remit.policy.credentials import Credentials, LapsedKeyError, Session
from remit.policy.epochs import Policies
from remit.policy.identity_tokens import IdentityTokens, is_token, shown_token
from remit.policy.limit_book import facts_of
from remit.policy.metrics import count_edge, note_undecided
from remit.policy.visits import Visit
from remit.rpc.calls import REMIT_KEY, current_call_or_none
from remit.rpc.clock import Clock
from remit.rpc.contracts import MethodContract, contract_of, method_unknown
from remit.rpc.envoy import CHECKED_TOKENS
from remit.rpc.errors import STATUS_DETAILS_KEY, RemitError
from remit.rpc.rest import HTTP_STATUS, TRANSCODED_KEY, error_json, retry_after

Context = grpc.aio.ServicerContext[Any, Any]

AUTHORIZATION: Final = "authorization"
API_KEY: Final = "x-api-key"
_BEARER: Final = "bearer "
_GRPC: Final = "application/grpc"


class EdgeAuthorization:
    """Decides whether a client's call may enter the mesh, and as whom."""

    def __init__(
        self,
        credentials: Credentials,
        policies: Policies,
        accesses: AccessRecorder,
        clock: Clock,
        issuers: Sequence[Issuer] = (),
    ) -> None:
        self._credentials = credentials
        self._tokens = IdentityTokens(issuers)
        self._clock = clock
        self._policies = policies
        self._accesses = accesses

    async def Check(
        self,
        request: authorization_pb2.CheckRequest,
        context: Context,  # noqa: ARG002 - the servicer's signature
    ) -> authorization_pb2.CheckResponse:
        """Answer the edge. A refusal is an answer too, so that the client learns the reason."""
        http = request.attributes.request.http
        headers = {name.lower(): value for name, value in http.headers.items()}
        visit = _visit(request)
        try:
            session = await self._admit(visit, headers, checked_tokens(request))
            answer = admitted(session, visit.action)
            for access, occasion in visit.admitted():
                self._accesses.allow(access, occasion)
        except RemitError as error:
            count_edge(error)
            self._accesses.deny(*visit.refused(error))
            return refused(error, is_grpc=_speaks_grpc(headers))
        count_edge()
        return answer

    async def _admit(
        self, visit: Visit, headers: Mapping[str, str], checked: struct_pb2.Struct
    ) -> Session | None:
        """Return a call's session, or None where the method asks for no credential."""
        contract = public_contract(visit.path)
        visit.action = contract.permission or visit.action
        if contract.auth == options_pb2.AUTH_NONE:
            return None
        presented = presented_key(headers)
        visit.shown = shown_token(presented) if is_token(presented) else shown_start(presented)
        try:
            session = await self._session(presented, checked)
        except LapsedKeyError as error:
            visit.holder = error.holder
            raise
        visit.holder = session.holder
        self._check_permission(visit, session, contract)
        return session

    async def _session(self, presented: str, checked: struct_pb2.Struct) -> Session:
        if not is_token(presented):
            return await self._credentials.session(presented)
        identity = self._tokens.identity(presented, checked, self._clock.now())
        return await self._credentials.token_session(identity)

    def _check_permission(self, visit: Visit, session: Session, contract: MethodContract) -> None:
        if not session.is_within_scope(contract.permission):
            raise RemitError(
                ERROR_REASON_PERMISSION_DENIED,
                f"the API key is limited to {', '.join(session.scopes)}; {contract.permission} is"
                " not among that",
                metadata={"permission": contract.permission},
            )
        decision = session.decide(self._policies.book, contract.permission)
        visit.decision = decision
        if decision.allow:
            return
        note_undecided(decision, contract.permission, session.principal.org, errors=decision.errors)
        raise RemitError(
            ERROR_REASON_PERMISSION_DENIED,
            f"{session.principal.user} may not perform {contract.permission}: {decision.reason}",
            metadata={
                "permission": contract.permission,
                "policy_ids": ",".join(decision.policy_ids),
            },
        )


def _visit(request: authorization_pb2.CheckRequest) -> Visit:
    address = request.attributes.source.address.socket_address.address
    path = request.attributes.request.http.path.partition("?")[0]
    call = current_call_or_none()
    return Visit(path=path, peer=peer_of(address), trace_id=call.trace_id if call else "")


def checked_tokens(request: authorization_pb2.CheckRequest) -> struct_pb2.Struct:
    """What the edge found out about tokens in the call; nothing where it checks none."""
    return request.attributes.metadata_context.filter_metadata.get(
        CHECKED_TOKENS, struct_pb2.Struct()
    )


def public_contract(path: str) -> MethodContract:
    """Return the contract of a method that clients may call.

    Raises:
        RemitError: METHOD_UNKNOWN, or CALLER_NOT_ALLOWED for a method of the mesh alone.

    """
    contract = contract_of(path)
    if contract is None:
        raise method_unknown(path)
    if not contract.is_public or contract.auth not in {
        options_pb2.AUTH_REMIT,
        options_pb2.AUTH_NONE,
    }:
        raise RemitError(
            ERROR_REASON_CALLER_NOT_ALLOWED,
            f"{path.removeprefix('/')} is not for clients outside the mesh",
        )
    return contract


def presented_key(headers: Mapping[str, str]) -> str:
    """Return the API key or token among the headers, whose names are lower-case.

    Raises:
        RemitError: CREDENTIAL_MISSING, or CREDENTIAL_INVALID for another scheme or two credentials.

    """
    authorization, api_key = headers.get(AUTHORIZATION, ""), headers.get(API_KEY, "")
    if not authorization and not api_key:
        raise RemitError(
            ERROR_REASON_CREDENTIAL_MISSING, "neither an API key nor a token was presented"
        )
    if authorization and api_key:
        raise RemitError(
            ERROR_REASON_CREDENTIAL_INVALID,
            f"send one credential: an API key or a token in `{AUTHORIZATION}`, or an API key in"
            f" `{API_KEY}`, not both",
        )
    if not authorization:
        return _key_alone(api_key.strip())
    if not authorization.lower().startswith(_BEARER):
        raise RemitError(
            ERROR_REASON_CREDENTIAL_INVALID,
            f"`{AUTHORIZATION}` must be `Bearer <key or token>`; no other scheme is known",
        )
    return authorization[len(_BEARER) :].strip()


def _key_alone(text: str) -> str:
    if is_token(text):
        raise RemitError(
            ERROR_REASON_CREDENTIAL_INVALID,
            f"`{API_KEY}` is for API keys; send a token as `{AUTHORIZATION}: Bearer <token>`",
        )
    return text


def admitted(session: Session | None, permission: str) -> authorization_pb2.CheckResponse:
    """Let the call pass with the session's remit for it, if any, and without the credential."""
    response = authorization_pb2.CheckResponse(
        status=status_pb2.Status(),
        ok_response=authorization_pb2.OkHttpResponse(headers_to_remove=[AUTHORIZATION, API_KEY]),
    )
    if session is None:
        response.ok_response.headers_to_remove.append(REMIT_KEY)
        return response
    response.ok_response.headers.append(_header(REMIT_KEY, session.token(permission)))
    # Read by the edge alone, to count the call (remit.gateway.rate_limits).
    response.dynamic_metadata.update(
        facts_of(
            session.principal.user,
            # No token has a limit of its own; the entry must name somebody.
            session.holder.key or session.principal.user,
            session.principal.org,
            session.limits,
        )
    )
    return response


def refused(error: RemitError, *, is_grpc: bool) -> authorization_pb2.CheckResponse:
    """Refuse the call so that the client sees the same error as from a service."""
    status = error.to_status()
    denied = authorization_pb2.DeniedHttpResponse(
        status=authorization_pb2.HttpStatus(code=_http_status(error)),
        headers=_grpc_headers(status) if is_grpc else [_header("content-type", "application/json")],
        body=error.message if is_grpc else error_json(error),
    )
    delay = retry_after(error)
    if delay is not None:
        denied.headers.append(_header("retry-after", delay))
    return authorization_pb2.CheckResponse(
        status=status_pb2.Status(code=status.code), denied_response=denied
    )


def _speaks_grpc(headers: Mapping[str, str]) -> bool:
    """Whether the client does: a REST call looks like gRPC once the gateway has transcoded it."""
    return headers.get("content-type", "").startswith(_GRPC) and TRANSCODED_KEY not in headers


def _http_status(error: RemitError) -> int:
    # For a client of plain HTTP, what the contracts do not have is a page that is not there.
    return 404 if error.code is grpc.StatusCode.UNIMPLEMENTED else HTTP_STATUS[error.code]


def _grpc_headers(status: status_pb2.Status) -> list[authorization_pb2.HeaderValueOption]:
    """Write the code and details as a gRPC server would (trailers-only response).

    Envoy answers a gRPC client with a code that it derives from the HTTP status; these headers say
    exactly which one is meant. A `-bin` value is base64 without padding (gRPC over HTTP/2).
    """
    details = base64.b64encode(status.SerializeToString()).decode().rstrip("=")
    return [
        _header("grpc-status", str(status.code)),
        _header("grpc-message", grpc_message(status.message)),
        _header(STATUS_DETAILS_KEY, details),
    ]


def grpc_message(text: str) -> str:
    """Return `text` as the header `grpc-message`: every other byte than printable ASCII in %."""
    return quote(text, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~")


def _header(name: str, value: str) -> authorization_pb2.HeaderValueOption:
    return authorization_pb2.HeaderValueOption(
        header=authorization_pb2.HeaderValue(key=name, value=value),
        append_action=authorization_pb2.HeaderValueOption.HEADER_APPEND_ACTION_OVERWRITE_IF_EXISTS_OR_ADD,
    )

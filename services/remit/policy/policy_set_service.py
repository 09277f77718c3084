"""PolicySetService: versions of the policies. Proto in, proto out.

What is pushed is checked before anything is stored: it parses, fits the schema of this version of
Remit, and leaves somebody who may push again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import grpc

from remit.api.errors.v1.error_reason_pb2 import (
    ERROR_REASON_POLICY_INVALID,
    ERROR_REASON_RESOURCE_NOT_FOUND,
)
from remit.api.policy.v1 import (
    policy_set_pb2,
    policy_set_service_pb2,
    policy_set_service_pb2_grpc,
)
from remit.idempotency import (
    AdminChange,
    AdminRecorder,
    AdminRequest,
    asked_by,
    request_id_violations,
)
from remit.policy.api_keys import canonical_body
from remit.policy.authority import PUSH, Authority
from remit.policy.epochs import Policies, checked
from remit.policy.rule_sets import (
    MAX_FILES,
    PolicyFaultsError,
    PolicySource,
    RuleSet,
    compile_policies,
)
from remit.policy.rules import RuleBook
from remit.policy.schema import schema_text
from remit.policy.set_messages import differences, files_of, version_message
from remit.policy.set_store import NewSet, SetStore, StoredSet, Version
from remit.policy.shadow_messages import lifetime_s_of, lifetime_violations, shadow_message
from remit.policy.shadow_store import NewShadow, ShadowRow, ShadowStore
from remit.policy.simulation import Simulator, violations
from remit.policy.store import PolicyStore
from remit.rpc.calls import current_remit
from remit.rpc.errors import RemitError, Violation, check_all, invalid_request
from remit.rpc.remits import Remit

Context = grpc.aio.ServicerContext[Any, Any]

_READ: Final = "policies.read"
_ROLLBACK: Final = "policies.rollback"
_SHADOW: Final = "policies.shadow"
_UNSHADOW: Final = "policies.stop_shadow"
_DEFAULT_PAGE: Final = 50
_MAX_PAGE: Final = 200
_MAX_MESSAGE_CHARS: Final = 500


class PolicySetService(policy_set_service_pb2_grpc.PolicySetServiceServicer):
    """Changes the policies of the mesh and shows how they changed."""

    def __init__(  # noqa: PLR0913 - its collaborators, each used
        self,
        *,
        store: PolicyStore,
        sets: SetStore,
        policies: Policies,
        authority: Authority,
        recorder: AdminRecorder,
        simulator: Simulator,
        shadows: ShadowStore,
    ) -> None:
        self._store = store
        self._sets = sets
        self._policies = policies
        self._authority = authority
        self._recorder = recorder
        self._simulator = simulator
        self._shadows = shadows

    async def PushPolicySet(
        self, request: policy_set_service_pb2.PushPolicySetRequest, context: Context
    ) -> policy_set_service_pb2.PushPolicySetResponse:
        """Check policies and put them in force as a new version."""
        caller = current_remit()
        check_all(
            partial(_require, _change_violations(request)), partial(_candidate, request.files)
        )
        source = _candidate(request.files)
        await self._authority.require_operator(caller, PUSH)
        facts = {"expected_version": request.expected_version, "message": request.message}
        asked = _admin_request(caller, PUSH, request.request_id, source, facts)
        new = NewSet(source, 0, "PUSH", caller.subject, request.message)
        change = await self._change(asked, new, request.expected_version)
        return policy_set_service_pb2.PushPolicySetResponse(policy_set=_answered(change))

    async def RollbackPolicySet(
        self, request: policy_set_service_pb2.RollbackPolicySetRequest, context: Context
    ) -> policy_set_service_pb2.RollbackPolicySetResponse:
        """Put the files of an earlier version in force again, checked like any other."""
        caller = current_remit()
        _require(_change_violations(request))
        await self._authority.require_operator(caller, PUSH)
        earlier = await self._version(request.version)
        source = PolicySource(earlier.source.files, schema_text())
        facts = {
            "expected_version": request.expected_version,
            "message": request.message,
            "version": request.version,
        }
        asked = _admin_request(caller, _ROLLBACK, request.request_id, source, facts)
        new = NewSet(source, 0, "ROLLBACK", caller.subject, request.message, request.version)
        change = await self._change(asked, new, request.expected_version)
        return policy_set_service_pb2.RollbackPolicySetResponse(policy_set=_answered(change))

    async def ListPolicySets(
        self, request: policy_set_service_pb2.ListPolicySetsRequest, context: Context
    ) -> policy_set_service_pb2.ListPolicySetsResponse:
        """List versions, newest first; a page token is the last version shown."""
        caller = current_remit()
        _require(_page_violations(request))
        await self._authority.require(caller, _READ, caller.org)
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        found = await self._sets.versions(size + 1, int(request.page_token or 0))
        response = policy_set_service_pb2.ListPolicySetsResponse(
            policy_sets=[version_message(facts) for facts in found[:size]]
        )
        if len(found) > size:
            response.next_page_token = str(found[size - 1].version)
        return response

    async def DiffPolicySets(
        self, request: policy_set_service_pb2.DiffPolicySetsRequest, context: Context
    ) -> policy_set_service_pb2.DiffPolicySetsResponse:
        """Compare two versions, or one with policies that are checked as by a push."""
        caller = current_remit()
        _require(_diff_violations(request))
        await self._authority.require(caller, _READ, caller.org)
        earlier = await self._version(request.from_version)
        if request.files:
            version, later = 0, await self._checked(_candidate(request.files))
        else:
            stored = await self._version(request.to_version)
            version, later = stored.facts.version, await checked(stored.source)
        return policy_set_service_pb2.DiffPolicySetsResponse(
            differences=differences(await checked(earlier.source), later),
            from_version=earlier.facts.version,
            to_version=version,
        )

    async def SimulatePolicy(
        self, request: policy_set_service_pb2.SimulatePolicyRequest, context: Context
    ) -> AsyncIterator[policy_set_service_pb2.SimulatePolicyResponse]:
        """Tell which recorded decisions, of all orgs, a candidate would change."""
        check_all(partial(_require, violations(request)), partial(_candidate, request.files))
        source = _candidate(request.files)
        await self._authority.require_operator(current_remit(), PUSH)
        rules = await self._checked(source)
        async for step in self._simulator.run(rules, request):
            yield step

    async def StartPolicyShadow(
        self, request: policy_set_service_pb2.StartPolicyShadowRequest, context: Context
    ) -> policy_set_service_pb2.StartPolicyShadowResponse:
        """Let a candidate see every decision from now on."""
        caller = current_remit()
        check_all(
            partial(_require, _shadow_violations(request)), partial(_candidate, request.files)
        )
        source = _candidate(request.files)
        await self._authority.require_operator(caller, PUSH)
        lifetime_s = lifetime_s_of(request)
        facts = {"message": request.message, "lifetime_s": lifetime_s}
        asked = _admin_request(caller, _SHADOW, request.request_id, source, facts)
        change = await self._store.known_change(asked)
        if change is None:
            rules = await self._checked(source)
            new = NewShadow(
                source, len(rules.policies), caller.subject, request.message, lifetime_s
            )
            change = await self._shadows.start(asked, new, _shadow_answer)
        await self._recorder.record(change)
        return policy_set_service_pb2.StartPolicyShadowResponse(shadow=_shadow_answered(change))

    async def GetPolicyShadow(
        self, request: policy_set_service_pb2.GetPolicyShadowRequest, context: Context
    ) -> policy_set_service_pb2.GetPolicyShadowResponse:
        """Tell what the newest candidate would have decided otherwise."""
        await self._authority.require_operator(current_remit(), PUSH)
        found = await self._shadows.newest()
        if found is None:
            raise RemitError(
                ERROR_REASON_RESOURCE_NOT_FOUND, "no policies have ever been in shadow"
            )
        return policy_set_service_pb2.GetPolicyShadowResponse(shadow=shadow_message(found))

    async def StopPolicyShadow(
        self, request: policy_set_service_pb2.StopPolicyShadowRequest, context: Context
    ) -> policy_set_service_pb2.StopPolicyShadowResponse:
        """End the candidate that sees decisions."""
        caller = current_remit()
        _require(request_id_violations(request.request_id))
        await self._authority.require_operator(caller, PUSH)
        asked = asked_by(caller, _UNSHADOW, request.request_id, "policyShadow", detail="{}")
        change = await self._store.known_change(asked)
        if change is None:
            change = await self._shadows.stop(asked, _shadow_answer)
        await self._recorder.record(change)
        return policy_set_service_pb2.StopPolicyShadowResponse(shadow=_shadow_answered(change))

    async def _change(self, asked: AdminRequest, new: NewSet, expected: int) -> AdminChange:
        change = await self._store.known_change(asked)
        if change is None:
            rules = await self._checked(new.source)
            counted = NewSet(**vars(new) | {"policy_count": len(rules.policies)})
            change = await self._sets.push(asked, counted, expected, _answer)
        await self._policies.refresh()
        await self._recorder.record(change)
        return change

    async def _checked(self, source: PolicySource) -> RuleSet:
        """Check what may come into force. Raises POLICY_INVALID or POLICY_LOCKOUT."""
        try:
            rules = await asyncio.to_thread(compile_policies, source)
        except PolicyFaultsError as error:
            raise _invalid(error) from error
        book = RuleBook(rules, 0)
        await asyncio.to_thread(book.prepare, (PUSH,))
        await self._authority.require_no_lockout(book)
        return rules

    async def _version(self, version: int) -> StoredSet:
        """Return a version, or the one in force for 0."""
        if version == 0:
            return (await self._sets.in_force()).stored
        found = await self._sets.version(version)
        if found is None:
            raise RemitError(
                ERROR_REASON_RESOURCE_NOT_FOUND, f"there is no version {version} of the policies"
            )
        return found


def _candidate(files: Sequence[policy_set_pb2.PolicyFile]) -> PolicySource:
    """Return the files that a request brings, under the schema of this version of Remit."""
    if not 1 <= len(files) <= MAX_FILES:
        raise invalid_request([Violation("files", f"must hold 1 to {MAX_FILES} files")])
    try:
        return PolicySource(files_of(files), schema_text())
    except ValueError as error:
        raise invalid_request([Violation("files", str(error))]) from error


def _invalid(error: PolicyFaultsError) -> RemitError:
    """POLICY_INVALID, with each fault at its file and line."""
    first, *others = error.faults
    more = f" (and {len(others)} more)" if others else ""
    return RemitError(
        ERROR_REASON_POLICY_INVALID,
        f"the policies are not put in force: {first}{more}",
        violations=[Violation(f"{fault.file}:{fault.line}", str(fault)) for fault in error.faults],
    )


def _admin_request(
    caller: Remit,
    method: str,
    request_id: str,
    source: PolicySource,
    facts: Mapping[str, object],
) -> AdminRequest:
    """The change as the log tells it: the digest says which policies, not their text."""
    stated = {**facts, "digest": source.digest.hex()}
    detail = json.dumps(stated, sort_keys=True)
    resource = f"policySets/{source.digest.hex()}"
    return asked_by(
        caller, method, request_id, resource, detail=detail, body=canonical_body(stated)
    )


def _answer(facts: Version) -> bytes:
    return version_message(facts).SerializeToString()


def _answered(change: AdminChange) -> policy_set_pb2.PolicySet:
    return policy_set_pb2.PolicySet.FromString(change.response)


def _shadow_answer(row: ShadowRow) -> bytes:
    return shadow_message(row).SerializeToString()


def _shadow_answered(change: AdminChange) -> policy_set_service_pb2.PolicyShadow:
    return policy_set_service_pb2.PolicyShadow.FromString(change.response)


def _shadow_violations(
    request: policy_set_service_pb2.StartPolicyShadowRequest,
) -> list[Violation]:
    found = request_id_violations(request.request_id)
    return found + lifetime_violations(request) + _message_violations(request.message)


def _message_violations(message: str) -> list[Violation]:
    if len(message) <= _MAX_MESSAGE_CHARS and message.isprintable():
        return []
    fault = f"must have at most {_MAX_MESSAGE_CHARS} printable characters"
    return [Violation("message", fault)]


def _change_violations(
    request: policy_set_service_pb2.PushPolicySetRequest
    | policy_set_service_pb2.RollbackPolicySetRequest,
) -> list[Violation]:
    found = request_id_violations(request.request_id)
    if request.expected_version < 1:
        found.append(Violation("expected_version", "must name the version in force"))
    found += _message_violations(request.message)
    if isinstance(request, policy_set_service_pb2.RollbackPolicySetRequest) and request.version < 1:
        found.append(Violation("version", "must name a version"))
    return found


def _diff_violations(request: policy_set_service_pb2.DiffPolicySetsRequest) -> list[Violation]:
    found = [
        Violation(name, "must not be negative")
        for name in ("from_version", "to_version")
        if getattr(request, name) < 0
    ]
    if request.files and request.to_version:
        found.append(Violation("to_version", "must not be stated beside files"))
    return found


def _page_violations(request: policy_set_service_pb2.ListPolicySetsRequest) -> list[Violation]:
    found = []
    if request.page_size < 0:
        found.append(Violation("page_size", "must not be negative"))
    token = request.page_token
    if token and not (token.isascii() and token.isdecimal() and len(token) <= 18):
        found.append(Violation("page_token", "is not one that a page came with"))
    return found


def _require(violations: Sequence[Violation]) -> None:
    if violations:
        raise invalid_request(violations)

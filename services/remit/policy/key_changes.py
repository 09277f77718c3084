"""What a new API key may be limited to, and how one key takes another's place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from remit import names
from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_INVALID_STATE
from remit.api.policy.v1 import policy_admin_service_pb2
from remit.idempotency import asked_by, request_id_violations
from remit.policy.api_keys import Pepper, canonical_body, canonical_request
from remit.policy.authority import require_roles
from remit.policy.service_accounts import check_maker
from remit.policy.store import ApiKeyRow, NewApiKey
from remit.rpc.contracts import permissions
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.remits import Remit

ROTATE: Final = "keys.rotate"
_MAX_SCOPES: Final = 32
_MAX_OVERLAP: Final = timedelta(days=30)


def scope_violations(scopes: Sequence[str]) -> list[Violation]:
    """What is wrong with the permissions that a key shall be limited to."""
    if len(scopes) > _MAX_SCOPES:
        return [Violation("scopes", f"must be at most {_MAX_SCOPES}")]
    known = {*permissions(), *(each.partition(".")[0] for each in permissions())}
    return [
        Violation(f"scopes[{index}]", "is no permission, nor what one begins with")
        for index, scope in enumerate(scopes)
        if scope not in known
    ]


def check_rotation(request: policy_admin_service_pb2.RotateApiKeyRequest) -> None:
    """Raise INVALID_REQUEST with everything that is wrong with a request."""
    found = request_id_violations(request.request_id)
    if not names.is_name("apiKey", request.name):
        found.append(Violation("name", "must be `orgs/{org}/apiKeys/{key}`"))
    if not timedelta(0) <= request.overlap.ToTimedelta() <= _MAX_OVERLAP:
        found.append(Violation("overlap", f"must be 0 to {_MAX_OVERLAP.days} days"))
    if found:
        raise invalid_request(found)


class Rotation:
    """A request to replace a key, and the new key, which derives from it."""

    def __init__(
        self, pepper: Pepper, caller: Remit, request: policy_admin_service_pb2.RotateApiKeyRequest
    ) -> None:
        self._pepper = pepper
        self._caller = caller
        self._name = request.name
        self.overlap = request.overlap.ToTimedelta()
        stated = request.HasField("expire_time")
        self._end = request.expire_time.ToDatetime(UTC) if stated else None
        body: dict[str, object] = {
            "name": request.name,
            "overlap": request.overlap.ToJsonString(),
            "expire_time": request.expire_time.ToJsonString() if stated else None,
        }
        self.key = pepper.derive(
            canonical_request(ROTATE, caller.subject, request.request_id, body)
        )
        detail = body | {"new_key": f"{caller.org}/apiKeys/{self.key.key_id}"}
        self.asked = asked_by(
            caller,
            ROTATE,
            request.request_id,
            request.name,
            detail=json.dumps(detail, sort_keys=True),
            body=canonical_body(body),
        )

    def replacement(self, old: ApiKeyRow, now: datetime) -> NewApiKey:
        """Make the new key of the old one.

        Raises:
            RemitError: INVALID_STATE if the old one does not work or was replaced before,
                PERMISSION_DENIED if it has a role that the caller lacks, or INVALID_REQUEST if the
                new one would have ended already.

        """
        if old.replaced_by is not None:
            raise _not_in_force(f"{self._name} was replaced by {old.org}/apiKeys/{old.replaced_by}")
        if old.revoke_time is not None or (old.expire_time is not None and old.expire_time <= now):
            raise _not_in_force(f"{self._name} does not work any more; make a new key")
        require_roles(self._caller, old.roles, ROTATE, self._name)
        check_maker(self._caller, ROTATE, self._name, for_account=old.of_service_account)
        if self._end is not None and self._end <= now:
            raise invalid_request([Violation("expire_time", "must be in the future")])
        return NewApiKey(
            key_id=self.key.key_id,
            subject=old.subject,
            team=old.team,
            display_name=old.display_name,
            roles=old.roles,
            digest=self._pepper.digest(self.key),
            pepper_id=self._pepper.fingerprint,
            expire_time=self._end or old.expire_time,
            scopes=old.scopes,
        )


def _not_in_force(message: str) -> RemitError:
    return RemitError(ERROR_REASON_INVALID_STATE, message)

"""The first key of a new installation, for `remit up`: whoever has none cannot ask for one.

It runs beside the service, with the same database and pepper. Like every key its secret is derived,
so a second start returns the same secret without having stored it. A bootstrap key that was revoked
stays revoked: the next start makes another.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

from remit import names
from remit.idempotency import AdminRequest
from remit.policy.api_keys import Pepper, canonical_body, canonical_request
from remit.policy.service_accounts import fitted
from remit.policy.store import ApiKeyRow, NewApiKey, PolicyStore
from remit.postgres import Database

_ACTION: Final = "keys.create"
_DISPLAY_NAME: Final = "first key"
_NO_TRACE: Final = ""


async def bootstrap_admin(db: Database, pepper: Pepper, org: str, user: str) -> str:
    """Make org, user and the first admin key unless they are there; return the key's secret.

    `org` and `user` are full names, `orgs/acme` and `orgs/acme/users/alice`. The change reaches the
    audit log once the service runs.

    Raises:
        ValueError: a malformed name, or a user of another org.
        RemitError: INVALID_REQUEST for a service account that is no admin.

    """
    if names.org_name(names.parse("org", org)[0]) != names.org_of(user):
        message = f"{user} is not a user of {org}"
        raise ValueError(message)
    names.parse("user", user)
    store = PolicyStore(db)
    generation = await store.revoked_count(user, _DISPLAY_NAME)
    body = {"display_name": _DISPLAY_NAME, "user": user, "team": "", "roles": ["admin"]}
    request_id = f"bootstrap-{generation}"
    canonical = canonical_request(f"{_ACTION}.bootstrap", user, request_id, body)
    key = pepper.derive(canonical)
    request = AdminRequest(
        subject=user,
        method=f"{_ACTION}.bootstrap",
        request_id=request_id,
        org=org,
        body_digest=hashlib.sha256(canonical_body(body)).digest(),
        action=_ACTION,
        resource=f"{org}/apiKeys/{key.key_id}",
        detail=json.dumps(body, sort_keys=True),
        trace_id=_NO_TRACE,
    )
    new = NewApiKey(
        key_id=key.key_id,
        subject=user,
        team="",
        display_name=_DISPLAY_NAME,
        roles=("admin",),
        digest=pepper.digest(key),
        pepper_id=pepper.fingerprint,
        expire_time=None,
    )
    await store.create_api_key(request, user, lambda account: fitted(new, account), _no_answer)
    return key.text


def _no_answer(_: ApiKeyRow) -> bytes:
    """Nobody called: there is no answer to repeat."""
    return b""

"""Wires the policy service; no rules here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from remit import telemetry
from remit.access_recorder import AccessRecorder, by_rpc
from remit.api.audit.v1 import audit_service_pb2_grpc, subject_key_service_pb2_grpc
from remit.api.errors.v1.error_reason_pb2 import ERROR_REASON_CONFIGURATION_INVALID
from remit.api.policy.v1 import (
    approval_service_pb2_grpc,
    grant_service_pb2_grpc,
    org_service_pb2_grpc,
    policy_admin_service_pb2_grpc,
    policy_service_pb2_grpc,
    policy_set_service_pb2_grpc,
    principal_service_pb2_grpc,
    rate_limit_service_pb2_grpc,
)
from remit.idempotency import AdminRecorder
from remit.oidc import Issuer, read_issuers
from remit.policy.admin_service import PolicyAdminService
from remit.policy.api_keys import Pepper
from remit.policy.approval_arguments import ApprovalArguments
from remit.policy.approval_desk import ApprovalDesk
from remit.policy.approval_keeper import ApprovalKeeper
from remit.policy.approval_metrics import open_approvals
from remit.policy.approval_service import ApprovalService
from remit.policy.approval_store import ApprovalStore
from remit.policy.authority import Authority
from remit.policy.credentials import Credentials
from remit.policy.decision_record import DecisionRecord
from remit.policy.epochs import Policies, read_policies
from remit.policy.ext_authz import EdgeAuthorization
from remit.policy.grant_service import GrantService
from remit.policy.grant_store import GrantStore
from remit.policy.key_ring import KeyRing
from remit.policy.limit_book import LimitBook, Limits, Unfinished
from remit.policy.limit_rows import LimitRows
from remit.policy.limit_service import RateLimitService
from remit.policy.limit_stores import LimitStore, MemoryLimits, open_redis
from remit.policy.org_service import OrgService
from remit.policy.org_store import OrgStore
from remit.policy.policy_set_service import PolicySetService
from remit.policy.principal_service import PrincipalService
from remit.policy.principal_store import PrincipalStore
from remit.policy.rate_limits import EdgeLimits
from remit.policy.read_log import ReadLog
from remit.policy.remits import RemitIssuer
from remit.policy.replay import process_pool
from remit.policy.runs import RunStore
from remit.policy.schema import SHIPPED_POLICIES
from remit.policy.service import PolicyService
from remit.policy.set_store import SetStore
from remit.policy.settings import PolicySettings
from remit.policy.shadow import Shadow
from remit.policy.shadow_store import ShadowStore
from remit.policy.signing import Seal
from remit.policy.simulation import Simulator
from remit.policy.store import PolicyStore
from remit.postgres import Database
from remit.rpc.clock import Clock
from remit.rpc.envoy import add_authorization_servicer, add_rate_limit_servicer
from remit.rpc.errors import RemitError
from remit.rpc.host import Service
from remit.rpc.ids import IdSource
from remit.rpc.mesh import Mesh
from remit.rpc.permission import StreamPermissions
from remit.rpc.remits import RemitVerifier
from remit.secret_files import read_secret
from remit.subject_keys import SubjectKeys

_LOOKS: Final = 2
"""For newer policies within the time in which the edge follows them: they must be loaded, too."""

log = telemetry.logger(__name__)


@contextlib.asynccontextmanager
async def open_service(
    settings: PolicySettings, mesh: Mesh, *, clock: Clock, ids: IdSource
) -> AsyncIterator[Service]:
    """Open the database and yield the wired service.

    Raises:
        RemitError: CONFIGURATION_INVALID for a secret file, a policy or a database that does not
            fit; DEPENDENCY_UNAVAILABLE when the database does not answer.

    """
    pepper = Pepper(read_secret(settings.pepper_file))
    issuers = read_issuers(settings.oidc_file)
    seal = Seal(read_secret(settings.signing_key_file))
    source = read_policies(settings.policies_dir or SHIPPED_POLICIES)
    async with Database.of(settings, "policy") as database, _limits(settings, clock) as limits:
        store = PolicyStore(database)
        sets = SetStore(database)
        await _check_pepper(store, pepper, settings)
        keys = _key_ring(store, seal, settings, clock, ids)
        await keys.refresh()
        policies = await Policies.open(sets, source, clock)
        yield _service(
            database, policies, keys, limits, pepper, issuers, settings, mesh, clock, ids
        )


@contextlib.asynccontextmanager
async def _limits(settings: PolicySettings, clock: Clock) -> AsyncIterator[LimitStore]:
    """Where runs are counted. A store that is away stops no start: it refuses runs alone."""
    if not settings.limits_url:
        yield MemoryLimits(clock, max_entries=settings.limits_max_entries)
        return
    async with open_redis(settings.limits_url, timeout_s=settings.limits_timeout_s) as shared:
        yield shared


def _key_ring(
    store: PolicyStore, seal: Seal, settings: PolicySettings, clock: Clock, ids: IdSource
) -> KeyRing:
    return KeyRing(
        store,
        seal,
        clock,
        ids,
        period=timedelta(seconds=settings.signing_key_period_s),
        overlap=timedelta(seconds=settings.remit_lifetime_s + settings.refresh_s),
    )


def _service(  # noqa: PLR0913, PLR0917 - everything that was opened
    database: Database,
    policies: Policies,
    keys: KeyRing,
    limits: LimitStore,
    pepper: Pepper,
    issuers: Sequence[Issuer],
    settings: PolicySettings,
    mesh: Mesh,
    clock: Clock,
    ids: IdSource,
) -> Service:
    store, sets = PolicyStore(database), SetStore(database)
    verifier = RemitVerifier(keys, clock)
    issuer = RemitIssuer(keys, clock, ids, lifetime_s=settings.remit_lifetime_s)
    recorder = AdminRecorder(
        database,
        mesh.stub(audit_service_pb2_grpc.AuditServiceStub),
        retry_s=settings.record_retry_s,
    )
    accesses = AccessRecorder(
        by_rpc(mesh.stub(audit_service_pb2_grpc.AuditServiceStub)),
        clock,
        ids,
        reporter="policy",
        flush_s=settings.access_flush_s,
        interval_s=settings.access_interval_s,
        max_entries=settings.access_max_entries,
    )
    authority = Authority(store, policies, settings.operator_org, accesses)
    rows = LimitRows(database)
    book = LimitBook(
        rows,
        Limits.of_settings(settings),
        Unfinished(settings.unfinished_runs_of_user, settings.unfinished_runs_of_org),
    )
    credentials = Credentials(
        store=store,
        pepper=pepper,
        limits=book,
        policies=policies,
        issuer=issuer,
        clock=clock,
        cache_s=settings.edge_cache_s,
        cache_size=settings.edge_cache_size,
    )
    subjects = SubjectKeys(mesh.stub(subject_key_service_pb2_grpc.SubjectKeyServiceStub), clock)
    record = DecisionRecord(
        database,
        subjects,
        clock,
        ids,
        retention_days=settings.decision_retention_days,
        max_queue=settings.decision_queue,
        interval_s=settings.decision_interval_s,
    )
    shadows = ShadowStore(database, ids)
    shadow = Shadow(
        shadows,
        policies,
        clock,
        max_queue=settings.shadow_queue,
        every_s=settings.decision_interval_s,
    )
    approvals = ApprovalStore(database, ids, max_open=settings.max_open_approvals)
    arguments = ApprovalArguments(subjects, ids)
    keeper = ApprovalKeeper(approvals, every_s=settings.approval_look_s)
    reads = ReadLog(mesh.stub(audit_service_pb2_grpc.AuditServiceStub), clock, ids)
    hot = PolicyService(
        policies=policies,
        runs=RunStore(database, max_batch=settings.max_batch, max_queue=settings.max_queue),
        approvals=ApprovalDesk(approvals, arguments),
        keys=keys,
        issuer=issuer,
        verifier=verifier,
        ids=ids,
        record=record,
        shadow=shadow,
        accesses=accesses,
        limits=book,
        decision_valid_s=settings.decision_valid_s,
    )
    admin = PolicyAdminService(
        store=store,
        pepper=pepper,
        sets=sets,
        authority=authority,
        credentials=credentials,
        recorder=recorder,
        clock=clock,
    )
    policy_sets = PolicySetService(
        store=store,
        sets=sets,
        policies=policies,
        authority=authority,
        recorder=recorder,
        simulator=Simulator(
            sets,
            record,
            reads,
            clock,
            partial(process_pool, processes=settings.simulation_processes),
        ),
        shadows=shadows,
    )
    grants = GrantService(
        store=store,
        grants=GrantStore(database),
        policies=policies,
        authority=authority,
        recorder=recorder,
        clock=clock,
        ids=ids,
    )
    people = ApprovalService(
        store=approvals,
        arguments=arguments,
        policy_store=store,
        policies=policies,
        recorder=recorder,
        keeper=keeper,
        heartbeat_s=settings.heartbeat_s,
    )
    edge = EdgeAuthorization(credentials, policies, accesses, clock, issuers)
    limiting = RateLimitService(
        rows=rows, authority=authority, credentials=credentials, recorder=recorder
    )
    principals = PrincipalService(
        store=PrincipalStore(database),
        authority=authority,
        credentials=credentials,
        recorder=recorder,
    )
    orgs = OrgService(
        store=OrgStore(database), authority=authority, credentials=credentials, recorder=recorder
    )
    counting = EdgeLimits(limits, fail_open=settings.limits_fail_open)
    return Service(
        area="policy",
        servicers=(
            (policy_service_pb2_grpc.add_PolicyServiceServicer_to_server, hot),
            (policy_admin_service_pb2_grpc.add_PolicyAdminServiceServicer_to_server, admin),
            (policy_set_service_pb2_grpc.add_PolicySetServiceServicer_to_server, policy_sets),
            (grant_service_pb2_grpc.add_GrantServiceServicer_to_server, grants),
            (approval_service_pb2_grpc.add_ApprovalServiceServicer_to_server, people),
            (rate_limit_service_pb2_grpc.add_RateLimitServiceServicer_to_server, limiting),
            (principal_service_pb2_grpc.add_PrincipalServiceServicer_to_server, principals),
            (org_service_pb2_grpc.add_OrgServiceServicer_to_server, orgs),
            (add_authorization_servicer, edge),
            (add_rate_limit_servicer, counting),
        ),
        verifier=verifier,
        permissions=StreamPermissions(mesh.stub(policy_service_pb2_grpc.PolicyServiceStub), clock),
        background=(
            recorder.run,
            record.run,
            shadow.run,
            accesses.run,
            lambda: _follow(keys.refresh, settings.refresh_s),
            lambda: _follow(policies.refresh, settings.policies_refresh_s / _LOOKS),
            keeper.run,
            open_approvals(database, every_s=settings.observe_s),
        ),
        ready=(database.ping,),
        drain=(keeper.close,),
    )


async def _follow(refresh: Callable[[], Awaitable[None]], every_s: float) -> None:
    """Follow the other replicas: new signing keys, or new policies. Runs until cancelled."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await refresh()
        except RemitError as error:
            # Checks read the database themselves, so what is stale here cannot decide anything.
            log.warning("refresh_failed", reason=error.reason_name, message=error.message)


async def _check_pepper(store: PolicyStore, pepper: Pepper, settings: PolicySettings) -> None:
    """Refuse to start with a pepper that knows none of the keys: each would look like a forgery."""
    foreign = await store.foreign_peppers(pepper.fingerprint)
    if foreign:
        raise RemitError(
            ERROR_REASON_CONFIGURATION_INVALID,
            f"{settings.pepper_file} is not the pepper of this database: {foreign} API keys were"
            " made with another; REMIT_POLICY_PEPPER_FILE must name the file they were made with",
        )

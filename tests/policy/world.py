"""A policy service on a real database, with a clock that tests move and an audit log to read."""

from __future__ import annotations

import os
import uuid
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf import timestamp_pb2

from remit.access_recorder import AccessRecorder, by_rpc
from remit.api.audit.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    event_pb2,
    subject_key_service_pb2_grpc,
)
from remit.api.errors.v1 import error_reason_pb2
from remit.api.options.v1 import options_pb2
from remit.api.options.v1.options_pb2 import Caller
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
from remit.policy.admin_service import PolicyAdminService
from remit.policy.api_keys import Pepper
from remit.policy.approval_arguments import ApprovalArguments
from remit.policy.approval_desk import ApprovalDesk
from remit.policy.approval_keeper import ApprovalKeeper
from remit.policy.approval_service import ApprovalService
from remit.policy.approval_store import ApprovalStore
from remit.policy.authority import Authority
from remit.policy.bootstrap import bootstrap_admin
from remit.policy.credentials import Credentials
from remit.policy.decision_record import DecisionRecord
from remit.policy.entities import Principal
from remit.policy.epochs import Policies, read_policies
from remit.policy.ext_authz import EdgeAuthorization
from remit.policy.grant_service import GrantService
from remit.policy.grant_store import GrantStore
from remit.policy.key_ring import KeyRing
from remit.policy.limit_book import LimitBook, Limits
from remit.policy.limit_rows import LimitRows
from remit.policy.limit_service import RateLimitService
from remit.policy.limit_stores import MemoryLimits
from remit.policy.limits import Limit
from remit.policy.org_service import OrgService
from remit.policy.org_store import OrgStore
from remit.policy.policy_set_service import PolicySetService
from remit.policy.principal_service import PrincipalService
from remit.policy.principal_store import PrincipalStore
from remit.policy.rate_limits import EdgeLimits
from remit.policy.read_log import ReadLog
from remit.policy.remits import RemitIssuer
from remit.policy.replay import Candidate, PoolOf, prepare
from remit.policy.runs import RunStore
from remit.policy.schema import SHIPPED_POLICIES
from remit.policy.service import PolicyService
from remit.policy.set_store import SetStore
from remit.policy.shadow import Shadow
from remit.policy.shadow_store import ShadowStore
from remit.policy.signing import Seal
from remit.policy.simulation import Simulator
from remit.policy.store import PolicyStore
from remit.postgres import Database
from remit.rpc.contracts import permissions
from remit.rpc.envoy import add_authorization_servicer, add_rate_limit_servicer
from remit.rpc.errors import RemitError, Violation, invalid_request
from remit.rpc.guard import Guard
from remit.rpc.memory import MemoryMesh
from remit.rpc.permission import StreamPermissions
from remit.rpc.remits import RemitVerifier
from remit.subject_keys import SubjectKeys
from tests.subject_keys import SubjectKeyService, Subjects
from tests.waiting import PATIENCE

ORG = "orgs/acme"
ALICE = "orgs/acme/users/alice"
BOB = "orgs/acme/users/bob"
PEPPER = bytes(range(32))
SEAL = bytes(range(32, 64))
CACHE_S = 5.0
CACHE_SIZE = 8
INTERVAL_S = 60.0
MAX_ENTRIES = 64
LIFETIME_S = 600
MOST_WAITING = 50
SHADOW_LOOK_S = 60.0
"""Long, so that a candidate sees all that waits at each look; tests look themselves."""


class MovedClock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self._now = datetime.now(UTC)
        self._monotonic = 1000.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def move(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds

    def reach(self, time: timestamp_pb2.Timestamp) -> None:
        """It is that time, which the database's clock chose; nothing that is remembered ages."""
        self._now = max(self._now, time.ToDatetime(UTC) + timedelta(milliseconds=1))


class RandomIds:
    def uuid7(self) -> str:
        return str(uuid.uuid4())

    def token_bytes(self, size_bytes: int) -> bytes:
        return os.urandom(size_bytes)


@dataclass
class AuditLog(audit_service_pb2_grpc.AuditServiceServicer):
    """Keeps events by their ids, as the contract of AppendEvents says; may be told to be away."""

    events: dict[str, event_pb2.Event] = field(default_factory=dict)
    away: bool = False
    silent: bool = False
    """It takes events, and its answers are lost."""
    refusing: bool = False
    """It takes no event, and never will."""
    asked: int = 0

    async def AppendEvents(
        self,
        request: audit_service_pb2.AppendEventsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> audit_service_pb2.AppendEventsResponse:
        self.asked += 1
        away = RemitError(error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the log is away")
        if self.away:
            raise away
        response = audit_service_pb2.AppendEventsResponse()
        for entry in request.entries:
            if self.refusing:
                response.results.add(error=invalid_request([Violation("a", "b")]).to_status())
                continue
            known = self.events.setdefault(entry.event.event_id, entry.event)
            assert known == entry.event, "the same id came with another content"
            response.results.add(leaf_index=list(self.events).index(entry.event.event_id))
        if self.silent:
            raise away
        return response

    async def AppendOutcomes(
        self,
        request: audit_service_pb2.AppendOutcomesRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> audit_service_pb2.AppendOutcomesResponse:
        raise NotImplementedError  # policy reports no outcomes


def in_a_thread(candidate: Candidate) -> Executor:
    """A pool that needs no process, so that a preview costs a test little."""
    return ThreadPoolExecutor(1, initializer=prepare, initargs=(candidate,))


class World:
    """One replica of policy on a database, reached over an in-memory mesh."""

    def __init__(
        self,
        database: Database,
        policies: Policies,
        keys: KeyRing,
        clock: MovedClock,
        *,
        most_waiting: int,
        pool_of: PoolOf,
    ) -> None:
        self.database = database
        self.policies = policies
        self.keys = keys
        self.clock = clock
        self.ids = RandomIds()
        self.audit = AuditLog()
        self.pepper = Pepper(PEPPER)
        self.store = PolicyStore(database)
        self.sets = SetStore(database)
        self.runs = RunStore(database, max_batch=64, max_queue=1024)
        self.approvals = ApprovalStore(database, self.ids, max_open=5000)
        self.keeper = ApprovalKeeper(self.approvals, every_s=0.02)
        self.verifier = RemitVerifier(keys, clock)
        self.issuer = RemitIssuer(keys, clock, self.ids, lifetime_s=LIFETIME_S)
        self.mesh = MemoryMesh(PATIENCE)
        self._add_audit()
        self.subjects = Subjects()
        self._add_subjects()
        self.recorder = AdminRecorder(
            self.database,
            self.mesh.as_caller(options_pb2.CALLER_POLICY).stub(
                audit_service_pb2_grpc.AuditServiceStub
            ),
            retry_s=0.01,
        )
        self.accesses = AccessRecorder(
            by_rpc(
                self.mesh.as_caller(options_pb2.CALLER_POLICY).stub(
                    audit_service_pb2_grpc.AuditServiceStub
                )
            ),
            clock,
            self.ids,
            reporter="policy",
            flush_s=0.01,
            interval_s=INTERVAL_S,
            max_entries=MAX_ENTRIES,
        )
        self.authority = Authority(self.store, policies, "", self.accesses)
        self.limit_rows = LimitRows(database)
        self.limits = LimitBook(self.limit_rows, Limits(Limit(10, 60), None, None))
        self.credentials = Credentials(
            store=self.store,
            pepper=self.pepper,
            limits=self.limits,
            policies=policies,
            issuer=self.issuer,
            clock=clock,
            cache_s=CACHE_S,
            cache_size=CACHE_SIZE,
        )
        self.record = self._decision_record(most_waiting)
        self._pool_of = pool_of
        self.shadows = ShadowStore(database, self.ids)
        self.shadow = Shadow(
            self.shadows, policies, clock, max_queue=MOST_WAITING, every_s=SHADOW_LOOK_S
        )
        self.arguments = ApprovalArguments(self._subject_keys(), self.ids)
        self._add_policy()

    def _reads(self) -> ReadLog:
        stub = self.mesh.as_caller(options_pb2.CALLER_POLICY).stub(
            audit_service_pb2_grpc.AuditServiceStub
        )
        return ReadLog(stub, self.clock, self.ids)

    def _subject_keys(self) -> SubjectKeys:
        stub = self.mesh.as_caller(options_pb2.CALLER_POLICY).stub(
            subject_key_service_pb2_grpc.SubjectKeyServiceStub
        )
        return SubjectKeys(stub, self.clock)

    def _decision_record(self, max_queue: int) -> DecisionRecord:
        return DecisionRecord(
            self.database,
            self._subject_keys(),
            self.clock,
            self.ids,
            retention_days=7,
            max_queue=max_queue,
            interval_s=0.01,
        )

    @classmethod
    async def open(
        cls,
        database: Database,
        clock: MovedClock,
        *,
        most_waiting: int = MOST_WAITING,
        pool_of: PoolOf = in_a_thread,
    ) -> World:
        store = PolicyStore(database)
        keys = KeyRing(
            store,
            Seal(SEAL),
            clock,
            RandomIds(),
            period=timedelta(days=7),
            overlap=timedelta(seconds=LIFETIME_S),
        )
        await keys.refresh()
        policies = await Policies.open(SetStore(database), read_policies(SHIPPED_POLICIES), clock)
        return cls(database, policies, keys, clock, most_waiting=most_waiting, pool_of=pool_of)

    def _guard(self, audience: Caller.ValueType) -> Guard:
        # The guard's deadlines are the event loop's, so its clock is too.
        return Guard(
            audience=audience,
            verifier=self.verifier,
            clock=self.clock,
            max_in_flight=1000,
            permissions=StreamPermissions(self.hot(options_pb2.CALLER_POLICY), self.clock),
        )

    def _add_audit(self) -> None:
        self.mesh.add(
            self._guard(options_pb2.CALLER_AUDIT),
            audit_service_pb2_grpc.add_AuditServiceServicer_to_server,
            self.audit,
        )

    def _add_subjects(self) -> None:
        self.mesh.add(
            self._guard(options_pb2.CALLER_AUDIT),
            subject_key_service_pb2_grpc.add_SubjectKeyServiceServicer_to_server,
            SubjectKeyService(self.subjects),
        )

    def _add_policy(self) -> None:
        guard = self._guard(options_pb2.CALLER_POLICY)
        self.mesh.add(
            guard,
            policy_service_pb2_grpc.add_PolicyServiceServicer_to_server,
            PolicyService(
                policies=self.policies,
                runs=self.runs,
                approvals=ApprovalDesk(self.approvals, self.arguments),
                keys=self.keys,
                issuer=self.issuer,
                verifier=self.verifier,
                ids=self.ids,
                record=self.record,
                shadow=self.shadow,
                accesses=self.accesses,
                limits=self.limits,
                decision_valid_s=10,
            ),
        )
        self.mesh.add(
            guard,
            policy_admin_service_pb2_grpc.add_PolicyAdminServiceServicer_to_server,
            PolicyAdminService(
                store=self.store,
                pepper=self.pepper,
                sets=self.sets,
                authority=self.authority,
                credentials=self.credentials,
                recorder=self.recorder,
                clock=self.clock,
            ),
        )
        self.mesh.add(
            guard,
            policy_set_service_pb2_grpc.add_PolicySetServiceServicer_to_server,
            PolicySetService(
                store=self.store,
                sets=self.sets,
                policies=self.policies,
                authority=self.authority,
                recorder=self.recorder,
                simulator=Simulator(
                    self.sets, self.record, self._reads(), self.clock, self._pool_of
                ),
                shadows=self.shadows,
            ),
        )
        self.mesh.add(
            guard,
            grant_service_pb2_grpc.add_GrantServiceServicer_to_server,
            GrantService(
                store=self.store,
                grants=GrantStore(self.database),
                policies=self.policies,
                authority=self.authority,
                recorder=self.recorder,
                clock=self.clock,
                ids=self.ids,
            ),
        )
        self.mesh.add(
            guard,
            approval_service_pb2_grpc.add_ApprovalServiceServicer_to_server,
            ApprovalService(
                store=self.approvals,
                arguments=self.arguments,
                policy_store=self.store,
                policies=self.policies,
                recorder=self.recorder,
                keeper=self.keeper,
                heartbeat_s=PATIENCE,
            ),
        )
        self.mesh.add(
            guard,
            add_authorization_servicer,
            EdgeAuthorization(self.credentials, self.policies, self.accesses, self.clock),
        )
        self.mesh.add(
            guard,
            principal_service_pb2_grpc.add_PrincipalServiceServicer_to_server,
            PrincipalService(
                store=PrincipalStore(self.database),
                authority=self.authority,
                credentials=self.credentials,
                recorder=self.recorder,
            ),
        )
        self.mesh.add(
            guard,
            org_service_pb2_grpc.add_OrgServiceServicer_to_server,
            OrgService(
                store=OrgStore(self.database),
                authority=self.authority,
                credentials=self.credentials,
                recorder=self.recorder,
            ),
        )
        counted = MemoryLimits(self.clock, max_entries=1000)
        self.mesh.add(guard, add_rate_limit_servicer, EdgeLimits(counted, fail_open=False))
        self.mesh.add(
            guard,
            rate_limit_service_pb2_grpc.add_RateLimitServiceServicer_to_server,
            RateLimitService(
                rows=self.limit_rows,
                authority=self.authority,
                credentials=self.credentials,
                recorder=self.recorder,
            ),
        )

    def principals(self) -> principal_service_pb2_grpc.PrincipalServiceStub:
        stub: principal_service_pb2_grpc.PrincipalServiceStub = self.mesh.as_caller(
            options_pb2.CALLER_PUBLIC
        ).stub(principal_service_pb2_grpc.PrincipalServiceStub)
        return stub

    def orgs(self) -> org_service_pb2_grpc.OrgServiceStub:
        stub: org_service_pb2_grpc.OrgServiceStub = self.mesh.as_caller(
            options_pb2.CALLER_PUBLIC
        ).stub(org_service_pb2_grpc.OrgServiceStub)
        return stub

    def limiting(self) -> rate_limit_service_pb2_grpc.RateLimitServiceStub:
        stub: rate_limit_service_pb2_grpc.RateLimitServiceStub = self.mesh.as_caller(
            options_pb2.CALLER_PUBLIC
        ).stub(rate_limit_service_pb2_grpc.RateLimitServiceStub)
        return stub

    def client_token(
        self, user: str = ALICE, *, roles: tuple[str, ...] = ("member",), team: str = ""
    ) -> str:
        """A client's remit, as the edge sets it, for whatever the client may want to do."""
        org = "/".join(user.split("/")[:2])
        principal = Principal(user, org, team, roles)
        return self.issuer.for_client(principal, *permissions(), api_key="", epoch=1).token

    async def admin_secret(self) -> str:
        return await bootstrap_admin(self.database, self.pepper, ORG, ALICE)

    def hot(
        self, caller: Caller.ValueType = options_pb2.CALLER_TOOLS
    ) -> policy_service_pb2_grpc.PolicyServiceStub:
        stub: policy_service_pb2_grpc.PolicyServiceStub = self.mesh.as_caller(caller).stub(
            policy_service_pb2_grpc.PolicyServiceStub
        )
        return stub

    def admin(self) -> policy_admin_service_pb2_grpc.PolicyAdminServiceStub:
        stub: policy_admin_service_pb2_grpc.PolicyAdminServiceStub = self.mesh.as_caller(
            options_pb2.CALLER_PUBLIC
        ).stub(policy_admin_service_pb2_grpc.PolicyAdminServiceStub)
        return stub

    def policy_sets(self) -> policy_set_service_pb2_grpc.PolicySetServiceStub:
        stub: policy_set_service_pb2_grpc.PolicySetServiceStub = self.mesh.as_caller(
            options_pb2.CALLER_PUBLIC
        ).stub(policy_set_service_pb2_grpc.PolicySetServiceStub)
        return stub

    def grants(self) -> grant_service_pb2_grpc.GrantServiceStub:
        stub: grant_service_pb2_grpc.GrantServiceStub = self.mesh.as_caller(
            options_pb2.CALLER_PUBLIC
        ).stub(grant_service_pb2_grpc.GrantServiceStub)
        return stub

    def people(self) -> approval_service_pb2_grpc.ApprovalServiceStub:
        stub: approval_service_pb2_grpc.ApprovalServiceStub = self.mesh.as_caller(
            options_pb2.CALLER_PUBLIC
        ).stub(approval_service_pb2_grpc.ApprovalServiceStub)
        return stub

"""What must hold of approvals after a storm: what people allowed happened once, and nothing else.

Read from three places that know nothing of each other: policy's approvals and votes, the attempts
of the tools, and the audit log; besides the mailbox, which is outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import grpc

from remit.api.agent.v1 import run_pb2
from remit.api.audit.v1 import audit_query_service_pb2, audit_query_service_pb2_grpc, event_pb2
from tests.integration.clients import bearer, channel, result_of
from tests.integration.conftest import RunningMesh
from tests.integration.petitions import BOSS, WHY_NOT, Approver, Fate, fate_of
from tests.integration.reckoning import AWAY, is_in_doubt, rows, value
from tests.integration.storming import (
    Crowd,
    StormWorld,
    expected_result,
    path_of,
    recipient_of,
)
from tests.waiting import PATIENCE, eventually

Number = int
_STATE: Final = {Fate.APPROVE: "USED", Fate.DENY: "DENIED", Fate.LAPSE: "EXPIRED"}
_RECORDED: Final = {
    Fate.APPROVE: {"approvals.ask", "approvals.decide", "approvals.use"},
    Fate.DENY: {"approvals.ask", "approvals.decide"},
    Fate.LAPSE: {"approvals.ask", "approvals.expire"},
}
"""Changes that the log tells of an approval."""
_OPEN: Final = "SELECT count(*) FROM approvals WHERE state IN ('PENDING', 'APPROVED')"
_APPROVALS: Final = """
    SELECT approval::text, run, claim::text, resource, state, used_by_attempt, arguments IS NULL
    FROM approvals
"""
_VOTES: Final = """
    SELECT v.approval::text, v.subject, v.verdict FROM approval_votes v JOIN admin_requests r
    ON r.subject = v.subject AND r.method = 'approvals.decide' AND r.request_id = v.request_id
    WHERE r.record_time IS NOT NULL
"""
_BEGUN: Final = """
    SELECT claim::text, attempt, outcome FROM effect_attempts
    WHERE resource = 'tools/send_email' AND outcome <> 'REFUSED' AND run = ANY($1::text[])
"""
_USES: Final = """
    SELECT a.claim::text, r.request_id FROM admin_requests r
    JOIN approvals a ON r.resource = 'approvals/' || a.approval
    WHERE r.method = 'approvals.use'
"""
_DONE: Final = {"SUCCEEDED", "IN_DOUBT"}
"""Outcomes of what took effect, or may have. Any other says that nothing left the house."""


@dataclass(frozen=True)
class Petition:
    """An approval as the database has it after the storm."""

    approval: str
    run: str
    claim: str
    resource: str
    state: str
    used_by_attempt: int | None
    is_forgotten: bool
    """Whether the arguments that were shown are gone."""


async def reckon_petitions(world: StormWorld, crowd: Crowd, approver: Approver) -> Counter[str]:
    """Asserts all that holds of approvals; returns how many ended how."""
    mesh = world.mesh
    fates = {number: fate for number in crowd.histories if (fate := fate_of(number))}
    for number, fate in fates.items():
        _as_people_said(world, number, fate, result_of(crowd.histories[number]))
    await eventually(lambda: _none_is_open(mesh), 90)
    petitions = await _petitions(mesh, crowd, fates)
    await _happened_once_or_never(mesh, petitions, fates)
    await _votes_agree(mesh, petitions, fates, approver)
    await eventually(lambda: _is_recorded(mesh, petitions, fates), 60)
    return Counter(petition.state for petition in petitions.values())


def _as_people_said(world: StormWorld, number: Number, fate: Fate, run: run_pb2.Run) -> None:
    """A run ends as people decided; only what they approved may be in doubt."""
    mails = world.mails()[recipient_of(number)]
    if fate is Fate.APPROVE and is_in_doubt(run):
        assert mails <= 1
        return
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED, (number, run)
    assert world.written[path_of(number)] == f"Storm {number}"
    if fate is Fate.APPROVE:
        assert run.result == expected_result(number), (number, run)
        assert mails == 1, (number, run)
        return
    told = f"denied by orgs/local/users/{BOSS}: {WHY_NOT}" if fate is Fate.DENY else "is EXPIRED"
    assert told in run.result, (number, run)
    assert mails == 0, (number, run)


async def _none_is_open(mesh: RunningMesh) -> bool:
    """All runs have ended, so nothing waits: neither for people nor for being used."""
    try:
        return await value(mesh, "remit_policy", _OPEN) == 0
    except AWAY:
        return False


async def _petitions(
    mesh: RunningMesh, crowd: Crowd, fates: Mapping[Number, Fate]
) -> dict[Number, Petition]:
    """Each run that had to ask asked once, and nobody else did; each ended as was said."""
    found = [Petition(*row) for row in await rows(mesh, "remit_policy", _APPROVALS)]
    by_run = {petition.run: petition for petition in found}
    assert len(by_run) == len(found)
    runs = {number: result_of(crowd.histories[number]).name for number in fates}
    assert set(runs.values()) == set(by_run)
    petitions = {number: by_run[run] for number, run in runs.items()}
    for number, petition in petitions.items():
        assert petition.state == _STATE[fates[number]], (number, petition)
        assert petition.resource == "tools/send_email"
        assert petition.is_forgotten
    return petitions


async def _happened_once_or_never(
    mesh: RunningMesh, petitions: Mapping[Number, Petition], fates: Mapping[Number, Fate]
) -> None:
    """What began, used the approval of its claim first; of each claim the last to use it did it.

    An attempt that ended before its mail could leave is followed by another, which is allowed by
    the same approval.
    """
    runs = [petition.run for petition in petitions.values()]
    begun = await rows(mesh, "remit_tools", _BEGUN, runs)
    uses = {
        (claim, int(request.rpartition("-")[2]))
        for claim, request in await rows(mesh, "remit_policy", _USES)
    }
    unasked = [row for row in begun if row[:2] not in uses]
    assert not unasked, f"these began and no approval was used for them: {unasked}"
    done = sorted(row[:2] for row in begun if row[2] in _DONE)
    allowed = sorted(
        (petition.claim, petition.used_by_attempt)
        for number, petition in petitions.items()
        if fates[number] is Fate.APPROVE
    )
    assert done == allowed, f"done {done}, allowed {allowed}, begun {sorted(begun)}"


async def _votes_agree(
    mesh: RunningMesh,
    petitions: Mapping[Number, Petition],
    fates: Mapping[Number, Fate],
    approver: Approver,
) -> None:
    """One voice for each that was decided, which is what the person said, and none for others."""
    votes = await rows(mesh, "remit_policy", _VOTES)
    wanted = [
        (petition.approval, f"{mesh.org}/users/{BOSS}", fates[number].name)
        for number, petition in petitions.items()
        if fates[number] is not Fate.LAPSE
    ]
    assert sorted(votes) == sorted(wanted)
    said = {(name.removeprefix("approvals/"), fate.name) for name, fate in approver.said.items()}
    assert said == {(approval, verdict) for approval, _, verdict in wanted}


async def _is_recorded(
    mesh: RunningMesh, petitions: Mapping[Number, Petition], fates: Mapping[Number, Fate]
) -> bool:
    """The log tells of each change once; of a use, once for each attempt that was allowed."""
    told = await _changes_in_the_log(mesh)
    for number, petition in petitions.items():
        changes = told.get(f"approvals/{petition.approval}", Counter())
        if set(changes) != _RECORDED[fates[number]]:
            return False
        assert max(changes[what] for what in changes if what != "approvals.use") == 1
    return True


async def _changes_in_the_log(mesh: RunningMesh) -> dict[str, Counter[str]]:
    """Actions by resource of all ADMIN entries; nothing while a part on the way is away."""
    told: dict[str, Counter[str]] = {}
    request = audit_query_service_pb2.ListEventsRequest(
        kind=event_pb2.EVENT_KIND_ADMIN, page_size=200
    )
    async with channel(mesh.address) as edge:
        audit = audit_query_service_pb2_grpc.AuditQueryServiceStub(edge)
        while True:
            try:
                page = await audit.ListEvents(
                    request, metadata=bearer(mesh.api_key), timeout=10 * PATIENCE
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return {}
            for logged in page.events:
                event = logged.event
                told.setdefault(event.resource, Counter())[event.action] += 1
            if not page.next_page_token:
                return told
            request.page_token = page.next_page_token

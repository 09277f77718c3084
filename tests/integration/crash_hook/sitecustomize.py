"""Ends a process at a named point: Python imports this file at its start if it is on the path.

A point stands before or after a step that changes something: a write of a store, a call of another
service, an effect outside. `tests/integration/crash_points.py` arms one by a file named after the
service; whoever reaches it first takes the file away and sends itself, or the process that the file
names, the signal that the file names. The product knows nothing of it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = os.environ.get("PYTHON_CRASH_FOLDER", "")

Kind = Callable[[tuple[Any, ...]], str]
"""What a step is about, by its arguments."""


def _journalled(arguments: tuple[Any, ...]) -> str:
    """What an entry of the journal says, by the first of these that it says."""
    said = {event.WhichOneof("event") for event in arguments[1].events}
    return next((kind for kind in JOURNALLED if kind in said), "other")


def _change(arguments: tuple[Any, ...]) -> str:
    return type(arguments[1]).__name__.lower()


JOURNALLED = (
    *("ended", "tool_call_ended", "sub_run_started", "model_call_ended"),
    *("started", "waiting"),
)


@dataclass(frozen=True)
class Step:
    """A function between whose beginning and end something changes."""

    module: str
    function: str
    kind: Kind | None = None
    kinds: tuple[str, ...] = ()
    is_idle_without_result: bool = False
    """Whether it changes nothing where it returns nothing, as a claim of no run does."""

    @property
    def names(self) -> list[str]:
        """Its name, or one for each kind."""
        name = f"{self.module.removeprefix('remit.')}.{self.function}"
        return [f"{name}({kind})" for kind in self.kinds] if self.kinds else [name]

    def place(self) -> tuple[Any, str]:
        """The module or class that has the function, and its name there."""
        *path, name = self.function.split(".")
        return functools.reduce(getattr, path, importlib.import_module(self.module)), name


def _gate(*changes: str) -> tuple[Step, ...]:
    """The steps of the effect gate; `changes` are those of a claim that the service comes to."""
    return (
        Step("remit.effects.store", "ClaimStore.begin"),
        Step("remit.effects.store", "ClaimStore.change", _change, changes),
        Step("remit.effects.store", "ClaimStore.lapse"),
        Step("remit.effects.store", "ClaimStore.acknowledge"),
        Step("remit.effects.permits", "PermitSource.ask"),
        Step("remit.effects.permits", "PermitSource._check"),
        Step("remit.effects.permits", "PermitSource._reserve"),
        Step("remit.effects.permits", "PermitSource._append"),
        Step("remit.effects.gate", "EffectGate._io"),
        Step("remit.effects.closing", "Closer.close"),
        Step("remit.effects.closing", "Closer._settle"),
        Step("remit.effects.closing", "Closer._append"),
    )


APPROVING = (
    Step("remit.policy.approval_store", "ApprovalStore.ask"),
    Step("remit.policy.approval_store", "ApprovalStore.vote"),
    Step("remit.policy.approval_store", "ApprovalStore.settle"),
)
"""The steps of an approval; `tests/integration/test_approval_crashes.py` dies at each alone."""

STEPS: dict[str, tuple[Step, ...]] = {
    "agent": (
        Step("remit.agent.store", "RunStore.create"),
        Step("remit.agent.store", "RunStore.append", _journalled, JOURNALLED),
        Step("remit.agent.store", "_Batch.write"),
        Step("remit.agent.leases", "LeaseStore.claim", is_idle_without_result=True),
        Step("remit.agent.leases", "LeaseStore.renew"),
        Step("remit.agent.leases", "LeaseStore.park"),
        Step("remit.agent.leases", "LeaseStore.park_for_approvals"),
        Step("remit.agent.leases", "LeaseStore.wake"),
        Step("remit.agent.run_remit", "RemitDesk.register"),
        Step("remit.agent.run_remit", "RemitDesk.delegate"),
        Step("remit.agent.run_remit", "RemitDesk.renew"),
        Step("remit.agent.turns", "ModelTurns.ask"),
        Step("remit.agent.calls", "ToolCalls._attempt"),
        Step("remit.agent.household", "Household.name"),
        Step("remit.agent.household", "Household.tend"),
        Step("remit.agent.receipts", "Receipts.committed"),
        Step("remit.agent.receipts", "Receipts.adopted"),
        Step("remit.agent.admin_log", "AdminLog.asked"),
        Step("remit.agent.conversation_store", "ConversationStore.create"),
        Step("remit.agent.conversation_store", "ConversationStore.delete"),
        Step("remit.agent.outbox", "Outbox.claim", is_idle_without_result=True),
        Step("remit.agent.outbox", "Outbox.record"),
    ),
    "inference": (
        *_gate("start", "extend", "finish", "close"),
        Step("remit.effects.permits", "PermitSource._extend"),
        Step("remit.inference.openai_engine", "OpenAIEngine.generate"),
    ),
    "tools": (
        *_gate("start", "finish", "close"),  # a tool's hold is never extended
        Step("remit.tools.folder", "Folder.write"),
        Step("remit.tools.folder", "_write_synced"),
        Step("remit.tools.posting", "Poster.post"),
        Step("smtplib", "SMTP.rcpt"),
        Step("smtplib", "SMTP.data"),
    ),
    "policy": (
        Step("remit.policy.runs", "RunStore.claim"),
        Step("remit.policy.runs", "RunStore.fences"),
        Step("remit.policy.runs", "settle_claims"),
        Step("remit.policy.service", "PolicyService.IssueRemit"),
        Step("remit.policy.service", "PolicyService.DelegateRemit"),
        Step("remit.policy.service", "PolicyService.BatchCheckPermissions"),
        Step("remit.policy.ext_authz", "EdgeAuthorization.Check"),
        Step("remit.policy.decision_record", "DecisionRecord._store"),
        Step("remit.access_recorder", "AccessRecorder._send"),
        *APPROVING,
    ),
    "cost": (
        Step("remit.cost.store", "LedgerStore.open"),
        Step("remit.cost.store", "LedgerStore.close"),
        Step("remit.cost.store", "LedgerStore.write"),
        Step("remit.cost.service", "CostService.BatchReserveBudgets"),
        Step("remit.cost.service", "CostService.BatchExtendReservations"),
        Step("remit.cost.service", "CostService.BatchSettleReservations"),
    ),
    "audit": (
        Step("remit.audit.store", "LogStore.append"),
        Step("remit.audit.store", "LogStore._write"),
        Step("remit.audit.service", "AuditService.AppendEvents"),
        Step("remit.audit.service", "AuditService.AppendOutcomes"),
        Step("remit.audit.checkpoints", "CheckpointSigner._sign"),
        Step("remit.audit.tile_files", "TileFiles.write"),
        Step("remit.audit.tile_writer", "TileWriter._publish"),
    ),
}


SELDOM: dict[str, tuple[Step, ...]] = {
    "audit": (
        Step("remit.audit.archiving", "Archiver.check_tiles"),
        Step("remit.audit.archive_file", "ArchiveWriter.finish"),
        Step("remit.audit.archiving", "Archiver._written"),
        Step("remit.audit.archiving", "record_archive"),
        Step("remit.audit.checkpoints", "CheckpointSigner.covering"),
        Step("remit.audit.archiving", "Archiver.drop"),
    ),
}
"""Steps that no storm comes to; `tests/audit/test_archive_crashes.py` does."""


def points(area: str, steps: dict[str, tuple[Step, ...]] = STEPS) -> list[str]:
    """Every point of a service at which a storm kills; or those of other steps."""
    names = [name for step in steps[area] for name in step.names]
    return [f"{name} {side}" for name in names for side in ("before", "after")]


class Executioner:
    """Looks, at each point that its process passes, whether it is the one that is armed."""

    def __init__(self, area: str, folder: Path) -> None:
        self._armed = folder / area
        self._order = ""
        self._passed = 0

    def reach(self, point: str) -> None:
        """Passes a point, or ends what the order names."""
        try:
            order = self._armed.read_text()
        except FileNotFoundError:
            return
        if order != self._order:
            self._order, self._passed = order, 0
        wanted, skipped, victim, number, fired = order.split("\n")
        if point != wanted:
            return
        self._passed += 1
        if self._passed > int(skipped):
            with contextlib.suppress(FileNotFoundError):  # another replica was here first
                self._armed.rename(fired)
                os.kill(int(victim) or os.getpid(), int(number))

    def stand_at(self, step: Step) -> None:
        """Puts the points of a step around its function."""
        owner, name = step.place()
        setattr(owner, name, self._guarded(step, getattr(owner, name)))

    def _guarded(self, step: Step, function: Any) -> Any:
        name = f"{step.module.removeprefix('remit.')}.{step.function}"

        def named(arguments: tuple[Any, ...]) -> str:
            return name if step.kind is None else f"{name}({step.kind(arguments)})"

        if not inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            def plain(*arguments: Any, **options: Any) -> Any:
                self.reach(f"{named(arguments)} before")
                result = function(*arguments, **options)
                self.reach(f"{named(arguments)} after")
                return result

            return plain

        @functools.wraps(function)
        async def awaited(*arguments: Any, **options: Any) -> Any:
            self.reach(f"{named(arguments)} before")
            result = await function(*arguments, **options)
            if result or not step.is_idle_without_result:
                self.reach(f"{named(arguments)} after")
            return result

        return awaited


def _restart_at_once() -> None:
    """The supervisor waits longer after each death in a row; a storm kills too often for that."""
    process = importlib.import_module("remit.local.process")
    process.Backoff.delay_s = lambda _backoff, _deaths: 0.1


def _prepare() -> None:
    program, (command, subject) = sys.orig_argv[:-2], sys.orig_argv[-2:]
    if command == "serve" and subject in STEPS:
        executioner = Executioner(subject, Path(FOLDER))
        for step in (*STEPS[subject], *SELDOM.get(subject, ())):
            executioner.stand_at(step)
    elif "remit.cli.main" in program and "up" in program:
        _restart_at_once()


if FOLDER:
    _prepare()

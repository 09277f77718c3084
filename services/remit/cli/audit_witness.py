"""`remit audit witness`: remember what the log showed, cosign what extends it, refuse the rest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import click

from remit.api.audit.v1 import audit_query_service_pb2, audit_query_service_pb2_grpc
from remit.api.errors.v1 import error_reason_pb2
from remit.audit.cosignature import Cosigner
from remit.audit.note import NoteError, Verifier
from remit.audit.tile_folder import TileFaultError, TileFolder
from remit.audit.witness import (
    LogView,
    Sighting,
    WitnessRefusalError,
    first_sighting,
    next_sighting,
)
from remit.audit.witness_files import WitnessFolder, publish
from remit.cli import exit_codes
from remit.cli.audit_verify import key_text
from remit.cli.client import Edge, Session, client_options
from remit.cli.interrupts import on_interrupt
from remit.cli.output import Output
from remit.cli.parameters import Length
from remit.rpc.clock import Clock, SystemClock
from remit.rpc.errors import RemitError

Query = audit_query_service_pb2_grpc.AuditQueryServiceStub
_SHORTEST_S: Final = 0.2
_LONGEST_S: Final = 86_400.0


@click.command(
    "witness",
    epilog="\b\nExamples:\n"
    "  remit audit witness ./witness --init witness.example/w1 --key audit.pub\n"
    "  remit audit witness ./witness --key audit.pub --output /public/checkpoint --follow 1min\n"
    "  remit audit witness ./witness --key audit.pub --tiles /mirror/tiles\n\n"
    "\b\nExit codes:\n    0  the checkpoint was cosigned\n"
    "   10  refused: a fork, a rollback, another log or another key; sizes and roots are named",
)
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--key",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="A public key of the log: audit.pub of the state directory.",
)
@click.option(
    "--init", "name", metavar="NAME", help="Make FOLDER: a key of this name, and a first look."
)
@click.option(
    "--tiles",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Read the log from this folder of tiles instead of the mesh.",
)
@click.option(
    "--output",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the cosigned checkpoint to this file instead of standard output.",
)
@click.option(
    "--follow", "interval", type=Length(), help="Look again at this interval, 200ms to 1d."
)
@client_options
def witness(  # noqa: PLR0913 - an option each
    *,
    session: Session,
    folder: Path,
    key: Path,
    name: str | None,
    tiles: Path | None,
    target: Path | None,
    interval: timedelta | None,
) -> int:
    """Cosign the log's newest checkpoint, if it extends the last one that this witness saw.

    FOLDER holds the witness's key and that checkpoint; back it up. Run it where whoever runs the
    mesh cannot write. A checkpoint that is refused although the log signed it stays in FOLDER as
    evidence. With --follow, a mesh that is away is waited for, and a refusal ends the command.
    """
    if interval and not _SHORTEST_S <= interval.total_seconds() <= _LONGEST_S:
        raise click.BadParameter("must be from 200ms to 1d", param_hint="--follow")
    if name and interval:
        raise click.UsageError("--init makes the witness; start it with --follow afterwards")
    known = Verifier.parse(key_text(key, Verifier.parse, "a log"))
    watch = _Watch(WitnessFolder(folder), known, SystemClock(), session.output, target)
    cosigner = _new_cosigner(name) if name else None

    async def work(log: LogView) -> None:
        if cosigner is not None:
            await watch.begin(cosigner, log)
        elif interval is not None:
            await watch.follow(log, interval.total_seconds())
        else:
            await watch.look(log)

    try:
        if tiles is None:
            session.run(lambda edge: work(EdgeLog(edge)))
        else:
            asyncio.run(work(TilesLog(tiles)))
    except WitnessRefusalError as error:
        return watch.refused(error)
    return exit_codes.OK


class EdgeLog:
    """The log as its mesh shows it."""

    def __init__(self, edge: Edge) -> None:
        self._stub = edge.stub(Query)
        self._metadata = edge.metadata

    async def checkpoint(self) -> tuple[str, Sequence[str]]:
        """The newest checkpoint. Raises RemitError."""
        request = audit_query_service_pb2.GetCheckpointRequest()
        found = await self._stub.GetCheckpoint(request, metadata=self._metadata)
        return found.checkpoint.signed_note, list(found.key_rotations)

    async def consistency_proof(self, first_size: int, second_size: int) -> Sequence[bytes]:
        """A proof. Raises RemitError."""
        request = audit_query_service_pb2.GetConsistencyProofRequest(
            first_tree_size=first_size, second_tree_size=second_size
        )
        return list((await self._stub.GetConsistencyProof(request, metadata=self._metadata)).hashes)


class TilesLog:
    """The log as a folder of tiles shows it. A mirror that is being copied may not be whole yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reader = TileFolder(folder)

    async def checkpoint(self) -> tuple[str, Sequence[str]]:
        """The checkpoint of the folder. Raises RemitError."""
        with self._told():
            return self._reader.checkpoint(), self._reader.rotations()

    async def consistency_proof(self, first_size: int, second_size: int) -> Sequence[bytes]:
        """A proof from the tiles. Raises RemitError."""
        with self._told():
            return self._reader.consistency_proof(first_size, second_size)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (TileFaultError, OSError) as error:
            raise RemitError(
                error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                f"the tiles in {self._folder} are not whole: {error}",
            ) from error


@dataclass
class _Watch:
    """Looks at a log for one witness, and tells what it saw."""

    folder: WitnessFolder
    known: Verifier
    clock: Clock
    output: Output
    target: Path | None

    async def begin(self, cosigner: Cosigner, log: LogView) -> None:
        """Make the witness's folder with its first look at the log."""
        self.folder.check_free()
        seen = await first_sighting(cosigner, self.known, log, self._now_s())
        self.folder.make(cosigner, seen.note)
        self._tell(seen)

    async def look(self, log: LogView) -> None:
        """Cosign what the log shows now."""
        self._tell(await self._next(log))

    async def follow(self, log: LogView, interval_s: float) -> None:
        """Look at an interval, until interrupted or refused. What is away is waited for."""
        ended = asyncio.Event()
        with on_interrupt(ended.set):
            while not ended.is_set():
                try:
                    seen = await self._next(log)
                except RemitError as error:
                    if not error.retryable:
                        raise
                    self.output.warn(f"nothing was cosigned: {error.message}")
                else:
                    self._tell(seen, only_growth=True)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), interval_s)

    def refused(self, error: WitnessRefusalError) -> int:
        """Tell a refusal, and keep the evidence; the exit code."""
        evidence = str(self.folder.keep_refused(error.note)) if error.note else ""
        if self.output.as_json:
            told = {"cosigned": False, "fault": str(error), "evidence": evidence}
            self.output.document(told)
        else:
            self.output.line(f"audit: NOT cosigned: {error}", "bold red")
            if evidence:
                self.output.line(f"what the log signed is kept in {evidence}")
        return exit_codes.FORKED

    async def _next(self, log: LogView) -> Sighting:
        with self.folder.locked():
            cosigner = self.folder.cosigner()
            last = self.folder.last(cosigner.witness_key())
            seen = await next_sighting(cosigner, self.known, last, log, self._now_s())
            self.folder.keep(seen.note)
        return seen

    def _now_s(self) -> int:
        return int(self.clock.now().timestamp())

    def _tell(self, seen: Sighting, *, only_growth: bool = False) -> None:
        if self.target is not None:
            publish(self.target, seen.note)
        size = seen.checkpoint.tree_size
        if only_growth and size == seen.last_size:
            return
        if self.output.as_json:
            self.output.document(
                {
                    "cosigned": True,
                    "tree_size": size,
                    "root_hash": seen.checkpoint.root_hash.hex(),
                    "last_tree_size": seen.last_size,
                    "signed_note": seen.note,
                }
            )
        elif self.target is None:
            click.echo(seen.note, nl=False)
        else:
            root = seen.checkpoint.root_hash.hex()
            self.output.line(f"audit: cosigned {size:,} entries, root {root}: {self.target}")


def _new_cosigner(name: str) -> Cosigner:
    try:
        return Cosigner.generate(name)
    except NoteError as error:
        raise click.BadParameter(str(error), param_hint="--init") from error

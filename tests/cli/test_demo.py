"""The demo fails on whatever is not as promised. The whole of it runs in tests/integration."""

from __future__ import annotations

import io
import socket
from pathlib import Path

import pytest

from remit.api.agent.v1 import run_pb2
from remit.audit.merkle import Frontier
from remit.audit.note import Checkpoint, Signer
from remit.audit.verifier import checkpoint_line, header_line
from remit.cli.demo import (
    DemoError,
    Evidence,
    Story,
    _check_record,
    _check_run,
    free_topology,
)
from remit.cli.output import Output
from remit.local.ports import check_ports
from remit.rpc.clock import SystemClock
from remit.rpc.errors import RemitError
from tests.cli.journals import ended_run
from tests.ports import free_ports


def test_a_right_answer_that_was_paid_for_passes() -> None:
    _check_run(ended_run())


@pytest.mark.parametrize("result", ["", "392", "1391", "3910", "39.1", "0.391"])
def test_a_wrong_answer_fails(result: str) -> None:
    run = ended_run()
    run.result = result
    with pytest.raises(DemoError, match="not with 391"):
        _check_run(run)


def test_a_run_that_cost_nothing_fails() -> None:
    run = ended_run()
    run.cost_nanos = 0
    with pytest.raises(DemoError, match="must be paid for"):
        _check_run(run)


def test_a_run_that_failed_fails() -> None:
    with pytest.raises(DemoError, match="did not succeed"):
        _check_run(ended_run(run_pb2.RUN_STATE_CANCELLED))


def test_an_export_that_does_not_verify_fails(tmp_path: Path) -> None:
    signer = Signer.generate("test")
    export = tmp_path / "log.export"
    note = signer.sign(Checkpoint("test", 1, Frontier().root()).body())
    export.write_bytes(header_line(0) + checkpoint_line(note))
    story = Story(Output(as_json=False, stream=io.StringIO()), SystemClock())
    with pytest.raises(DemoError, match="NOT verified: line 3"):
        _check_record(story, Evidence(ended_run(), export, str(signer.verifier())))


def test_other_ports_are_taken_where_the_defaults_are_in_use() -> None:
    bases = []

    def choose(_: range) -> int:
        # Its neighbours may be taken by another test: then the next choice is another.
        bases.append(free_ports(1)[0])
        return bases[-1]

    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        except OSError:
            pass  # somebody else has it: all the better
        topology = free_topology("/tls", choose)
        assert topology.edge.port == bases[-1] + 2
        assert topology.mesh.port == bases[-1]
        check_ports(topology)


def test_it_gives_up_if_no_port_is_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_ports(1)[0]))
        taken.listen()
        busy = taken.getsockname()[1]
        with socket.socket() as default:
            default.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                default.bind(("127.0.0.1", 8080))
                default.listen()
            except OSError:
                pass
            with pytest.raises(RemitError, match="no free ports"):
                free_topology("/tls", lambda _: busy)

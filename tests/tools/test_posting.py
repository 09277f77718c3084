"""One POST: to the address that was checked, within its time, and nothing read but the status.

Every server is on loopback; addresses elsewhere are only ever given to the check.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from remit.addresses import Address, parse_networks
from remit.local.certificates import ensure_leaves
from remit.rpc.clock import SystemClock
from remit.tools.posting import MAX_HEAD_BYTES, Message, Poster, PostError, system_resolve
from remit.webhooks import Target
from tests.tools.receiver import Receiver, answer, receiving

LOOPBACK = parse_networks("127.0.0.0/8, ::1/128")
MESSAGE = Message(b'{"type":"run.ended"}', {"webhook-id": "run_ended_1"})


class Names:
    """A resolver whose answers a test decides."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = [[ip_address(text) for text in answer] for answer in answers]
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.asked.append((host, port))
        return self.answers.pop(0)


def poster(
    names: Names | None = None, *, timeout_s: float = 5.0, tls: ssl.SSLContext | None = None
) -> Poster:
    return Poster(
        tls=tls or ssl.create_default_context(),
        allowed=LOOPBACK,
        resolve=names or system_resolve,
        timeout_s=timeout_s,
    )


def target(receiver: Receiver, host: str = "localhost", *, is_tls: bool = False) -> Target:
    return Target(is_tls=is_tls, host=host, port=receiver.port, path="/ended?x=1")


async def failed(post: Poster, where: Target) -> PostError:
    with pytest.raises(PostError) as caught:
        await post.post(where, MESSAGE)
    return caught.value


async def test_a_message_arrives_as_it_is() -> None:
    async with receiving() as receiver:
        assert await poster().post(target(receiver), MESSAGE) == 204
    [received] = receiver.received
    assert received.target == "/ended?x=1"
    assert received.body == MESSAGE.body
    assert received.headers == {
        "host": f"localhost:{receiver.port}",
        "user-agent": "remit",
        "connection": "close",
        "content-length": str(len(MESSAGE.body)),
        "webhook-id": "run_ended_1",
    }


async def test_the_name_is_looked_up_once_and_the_checked_address_connected_to() -> None:
    names = Names(["127.0.0.1"])
    async with receiving() as receiver:
        assert await poster(names).post(target(receiver, "hooks.example"), MESSAGE) == 204
    assert names.asked == [("hooks.example", receiver.port)]


@pytest.mark.parametrize(
    "addresses",
    [
        ["169.254.169.254"],
        ["10.0.0.1"],
        ["127.0.0.1", "10.0.0.1"],
        ["127.0.0.1", "::ffff:169.254.169.254"],
        ["64:ff9b::7f00:1", "64:ff9b::a00:1"],
        ["fe80::1"],
    ],
)
async def test_one_address_that_may_not_be_reached_refuses_the_name(addresses: list[str]) -> None:
    async with receiving() as receiver:
        error = await failed(poster(Names(addresses)), target(receiver, "evil.example"))
    assert "evil.example has an address that" in str(error)
    assert error.is_final
    assert receiver.received == []


async def test_plain_http_goes_to_loopback_alone() -> None:
    async with receiving() as receiver:
        names = Names(["8.8.8.8"])
        error = await failed(poster(names), target(receiver, "plain.example"))
    assert "needs https" in str(error)
    assert error.is_final


@pytest.mark.parametrize("status", [200, 202, 301, 307, 400, 404, 410, 429, 500, 503])
async def test_the_status_is_the_answer_and_no_redirect_is_followed(status: int) -> None:
    async with receiving() as other, receiving() as receiver:
        receiver.answers.append(answer(status, f"location: {other.url}"))
        assert await poster().post(target(receiver), MESSAGE) == status
    assert len(receiver.received) == 1
    assert other.received == []


async def test_a_body_of_an_answer_is_not_read() -> None:
    async with receiving() as receiver:
        endless = answer(200, "x: y", body=b"")[:-2].replace(b"content-length: 0\r\n", b"")
        receiver.answers.append(endless + b"\r\n" + b"x" * 50_000_000)
        assert await poster().post(target(receiver), MESSAGE) == 200


async def test_continue_is_no_answer() -> None:
    async with receiving() as receiver:
        receiver.answers.append(b"HTTP/1.1 102 Processing\r\n\r\n" * 3 + answer(201))
        assert await poster().post(target(receiver), MESSAGE) == 201


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nlong: " + b"x" * 2 * MAX_HEAD_BYTES,
        b"HTTP/1.1 102 Processing\r\n\r\n" * 2_000,
    ],
)
async def test_what_is_no_answer_leaves_unknown_whether_it_arrived(said: bytes) -> None:
    async with receiving() as receiver:
        receiver.answers.append(said)
        error = await failed(poster(), target(receiver))
    assert "unknown" in str(error)
    assert not error.is_final


async def test_a_receiver_that_does_not_answer_is_left_in_time() -> None:
    async with receiving() as receiver:
        receiver.hold = asyncio.Event()
        error = await failed(poster(timeout_s=0.2), target(receiver))
    assert "localhost did not answer within 0.2 s; whether it got the message is" in str(error)
    assert not error.is_final


async def test_nobody_there() -> None:
    async with receiving() as receiver:
        pass
    error = await failed(poster(), target(receiver))
    assert str(error) == "no connection to localhost (ConnectionRefusedError)"
    assert not error.is_final


async def test_the_next_address_is_tried_where_the_first_is_dead() -> None:
    async with receiving() as receiver:
        names = Names(["::1", "127.0.0.1"])
        assert await poster(names).post(target(receiver), MESSAGE) == 204


async def test_a_name_that_is_unknown_may_be_known_later() -> None:
    async with receiving() as receiver:
        error = await failed(poster(), target(receiver, "nowhere.invalid"))
        assert str(error) == "nowhere.invalid could not be looked up"
        assert not error.is_final
        error = await failed(poster(Names([])), target(receiver, "empty.example"))
        assert str(error) == "empty.example has no address"


async def test_a_certificate_must_be_of_the_name_and_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    ensure_leaves(tmp_path / "ca", {"agent": folder}, SystemClock())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    trusting = ssl.create_default_context(cafile=folder / "ca.pem")
    async with receiving(server) as receiver:
        names = Names(*[["127.0.0.1"]] * 3)
        good = poster(names, tls=trusting)
        assert (
            await good.post(target(receiver, "agent.remit.internal", is_tls=True), MESSAGE) == 204
        )
        error = await failed(good, target(receiver, "other.example", is_tls=True))
        assert "the certificate of other.example is not valid" in str(error)
        error = await failed(poster(names), target(receiver, "agent.remit.internal", is_tls=True))
        assert "the certificate of agent.remit.internal is not valid" in str(error)
    assert len(receiver.received) == 1

"""`send_email` against a real SMTP server on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError
from remit.tools.builtin.send_email import send_email_tool
from remit.tools.execution import StoppedInTimeError
from remit.tools.mail import Mail, compose, message_id
from remit.tools.settings import ToolsSettings
from tests.ports import free_ports
from tests.tools.calls import NOON, Caller, context_of
from tests.tools.smtp_server import Mailbox, certificate, smtp_server
from tests.waiting import eventually

GOOD: dict[str, Any] = {
    "to": ["bob@example.org", "carol@example.org"],
    "subject": "Gr\u00fc\u00dfe",
    "body": "Hello,\nthe report is ready.\n.\n",
}


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
async def port(mailbox: Mailbox) -> AsyncIterator[int]:
    async with smtp_server(mailbox) as found:
        yield found


def sender(tmp_path: Path, port: int, **fields: Any) -> Caller:
    configured = ToolsSettings(smtp_port=port, smtp_from="remit@example.com", **fields)
    return Caller(send_email_tool(configured), tmp_path)


async def test_a_mail_arrives_as_it_was_meant(tmp_path: Path, port: int, mailbox: Mailbox) -> None:
    found = await sender(tmp_path, port)(**GOOD)
    (envelope,) = mailbox.envelopes
    (message,) = mailbox.messages
    assert envelope.mail_from == "remit@example.com"
    assert envelope.rcpt_tos == GOOD["to"]
    assert message["From"] == "remit@example.com"
    assert message["To"] == "bob@example.org, carol@example.org"
    assert message["Date"] == "Mon, 23 Nov 2026 12:00:00 +0000"
    assert message["Message-ID"] == found["message_id"]
    assert found["recipients"] == GOOD["to"]
    payload = message.get_payload(decode=True)
    assert isinstance(payload, bytes)
    assert payload.decode().replace("\r\n", "\n") == GOOD["body"]
    subject = str(compose_subject(GOOD["subject"]))
    assert subject == GOOD["subject"]


def compose_subject(subject: str) -> str:
    mail = Mail(["bob@example.org"], subject, "x")
    return str(compose(mail, sender="a@b.c", identifier="<1@b.c>", date=NOON)["Subject"])


async def test_the_message_id_is_the_effects(tmp_path: Path, port: int, mailbox: Mailbox) -> None:
    send = sender(tmp_path, port)
    for key in ("one", "one", "two"):
        await send.outcome(GOOD, context_of(tmp_path, key=key))
    first, second, third = [message["Message-ID"] for message in mailbox.messages]
    assert first == second != third
    assert first.endswith("@example.com>")


@given(st.text(), st.text())
def test_message_ids_are_safe_and_tell_effects_apart(one: str, other: str) -> None:
    first, second = (message_id(effect, "a@example.com") for effect in (one, other))
    assert (first == second) == (one == other)
    assert first.isascii()
    assert first.isprintable()


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"to": []}, "arguments.to"),
        ({"to": "bob@example.org"}, "arguments.to"),
        ({"to": ["bob"]}, "arguments.to[0]"),
        ({"to": ["bob@example.org\r\nBcc: eve@example.org"]}, "arguments.to[0]"),
        ({"to": ["bob@example.org", "Bob <bob@example.org>"]}, "arguments.to[1]"),
        ({"to": ["bob@example.org, eve@example.org"]}, "arguments.to[0]"),
        ({"to": ["bob@example.org> SIZE=1"]}, "arguments.to[0]"),
        ({"to": ["b\u00f6b@example.org"]}, "arguments.to[0]"),
        ({"to": ["bob@example.org\n"]}, "arguments.to[0]"),
        ({"to": ["b@" + "a." * 130 + "org"]}, "arguments.to[0]"),
        ({"to": [f"u{n}@example.org" for n in range(21)]}, "arguments.to"),
        ({"subject": ""}, "arguments.subject"),
        ({"subject": "x" * 201}, "arguments.subject"),
        ({"subject": "Hi\r\nBcc: eve@example.org"}, "arguments.subject"),
        ({"subject": "Hi\nBcc: eve@example.org"}, "arguments.subject"),
        ({"subject": "Hi\u2028Bcc: eve@example.org"}, "arguments.subject"),
        ({"subject": "Hi\x85Bcc: eve@example.org"}, "arguments.subject"),
        ({"body": ""}, "arguments.body"),
        ({"from": "ceo@example.com"}, "arguments.from"),
        ({"body": 5}, "arguments.body"),
    ],
)
async def test_bad_mails_are_refused_before_anything_is_sent(
    tmp_path: Path, port: int, mailbox: Mailbox, changed: dict[str, Any], field: str
) -> None:
    error = await sender(tmp_path, port).error(**(GOOD | changed))
    assert error.reason == error_reason_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS
    assert [violation.field for violation in error.violations] == [field]
    assert mailbox.envelopes == []


@settings(max_examples=50)
@given(subject=st.text(min_size=1, max_size=200), body=st.text(min_size=1, max_size=500))
def test_no_subject_or_body_makes_a_header(subject: str, body: str) -> None:
    """Whatever passes into a message leaves it with exactly the headers that we set."""
    mail = Mail(["bob@example.org"], subject, body)
    try:
        message = compose(mail, sender="a@b.c", identifier="<1@b.c>", date=NOON)
        raw = message.as_bytes()
    except (ValueError, UnicodeEncodeError):
        return
    head = raw.split(b"\r\n\r\n", 1)[0]
    names = [line.split(b":")[0] for line in head.split(b"\r\n") if line[:1].strip()]
    assert set(names) <= {
        b"From",
        b"To",
        b"Subject",
        b"Date",
        b"Message-ID",
        b"Content-Type",
        b"Content-Transfer-Encoding",
        b"MIME-Version",
    }


async def test_one_refused_recipient_means_that_nothing_is_sent(
    tmp_path: Path, port: int, mailbox: Mailbox
) -> None:
    mailbox.refused_recipients = {"carol@example.org"}
    error = await sender(tmp_path, port).error(**GOOD)
    assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_FAILED
    assert "carol@example.org, so nothing was sent: 550 no such user here" in error.message
    assert mailbox.envelopes == []


async def test_a_refused_message_is_a_failure(tmp_path: Path, port: int, mailbox: Mailbox) -> None:
    mailbox.data_reply = "552 too large"
    error = await sender(tmp_path, port).error(**GOOD)
    assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_FAILED
    assert "refused the message: 552 too large" in error.message


async def test_a_connection_lost_after_the_message_leaves_a_doubt(
    tmp_path: Path, port: int, mailbox: Mailbox
) -> None:
    mailbox.cut_after_data = True
    error = await sender(tmp_path, port).error(**GOOD)
    assert error.reason == error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT
    assert "whether it was accepted is unknown" in error.message


async def test_no_server_names_the_settings(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    error = await sender(tmp_path, port).error(**GOOD)
    assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_FAILED
    assert f"127.0.0.1:{port} cannot be used" in error.message
    assert "REMIT_TOOLS_SMTP_HOST" in error.message


async def test_a_server_that_never_answers_does_not_hold_the_call(tmp_path: Path) -> None:
    done = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    (port,) = free_ports(1)
    async with await asyncio.start_server(silent, "127.0.0.1", port) as server:
        started = time.monotonic()
        send = sender(tmp_path, port)
        with pytest.raises(RemitError) as caught:
            await send.outcome(GOOD, context_of(tmp_path, limit_s=0.2))
        assert time.monotonic() - started < 20
        done.set()
        server.close()
    assert caught.value.reason in {
        error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
        error_reason_pb2.ERROR_REASON_TOOL_FAILED,
    }


@pytest.mark.parametrize("late", [False, True], ids=["left", "late"])
async def test_a_mail_that_was_stopped_before_its_text_was_certainly_not_sent(
    tmp_path: Path, port: int, mailbox: Mailbox, *, late: bool
) -> None:
    mailbox.hang_at_recipient = True
    context = context_of(tmp_path, limit_s=3 if late else 20)
    sending = asyncio.create_task(sender(tmp_path, port).outcome(GOOD, context))
    await eventually(lambda: mailbox.asked_recipients)
    if not late:
        sending.cancel()
    with pytest.raises(StoppedInTimeError, match="nothing was sent") as caught:
        await sending
    wanted = "DEADLINE_EXCEEDED" if late else "CANCELLED"
    assert caught.value.reason_name == wanted
    assert mailbox.envelopes == []


async def test_a_server_that_hangs_on_the_message_leaves_a_doubt(
    tmp_path: Path, port: int, mailbox: Mailbox
) -> None:
    mailbox.hang_at_data = True
    started = time.monotonic()
    send = sender(tmp_path, port)
    with pytest.raises(RemitError) as caught:
        await send.outcome(GOOD, context_of(tmp_path, limit_s=3))
    assert time.monotonic() - started < 20
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT


async def test_time_that_is_over_sends_nothing(tmp_path: Path, port: int, mailbox: Mailbox) -> None:
    send = sender(tmp_path, port)
    with pytest.raises(RemitError):
        await send.outcome(GOOD, context_of(tmp_path, limit_s=0))
    assert mailbox.envelopes == []


async def test_starttls_and_login(tmp_path: Path, mailbox: Mailbox) -> None:
    tls, trusted = certificate(tmp_path)
    secured: dict[str, Any] = {"smtp_security": "starttls", "smtp_username": "remit"}
    async with smtp_server(mailbox, tls, login=True) as port:
        send = sender(tmp_path, port, smtp_ca_file=trusted, smtp_password="opensesame", **secured)
        await send(**GOOD)
        assert mailbox.logins == [(b"remit", b"opensesame")]
        wrong = sender(tmp_path, port, smtp_ca_file=trusted, smtp_password="hunter2", **secured)
        error = await wrong.error(**GOOD)
        assert "REMIT_TOOLS_SMTP_USERNAME" in error.message
        assert "hunter2" not in error.message
        tried = len(mailbox.logins)
        untrusted = sender(tmp_path, port, smtp_password="opensesame", **secured)
        error = await untrusted.error(**GOOD)
        assert "no certificate that can be trusted; nothing was sent" in error.message
    assert len(mailbox.envelopes) == 1
    assert len(mailbox.logins) == tried  # no password for a server that nobody vouches for


async def test_a_server_without_starttls_gets_no_mail(
    tmp_path: Path, port: int, mailbox: Mailbox
) -> None:
    error = await sender(tmp_path, port, smtp_security="starttls").error(**GOOD)
    assert error.reason == error_reason_pb2.ERROR_REASON_TOOL_FAILED
    assert "nothing was sent" in error.message
    assert mailbox.envelopes == []

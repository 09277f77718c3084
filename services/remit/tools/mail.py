"""Sending one mail by SMTP (RFC 5321), so that nobody has to guess whether it left.

The dialogue is in two parts. Until the message itself is sent, every fault means that nothing left.
From then on, a lost connection means that nobody knows: that is reported as an effect in doubt and
never repeated, because a second mail cannot be taken back.
"""

from __future__ import annotations

import contextlib
import hashlib
import smtplib
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import SecretStr

from remit.api.errors.v1 import error_reason_pb2
from remit.rpc.errors import RemitError
from remit.tools.context import NothingDoneError, ToolContext, ToolError

# RFC 5321 section 4.1.2 without quoted local parts and address literals, in ASCII. Nothing in it
# can end a header or a command.
EMAIL_PATTERN: Final = (
    r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)+$"
)
MAX_ADDRESS_CHARS: Final = 254
_MAX_REPLY_CHARS: Final = 200
_LEAST_TIMEOUT_S: Final = 0.001  # 0 would make the socket non-blocking


@dataclass(frozen=True)
class MailServer:
    """Where mail is handed over, and as whom."""

    host: str
    port: int
    security: Literal["none", "starttls", "tls"]
    ca_file: Path | None
    username: str
    password: SecretStr
    sender: str


@dataclass(frozen=True)
class Mail:
    """A plain-text mail."""

    recipients: Sequence[str]
    subject: str
    body: str


def message_id(effect: str, sender: str) -> str:
    """The Message-ID of an effect: the same for every attempt, so that duplicates can be found."""
    domain = sender.rpartition("@")[2]
    return f"<{hashlib.sha256(effect.encode()).hexdigest()[:40]}@{domain}>"


def compose(mail: Mail, *, sender: str, identifier: str, date: datetime) -> EmailMessage:
    """The message as it is sent. Raises ValueError for a header that holds a line break."""
    message = EmailMessage(policy=SMTP_POLICY)
    message["From"] = sender
    message["To"] = ", ".join(mail.recipients)
    message["Subject"] = mail.subject
    message["Date"] = format_datetime(date)
    message["Message-ID"] = identifier
    message.set_content(mail.body)
    return message


def send(
    server: MailServer, message: EmailMessage, recipients: Sequence[str], context: ToolContext
) -> None:
    """Hand a message over to a mail server; blocks until it is accepted for all recipients.

    Raises:
        NothingDoneError: it was stopped before the message was sent.
        ToolError: it was not handed over, and why.
        RemitError: EFFECT_IN_DOUBT where it may have been.

    """
    with _connected(server, context) as client:
        _begin(client, server, recipients, context)
        _check(context)
        _set_timeout(client, context)
        try:
            code, reply = client.data(message.as_bytes())
        except smtplib.SMTPDataError as error:
            raise _refused("the message", error.smtp_code, error.smtp_error) from None
        except (OSError, smtplib.SMTPException) as error:
            raise _in_doubt(server, context) from error
        if code // 100 != 2:
            raise _refused("the message", code, reply)


@contextlib.contextmanager
def _connected(server: MailServer, context: ToolContext) -> Iterator[smtplib.SMTP]:
    _check(context)
    with _explained(server, context):
        client = _connect(server, max(context.remaining_s(), _LEAST_TIMEOUT_S))
    try:
        context.cancellation.on_request(lambda: _wake(client))
        yield client
    finally:
        with contextlib.suppress(OSError, smtplib.SMTPException):
            _set_timeout(client, context)
            client.quit()
        client.close()


def _connect(server: MailServer, timeout_s: float) -> smtplib.SMTP:
    # By the constructor: connect() forgets the name that the certificate is checked against.
    try:
        if server.security == "tls":
            return smtplib.SMTP_SSL(
                server.host, server.port, timeout=timeout_s, context=_tls(server)
            )
        return smtplib.SMTP(server.host, server.port, timeout=timeout_s)
    except smtplib.SMTPConnectError as error:
        raise _refused("the connection", error.smtp_code, error.smtp_error) from None


def _tls(server: MailServer) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=server.ca_file)
    except OSError as error:
        raise ToolError("the file of REMIT_TOOLS_SMTP_CA_FILE cannot be read") from error


def _begin(
    client: smtplib.SMTP, server: MailServer, recipients: Sequence[str], context: ToolContext
) -> None:
    """Everything before the message. It is sent to all recipients or to none."""
    with _explained(server, context):
        _set_timeout(client, context)
        client.ehlo_or_helo_if_needed()
        if server.security == "starttls":
            client.starttls(context=_tls(server))
            client.ehlo_or_helo_if_needed()
        if server.username:
            client.login(server.username, server.password.get_secret_value())
        code, reply = client.mail(server.sender)
        if code != 250:
            raise _refused(f"the sender {server.sender}", code, reply)
        for recipient in recipients:
            _check(context)
            _set_timeout(client, context)
            code, reply = client.rcpt(recipient)
            if code not in {250, 251}:
                raise _refused(f"the recipient {recipient}, so nothing was sent", code, reply)


def _check(context: ToolContext) -> None:
    """Stop while stopping leaves no doubt, and say so."""
    try:
        context.check()
    except RemitError as error:
        message = f"{error.message}; nothing was sent"
        raise NothingDoneError(message) from error


def _set_timeout(client: smtplib.SMTP, context: ToolContext) -> None:
    if client.sock is not None:
        client.sock.settimeout(max(context.remaining_s(), _LEAST_TIMEOUT_S))


def _wake(client: smtplib.SMTP) -> None:
    """End whatever the client waits for; closing alone would not wake the thread."""
    if client.sock is not None:
        with contextlib.suppress(OSError):
            client.sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _explained(server: MailServer, context: ToolContext) -> Iterator[None]:
    """Turns faults before the message into words; none of them repeats the password."""
    where = f"the mail server {server.host}:{server.port}"
    try:
        yield
    except smtplib.SMTPAuthenticationError:
        message = f"{where} refused the user and password of REMIT_TOOLS_SMTP_USERNAME"
        raise ToolError(message) from None
    except ssl.SSLError as error:
        message = f"{where} has no certificate that can be trusted; nothing was sent"
        raise ToolError(message) from error
    except (smtplib.SMTPException, OSError) as error:
        if context.is_stopped:  # which ends whatever was waited for
            _check(context)
        message = (
            f"{where} cannot be used ({type(error).__name__}); nothing was sent; "
            "REMIT_TOOLS_SMTP_HOST and REMIT_TOOLS_SMTP_PORT name the server"
        )
        raise ToolError(message) from error


def _refused(what: str, code: int, reply: bytes | str) -> ToolError:
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply
    shown = " ".join(text.split())[:_MAX_REPLY_CHARS]
    return ToolError(f"the mail server refused {what}: {code} {shown}")


def _in_doubt(server: MailServer, context: ToolContext) -> RemitError:
    return RemitError(
        error_reason_pb2.ERROR_REASON_EFFECT_IN_DOUBT,
        f"{context.tool}: the connection to {server.host}:{server.port} was lost after the message "
        "was sent; whether it was accepted is unknown",
    )

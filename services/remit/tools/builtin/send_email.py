"""`send_email`: a plain-text mail through the operator's mail server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from remit.tools.context import ToolContext, ToolError
from remit.tools.definition import tool
from remit.tools.mail import (
    EMAIL_PATTERN,
    MAX_ADDRESS_CHARS,
    Mail,
    MailServer,
    compose,
    message_id,
    send,
)
from remit.tools.settings import ToolsSettings

MAX_RECIPIENTS = 20
MAX_BODY_CHARS = 100_000

Address = Annotated[str, Field(max_length=MAX_ADDRESS_CHARS, pattern=EMAIL_PATTERN)]
Recipients = Annotated[
    list[Address],
    Field(min_length=1, max_length=MAX_RECIPIENTS, description="Addresses of the recipients."),
]
Subject = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$",
        description="Subject, one line.",
    ),
]
Body = Annotated[
    str, Field(min_length=1, max_length=MAX_BODY_CHARS, description="Body, plain text.")
]


def send_email_tool(settings: ToolsSettings) -> Callable[..., object]:
    """The tool at the mail server of the settings."""
    server = MailServer(
        host=settings.smtp_host,
        port=settings.smtp_port,
        security=settings.smtp_security,
        ca_file=settings.smtp_ca_file,
        username=settings.smtp_username,
        password=settings.smtp_password,
        sender=settings.smtp_from,
    )

    @tool(permission_class="execute", idempotent=False, timeout_s=30)
    def send_email(
        context: ToolContext, to: Recipients, subject: Subject, body: Body
    ) -> dict[str, object]:
        """Send a plain-text e-mail.

        It is handed to the mail server for all recipients or for none. Returns the `message_id`
        and the `recipients`.
        """
        identifier = message_id(f"{context.org}/{context.subject}/{context.key}", server.sender)
        mail = Mail(to, subject, body)
        try:
            message = compose(
                mail, sender=server.sender, identifier=identifier, date=context.clock.now()
            )
        except ValueError as error:
            raise ToolError("the mail cannot be composed: a header holds a line break") from error
        send(server, message, to, context)
        return {"message_id": identifier, "recipients": list(to)}

    return send_email

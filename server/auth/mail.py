"""Mail to a project's users: by the project's own SMTP server, or into the outbox."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid

import aiosmtplib

from server.auth import inputs, outbox
from server.auth.outbound import Outbound, OutboundError
from server.auth.room import Call, log
from server.auth.settings import Smtp
from server.auth.templates import Rendered, render

TIMEOUT = 15.0  # seconds for each step of the dialogue
PAUSES = (1.0, 5.0, 20.0)  # seconds before each further attempt


def can_send(call: Call) -> bool:
    """Whether mail reaches anybody: own server, or the outbox of development."""
    return call.settings.smtp is not None or call.room.development


async def deliver(call: Call, kind: str, to: str, values: dict[str, str]) -> None:
    """Renders and sends one message, trying again for half a minute; gives up with a log entry."""
    rendered = render(kind, call.settings, {"email": to, "project": call.app_name, **values})
    smtp = call.settings.smtp
    if smtp is None:
        if call.room.development:
            await outbox.put(
                call.database, "email", kind, to, rendered.subject, rendered.text, rendered.html
            )
        else:
            log.warning(
                "project %s has no mail server: a message of the kind %s was not sent",
                call.project.slug, kind,
            )  # fmt: skip
        return
    message = compose(smtp, to, rendered)
    for pause in (*PAUSES, None):
        try:
            await send(call.room.outbound, smtp, message)
            return
        except (aiosmtplib.SMTPException, OutboundError, OSError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            refused = isinstance(error, aiosmtplib.SMTPResponseException) and error.code >= 500
            if pause is None or refused:
                log.warning(
                    "a message of project %s could not be sent: %s", call.project.slug, reason
                )
                return
        await asyncio.sleep(pause)


def compose(smtp: Smtp, to: str, rendered: Rendered) -> EmailMessage:
    """A message with a plain-text part and, if there is one, an HTML part."""
    message = EmailMessage()
    message["Subject"] = rendered.subject
    message["From"] = Address(
        display_name="".join(c for c in smtp.sender_name if c.isprintable()),
        addr_spec=inputs.email(smtp.sender),
    )
    message["To"] = Address(addr_spec=inputs.email(to))
    message["Date"] = format_datetime(datetime.now(UTC))
    message["Message-ID"] = make_msgid(domain=smtp.sender.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(rendered.text)
    if rendered.html is not None:
        message.add_alternative(rendered.html, subtype="html")
    return message


async def send(outbound: Outbound, smtp: Smtp, message: EmailMessage) -> None:
    """One dialogue with the project's server; SMTPException, OutboundError or OSError."""
    sock: socket.socket = await outbound.open_socket(smtp.host, smtp.port)
    client = aiosmtplib.SMTP(
        hostname=smtp.host,
        port=None,
        sock=sock,
        use_tls=smtp.security == "tls",
        start_tls=smtp.security == "starttls",
        timeout=TIMEOUT,
    )
    try:
        await client.connect()
        if smtp.username is not None:
            await client.login(smtp.username, smtp.password or "")
        await client.send_message(message)
        with contextlib.suppress(aiosmtplib.SMTPException, OSError, TimeoutError):
            await client.quit()  # the message is taken: trouble now must not send it again
    finally:
        client.close()
        sock.close()

"""Text messages, handed to the webhook that the project's owner has set.

The body is JSON {"phone","code","message"}. X-Ichibase-Timestamp holds epoch seconds;
X-Ichibase-Signature holds "v1=" and the hexadecimal HMAC-SHA-256 of "<timestamp>.<body>" under the
webhook's secret. A receiver should refuse timestamps older than five minutes. Any 2xx ends the
delivery; 429, 5xx and silence are tried again.
"""

from __future__ import annotations

import asyncio
import hmac
import time

import msgspec

from server.auth import outbox
from server.auth.outbound import OutboundError
from server.auth.room import Call, log
from server.auth.templates import fill

PAUSES = (1.0, 4.0, 15.0)  # seconds before each further attempt


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """The value of X-Ichibase-Signature."""
    return "v1=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, "sha256").hexdigest()


async def deliver(call: Call, phone: str, code: str) -> None:
    """Sends one code; gives up with a log entry after about twenty seconds."""
    settings = call.settings.phone
    message = fill(settings.message, {"code": code, "project": call.app_name})
    if settings.webhook_url is None:
        if call.room.development:
            await outbox.put(call.database, "sms", "phone", phone, None, message)
        else:
            log.warning("project %s has no SMS webhook: nothing was sent", call.project.slug)
        return
    body = msgspec.json.encode({"phone": phone, "code": code, "message": message})
    reason = ""
    for pause in (*PAUSES, None):
        timestamp = str(int(time.time()))
        headers = {
            "content-type": "application/json",
            "user-agent": "ichibase",
            "x-ichibase-timestamp": timestamp,
            "x-ichibase-signature": signature(settings.webhook_secret or "", timestamp, body),
        }
        try:
            answer = await call.room.outbound.request("POST", settings.webhook_url, headers, body)
        except OutboundError as error:
            reason = str(error)
        else:
            if 200 <= answer.status < 300:
                return
            reason = f"the webhook answered {answer.status}"
            if answer.status < 500 and answer.status != 429:
                break
        if pause is None:
            break
        await asyncio.sleep(pause)
    log.warning("an SMS of project %s was not taken: %s", call.project.slug, reason)

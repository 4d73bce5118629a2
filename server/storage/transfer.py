"""Files between this machine and a project's storage, over HTTP with the secret key."""

from __future__ import annotations

import http.client
import json
import mimetypes
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

CHUNK = 256 << 10
TIMEOUT = 120.0  # seconds without an answer

Progress = Callable[[int], None]  # bytes more


class TransferError(Exception):
    """The server's words, or why it was not reached."""


class Storage:
    """One project's storage. url: where the node answers. headers: that say which project it is
    for. key: its secret key."""

    def __init__(self, url: str, headers: dict[str, str], key: str) -> None:
        self.url = url
        self.headers = {**headers, "authorization": f"Bearer {key}"}
        parts = urlsplit(url)
        self.host, self.port, self.secure = (
            parts.hostname or "",
            parts.port,
            parts.scheme == "https",
        )

    def call(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """One control call."""
        raw = json.dumps(body).encode()
        headers = {"content-type": "application/json", "content-length": str(len(raw))}
        connection, answer = self._send("POST", f"/storage/{name}", headers, iter([raw]))
        try:
            found: dict[str, Any] = json.loads(answer.read())
            return found
        finally:
            connection.close()

    def objects(self, bucket: str, prefix: str = "") -> Iterator[dict[str, Any]]:
        """All objects whose path begins with `prefix`, in the order of their paths."""
        body: dict[str, Any] = {"bucket": bucket, "prefix": prefix, "limit": 1000}
        while True:
            page = self.call("list", body)
            yield from page["objects"]
            if page["cursor"] is None:
                return
            body["cursor"] = page["cursor"]

    def put(
        self, source: Path, bucket: str, path: str, kind: str | None, told: Progress
    ) -> dict[str, Any]:
        """Uploads a file; its type is guessed from its name unless given."""
        kind = kind or mimetypes.guess_type(path)[0] or "application/octet-stream"
        with open(source, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            headers = {"content-type": kind, "content-length": str(size)}

            def chunks() -> Iterator[bytes]:
                left = size  # a file that grows meanwhile is sent as it was
                while left and (chunk := file.read(min(CHUNK, left))):
                    left -= len(chunk)
                    yield chunk
                    told(len(chunk))

            connection, answer = self._send("PUT", _object(bucket, path), headers, chunks())
        try:
            found: dict[str, Any] = json.loads(answer.read())
            return found
        finally:
            connection.close()

    def get(self, bucket: str, path: str, target: Path, told: Progress) -> None:
        """Downloads a file; the target appears when it is whole."""
        connection, answer = self._send("GET", _object(bucket, path), {}, iter(()))
        part = target.with_name(target.name + ".part")
        try:
            with open(part, "wb") as file:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    told(len(chunk))
                left = answer.length
            if left:
                raise TransferError("the connection broke before the file was whole")
            part.replace(target)
        except http.client.IncompleteRead:
            raise TransferError("the connection broke before the file was whole") from None
        finally:
            part.unlink(missing_ok=True)
            connection.close()

    def _send(
        self, method: str, path: str, headers: dict[str, str], body: Iterator[bytes]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = self._connection()
        try:
            connection.putrequest(method, path, skip_host="host" in self.headers)
            for name, value in (self.headers | headers).items():
                connection.putheader(name, value)
            connection.endheaders()
            try:
                for chunk in body:
                    connection.send(chunk)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before it was sent: the answer says why
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException):
            connection.close()
            raise TransferError(f"the project does not answer at {self.url}") from None
        if answer.status >= 400:
            text = answer.read()
            connection.close()
            raise TransferError(_told(answer.status, text))
        return connection, answer

    def _connection(self) -> http.client.HTTPConnection:
        if self.secure:
            return http.client.HTTPSConnection(
                self.host, self.port, timeout=TIMEOUT, context=ssl.create_default_context()
            )
        return http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)


def _object(bucket: str, path: str) -> str:
    return f"/storage/object/{bucket}/{quote(path)}"


def _told(status: int, text: bytes) -> str:
    try:
        error = json.loads(text)
        return f"{error.get('detail') or error['message']} [{error['code']}]"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"the node answered {status}"

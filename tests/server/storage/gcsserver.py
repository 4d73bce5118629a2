"""A fake-gcs-server of our own, which keeps objects as Google Cloud Storage does.

It takes uploads by the JSON API alone, and the store's client sends them by the XML API: a small
front takes those, parts included, and passes everything else on as it is. Neither checks
credentials. ICHIBASE_TEST_GCS names the program when it is not on the path
(`go install github.com/fsouza/fake-gcs-server@latest`).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.ports import free_port
from tests.server.storage.ownserver import OwnServer

BUCKET = "files"
SIGNED = "X-Goog-Algorithm=GOOG4-RSA-SHA256"  # with which it takes a bare PUT


class Front(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    behind = 0  # the port of the server
    uploads: dict[str, dict[int, bytes]] = {}

    def _any(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in
                 parse_qs(parts.query, keep_blank_values=True).items()}  # fmt: skip
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if "uploads" in query:
            name = uuid.uuid4().hex
            self.uploads[name] = {}
            text = f"<UploadId>{name}</UploadId>"
            self._xml(200, f"<InitiateMultipartUploadResult>{text}</InitiateMultipartUploadResult>")
        elif "uploadId" in query and self.command == "PUT":
            self.uploads[query["uploadId"]][int(query["partNumber"])] = body
            self._answer(200, {"etag": f'"{hashlib.md5(body).hexdigest()}"'}, b"")
        elif "uploadId" in query and self.command == "DELETE":
            self.uploads.pop(query["uploadId"], None)
            self._answer(204, {}, b"")
        elif "uploadId" in query:
            found = self.uploads.pop(query["uploadId"])
            stored = self._put(parts.path, b"".join(found[number] for number in sorted(found)))
            text = f"<ETag>{stored['etag']}</ETag>"
            self._xml(200, f"<CompleteMultipartUploadResult>{text}</CompleteMultipartUploadResult>")
        elif self.command == "PUT" and not parts.path.startswith(("/storage/", "/upload/")):
            stored = self._put(parts.path, body)
            headers = {"etag": stored["etag"], "x-goog-generation": stored["generation"]}
            self._answer(200, headers, b"")
        else:
            status, headers, data = self._pass(self.command, self.path, body)
            self._answer(status, headers, data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any

    def _put(self, path: str, body: bytes) -> dict[str, str]:
        status, _, data = self._pass("PUT", f"{path}?{SIGNED}", body)
        assert status == 200, data
        told = json.loads(data)
        return {"etag": told["etag"], "generation": str(told["generation"])}

    def _pass(self, method: str, target: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=60)
        own = ("content-length", "connection", "accept-encoding")
        headers = {n: value for n, value in self.headers.items() if n.lower() not in own}
        connection.request(method, target, body or None, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        told = {name.lower(): value for name, value in answer.getheaders()}
        if method == "HEAD":
            return answer.status, told, b""
        told.pop("content-length", None)
        told.pop("transfer-encoding", None)
        return answer.status, told, data

    def _xml(self, status: int, text: str) -> None:
        self._answer(status, {"content-type": "application/xml"}, text.encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name not in ("date", "server", "connection"):
                self.send_header(name, value)
        if "content-length" not in headers and status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class GcsServer(OwnServer):
    def __init__(self) -> None:
        program = os.environ.get("ICHIBASE_TEST_GCS") or shutil.which("fake-gcs-server")
        assert program, "fake-gcs-server is missing: go install it, or name it: ICHIBASE_TEST_GCS"
        self.folder = Path(tempfile.mkdtemp(prefix="ichi-gcs-"))
        behind = free_port()
        kind = type("OwnFront", (Front,), {"behind": behind, "uploads": {}})
        self.front = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        self.front.daemon_threads = True
        address = f"127.0.0.1:{self.front.server_address[1]}"
        self.url = f"http://{address}"
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [program, "-scheme", "http", "-host", "127.0.0.1", "-port", str(behind),
                 "-public-host", address, "-external-url", self.url, "-backend", "memory",
                 "-log-level", "warn"],
                stdout=log, stderr=log,
            )  # fmt: skip
        threading.Thread(target=self.front.serve_forever, daemon=True).start()
        request = urllib.request.Request(
            f"http://127.0.0.1:{behind}/storage/v1/b?project=tests",
            data=json.dumps({"name": BUCKET}).encode(),
            headers={"content-type": "application/json", "host": address},
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(request, timeout=5)
                return
            except OSError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self.folder / "log").read_text()[-2000:]) from error
                time.sleep(0.05)

    def environment(self, prefix: str = "ichibase") -> dict[str, str]:
        """What a node needs to keep its files here."""
        account = {"gcs_base_url": self.url, "disable_oauth": True, "client_email": "",
                   "private_key": "", "private_key_id": ""}  # fmt: skip
        return {
            "ICHIBASE_STORAGE_URL": f"gs://{BUCKET}/{prefix}",
            "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account),
        }  # fmt: skip

    def stop(self) -> None:
        self.front.shutdown()
        self.front.server_close()
        super().stop()

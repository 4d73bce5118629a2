"""What stands between a node and its object store, and lets through as many requests as a test
wants: the store itself is a real one."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>No.</Message></Error>"
CUT = (0, "")  # the connection breaks
HANG = (-1, "")  # no answer


class Troubled(ThreadingHTTPServer):
    """trouble: what is answered instead, (status, code), to the methods in `methods` after so many
    of them in `after`; None for nothing. asked: requests by method. hung: set when one gets no
    answer."""

    daemon_threads = True

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = urlsplit(url).netloc
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.trouble: tuple[int, str] | None = None
        self.methods = frozenset({"PUT"})
        self.after = 0
        self.asked: Counter[str] = Counter()
        self.hung = threading.Event()
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def begin(self, trouble: tuple[int, str], after: int = 0, *methods: str) -> None:
        self.methods = frozenset(methods or ("PUT",))
        self.trouble, self.after = trouble, after
        self.hung.clear()

    def end(self) -> None:
        self.trouble = None

    def wanted(self, method: str) -> tuple[int, str] | None:
        with self.lock:
            self.asked[method] += 1
            if self.trouble is None or method not in self.methods:
                return None
            self.after -= 1
            return self.trouble if self.after < 0 else None

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a node that was killed


class Handler(BaseHTTPRequestHandler):
    server: Troubled
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        trouble = self.server.wanted(self.command)
        if trouble == CUT:
            self.close_connection = True
            return
        if trouble == HANG:
            self.server.hung.set()
            self.rfile.read(1)  # until the node is gone
            self.close_connection = True
            return
        if trouble is not None:
            self.tell(trouble[0], [("content-type", "application/xml")],
                      ERROR.format(trouble[1]).encode())  # fmt: skip
            return
        there = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                there.putheader(name, value)
            there.endheaders(body)
            got = there.getresponse()
            self.tell(got.status, got.getheaders(), got.read(), got.headers.get("content-length"))
        finally:
            there.close()

    def tell(self, status: int, headers: Any, body: bytes, length: str | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("content-length", length or str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def log_message(self, *_: Any) -> None:
        pass

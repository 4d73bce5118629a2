"""A running node with files on disk or in an object store, and its storage over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import subprocess
import unittest.mock
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from server.cli.main import main
from tests.process.running import RunningNode


class Answer:
    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.pairs = [(name.lower(), value) for name, value in headers]
        self.headers = dict(self.pairs)
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        return self.json["code"] if self.status >= 400 and self.body else None

    def __repr__(self) -> str:
        return f"<{self.status} {self.body[:300]!r}>"


class Files(RunningNode):
    """kind: of the store, "disk" or the name of an object store."""

    def __init__(self, folder: Path, kind: str, environment: dict[str, str]) -> None:
        super().__init__(folder, environment={"ICHIBASE_WORKERS": "2", **environment})
        self.kind = kind

    def begin(self) -> None:
        self.start()
        project = self.project()
        self.secret, self.anon = project["service_key"], project["anon_key"]
        assert self.call("list", {"bucket": "any"}).status == 200  # makes the schema

    def send(
        self, method: str, url: str, body: Any = None, headers: dict[str, str] | None = None,
        *, timeout: float = 30,
    ) -> Answer:  # fmt: skip
        """url: absolute, or a path of the node. body: bytes, an iterable of them, or JSON."""
        parts = urlsplit(url)
        target = url[url.index(parts.netloc) + len(parts.netloc) :] if parts.netloc else url
        given = dict(headers or {})
        if isinstance(body, dict | list):
            body = json.dumps(body).encode()
            given.setdefault("content-type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, target, body, given)
            answer = connection.getresponse()
            return Answer(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()

    def call(self, name: str, body: Any = None, *, key: str | None = "", **more: Any) -> Answer:
        """A control call; key: the secret one by default."""
        bearer = self.secret if key == "" else key
        headers = {} if bearer is None else {"authorization": f"Bearer {bearer}"}
        return self.send("POST", f"/storage/{name}", {} if body is None else body, headers, **more)

    def put(
        self, bucket: str, path: str, data: bytes, kind: str = "application/octet-stream",
        **more: Any,
    ) -> Answer:  # fmt: skip
        """Through an upload URL, as an app does it."""
        minted = self.call("get-put-url", {
            "bucket": bucket, "path": path, "content_type": kind, "content_length": len(data),
            **more,
        })  # fmt: skip
        if minted.status != 200:
            return minted
        return self.send("PUT", minted.json["url"], data, {"content-type": kind})

    def upload(
        self, bucket: str, path: str, data: Any, kind: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:  # fmt: skip
        """With the secret key."""
        given = {"authorization": f"Bearer {self.secret}", **(headers or {})}
        if kind is not None:
            given["content-type"] = kind
        return self.send("PUT", f"/storage/object/{bucket}/{path}", data, given)

    def read(self, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
        """Of the public host's path /default/<path>."""
        return self.send(method, f"/cdn/default/{path}", None, headers)

    def all_workers(self, holds: Callable[[], bool]) -> bool:
        """Whether something holds of so many answers, some at the same time, that all workers have
        given some of them: each learns of a change by itself."""
        with ThreadPoolExecutor(4) as many:
            return all(many.map(lambda _: holds(), range(24)))

    def signed(self, bucket: str, path: str, **more: Any) -> str:
        answer = self.call("get-url", {"bucket": bucket, "path": path, **more})
        assert answer.status == 200, answer
        url: str = answer.json["url"]
        return url

    def inline(self, *arguments: str, ok: bool = True) -> Any:
        """As cli, in this process: (returncode, stdout, stderr)."""
        out, err = io.StringIO(), io.StringIO()
        with (
            unittest.mock.patch.dict(os.environ, {"ICHIBASE_DATA_DIR": str(self.data_dir)}),
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
        ):  # fmt: skip
            code = main(list(arguments))
        if ok:
            assert code == 0, err.getvalue()
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def rows(self, text: str) -> list[list[Any]]:
        """Of the storage schema, under its own login."""
        import psycopg

        with psycopg.connect(self.system_dsn(), autocommit=True) as connection:
            return [list(row) for row in connection.execute(text).fetchall()]

    def rows_as(self, role: str, claims: str, text: str) -> list[Any]:
        """Of a statement as a client's role runs it."""
        import psycopg

        with psycopg.connect(self.system_dsn()) as connection:
            connection.execute(f"set local role {role}")
            connection.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
            return connection.execute(text).fetchall()

    def system_dsn(self) -> str:
        import psycopg

        listener = json.loads((self.data_dir / "run" / "node.json").read_text())
        with psycopg.connect(listener["config"]["control_dsn"]) as control:
            row = control.execute(
                "select p.database, p.system_password, c.socket_dir, c.port from projects p"
                " join clusters c on c.id = p.cluster_id where p.slug = 'default'"
            ).fetchone()
        assert row is not None
        database, password, socket_dir, port = row  # these logins come by the socket alone
        return (
            f"host={socket_dir} port={port} dbname={database} user={database}_system "
            f"password={password}"
        )

    def used(self) -> dict[str, int]:
        """The quota's counters."""
        row = self.rows("select bytes, reserved, objects from storage.usage")[0]
        return dict(zip(("bytes", "reserved", "objects"), row, strict=True))

"""A node with functions, as its tests see it."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request


class Project:
    """One project's functions, over the admin port and over HTTP."""

    def __init__(self, node, name="default"):
        self.node = node
        self.name = name
        self.token = (node.data_dir / "secrets" / "admin_token").read_text().strip()
        project = node.project(name)
        self.anon, self.service = project["anon_key"], project["service_key"]
        self.host = f"127.0.0.1:{node.port}" if name == "default" else f"{name}.localhost"

    def admin(self, method, path, body=None):
        """(status, answer) of a route of the project on the admin port."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.node.admin_port}/admin/v1/projects/{self.name}{path}",
            None if body is None else json.dumps(body).encode(),
            {"authorization": f"Bearer {self.token}"}, method=method,
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=150) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def user_token(self, email):
        """The access token of a new user."""

        def post(path, body):
            request = urllib.request.Request(
                f"{self.node.url}/auth{path}", json.dumps(body).encode(),
                {"apikey": self.anon, "content-type": "application/json"},
            )  # fmt: skip
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())

        person = {"email": email, "password": "tangerine lamp 41"}
        post("/signup", person)
        return post("/login", person)["access_token"]

    def deploy(self, function, text, **more):
        files = text if isinstance(text, dict) else {"index.ts": text}
        status, told = self.admin("PUT", f"/functions/{function}", {"files": files, **more})
        assert status == 201, told
        return told

    def call(self, path, body=None, method="POST", headers=None, key=True, seconds=60):
        """(status, body, headers) of a call."""
        connection = http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=seconds)
        given = {"host": self.host, **({"apikey": self.anon} if key else {}), **(headers or {})}
        try:
            connection.request(method, f"/functions/{path}", body, given)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    def code(self, path, *arguments, **options):
        """(status, code) of a refused call."""
        status, body, _ = self.call(path, *arguments, **options)
        try:
            return status, json.loads(body).get("code")
        except (ValueError, AttributeError):
            return status, body

    def lines(self, **query):
        asked = "&".join(f"{name}={value}" for name, value in query.items())
        status, told = self.admin("GET", f"/function-logs?limit=1000&{asked}")
        assert status == 200, told
        return told["lines"]

    def logged(self, text, seconds=60.0, **query):
        """The first line with this text, once it is there."""
        deadline = time.monotonic() + seconds
        while True:
            for line in self.lines(**query):
                if text in line["text"]:
                    return line
            assert time.monotonic() < deadline, [x["text"][:200] for x in self.lines(**query)]
            time.sleep(0.05)


class Neighbour:
    """Calls another project's function all the while, and keeps how long each call took."""

    def __init__(self, project, path):
        self.project, self.path = project, path
        self.seconds, self.failures = [], []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._stop.is_set():
            began = time.monotonic()
            status, body, _ = self.project.call(self.path)
            self.seconds.append(time.monotonic() - began)
            if status != 200:
                self.failures.append((status, body))
            self._stop.wait(0.02)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def p95(self):
        ordered = sorted(self.seconds)
        return ordered[int(len(ordered) * 0.95)]

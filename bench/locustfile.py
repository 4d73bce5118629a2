"""Users as an app has them, for locust. Against a running `ichibase serve`:

    ichibase sql default -f bench/locust.sql
    locust -f bench/locustfile.py --headless -u 50 -r 10 -t 30s --host http://127.0.0.1:8000

The project's keys are asked of the node by `ichibase status`, or given as ICHIBASE_ANON_KEY and
ICHIBASE_JWT_SECRET. Tags choose a part: --tags rest, --tags auth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from typing import Any

import jwt
from locust import FastHttpUser, between, events, tag, task

PROJECT: dict[str, str] = {}
PASSWORD = "a long enough sentence"


@events.init.add_listener
def find_project(environment: Any, **_: Any) -> None:
    """The keys of the project to load."""
    if "ICHIBASE_ANON_KEY" in os.environ:
        PROJECT["anon_key"] = os.environ["ICHIBASE_ANON_KEY"]
        PROJECT["jwt_secret"] = os.environ["ICHIBASE_JWT_SECRET"]
        PROJECT["url"] = environment.host or ""
        return
    name = os.environ.get("ICHIBASE_PROJECT", "default")
    done = subprocess.run(
        [sys.executable, "-m", "server.cli.main", "status", "--project", name, "--json"],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"no running node was found: {done.stderr.strip()}")
    PROJECT.update(json.loads(done.stdout))


def token(uid: str) -> str:
    """An access token, as signing in gives one."""
    now = int(time.time())
    claims = {"sub": uid, "role": "authenticated", "aud": "authenticated", "iat": now,
              "exp": now + 3600, "iss": PROJECT["url"]}  # fmt: skip
    return jwt.encode(claims, PROJECT["jwt_secret"], "HS256")


class TodoUser(FastHttpUser):
    """Signed in; lists a page of the own rows, reads one, adds, ticks off, deletes."""

    weight = 10
    wait_time = between(0.01, 0.05)

    def on_start(self) -> None:
        self.mine: list[int] = []
        self.bearer = {"authorization": f"Bearer {token(str(uuid.uuid4()))}"}
        self.json = {**self.bearer, "content-type": "application/json"}

    @tag("rest")
    @task(4)
    def page(self) -> None:
        self.client.get(
            "/postgres/todos?select=id,title,done&order=id.desc&limit=20",
            headers=self.bearer, name="GET todos, a page",
        )  # fmt: skip

    @tag("rest")
    @task(6)
    def one(self) -> None:
        if self.mine:
            self.client.get(f"/postgres/todos?id=eq.{self.mine[-1]}", headers=self.bearer,
                            name="GET todos, by key")  # fmt: skip

    @tag("rest")
    @task(3)
    def add(self) -> None:
        answer = self.client.post(
            "/postgres/todos?select=id", data=b'[{"title": "buy milk"}]',
            headers={**self.json, "prefer": "return=representation"}, name="POST todos",
        )  # fmt: skip
        if answer.status_code == 201:
            self.mine.append(answer.json()[0]["id"])

    @tag("rest")
    @task(1)
    def tick_off(self) -> None:
        if self.mine:
            self.client.patch(f"/postgres/todos?id=eq.{self.mine[-1]}", data=b'{"done": true}',
                              headers=self.json, name="PATCH todos")  # fmt: skip

    @tag("rest")
    @task(1)
    def remove(self) -> None:
        if len(self.mine) > 20:
            self.client.delete(f"/postgres/todos?id=eq.{self.mine.pop(0)}", headers=self.bearer,
                               name="DELETE todos")  # fmt: skip


class Newcomer(FastHttpUser):
    """Signs up and in once, then stays signed in."""

    weight = 1
    wait_time = between(0.2, 1.0)

    def on_start(self) -> None:
        self.key = {"apikey": PROJECT["anon_key"], "content-type": "application/json"}
        self.tokens: dict[str, Any] = {}
        body = json.dumps({"email": f"{uuid.uuid4().hex}@example.com", "password": PASSWORD})
        self.client.post("/auth/signup", data=body, headers=self.key, name="POST signup")
        answer = self.client.post("/auth/login", data=body, headers=self.key, name="POST login")
        if answer.status_code == 200:
            self.tokens = answer.json()

    @tag("auth")
    @task(5)
    def me(self) -> None:
        if "access_token" in self.tokens:
            bearer = f"Bearer {self.tokens['access_token']}"
            self.client.get("/auth/me", headers={**self.key, "authorization": bearer},
                            name="GET me")  # fmt: skip

    @tag("auth")
    @task(1)
    def refresh(self) -> None:
        if "refresh_token" in self.tokens:
            body = json.dumps({"refresh_token": self.tokens["refresh_token"]})
            answer = self.client.post("/auth/refresh", data=body, headers=self.key,
                                      name="POST refresh")  # fmt: skip
            if answer.status_code == 200:
                self.tokens |= answer.json()

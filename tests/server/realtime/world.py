"""Projects that exist only here, and a realtime process over them."""

from __future__ import annotations

import asyncio
import threading
import time

import jwt
import orjson
import uvloop

from server.base.events import Events, Failed
from server.base.hosts import HostRule
from server.base.limits import DEFAULT_TIERS
from server.base.project import Project, SigningKey
from server.realtime.process import Process, listening
from tests.oracle.websocket import CLOSE, TEXT, Client


def project(secret, rules, *, slug="default", id="p1", kid="k", cors=(), tier="business", **more):
    """A project whose tokens are signed with `secret`. more: fields of Project."""
    values = {
        "id": id, "slug": slug, "flavor": "both", "tier": tier, "url": f"http://{slug}.localhost",
        "keys": (SigningKey(kid, "HS256", secret),), "anon_key": "", "service_key": "",
        "storage_secret": "s", "authenticator_dsn": None, "owner_dsn": None, "system_dsn": None,
        "mongo_url": None, "settings": {"realtime": rules, "cors": {"origins": list(cors)}},
        "revision": 1, "limits": DEFAULT_TIERS[tier],
    }  # fmt: skip
    return Project(**{**values, **more})


class Projects:
    """A Directory."""

    def __init__(self, projects):
        self.projects = {p.slug: p for p in projects}
        self.callbacks = []

    def get(self, slug):
        return self.projects.get(slug)

    def all(self):
        return list(self.projects.values())

    def on_change(self, callback):
        self.callbacks.append(callback)

    def set(self, slug, value):
        if value is None:
            del self.projects[slug]
        else:
            self.projects[slug] = value
        for callback in self.callbacks:
            callback(value, slug)


SECRET = "a-secret-of-the-tests-that-is-long-enough"


def token(uid, *, secret=SECRET, kid="k", lifetime=600, **claims):
    """A user token."""
    now = int(time.time())
    body = {
        "sub": uid, "role": "authenticated", "aud": "authenticated", "iat": now - 400,
        "exp": now + lifetime, "session_id": f"s-{uid}", **claims,
    }  # fmt: skip
    return jwt.encode(body, secret, "HS256", {"kid": kid})


def key(role="anon", *, secret=SECRET, slug="default", kid="k"):
    """A project key."""
    body = {"role": role, "ref": slug, "iat": int(time.time()) - 5}
    prefix = "ich_pub_" if role == "anon" else "ich_admin_"
    return prefix + jwt.encode(body, secret, "HS256", {"kid": kid})


class Talker(Client):
    """A client that speaks JSON."""

    def say(self, /, **frame):
        self.send(TEXT, orjson.dumps(frame))

    def hear(self, timeout=60.0):
        """The next frame as an object; for CLOSE ("close", code); None at the end."""
        while True:
            found = self.receive(timeout)
            if found is None:
                return None
            opcode, _, payload = found
            if opcode == CLOSE:
                return ("close", int.from_bytes(payload[:2], "big"))
            if opcode == TEXT:
                return orjson.loads(payload)

    def ask(self, /, **frame):
        self.say(**frame)
        return self.hear()

    def silent(self):
        """That nothing else has come, by an answer that would come after it."""
        self.say(type="ping")
        assert self.hear() == {"type": "pong"}


class World:
    """A realtime process in a thread of its own."""

    def __init__(self, *projects, **options):
        self.directory = Projects(projects)
        self.events = Events()
        self.seen = []
        self.events.listeners.append(self.seen.append)
        self.loop = uvloop.new_event_loop()
        hosts = HostRule("localhost", "default", "http://localhost", "http://localhost/cdn")
        self.process = Process(self.directory, hosts, self.events, None, lambda: True, **options)
        listener = listening("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.clients = []
        self.thread = threading.Thread(target=self._run, args=(listener,))
        self.thread.start()
        self.call(lambda: None)

    def _run(self, listener):
        asyncio.set_event_loop(self.loop)

        def begin():
            self.process.start()
            self.process.listen(listener)

        self.loop.call_soon(begin)
        self.loop.run_forever()

    def call(self, function):
        """Runs it in the process's loop and gives what it gives."""

        async def work():
            return function()

        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(20)

    def connect(self, who=None, *, headers=(), slug=None, path=None):
        """A client that is connected; ConnectionRefusedError(status, answer)."""
        path = path or f"/realtime?token={who or key()}"
        if slug is not None:
            headers = (*headers, ("Host", f"{slug}.localhost"))
        made = Talker.connect("127.0.0.1", self.port, path, headers)
        self.clients.append(made)
        return made

    def change(self, *changes, project="p1"):
        self.call(lambda: [self.process.change(project, change) for change in changes])

    def publish(self, *channels, event=b'"e"', payload=b"1", project="p1"):
        return self.call(lambda: self.process.publish(project, list(channels), event, payload))

    def sweep(self, seconds=0, *, clock=0):
        """As if so much time had passed: of silence, and on the clock that tokens expire by."""

        def work():
            for peer in self.process.wire.sweep(
                int(self.process.now() + seconds), time.time() + clock
            ):
                peer.owner.close("token_expired", 4001)

        self.call(work)

    def end(self):
        for client in self.clients:
            client.close()
        asyncio.run_coroutine_threadsafe(self.process.stop(0.2), self.loop).result(20)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
        faults = [event for event in self.seen if isinstance(event, Failed)]
        assert not faults, faults

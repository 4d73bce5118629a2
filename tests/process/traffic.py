"""Continuous traffic on everything a project has, which remembers what was acknowledged."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections import Counter

import psycopg

from tests.process.sockets import subscribed

SETUP = "create table kept (id int primary key, worker int, at timestamptz default now())"
ANSWER = "export default () => new Response('ok')"
PAUSE = 0.005  # of each worker between requests


class Traffic:
    """One worker for each of tables, documents, files and functions. The project has the table of
    SETUP and a deployed function `ok` (ANSWER).

    answers: by kind, how often each (status, code) came; status 0: the connection broke. acked: by
    kind, the numbers whose writing was confirmed. doubled: those that were refused as being there:
    the answer to the first try was lost, and it was made again on the way. longest: by kind,
    seconds between two successes.
    """

    def __init__(self, node, name="default", kinds=("tables", "documents", "files", "functions")):
        self.node = node
        self.host = f"127.0.0.1:{node.port}" if name == "default" else f"{name}.localhost"
        self.project = node.project(name)
        self.kinds = kinds
        self.answers = {kind: Counter() for kind in kinds}
        self.acked = {kind: [] for kind in kinds}
        self.doubled = {kind: [] for kind in kinds}
        self.longest = dict.fromkeys(kinds, 0.0)
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(kind,)) for kind in kinds]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def go_on(self, count=10, seconds=120.0):
        """Waits until each kind has had so many more successes; the seconds that took."""
        began = time.monotonic()
        aims = {kind: len(self.acked[kind]) + count for kind in self.kinds}
        while any(len(self.acked[kind]) < aim for kind, aim in aims.items()):
            assert time.monotonic() - began < seconds, (aims, self.answers)
            time.sleep(0.01)
        return time.monotonic() - began

    def request(self, kind, number):
        """Method, path and body of a request."""
        if kind == "tables":
            return "POST", "/postgres/kept", json.dumps({"id": number})
        if kind == "documents":
            return "POST", "/mongo/v1/insertOne/kept", json.dumps({"doc": {"_id": number}})
        if kind == "files":
            return "PUT", f"/storage/object/public/kept/{number}", f"file {number}"
        return "POST", "/functions/ok", "{}"

    def ask(self, method, path, body=None, connection=None):
        """(status, body); status 0 when the connection broke."""
        key = self.project["service_key"]
        given = {"host": self.host, "apikey": key, "authorization": f"Bearer {key}",
                 "content-type": "application/json"}  # fmt: skip
        one = connection or http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=60)
        try:
            one.request(method, path, body, given)
            answer = one.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            one.close()
            return 0, b""
        finally:
            if connection is None:
                one.close()

    def large(self, number):
        """Status of an upload of some megabytes."""
        path = f"/storage/object/public/large/{number}"
        return self.ask("PUT", path, bytes(5_000_000))[0]

    def _work(self, kind):
        connection = http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=60)
        number, since = 0, time.monotonic()
        while not self._ending.is_set():
            number += 1
            status, body = self.ask(*self.request(kind, number), connection)
            code = ""
            if 200 <= status < 300:
                self.acked[kind].append(number)
                now = time.monotonic()
                self.longest[kind], since = max(self.longest[kind], now - since), now
            else:
                try:
                    code = json.loads(body)["code"]
                except (ValueError, KeyError, TypeError):
                    code = body[:80].decode("utf-8", "replace")
            self.answers[kind][status, code] += 1
            if status == 409:
                self.doubled[kind].append(number)
            self._ending.wait(PAUSE if status else 0.05)
        connection.close()

    def failures(self):
        """What did not succeed, by kind."""
        found = {
            kind: {one: count for one, count in counts.items() if not 200 <= one[0] < 300}
            for kind, counts in self.answers.items()
        }
        return {kind: counts for kind, counts in found.items() if counts}

    def lost(self):
        """What was confirmed, or refused as being there, and is not there, by kind."""
        there = {}
        if "tables" in self.kinds:
            with psycopg.connect(self.project["database_url"]) as owner:
                there["tables"] = {row[0] for row in owner.execute("select id from kept")}
        if "documents" in self.kinds:
            there["documents"] = set()
            while True:
                body = {"filter": {}, "sort": {"_id": 1}, "skip": len(there["documents"]),
                        "limit": 1000}  # fmt: skip
                status, answer = self.ask("POST", "/mongo/v1/find/kept", json.dumps(body))
                assert status == 200, answer
                docs = json.loads(answer)["docs"]
                there["documents"] |= {one["_id"] for one in docs}
                if not docs:
                    break
        if "files" in self.kinds:
            there["files"] = set()
            for number in self.acked["files"]:
                status, body = self.ask("GET", f"/cdn/{self.project['name']}/public/kept/{number}")
                if (status, body) == (200, f"file {number}".encode()):
                    there["files"].add(number)
        found = {kind: {*self.acked[kind], *self.doubled[kind]} - there[kind] for kind in there}
        return {kind: numbers for kind, numbers in found.items() if numbers}


class Listener(threading.Thread):
    """A socket that is told of the rows of `kept`. ids: in the order in which they came. ends: how
    often it was closed."""

    def __init__(self, url, key):
        super().__init__()
        self.url, self.key = url, key
        self.ids, self.ends = [], 0
        self.ready, self.ending = threading.Event(), threading.Event()

    def __enter__(self):
        self.start()
        assert self.ready.wait(60)
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.join()

    def run(self):
        asyncio.run(self._listen())

    async def _listen(self):
        socket = await subscribed(self.url, self.key, "kept")
        self.ready.set()
        while not self.ending.is_set() and not socket.gone.is_set():
            try:
                frame = await socket.next(0.2)
            except TimeoutError:
                continue
            if frame["type"] == "change":
                self.ids.append(frame["record"]["id"])
        self.ends += socket.gone.is_set()
        socket.close()

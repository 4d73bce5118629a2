"""Every shape in which a module may register its handler, in real processes without a node."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from pathlib import Path

import pytest

from ichicore.errors import ApiError
from server.base.unixhttp import Pool
from server.functions.manager import Manager
from server.functions.store import Version

SHAPES = {
    "handler": "Deno.serve(() => new Response('1'));",
    "async": "Deno.serve(async (_req, _info) => { await 0; return new Response('1'); });",
    "options": "Deno.serve({ port: 1, onListen() {} }, () => new Response('1'));",
    "signal": "Deno.serve({ signal: AbortSignal.timeout(1e6) }, () => new Response('1'));",
    "member": "Deno.serve({ handler: () => new Response('1') });",
    "port": "Deno.serve({ hostname: '0.0.0.0', port: 8000, handler: () => new Response('1') });",
    "object": "Deno.serve({ fetch: () => new Response('1') });",
    "server": "const s = Deno.serve(() => new Response('1')); s.unref(); s.finished.then(() => 0);",
    "error": "Deno.serve({ onError: () => new Response('1') }, () => { throw new Error(); });",
    "both": "Deno.serve(() => new Response('1')); Deno.serve(() => new Response('2'));",
    "late": "await new Promise((r) => setTimeout(r, 20)); Deno.serve(() => new Response('1'));",
    "first": "Deno.serve(() => new Response('1')); export default () => new Response('2');",
    "default": "export default function (req) { return new Response('1'); }",
    "default async": "export default async () => new Response('1');",
    "fetch": "export default { async fetch(req) { return new Response('1'); } };",
    "this": "export default { one: '1', fetch() { return new Response(this.one); } };",
}
TYPED_DEFAULT = (
    "export default { fetch: (_req: Request) => new Response('1') } satisfies "
    "Deno.ServeDefaultExport;"
)
FAULTS = {
    "nothing": ("export const a = 1;", "registers no handler"),
    "no function": ("Deno.serve({});", "needs a handler"),
    "number": ("export default 1;", "registers no handler"),
    "throws": ("throw new TypeError('at once');", "at once"),
}


class Codes:
    """A store of one project with a function for each name."""

    def __init__(self, codes):
        self.codes = codes

    async def any(self):
        return True

    async def find(self, project_id, name):
        return Version(project_id, name, 1, "key", None, name)

    async def code(self, version):
        return self.codes[version.name].encode()

    async def secrets(self, project_id):
        return {}

    async def close(self):
        """Nothing is open."""


def called(codes):
    """By name: what a call of the function gives, or the line of the log that says why not."""

    async def call(manager, name):
        told = {
            "id": "p", "slug": "p", "url": "http://p.localhost", "anon_key": "a",
            "service_key": "s", "mongo": False, "wall_ms": 10_000, "cpu_ms": 2_000,
            "memory": 134_217_728, "concurrency": 5, "bundle": 1 << 20, "functions": 100,
        }  # fmt: skip
        try:
            lease = await manager.lease("worker", told, name)
        except ApiError as error:
            assert error.code == "function_load_failed"
            return manager.logs.of("p").since(None, 100, name)[-1]["text"]
        pool = Pool(lease["socket"])
        connection = await pool.connect()
        answer = await connection.request(b"GET /functions/x HTTP/1.1\r\nhost: p\r\n\r\n")
        connection.close()
        return answer.status, answer.body

    async def go(folder):
        manager = Manager(folder, Codes(codes), ("127.0.0.1", 1))
        await manager.start()
        try:
            return {name: await call(manager, name) for name in codes}
        finally:
            await manager.stop()

    folder = Path(tempfile.mkdtemp(prefix="ichi-shapes-"))
    try:
        return asyncio.run(go(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def answers():
    return called(SHAPES | {name: code for name, (code, _) in FAULTS.items()})


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_handler_is_taken(answers, shape):
    assert answers[shape] == (200, b"1")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_module_without_a_handler_does_not_load_and_the_log_says_why(answers, fault):
    assert FAULTS[fault][1] in answers[fault]


def test_what_a_handler_gives_besides_a_response_is_a_failure():
    found = called({"text": "Deno.serve(() => 'text');", "used": """
      const one = new Response('1'); Deno.serve(async () => { await one.text(); return one; });
    """})  # fmt: skip
    for status, body in found.values():
        assert (status, json.loads(body)["code"]) == (500, "function_error")

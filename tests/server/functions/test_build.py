"""Builds by Deno itself: what they are refused for, and that they leave nothing behind."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import socket
import tempfile
from pathlib import Path

import orjson
import pytest

from ichicore.errors import ApiError
from server.functions.build import MAP, Builder
from server.functions.confine import Confinement
from server.functions.sources import Sources
from tests.registry import Registry, usual

QUOTA = 24 << 20  # the bundler itself takes 11


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    made = Registry(tmp_path_factory.mktemp("registry"), usual())
    made.npm("small", "1.0.0", {"index.js": b"module.exports = 1;"}, main="index.js")
    zeros = {f"data{number}.bin": bytes(8 << 20) for number in range(4)}
    made.npm("giant", "1.0.0", {"index.js": b"module.exports = 1;", **zeros}, main="index.js")
    yield made
    made.close()


@pytest.fixture(scope="module")
def builder(registry, tmp_path_factory):
    folder = tmp_path_factory.mktemp("node")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in registry.environment.items():
            patch.setenv(name, value)
        yield Builder(Confinement(folder), folder / "functions" / "cache", QUOTA)


def build(builder, text, limit=1 << 20):
    files = text if isinstance(text, dict) else {"index.ts": text}
    return asyncio.run(builder.build("p", Sources(files, None), None, limit))


def refusal(builder, text, **more):
    with pytest.raises(ApiError) as caught:
        build(builder, text, **more)
    return caught.value


def test_a_giant_tree_of_dependencies_is_refused_and_leaves_nothing_on_disk(builder):
    built = build(builder, "import x from 'npm:small@1'; Deno.serve(() => new Response(`${x}`));")
    assert b"module.exports = 1" in built.code
    assert kept(builder, "small")
    error = refusal(builder, "import x from 'npm:giant@1'; console.log(x);")
    assert (error.status, error.code) == (413, "payload_too_large")
    assert "more than 24 MiB" in error.message
    assert not builder.place.exists()
    assert not kept(builder, "giant")
    assert build(builder, "Deno.serve(() => new Response('still'));").code


def kept(builder, package):
    """What the next build of the project finds of a package."""
    return [path for path in builder.folder.rglob("*") if package in path.name]


def test_what_was_downloaded_is_kept_also_for_sources_that_were_refused(builder, registry):
    text = "import x from 'npm:small@1';\nconst wrong: string = 1; console.log(x, wrong);"
    assert "TS2322" in str(refusal(builder, text).details)
    assert kept(builder, "small")
    registry.asked.clear()
    build(builder, "import x from 'npm:small@1'; Deno.serve(() => new Response(`${x}`));")
    assert not [path for path in registry.asked if path.endswith(".tgz")]


def test_a_package_leads_a_build_to_no_other_service(builder, registry):
    """Its tarball may be anywhere that a public address is, and nowhere else."""
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.settimeout(0.1)
        port = inside.getsockname()[1]
        for address in (f"http://127.0.0.1:{port}", f"http://localhost:{port}", "https://127.1",
                        "http://169.254.169.254/latest", "http://0x7f000001"):  # fmt: skip
            name = f"inward{abs(hash(address))}"
            registry.npm(name, "1.0.0", {"index.js": b""}, main="index.js")
            told = registry.files[f"/npm/{name}"].decode()
            registry.files[f"/npm/{name}"] = told.replace(registry.url, address).encode()
            error = refusal(builder, f"import 'npm:{name}@1';")
            assert (error.status, error.code) == (400, "build_failed")
            assert "has no public address" in error.message or "The ports of other" in error.message
        with pytest.raises(TimeoutError):
            inside.accept()


def test_several_functions_share_a_folder(builder):
    files = {
        "lib/deep.ts": "export { shout } from '../../_shared/words/shout.ts';",
        "index.ts": "import { shout } from './lib/deep.ts';\n"
        "Deno.serve(() => new Response(shout('hi')));",
        "../_shared/words/shout.ts": "export const shout = (a: string) => a.toUpperCase();",
    }
    built = build(builder, files)
    assert b"toUpperCase" in built.code
    assert "../_shared/words/shout.ts" in built.files
    sources = orjson.loads(base64.b64decode(built.code.partition(MAP)[2]))["sources"]
    assert "../_shared/words/shout.ts" in sources
    files["../_shared/words/shout.ts"] = "export const shout = (a: string): number => a;"
    told = refusal(builder, files).details["errors"][0]
    assert (told["file"], told["line"]) == ("../_shared/words/shout.ts", 1)
    for name in ("../_shared/../x.ts", "../other/x.ts", "../_shared/", "a/../_shared/x.ts"):
        with pytest.raises(ApiError):
            Sources({"index.ts": "", name: ""}, None)


def test_a_build_that_does_not_get_its_turn_is_refused(builder, monkeypatch):
    monkeypatch.setattr("server.functions.build.WAIT", 0.05)

    async def go():
        async with builder._turn:
            with pytest.raises(ApiError) as caught:
                await builder.build("p", Sources({"index.ts": "1"}, None), None, 1000)
        return caught.value

    error = asyncio.run(go())
    assert (error.status, error.code) == (503, "unavailable")
    assert build(builder, "Deno.serve(() => new Response('still'));").code


def test_a_bundle_that_is_too_large_is_refused(builder):
    text = f"const a = '{'x' * 5000}';\nDeno.serve(() => new Response(a));"
    error = refusal(builder, text, limit=4000)
    assert (error.status, error.code) == (413, "payload_too_large")
    assert not builder.place.exists()


@pytest.mark.parametrize(("text", "place", "reason"), [
    ("const a = 1;\nconst b = ;", (2, 11), "SyntaxError: Expression expected"),
    ("import x from './missing.ts';\nx();", (1, 15), "Cannot find module 'missing.ts'"),
    ("import x from 'npm:absent@1';\nx();", (1, 15), "npm package 'absent' does not exist"),
    ("import x from 'jsr:@a/absent@1';\nx();", (1, 15), "JSR package"),
    ("import x from 'https://esm.invalid/x.ts';\nx();", (1, 15), "not from esm.invalid."),
    ("import x from 'npm:small@9';\nx();", (1, 15), "small"),
])  # fmt: skip
def test_a_fault_is_told_with_file_line_and_reason(builder, text, place, reason):
    error = refusal(builder, text)
    assert (error.status, error.code) == (400, "build_failed")
    told = error.details["errors"][0]
    assert (told["file"], (told["line"], told["column"])) == ("index.ts", place)
    assert reason in told["message"]
    assert str(builder.place) not in error.message
    assert not builder.place.exists()


def test_a_host_that_does_not_answer_is_told_with_the_reason(builder, registry, monkeypatch):
    monkeypatch.setenv("JSR_URL", "https://localhost:1/")
    error = refusal(builder, "import x from 'jsr:@test/any@1';\nx();")
    assert (error.status, error.code) == (400, "build_failed")
    assert "https://localhost:1/@test/any/meta.json" in error.message
    error = refusal(builder, "import x from 'https://localhost:1/x.ts';\nx();")
    assert "index.ts:1:15: Import 'https://localhost:1/x.ts' failed." in error.message
    assert "Connection refused" in error.message


def test_no_file_of_the_node_is_read_by_a_build(builder, tmp_path):
    (tmp_path / "secret.ts").write_text("export default 'told';")
    for path in (tmp_path / "secret.ts", "/etc/passwd", "../../../../etc/passwd"):
        error = refusal(builder, f"import x from '{path}';\nconsole.log(x);")
        assert "told" not in error.message
        assert "root:" not in error.message
    assert os.getcwd() not in error.message


@pytest.fixture
def told():
    """A folder whose files every account can read; their text is TOLD."""
    folder = Path(tempfile.mkdtemp(prefix="ichi-told-"))
    folder.chmod(0o755)
    for name in ("a.json", "a.ts", "a.txt", "a"):
        (folder / name).write_text('"TOLD"' if name == "a.json" else "TOLD")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("held", ["namespaces", "landlock", "neither"])
def test_no_file_is_read_by_a_name_that_the_bundler_works_out(registry, tmp_path, told, held):
    confinement = Confinement(tmp_path, namespaces=held == "namespaces")
    if held == "landlock" and not confinement.landlock:
        pytest.skip("this kernel has no Landlock")
    if held == "neither":
        confinement.landlock = False
    with pytest.MonkeyPatch.context() as patch:
        for name, value in registry.environment.items():
            patch.setenv(name, value)
        builder = Builder(confinement, tmp_path / "functions" / "cache")
        for name, kind in (("a.json", "json"), ("a.ts", "json"), ("a.txt", "text"), ("a", "text"),
                           ("a", "bytes"), ("a.txt", None)):  # fmt: skip
            option = f", {{ with: {{ type: '{kind}' }} }} as any" if kind else ""
            text = f"console.log(await import('{told}/{name}' + ''{option}));"
            error = refusal(builder, text)
            assert "TOLD" not in f"{error.message} {error.details}"


def test_text_that_looks_like_a_name_is_no_file(builder):
    text = "const a = `\n// ../a/b.ts\n// /no/such/file\n`; Deno.serve(() => new Response(a));"
    assert b"// ../a/b.ts" in build(builder, text).code

"""The small parts of the functions process: charges, slots, logs, secrets, addresses, builds."""

from __future__ import annotations

import asyncio
import base64
import struct
from pathlib import Path

import orjson
import pytest

from ichicore.errors import ApiError
from server.functions import network, seccomp
from server.functions.build import MAP, compacted, failure
from server.functions.logs import ProjectLog
from server.functions.slots import Slots
from server.functions.sockets import PING, TEXT, Reader, WireError, encode
from server.functions.sources import Sources, check_path, without_comments
from server.functions.vault import Vault, VaultError
from server.functions.watch import Charge

# Charges


def look(charge, cpu, memory=0, **more):
    given = {"cpu_limit": 1.0, "memory_limit": 100, "background": False, "leased": True, **more}
    return charge.look(cpu, memory, **given)


def test_one_slow_call_is_charged_with_what_the_process_uses():
    charge = Charge(0.0)
    for tick in range(1, 10):
        charge.report("w", {"a"}, 0)
        assert look(charge, tick * 0.1) is None
    verdict = look(charge, 1.2)  # a worker that is late with its next report changes nothing
    assert (verdict.reason, verdict.call) == ("cpu", "a")


def test_many_quick_calls_charge_none_of_those_that_wait():
    charge = Charge(0.0)
    for tick in range(1, 100):
        charge.report("w", {"waits"}, 1000)
        assert look(charge, tick * 0.1) is None
    charge.report("w", set(), 0)
    assert look(charge, 100.0) is None


def test_calls_share_and_a_call_that_ended_is_forgotten():
    charge = Charge(0.0)
    for tick in range(1, 30):
        charge.report("w", {"a", "b"} if tick < 8 else {"b"}, 0)
        verdict = look(charge, tick * 0.1)
        if verdict is not None:
            break
    assert verdict.call == "b"
    assert tick >= 13


def test_a_process_that_works_without_calls_is_charged_itself():
    charge = Charge(0.0)
    assert look(charge, 0.9, background=True) is None
    assert look(charge, 1.1, background=True).reason == "cpu"
    assert look(Charge(0.0), 5.0, leased=True) is None
    assert look(Charge(0.0), 5.0, leased=False).reason == "cpu"
    assert look(Charge(0.0), 0.0, memory=101).reason == "memory"


# Slots


def test_slots_are_shared_and_asked_back():
    async def run():
        slots = Slots()
        assert [await slots.take("a", "p", 8) for _ in range(5)] == [2, 2, 2, 2, 0]
        asked = []

        def recall(project_id, worker):
            asked.append((project_id, worker))
            asyncio.get_running_loop().call_later(0.01, slots.give_back, "a", "p", 3)

        slots.recall = recall
        assert await slots.take("b", "p", 8) == 2
        assert asked == [("p", "b")]
        slots.recall = lambda project_id, worker: None
        assert await slots.take("b", "p", 8) == 1
        assert await slots.take("b", "p", 8) == 0
        slots.forget("a")
        assert await slots.take("b", "p", 8) == 2
        assert await slots.take("c", "q", 1) == 1
        slots.forget("c")
        assert "q" not in slots.held

    asyncio.run(run())


# Logs


def line(text="x"):
    return {"function": "f", "version": 1, "level": "info", "text": text}


def test_a_log_is_bounded_in_memory_and_on_disk_and_survives(tmp_path):
    log = ProjectLog(tmp_path / "p", limit=20_000)
    for number in range(5_000):
        log.add(line(f"{number} " + "y" * 100))
    assert log.dropped > 2_000
    log.add({**line("killed"), "invocation": "i"}, always=True)
    log.close()
    assert sum(path.stat().st_size for path in (tmp_path / "p").iterdir()) <= 40_000
    again = ProjectLog(tmp_path / "p", limit=20_000)
    assert again.since(None, 1)[0]["text"] == "killed"
    assert again.since(None, 0) == []
    assert again.since(0, 5, invocation="i")[0]["seq"] == again.seq
    assert again.since(again.seq, 5) == []
    assert again.since(0, 5, function="g") == []


def test_a_reader_gets_every_line_that_is_kept_also_when_memory_has_fewer(tmp_path):
    log = ProjectLog(tmp_path / "p")
    for number in range(90):
        log.add({**line(f"{number} " + "y" * 16_000), "invocation": f"{number}"})
    assert sum(size for size, _ in log.lines) < 600_000
    texts = [int(one["text"].partition(" ")[0]) for one in log.since(None, 60)]
    assert texts == list(range(30, 90))
    assert log.since(None, 10, invocation="3")[0]["seq"] == 4
    seen, last = [], 0
    while found := log.since(last, 25):
        last = found[-1]["seq"]
        seen += [one["seq"] for one in found]
    assert seen == list(range(1, 91))
    log.close()


def test_a_reader_waits_for_the_next_line(tmp_path):
    async def run():
        log = ProjectLog(tmp_path / "p")
        asyncio.get_running_loop().call_later(0.05, log.add, line("new"))
        await asyncio.wait_for(log.wait(5), 1)
        assert log.since(0, 10)[0]["text"] == "new"
        await log.wait(0.01)
        log.close()

    asyncio.run(run())


# Secrets at rest


def test_a_sealed_secret_opens_only_with_its_key_and_its_name(tmp_path):
    vault = Vault(tmp_path / "secrets" / "key")
    sealed = vault.seal("p", "A", "grüße")
    assert "grüße".encode() not in sealed
    assert Vault(tmp_path / "secrets" / "key").open("p", "A", sealed) == "grüße"
    assert (tmp_path / "secrets" / "key").stat().st_mode & 0o777 == 0o600
    for project, name in (("q", "A"), ("p", "B")):
        with pytest.raises(VaultError):
            vault.open(project, name, sealed)
    with pytest.raises(VaultError):
        Vault(tmp_path / "other").open("p", "A", sealed)


# Addresses and system calls


def test_own_public_addresses_are_closed_too(tmp_path):
    trie = tmp_path / "fib_trie"
    trie.write_text(
        "Main:\n  |-- 8.8.4.4\n     /32 host LOCAL\n  |-- 10.0.0.1\n     /32 host LOCAL\n"
        "  |-- 1.1.1.1\n     /32 link UNICAST\n  +-- 9.9.9.0/24 2 0 2\n  |-- 9.9.9.0\n"
        "     /32 link BROADCAST\n     /24 host LOCAL\n  |-- 127.0.0.0\n     /8 host LOCAL\n"
    )
    assert network.own_addresses(trie) == ["8.8.4.4", "9.9.9.0/24"]
    assert network.own_addresses(Path("/nonexistent")) == []
    assert "169.254.0.0/16" in network.denied(["8.8.4.4"]).split(",")
    assert network.denied(["8.8.4.4"]).endswith(",8.8.4.4")


@pytest.mark.parametrize("host", ["api.example.com", "*.example.com:443", "1.2.3.4:80", "a_b.x"])
def test_outbound_hosts(host):
    assert network.check_allowed([host]) is None


@pytest.mark.parametrize("host", ["", "http://a", "a,b", "a:0", "a:99999", "*", "a b", "unix:/x"])
def test_what_is_no_outbound_host(host):
    assert network.check_allowed([host]) is not None


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_of_the_filter_stays_inside(machine):
    steps = seccomp.program(machine)
    count = len(steps) // 8
    assert count < 256
    for number in range(count):
        code, yes, no, _ = struct.unpack("<HBBI", steps[number * 8 : number * 8 + 8])
        if code & 7 == 5:
            assert number + 1 + max(yes, no) < count
    assert struct.unpack("<HBBI", steps[-8:])[0] == seccomp.RETURN
    assert seccomp.program("riscv64") is None


# Builds


@pytest.mark.parametrize(
    "path",
    ["", "/etc/x", "../x", "a/../b", "a//b", "./a", "a\\b", "a\nb", "package.json", "x/.npmrc",
     "a/", "x" * 500],
)  # fmt: skip
def test_paths_that_are_refused(path):
    with pytest.raises(ApiError):
        check_path(path)


def test_sources_are_checked():
    assert Sources({"a.ts": "1", "b.bin": {"base64": "AAE="}}, "a.ts").files["b.bin"] == b"\0\x01"
    for files, entry in (({}, None), ({"a.ts": "1"}, None), ({"a.ts": "1"}, "b.ts"),
                         ({"a.ts": {"base64": "!"}}, "a.ts"), ({"a.ts": 1}, "a.ts")):  # fmt: skip
        with pytest.raises(ApiError):
            Sources(files, entry)
    config = Sources(
        {"index.ts": "", "deno.json": '{"tasks":{"a":"rm"},"imports":{"x":"y"}}'}, None
    )
    assert config.config() == {"imports": {"x": "y"}}
    with pytest.raises(ApiError):
        Sources({"index.ts": "", "deno.json": "["}, None).config()


def test_comments_are_taken_out_of_jsonc():
    raw = b'{"a": "// no", /* yes */ "b": [1, 2,], // yes\n "c": {"d": "/*,}*/",},}'
    assert orjson.loads(without_comments(raw)) == {
        "a": "// no", "b": [1, 2], "c": {"d": "/*,}*/"},
    }  # fmt: skip


def test_messages_of_a_build():
    text = (
        "TS2322 [ERROR]: Type 'a'\n  is bad.\nconst a\n      ^\n    at file:///build/src/x.ts:3:7\n\n"
        "TS1 [ERROR]: Other\n    at file:///build/src/y.ts:1:2\n\nFound 2 errors.\n"
    )
    error = failure(text, Path("/build/src"))
    assert error.message.startswith("x.ts:3:7: Type 'a'")
    assert [e["file"] for e in error.details["errors"]] == ["x.ts", "y.ts"]
    noted = (
        "TS2769 [ERROR]: No overload matches this call.\n  The last overload gave this.\n"
        "    'a' is no 'b'.\n    f(a);\n    ~\n    at file:///build/src/x.ts:1:2\n\n"
        "TS2771 [ERROR]:     The last overload is declared here.\n      function f(\n"
        "               ~\n        at asset:///lib.d.ts:6:7\n\n"
        "TS2322 [ERROR]: Type 'a'.\nconst a\n      ^\n    at file:///build/src/y.ts:2:7\n\n"
        "    From file:///build/src/y.ts.\n    const b\n          ^\n"
        "        at file:///build/src/z.ts:3:9\n\nFound 3 errors.\n"
    )
    told = failure(noted, Path("/build/src")).details["errors"]
    assert [(e["code"], e["file"], e["line"], e["message"]) for e in told] == [
        ("TS2769", "x.ts", 1, "No overload matches this call.\n  The last overload gave this.\n"
         "    'a' is no 'b'."), ("TS2322", "y.ts", 2, "Type 'a'."),
    ]  # fmt: skip
    assert "Deno ended early" in failure("", Path("/build/src")).message


def test_the_map_names_sources_as_they_were_uploaded():
    found = {"version": 3, "sources": ["../src/a/index.ts", "../cache/npm/registry/ms/1/index.js"],
             "sourcesContent": ["secret", ""], "mappings": "AAAA"}  # fmt: skip
    code = b"x;\n" + MAP + base64.b64encode(orjson.dumps(found)) + b"\n"
    made = compacted(code, Path("/build/out"), Path("/build/src"))
    kept = orjson.loads(base64.b64decode(made.partition(MAP)[2]))
    assert kept["sources"] == ["a/index.ts", "registry/ms/1/index.js"]
    assert "sourcesContent" not in kept
    assert compacted(b"x;", Path("/o"), Path("/s")) == b"x;"


# Frames


def test_frames_in_any_pieces():
    def server(kind, data, final=True):
        head = bytes(((0x80 if final else 0) | kind, min(len(data), 126)))
        return head + (struct.pack(">H", len(data)) if len(data) >= 126 else b"") + data

    raw = (
        server(TEXT, b"he", False) + server(PING, b"p") + server(0, b"llo") + server(2, b"x" * 300)
    )
    for size in (1, 2, 7, 1000):
        reader = Reader()
        found = []
        for at in range(0, len(raw), size):
            found += reader.feed(raw[at : at + size])
        assert found == [(PING, b"p"), (TEXT, b"hello"), (2, b"x" * 300)]
    for bad in (b"\xf1\x00", b"\x81\x80", b"\x83\x00", b"\x80\x00", server(TEXT, b"a", False) * 2,
                b"\x09\x00", b"\x82\x7f" + b"\xff" * 8):  # fmt: skip
        with pytest.raises(WireError):
            Reader().feed(bad)
    assert encode(TEXT, b"a" * 126)[:4] == b"\x81\xfe\x00\x7e"

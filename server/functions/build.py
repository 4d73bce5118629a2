"""From uploaded sources to one module: checked, bundled with its dependencies, its map kept.

Deno resolves `npm:` and `jsr:` imports now and never at run time. The build runs nothing of the
sources; it runs under an account of its own, with limits, and sees no other file of the node.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from weakref import WeakValueDictionary

import orjson

from ichicore.errors import ApiError
from server.functions.confine import V8_RESERVED, Confinement, private_folder
from server.functions.gate import Gate
from server.functions.landlock import View
from server.functions.quota import Quota, taken
from server.functions.sources import SHARED, Sources, refused
from server.functions.store import Built

SECONDS = 100.0  # of one build
WAIT = 60.0  # seconds until it is a build's turn
CPU_SECONDS = 120
MAX_KEPT = 128 << 20  # bytes of downloaded dependencies kept per project for its next build
QUOTA = 512 << 20  # bytes on disk of one build, dependencies included
MAX_ENTRIES = 60_000  # files and folders of one build
MEMORY = 2 << 30  # bytes of a command of a build, beside what V8 reserves
HEAP = 1536  # MiB of V8's heap in it
FILE_SIZE = 256 << 20
LOOK = 0.2  # seconds between looks at what a build takes on disk
OUTPUT = 256 << 10  # bytes of messages read
NICE = 10
SHOWN = 10  # errors in the text of a refusal
LEADS_OUT = "An import leads out of the function's folder and of _shared."
INSIDE = "/build"  # where a build in namespaces sees its folder
PASSED = ("NPM_CONFIG_REGISTRY", "JSR_URL", "DENO_TLS_CA_STORE")
CERTIFICATES = ("DENO_CERT", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS")  # files, copied for a build
IMPORT_HOSTS = ("jsr.io:443", "esm.sh:443", "deno.land:443", "cdn.jsdelivr.net:443")
REGISTRIES = ("registry.npmjs.org:443", "npm.jsr.io:443")
GLOBALS = """declare namespace EdgeRuntime {
  /** Keeps the process until the promise has settled, also after the response has been sent. */
  function waitUntil<T>(promise: Promise<T> | T): Promise<T>;
}
declare namespace Deno {
  /** An object with `fetch`, as modules export it. */
  function serve(options: ServeDefaultExport): HttpServer<NetAddr>;
}
"""
TYPE_ERROR = re.compile(r"^(TS\d+) \[ERROR\]: +", re.MULTILINE)
MARKED = re.compile(r"^.*\n[ \t]*[~^]+[ \t]*$", re.MULTILINE)  # a line of source, underlined
PLACE = re.compile(r"^    at (file://\S+?):(\d+):(\d+)$", re.MULTILINE)
PARSE_ERROR = re.compile(r"could not be parsed: (.*?) at (file://\S+?):(\d+):(\d+)", re.DOTALL)
PLAIN_ERROR = re.compile(
    r"^error: (?P<text>.*)(?:\n(?:  \||\d+ \|).*)*(?:\nCaused by:)?"
    r"(?P<causes>(?:\n\s+(?!at )\S.*)*)"
    r"(?:\n\s+at (?P<file>file://\S+?):(?P<line>\d+):(?P<column>\d+)$)?",
    re.MULTILINE,
)
STACK = re.compile(
    r"\n +at (?:async )?(?:.*\()?([^\s():]+):(\d+):(\d+)\)?(?: \{)?(?=\n|$)(?:\n\}$)?"
)
CAUSE = re.compile(r"^\s+(?:\d+: )?")
BARE = re.compile(r'(?:Relative i|I)mport "([^"]+)" not a dependency.*', re.DOTALL)
NOT_ALLOWED = re.compile(r'Requires import access to "([^"]+)".*')
NAMED = re.compile(rb"^// ((?:\.\./|/).*)$", re.MULTILINE)
MAP = b"//# sourceMappingURL=data:application/json;base64,"


class Builder:
    """One build at a time; those of a project take turns first. folder: where each project's
    downloads are kept. quota: bytes that a build may take on disk."""

    def __init__(self, confinement: Confinement, folder: Path, quota: int = QUOTA) -> None:
        self.confinement = confinement
        self.folder = folder
        self.place = confinement.build_folder(folder.parent)
        self.quota = Quota(self.place, quota, MAX_ENTRIES)
        self._turn = asyncio.Lock()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by project
        self._deadline = 0.0
        self._sound = False  # whether what was downloaded is whole

    async def build(self, project_id: str, sources: Sources, lock: str | None, limit: int) -> Built:
        """ApiError 400 build_failed names files, lines and reasons; 413 when the module is larger
        than `limit` bytes, or its dependencies than the quota. lock: exact versions to keep to."""
        own = self._turns.setdefault(project_id, asyncio.Lock())
        async with contextlib.AsyncExitStack() as held:
            try:
                async with asyncio.timeout(WAIT):
                    await held.enter_async_context(own)
                    await held.enter_async_context(self._turn)
            except TimeoutError:
                raise ApiError(
                    503, "unavailable", "Other functions are being built; try again.",
                    headers=(("retry-after", "10"),),
                ) from None  # fmt: skip
            uid = self.confinement.take_uid()
            self.quota.exceeded = self._sound = False
            self._deadline = asyncio.get_running_loop().time() + SECONDS
            gate = Gate(trusted_hosts())
            try:
                async with gate:
                    return await self._build(gate, uid, project_id, sources, lock, limit)
            except ApiError as error:
                if error.code == "build_failed" and gate.notes:
                    raise _explained(error, gate.notes) from None
                raise
            finally:
                await asyncio.to_thread(shutil.rmtree, self.place, True)
                self.confinement.give_back(uid)

    def clear(self) -> None:
        """Removes what a build that was killed has left."""
        shutil.rmtree(self.place, ignore_errors=True)

    async def forget(self, project_id: str) -> None:
        """Removes what was downloaded for a project."""
        await asyncio.to_thread(shutil.rmtree, self.folder / project_id, True)

    async def _build(
        self, gate: Gate, uid: int | None, project_id: str, sources: Sources, lock: str | None,
        limit: int,
    ) -> Built:  # fmt: skip
        place = self.place
        await asyncio.to_thread(shutil.rmtree, place, True)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        private_folder(place, 0o711 if uid is not None else 0o700)
        out, cache = place / "out", place / "cache"
        config = sources.config()
        given = sources.files.pop("deno.lock", None)
        names = sorted(sources.files)
        _write(place, sources.files, config)
        out.mkdir()
        kept = self.folder / project_id
        tools = self.folder / "tools"
        if kept.exists():
            await asyncio.to_thread(shutil.move, kept, cache)
        else:
            cache.mkdir()
        if tools.exists():
            await asyncio.to_thread(shutil.copytree, tools, cache / "dl", symlinks=True)
        text = given if given is not None else lock.encode() if lock else None
        if text is not None:
            (out / "deno.lock").write_bytes(text)
        if uid is not None:
            await asyncio.to_thread(_give, (out, cache), uid)
        frozen = given is not None
        seen = self.confinement.seen(place, place, INSIDE)
        allowed = "--allow-import=" + ",".join(import_hosts())
        shared = ["--config", f"{seen}/src/deno.json", "--lock", f"{seen}/out/deno.lock",
                  f"--frozen={'true' if frozen else 'false'}", allowed, "--quiet"]  # fmt: skip
        entry = f"{seen}/src/{sources.entrypoint}"
        try:
            graph = await self._deno(gate, uid, ["info", "--json", *shared[:4], allowed, entry])
            wrong = _check_graph(graph, seen)
            await self._deno(gate, uid, ["check", *shared, entry])
            if wrong is not None:
                raise wrong
            await self._deno(
                gate, uid,
                ["bundle", *shared, "--sourcemap=inline", "--platform=deno", "--format=esm",
                 "-o", f"{seen}/out/index.js", entry],
            )  # fmt: skip
        finally:
            if self._sound:
                await asyncio.to_thread(_keep, cache, kept, tools)
        raw = (out / "index.js").read_bytes()
        if leads_out(raw, seen):
            raise refused(LEADS_OUT)
        code = compacted(raw, seen / "out", seen / "src")
        if len(code) > limit:
            raise ApiError(
                413, "payload_too_large",
                f"The bundled function has {len(code)} bytes; at most {limit} are allowed.",
            )  # fmt: skip
        locked = out / "deno.lock"
        found = locked.read_text("utf-8", "replace") if locked.is_file() else None
        return Built(code, found, names, sources.entrypoint)

    async def _deno(self, gate: Gate, uid: int | None, arguments: list[str]) -> bytes:
        """Standard output of a Deno command; its errors become an ApiError."""
        confinement, place = self.confinement, self.place
        self._sound = False
        seen = confinement.seen(place, place, INSIDE)
        command = [confinement.program, *arguments]
        account: dict[str, Any] = {}
        if confinement.bwrap is not None:
            extra = ["--tmpfs", "/tmp"]  # noqa: S108
            command = confinement.wrapped(command, place, INSIDE, uid, extra)
        elif uid is not None:
            account = {"user": uid, "group": uid, "extra_groups": []}
        environment = {
            "DENO_DIR": str(seen / "cache"), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1",
            "DENO_NO_PACKAGE_JSON": "1", "PATH": "/usr/bin:/bin", "HOME": str(seen / "out"),
            "DENO_TLS_CA_STORE": "mozilla,system", "DENO_V8_FLAGS": f"--max-heap-size={HEAP}",
            **{name: os.environ[name] for name in PASSED if name in os.environ},
            **gate.environment,
            **_certificates(place / "src" / ".ichibase", seen / "src" / ".ichibase"),
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, cwd=place / "src", env=environment,
            start_new_session=True, preexec_fn=_limiter(confinement.view([], place)), **account,
        )  # fmt: skip

        def end() -> None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

        watching = asyncio.ensure_future(self.quota.watch(LOOK, end))
        try:
            async with asyncio.timeout_at(self._deadline):
                output, errors = await process.communicate()
        except TimeoutError:
            raise refused(f"The build took longer than {SECONDS:.0f} s.") from None
        finally:
            watching.cancel()
            end()
        if not await asyncio.to_thread(self.quota.check):
            raise ApiError(
                413, "payload_too_large",
                f"The function's dependencies take more than {self.quota.most_bytes >> 20} MiB or "
                f"{self.quota.most_entries:,} files; use fewer or smaller ones.",
            )  # fmt: skip
        self._sound = True
        if process.returncode != 0:
            raise failure(errors[:OUTPUT].decode("utf-8", "replace"), seen / "src")
        return output


def _keep(cache: Path, kept: Path, tools: Path) -> None:
    """Downloads for the next build of the project; too many are forgotten. tools: the bundler
    that Deno fetches, kept once for all projects."""
    if (cache / "dl").exists():
        if not tools.exists():
            tools.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copytree(cache / "dl", tools, symlinks=True)
        shutil.rmtree(cache / "dl")
    size, _ = taken(cache, MAX_KEPT, MAX_ENTRIES)
    shutil.rmtree(kept, ignore_errors=True)
    if size <= MAX_KEPT:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.move(cache, kept)


def _limiter(view: View | None) -> Callable[[], None]:
    """What a command of a build does between fork and exec."""

    def limit() -> None:
        os.nice(NICE)
        for kind, value in ((resource.RLIMIT_CPU, CPU_SECONDS), (resource.RLIMIT_CORE, 0),
                            (resource.RLIMIT_FSIZE, FILE_SIZE),
                            (resource.RLIMIT_DATA, V8_RESERVED + MEMORY)):  # fmt: skip
            resource.setrlimit(kind, (value, value))
        if view is not None and not view.install():
            os._exit(1)

    return limit


def trusted_hosts() -> frozenset[str]:
    """The hosts that a build asks by the node's own choice, each with its port."""
    found = {*REGISTRIES, *import_hosts()}
    for name in ("NPM_CONFIG_REGISTRY", "JSR_URL"):
        own = urlsplit(os.environ.get(name, ""))
        if own.hostname is not None:
            found.add(f"{own.hostname}:{own.port or (443 if own.scheme == 'https' else 80)}")
    return frozenset(found)


def import_hosts() -> tuple[str, ...]:
    """Where modules may be imported from by their address; a JSR registry of the node's own too."""
    own = urlsplit(os.environ.get("JSR_URL", ""))
    if own.hostname is None:
        return IMPORT_HOSTS
    return (*IMPORT_HOSTS, f"{own.hostname}:{own.port or (443 if own.scheme == 'https' else 80)}")


def _certificates(folder: Path, seen: Path) -> dict[str, str]:
    """Copies of the node's own certificate files, at a place that a build can read."""
    found = {}
    for name in CERTIFICATES:
        path = os.environ.get(name)
        if path and os.path.isfile(path):
            shutil.copyfile(path, folder / name)
            (folder / name).chmod(0o644)
            found[name] = str(seen / name)
    return found


def _write(place: Path, files: dict[str, bytes], config: dict[str, Any]) -> None:
    source, shared = place / "src", place / "_shared"
    source.mkdir()
    shared.mkdir()
    for name, raw in files.items():
        common = name.startswith(SHARED)
        path = shared / name.removeprefix(SHARED) if common else source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(raw)
        except OSError:  # a file where another path has a folder
            raise refused(f"{name[:200]!r} cannot be written beside the other files.") from None
    (source / ".ichibase").mkdir()
    (source / ".ichibase" / "globals.d.ts").write_text(GLOBALS)
    options = config.get("compilerOptions")
    options = dict(options) if isinstance(options, dict) else {}
    types = options.get("types")
    types = [kind for kind in types if isinstance(kind, str)] if isinstance(types, list) else []
    options["types"] = [*types, "./.ichibase/globals.d.ts"]
    (source / "deno.json").write_bytes(orjson.dumps({**config, "compilerOptions": options}))
    for path in [source, *source.rglob("*"), shared, *shared.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def _give(folders: tuple[Path, ...], uid: int) -> None:
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, uid, uid, follow_symlinks=False)


def _explained(error: ApiError, notes: dict[str, str]) -> ApiError:
    """The same with what kept the build from the hosts that it asked for."""
    told: Any = error.details
    errors = told["errors"] if told else [{"message": error.message}]
    return _failed([*errors, *({"message": f"{name}: {why}"} for name, why in notes.items())][:50])


def _check_graph(raw: bytes, seen: Path) -> ApiError | None:
    """Refuses a module that is a file outside of the sources, whatever Deno would read. Gives what
    is wrong with a module otherwise: the check says it better, where it finds it too."""
    try:
        graph = orjson.loads(raw)
    except ValueError:
        raise refused("The imports could not be resolved.") from None
    inside = (f"file://{seen}/src/", f"file://{seen}/_shared/")
    wrong = None
    for module in graph.get("modules", ()):
        specifier = str(module.get("specifier", ""))
        if specifier.startswith("file:") and not specifier.startswith(inside):
            where = unquote(urlsplit(specifier).path)
            raise refused(
                f"An import leads out of the function's folder and of _shared: {where[:200]}"
            )
        if "error" in module and wrong is None:
            message = _without(str(module["error"]), seen / "src")[:2000]
            wrong = _failed([{"message": message}])
    return wrong


def leads_out(code: bytes, seen: Path) -> bool:
    """Whether a bundle has a file from outside the build's folder: the bundler works out names that
    no graph of the imports has. Each file is in the map, or named by a comment above its code."""
    body, mark, encoded = code.rpartition(MAP)
    names = [found.decode("utf-8", "replace") for found in NAMED.findall(body)]
    names = [name for name in names if os.path.exists(seen / "src" / name)]
    if mark:
        with contextlib.suppress(ValueError, binascii.Error):
            sources = orjson.loads(base64.b64decode(encoded.strip())).get("sources", ())
            names += [str(seen / "out" / str(name).removeprefix("file://")) for name in sources
                      if "://" not in name or name.startswith("file://")]  # fmt: skip
    places = (os.path.normpath(seen / "src" / name) for name in names)
    return not all(place.startswith(f"{seen}/") for place in places)


def failure(text: str, source: Path) -> ApiError:
    """Deno's messages as file, line, column and reason."""

    def at(file: str, line: str, column: str) -> dict[str, Any]:
        return {"file": unquote(_without(file, source)), "line": int(line),
                "column": int(column)}  # fmt: skip

    found: list[dict[str, Any]] = []
    parts = TYPE_ERROR.split(text)  # text before the first, then code and text in turn
    for code, told in zip(parts[1::2], parts[2::2], strict=True):
        place = PLACE.search(told)
        if place is None:  # a note to the one before, about a file that is not of the sources
            continue
        marked = MARKED.search(told)
        message = told[: marked.start() if marked is not None else place.start()]
        message = BARE.sub(_bare, _without(message, source).strip())[:2000]
        found.append({"code": code, "message": message, **at(*place.groups())})
    if not found:
        for message, file, line, column in PARSE_ERROR.findall(text):
            found.append({"message": message.strip()[:2000], **at(file, line, column)})
    if not found:
        for match in PLAIN_ERROR.finditer(text):
            message = NOT_ALLOWED.sub(_not_allowed, _without(match["text"], source).strip())
            message = BARE.sub(_bare, message)
            causes = [CAUSE.sub("", line) for line in match["causes"].splitlines() if line]
            if causes and causes[-1] not in message:
                message = f"{message} {causes[-1]}"
            one: dict[str, Any] = {"message": message[:2000]}
            if match["file"]:
                one |= at(match["file"], match["line"], match["column"])
            found.append(one)
    if any(one.get("file", "").startswith("file:") for one in found):  # it may show what is there
        return refused(LEADS_OUT)
    if len(found) > 1:
        found = [one for one in found if one["message"] != "bundling failed"]
    if "out of memory" in text.lower():
        found = [{"message": "The build used more memory than it may."}]
    if not found:
        found = [{"message": _without(text.strip(), source)[-2000:] or "Deno ended early."}]
    return _failed(found[:50])


def _bare(match: re.Match[str]) -> str:
    name = match[1]
    return f'Import "{name}" is no address: write "npm:{name}", or name it in imports of deno.json.'


def _without(text: str, source: Path) -> str:
    """Names of files as they were uploaded."""
    return text.replace(f"file://{source}/", "").replace(f"file://{source.parent}/", "../")


def _not_allowed(found: re.Match[str]) -> str:
    hosts = ", ".join(host.removesuffix(":443") for host in import_hosts())
    return f"Modules come from npm:, jsr: and {hosts}, not from {found[1].removesuffix(':443')}."


def _failed(errors: list[dict[str, Any]]) -> ApiError:
    lines = []
    for error in errors[:SHOWN]:
        place = "".join(f"{error[part]}:" for part in ("file", "line", "column") if part in error)
        lines.append(f"{place} {error['message']}".strip())
    if len(errors) > SHOWN:
        lines.append(f"and {len(errors) - SHOWN} more")
    return ApiError(400, "build_failed", "\n".join(lines), details={"errors": errors})


def not_loaded(text: str, entrypoint: str) -> ApiError:
    """The refusal of a module that loads with an error, or without a handler. text: what boot.js
    told, with a stack whose first place is taken."""
    place = STACK.search(text)
    at: dict[str, Any] = {"file": entrypoint}
    if place is not None:
        at = {"file": place[1], "line": int(place[2]), "column": int(place[3])}
        text = STACK.sub("", text)
    return _failed([{**at, "message": text.strip()[:2000]}])


def compacted(code: bytes, out: Path, source: Path) -> bytes:
    """The module with a source map that names the sources as they were uploaded, and without a
    copy of their text."""
    body, mark, encoded = code.rpartition(MAP)
    if not mark:
        return code
    try:
        found = orjson.loads(base64.b64decode(encoded.strip()))
    except (ValueError, binascii.Error):
        return body
    found.pop("sourcesContent", None)
    found["sources"] = [_source(str(name), out, source) for name in found.get("sources", ())]
    return body + MAP + base64.b64encode(orjson.dumps(found)) + b"\n"


def _source(name: str, out: Path, source: Path) -> str:
    if "://" in name and not name.startswith("file://"):
        return name
    path = os.path.normpath(out / name.removeprefix("file://"))
    if path.startswith(f"{source}/"):
        return path.removeprefix(f"{source}/")
    if path.startswith(f"{source.parent}/_shared/"):
        return "../" + path.removeprefix(f"{source.parent}/")
    return path.rpartition("/npm/")[2] or path

"""Work that takes long, one piece at a time, kept in the control database: who asked sees how far
it is, and what a crash interrupts is known. Also plans the nightly backups and ends old ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import traceback
from collections.abc import Iterable
from typing import Any

import msgspec
import psycopg

from ichicore.errors import ApiError
from server.backup import archive, restore
from server.backup.archive import MANIFEST, PROJECT, BackupError, Kept, Reader
from server.backup.documents import DocumentsError
from server.backup.files import FilesError
from server.backup.seal import SealError
from server.backup.store import FULL, Store, StoreError, open_store
from server.backup.tools import ToolError
from server.base.events import Events, Failed, Noted
from server.base.metrics import Labels, Metrics
from server.control.database import fetch
from server.control.lifecycle import owe
from server.control.projects import Busy, Projects, audit
from server.control.records import Record

TOLD_SECONDS = 0.3  # between writings of a job's progress
WAIT_SECONDS = 30.0  # between looks for jobs that nobody told of
RETRY_SECONDS = 2.0  # between looks while the control database is away
RETRIES = 3  # of a nightly backup that fails, before its next turn
RETRY_HOURS = 1
LEAST_KEY = 16  # characters
KNOWN = (
    BackupError, StoreError, FilesError, ToolError, SealError, DocumentsError, ApiError,
    psycopg.Error,
)  # fmt: skip

TAKE = """update jobs set state = 'running', started_at = now()
  where id = (select id from jobs where state = 'queued' order by id limit 1)
  returning id, kind, project, args, actor"""
LAST = """select project_id, max(started_at) filter (where state in ('done', 'running')),
    count(*) filter (where state = 'failed' and kind = 'nightly'
      and started_at > now() - interval '1 day'),
    max(started_at) filter (where state = 'failed')
  from backups group by 1"""
EXPIRED = """select id, project_id from backups b where state in ('done', 'failed')
  and keep_until < now() and (state = 'failed' or b.id <> coalesce((
    select n.id from backups n where n.project_id = b.project_id and n.state = 'done'
      and exists (select from projects p where p.id = n.project_id)
    order by n.started_at desc limit 1), ''))"""


def turn(project_id: str, hours: float, now: float) -> float:
    """When the project's present turn began, epoch seconds: the projects are spread evenly over
    the period."""
    period = hours * 3600
    digest = hashlib.blake2b(project_id.encode(), digest_size=8).digest()
    offset = int.from_bytes(digest, "big") / 2**64 * period
    return (now - offset) // period * period + offset


class Jobs:
    """The leader's queue. One process runs it at a time."""

    def __init__(self, projects: Projects, events: Events, metrics: Metrics) -> None:
        self.projects = projects
        self.config = projects.config
        self.events = events
        self.metrics = metrics
        self.ages: dict[str, float] = {}  # slug > when its newest backup was begun, epoch seconds
        self._event = asyncio.Event()
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = open_store(self.config.backup_url, self.config.data_dir)
        return self._store

    @property
    def passphrase(self) -> str | None:
        """Read each time, so that a changed file counts at once. BackupError for one that is gone
        or was emptied: nothing is written without a key where one is set."""
        path = self.config.backup_key_file
        if path is None:
            return None
        code = "backup_key_unusable"
        try:
            text = path.read_text().strip()
        except OSError as error:
            raise BackupError(f"cannot read backup_key_file: {error.strerror}", code) from None
        except UnicodeDecodeError:
            raise BackupError("backup_key_file is not text", code) from None
        if len(text) < LEAST_KEY:
            raise BackupError(f"backup_key_file has fewer than {LEAST_KEY} characters", code)
        return text

    def wake(self) -> None:
        """There may be a job."""
        self._event.set()

    # Planning

    async def plan(self) -> None:
        """Queues the backups whose turn has come, and removes those whose time is over."""
        records = await self.projects.all()
        async with self.projects.control() as control:
            last = {r[0]: r[1:] for r in await fetch(control, LAST)}
            queued = {r[0] for r in await fetch(
                control,
                "select project from jobs where kind = 'backup' and state in ('queued', 'running')",
            )}  # fmt: skip
            now = time.time()
            for record in records:
                hours = self.projects.limits(record).backup_hours
                done, failures, failed = last.get(record.id, (None, 0, None))
                if done is not None:
                    self.ages[record.slug] = done.timestamp()
                if not hours or record.slug in queued:
                    continue
                if self._due(record, hours, now, done, failures, failed):
                    await enqueue(control, "backup", record.slug, {"kind": "nightly"}, "node")
            self.ages = {r.slug: self.ages[r.slug] for r in records if r.slug in self.ages}
            expired = await fetch(control, EXPIRED)
            failures = 0
            for backup_id, project_id in expired:
                try:
                    await self.store.remove(archive.folder(project_id, backup_id))
                except StoreError as error:  # it is tried again with the next look
                    failures += 1
                    if failures >= RETRIES:
                        raise
                    self.events.emit(Noted("a backup whose time is over stays", str(error)))
                    continue
                await control.execute("delete from backups where id = $1", (backup_id,))

    @staticmethod
    def _due(
        record: Record, hours: float, now: float, done: Any, failures: int, failed: Any
    ) -> bool:
        begun = turn(record.id, hours, now)
        state_at = _seconds(record.state_at)
        since = done.timestamp() if done is not None else None
        if since is None and begun < _seconds(record.created_at):
            return False  # its first turn is yet to come
        if since is not None and since >= begun:
            return False
        if record.state == "sleeping" and since is not None and since > state_at:
            return False  # nothing has changed since
        if failures and failed is not None:
            return failures < RETRIES and now - failed.timestamp() > RETRY_HOURS * 3600
        return True

    # Running

    async def run(self) -> None:
        """Until cancelled."""
        recovered = False
        while True:
            self._event.clear()
            try:
                if not recovered:
                    await self.recover()
                    recovered = True
                if await self.once():
                    continue
                pause = WAIT_SECONDS
            except KNOWN as error:  # the control database is away
                self.events.emit(Noted("jobs wait", str(error).strip()[:300]))
                pause = RETRY_SECONDS
                recovered = False  # a job's end may not have been written down
            try:
                async with asyncio.timeout(pause):
                    await self._event.wait()
            except TimeoutError:
                pass

    async def recover(self) -> None:
        """What a process that died was doing has failed, and leaves nothing behind."""
        async with self.projects.control() as control:
            jobs = await fetch(
                control,
                "update jobs set state = 'failed', error = 'interrupted', code = 'interrupted', "
                "finished_at = now() where state = 'running' "
                "returning kind, coalesce(args ->> 'into', project), (select b.project_id "
                "from backups b where b.id = args ->> 'backup' "
                f"and b.manifest -> 'files' ? '{archive.DOCUMENTS}')",
            )
            rows = await fetch(
                control,
                "update backups set state = 'failed', error = 'interrupted', code = 'interrupted', "
                "finished_at = now(), keep_until = now() + interval '3 days' "
                "where state = 'running' returning id, project_id",
            )
        for cluster in self.projects.clusters.values():
            await restore.clear(cluster)
        for backup_id, project_id in rows:
            try:
                await self.store.remove(archive.folder(project_id, backup_id))
            except StoreError as error:
                self.events.emit(Noted("an interrupted backup was not removed", str(error)))
        for kind, project, project_id in jobs:
            if kind == "restore" and project is not None:
                await self._clear_documents(project)
            elif kind == "verify" and project_id is not None:
                with contextlib.suppress(ApiError):  # else the next verification does
                    await restore.clear_documents(self.projects, project_id)

    async def _clear_documents(self, project: str) -> None:
        """What does not go now goes with the next restore."""
        with contextlib.suppress(ApiError, DocumentsError):
            await restore.abandon(self.projects, await self.projects.find(project))

    async def once(self) -> bool:
        """Takes and does one job; False when there is none."""
        async with self.projects.control() as control:
            rows = await fetch(control, TAKE)
        if not rows:
            return False
        job_id, kind, project, args, actor = rows[0]
        result, fault = None, None
        try:
            handler = getattr(self, f"_{kind}")
            result = await handler(job_id, project, args, actor)
        except asyncio.CancelledError as error:
            with contextlib.suppress(psycopg.Error, ApiError):  # else the next leader says so
                await self._finish(job_id, None, failure(error))
            raise
        except Exception as error:
            fault = failure(error)
            if fault[0] == "internal":
                self.events.emit(Failed(f"job {job_id} ({kind})", traceback.format_exc()))
        await self._finish(job_id, result, fault)
        if fault is not None:
            self.events.emit(Noted(f"{kind} of {project or args} failed", ": ".join(fault)[:500]))
        return True

    async def _finish(self, job_id: int, result: Any, fault: tuple[str, str] | None) -> None:
        text = None if result is None else msgspec.json.encode(result).decode()
        code, error = fault or (None, None)
        async with self.projects.control() as control:
            await control.execute(
                """update jobs set state = $2, result = $3::jsonb, error = $4, code = $5,
                finished_at = now() where id = $1""",
                (job_id, "failed" if fault else "done", text, error, code),
            )

    def _progress(self, job_id: int) -> archive.Progress:
        shown, last_step = 0.0, ""

        async def progress(step: str, done: int, total: int) -> None:
            nonlocal shown, last_step
            now = time.monotonic()
            if step == last_step and now - shown < TOLD_SECONDS:
                return
            shown, last_step = now, step
            async with self.projects.control() as control:
                await control.execute(
                    "update jobs set step = $2, done = $3, total = $4 where id = $1",
                    (job_id, step, done, total),
                )

        return progress

    async def _backup(self, job_id: int, project: str, args: dict[str, Any], actor: str) -> Any:
        record = await self.projects.find(project, deleted=True)
        kind = args.get("kind", "manual")
        backup_id = archive.new_id(record.slug)
        sealed = self.config.backup_key_file is not None
        days = self.projects.limits(record).backup_keep_days
        async with self.projects.control() as control:
            await control.execute(
                """insert into backups (id, project_id, project, kind, state, encrypted, keep_until)
                values ($1, $2, $3, $4, 'running', $5,
                  case when $4 = 'nightly' then now() + $6 * interval '1 day' end)""",
                (backup_id, record.id, record.slug, kind, sealed, days),
            )
        try:
            manifest = await archive.create(
                self.projects, record, self.store, self.passphrase, backup_id,
                self._progress(job_id),
            )  # fmt: skip
        except BaseException as error:
            self.metrics.count("ichibase_backups_total", (("outcome", "failed"),))
            code, text = failure(error)
            async with self.projects.control() as control:
                await control.execute(
                    """update backups set state = 'failed', error = $2, code = $3,
                    finished_at = now(), keep_until = now() + interval '3 days' where id = $1""",
                    (backup_id, text[:2000], code),
                )
            raise
        size = sum(file.bytes for file in manifest.files.values())
        text = msgspec.json.encode(manifest).decode()
        async with self.projects.control() as control:
            await control.execute(
                """update backups set state = 'done', finished_at = now(), bytes = $2,
                manifest = $3::jsonb where id = $1""",
                (backup_id, size, text),
            )
            await audit(control, actor, "backup.create", record.slug, {"backup": backup_id})
        self.metrics.count("ichibase_backups_total", (("outcome", "done"),))
        self.ages[record.slug] = time.time()
        return {"backup": backup_id, "bytes": size}

    async def _reader(self, backup_id: str) -> Reader:
        async with self.projects.control() as control:
            rows = await fetch(
                control, "select project_id from backups where id = $1 and state = 'done'",
                (backup_id,),
            )  # fmt: skip
        if not rows:
            raise BackupError(f"there is no backup {backup_id}", "backup_not_found")
        reader = Reader(self.store, rows[0][0], backup_id, self.passphrase)
        await reader.open()
        return reader

    async def _verify(self, job_id: int, project: str, args: dict[str, Any], actor: str) -> Any:
        reader = await self._reader(args["backup"])
        outcome = await restore.verify(self.projects, reader, self._progress(job_id))
        async with self.projects.control() as control:
            await control.execute(
                "update backups set verified_at = now() where id = $1", (args["backup"],)
            )
        return outcome

    async def _restore(self, job_id: int, project: str, args: dict[str, Any], actor: str) -> Any:
        reader = await self._reader(args["backup"])
        kept: Kept = await reader.text(PROJECT, Kept)
        into = args.get("into") or reader.manifest.project
        made = False
        try:
            record = await self.projects.find(into)
            if record.id != reader.manifest.project_id:
                raise BackupError(
                    f'"{into}" is another project than the one of the backup; say the name of a '
                    "project that does not exist yet",
                    "wrong_project",
                )
        except ApiError as error:
            if error.code != "project_not_found":
                raise
            record = await self._made(kept, into, actor)
            made = True
        try:
            outcome = await restore.into_project(
                self.projects, record, reader, self._progress(job_id), made=made,
                keep_sessions=args.get("keep_sessions", False),
            )  # fmt: skip
        except BaseException:
            if made:
                with contextlib.suppress(ApiError, psycopg.Error):  # else the maintenance ends it
                    await self.projects.delete(into, actor="node")
            raise
        async with self.projects.control() as control:
            detail = {"backup": args["backup"], "rows": outcome.rows}
            await audit(control, actor, "backup.restore", into, detail)
        return {"project": into, **msgspec.to_builtins(outcome)}

    async def _made(self, kept: Kept, into: str, actor: str) -> Record:
        """A new project as the backup knew it; under its old name with its old keys."""
        await self.projects.create(into, kept.flavor, kept.tier, actor=actor, owner=kept.owner)
        record = await self.projects.find(into)
        async with self.projects.control() as control, control.transaction():
            for section, value in kept.settings.items():
                await control.execute(
                    """insert into project_settings (project_id, section, value)
                    values ($1, $2, $3::jsonb)
                    on conflict (project_id, section) do update set value = excluded.value""",
                    (record.id, section, msgspec.json.encode(value).decode()),
                )
            await control.execute(
                "update projects set limits = $2::jsonb where id = $1",
                (record.id, msgspec.json.encode(kept.limits).decode()),
            )
            await owe(control, record.id)
            if into == kept.slug:
                await control.execute("delete from project_keys where project_id = $1",
                                      (record.id,))  # fmt: skip
                for key in kept.keys:
                    await control.execute(
                        """insert into project_keys (project_id, kid, algorithm, secret, current)
                        values ($1, $2, $3, $4, $5)""",
                        (record.id, key["kid"], key["algorithm"], key["secret"], key["current"]),
                    )
                await control.execute(
                    "update projects set anon_key = $2, service_key = $3 where id = $1",
                    (record.id, kept.anon_key, kept.service_key),
                )
        return await self.projects.find(into)

    async def _remove(self, job_id: int, project: str, args: dict[str, Any], actor: str) -> Any:
        async with self.projects.control() as control:
            rows = await fetch(
                control, "select project_id, project from backups where id = $1 "
                "and state <> 'running'", (args["backup"],),
            )  # fmt: skip
            if not rows:
                raise BackupError(f"there is no backup {args['backup']}", "backup_not_found")
            await self.store.remove(archive.folder(rows[0][0], args["backup"]))
            await control.execute("delete from backups where id = $1", (args["backup"],))
            await audit(control, actor, "backup.delete", rows[0][1], {"backup": args["backup"]})
        return {"backup": args["backup"]}

    async def _scan(self, job_id: int, project: str, args: dict[str, Any], actor: str) -> Any:
        """Learns of backups in the store that this control database does not know. unusable: those
        that are damaged or need another key, with the reason."""
        found, unusable = [], []
        for name in await self.store.names(""):
            parts = name.split("/")
            if len(parts) != 3 or parts[2] != MANIFEST:
                continue
            reader = Reader(self.store, parts[0], parts[1], self.passphrase)
            try:
                manifest = await reader.open()
            except (BackupError, StoreError) as error:
                self.events.emit(Noted("a backup in the store cannot be used", str(error)))
                unusable.append({"backup": parts[1], "code": error.code, "error": str(error)})
                continue
            size = sum(file.bytes for file in manifest.files.values())
            async with self.projects.control() as control:
                rows = await fetch(
                    control,
                    """insert into backups (id, project_id, project, kind, state, encrypted, bytes,
                      manifest, started_at, finished_at)
                    values ($1, $2, $3, 'manual', 'done', $4, $5, $6::jsonb, $7::timestamptz,
                      $7::timestamptz)
                    on conflict (id) do nothing returning id""",
                    (manifest.backup, manifest.project_id, manifest.project,
                     manifest.salt is not None, size, msgspec.json.encode(manifest).decode(),
                     manifest.created_at),
                )  # fmt: skip
            found += [row[0] for row in rows]
        return {"found": found, "unusable": unusable}

    def gauges(self) -> Iterable[tuple[str, Labels, float]]:
        now = time.time()
        for slug, begun in self.ages.items():
            yield "ichibase_backup_age_seconds", (("project", slug),), round(now - begun)


def failure(error: BaseException) -> tuple[str, str]:
    """Code and text of what ended a job. The code is "internal" for what must not happen."""
    if isinstance(error, asyncio.CancelledError):
        return "interrupted", "interrupted"
    text = str(error).strip() or type(error).__name__
    if isinstance(error, Busy):
        return "project_busy", text
    if isinstance(error, psycopg.Error):
        return "database_failed", text
    if isinstance(error, OSError) and error.errno in FULL:
        return "insufficient_storage", f"the node's disk is full: {error.strerror}"
    if isinstance(error, KNOWN):
        return str(error.code), text  # type: ignore[union-attr]
    return "internal", f"internal: {type(error).__name__}"


async def enqueue(
    control: Any, kind: str, project: str | None, args: dict[str, Any], actor: str
) -> int:
    """Puts a job at the end of the queue; its id."""
    rows = await fetch(
        control,
        "insert into jobs (kind, project, args, actor) values ($1, $2, $3::jsonb, $4) returning id",
        (kind, project, msgspec.json.encode(args).decode(), actor),
    )
    return int(rows[0][0])


def _seconds(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp()

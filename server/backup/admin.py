"""Admin routes of backups and of the jobs that make and use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ichicore.errors import ApiError
from server.backup.jobs import enqueue
from server.control.database import fetch
from server.control.routes import AdminRequest, AdminResponse, Router

if TYPE_CHECKING:
    from server.control.api import AdminApi

MOST = 1_000  # rows of one answer


class Backup(msgspec.Struct):
    """state: running, done or failed. bytes: in the store. code, error: of a failure, for programs
    and for people. keep_until: None for ever."""

    id: str
    project: str
    kind: str
    state: str
    encrypted: bool
    bytes: int
    code: str | None
    error: str | None
    started_at: str
    finished_at: str | None
    verified_at: str | None
    keep_until: str | None


class Job(msgspec.Struct):
    """state: queued, running, done or failed. step: what it is doing; done of total bytes, total
    0 when it is not known. code, error: of a failure, for programs and for people."""

    id: int
    kind: str
    project: str | None
    state: str
    step: str
    done: int
    total: int
    result: dict[str, Any] | None
    code: str | None
    error: str | None
    created_at: str
    finished_at: str | None


class Restore(msgspec.Struct, forbid_unknown_fields=True):
    """into: a new project's name; without it, the project that the backup is of. keep_sessions:
    users stay signed in whose sessions nobody has ended since the backup."""

    into: str | None = None
    keep_sessions: bool = False


SELECT = """select id, project, kind, state, encrypted, bytes, code, error, started_at::text,
  finished_at::text, verified_at::text, keep_until::text from backups"""
JOB = """select id, kind, project, state, step, done, total, result, code, error, created_at::text,
  finished_at::text from jobs"""


class Backups:
    def __init__(self, api: AdminApi) -> None:
        self.projects = api.projects

    async def list(self, request: AdminRequest) -> AdminResponse:
        project = request.query.get("project")
        async with self.projects.control() as control:
            rows = await fetch(
                control,
                f"{SELECT} where $1::text is null or project = $1 "
                f"order by started_at desc limit {MOST}",
                (project,),
            )
        return AdminResponse(value=[Backup(*row) for row in rows])

    async def create(self, request: AdminRequest) -> AdminResponse:
        record = await self.projects.find(request.params["project"])
        return await self._queued("backup", record.slug, {"kind": "manual"})

    async def restore(self, request: AdminRequest) -> AdminResponse:
        from server.control.projects import check_slug

        wanted = request.decode(Restore)
        if wanted.into is not None:
            check_slug(wanted.into)
        found = await self._known(request)
        return await self._queued("restore", wanted.into or found.project,
                                  {"backup": found.id, "into": wanted.into,
                                   "keep_sessions": wanted.keep_sessions})  # fmt: skip

    async def verify(self, request: AdminRequest) -> AdminResponse:
        found = await self._known(request)
        return await self._queued("verify", found.project, {"backup": found.id})

    async def remove(self, request: AdminRequest) -> AdminResponse:
        found = await self._known(request)
        return await self._queued("remove", found.project, {"backup": found.id})

    async def scan(self, request: AdminRequest) -> AdminResponse:
        return await self._queued("scan", None, {})

    async def jobs(self, request: AdminRequest) -> AdminResponse:
        async with self.projects.control() as control:
            rows = await fetch(control, f"{JOB} order by id desc limit 200")
        return AdminResponse(value=[Job(*row) for row in rows])

    async def job(self, request: AdminRequest) -> AdminResponse:
        text = request.params["job"]
        rows = []
        if text.isdecimal() and text.isascii() and len(text) < 19:
            async with self.projects.control() as control:
                rows = await fetch(control, f"{JOB} where id = $1", (int(text),))
        if not rows:
            raise ApiError(404, "job_not_found", "There is no such job.")
        return AdminResponse(value=Job(*rows[0]))

    async def _known(self, request: AdminRequest) -> Backup:
        name = request.params["backup"]
        rows = []
        if "\0" not in name and name.isascii():
            async with self.projects.control() as control:
                rows = await fetch(control, f"{SELECT} where id = $1", (name,))
        if not rows:
            raise ApiError(404, "backup_not_found", f'There is no backup "{name}".')
        found = Backup(*rows[0])
        if found.state == "running":
            raise ApiError(409, "backup_running", "The backup is still being made.")
        return found

    async def _queued(self, kind: str, project: str | None, args: dict[str, Any]) -> AdminResponse:
        async with self.projects.control() as control:
            job_id = await enqueue(control, kind, project, args, "admin")
            rows = await fetch(control, f"{JOB} where id = $1", (job_id,))
        return AdminResponse(202, Job(*rows[0]))


def register(router: Router, api: AdminApi) -> None:
    backups = Backups(api)
    one = "/admin/v1/backups/{backup}"
    router.add("GET", "/admin/v1/backups", backups.list, "Backups, newest first (?project=)",
               result=list[Backup])  # fmt: skip
    router.add("POST", "/admin/v1/projects/{project}/backups", backups.create,
               "Back a project up", result=Job)  # fmt: skip
    router.add("POST", "/admin/v1/backups/scan", backups.scan,
               "Learn of backups in the store that are not known", result=Job)  # fmt: skip
    router.add("POST", f"{one}/restore", backups.restore,
               "Restore into the same project or a new one", body=Restore, result=Job)  # fmt: skip
    router.add("POST", f"{one}/verify", backups.verify,
               "Restore a backup into a scratch database and compare it", result=Job)  # fmt: skip
    router.add("DELETE", one, backups.remove, "Delete a backup", result=Job)
    router.add("GET", "/admin/v1/jobs", backups.jobs, "Jobs, newest first", result=list[Job])
    router.add("GET", "/admin/v1/jobs/{job}", backups.job, "How far a job is", result=Job)

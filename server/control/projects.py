"""Life of projects: created, listed, removed; each step survives a crash and a race.

A project's row is written first, in state `creating`, with all its secrets; then its part of the
cluster is made; then the row becomes `active`. Removal marks the row `removing`, drops the
database and the roles, then the row. `recover` runs at start and finishes what was interrupted. An
advisory lock per project keeps two processes from working on the same one. The other states are in
server/control/lifecycle.py.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, get_args

import msgspec
import psycopg

from ichicore.errors import ApiError
from server.base.context import NodeConfig
from server.base.limits import TIERS, Limits
from server.base.limits import of as limits_of
from server.base.migrations import apply_async
from server.base.project import Flavor, Project
from server.control import files, owners, provision, records, secrets
from server.control.auditing import audit as audit
from server.control.database import Cluster, Connection, connect, fetch, run
from server.control.owners import LOCAL_OWNER
from server.control.records import Record
from server.mongo.provision import Documents, new_address

SLUG = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?")
RESERVED = frozenset({"www", "api", "admin", "cdn", "localhost", "ichibase", "status", "mail"})

BUSY_SECONDS = 3  # to wait for who works on a project that is to be finished
OWED = "select p.id, p.slug from duties d join projects p on p.id = d.project_id order by 1"

Hook = Callable[[Project], Awaitable[None]]


def check_slug(slug: str) -> None:
    """The slug becomes a DNS label: lower-case letters, digits and inner hyphens, at most 40."""
    if not SLUG.fullmatch(slug):
        raise ApiError(
            400,
            "invalid_name",
            "A project's name is 1 to 40 lower-case letters, digits and hyphens, begins with a "
            "letter and does not end with a hyphen.",
        )
    if "--" in slug:
        raise ApiError(400, "invalid_name", "A project's name has no two hyphens in a row.")
    if slug in RESERVED:
        raise ApiError(400, "invalid_name", f'The name "{slug}" is reserved; choose another one.')


class Projects:
    """The control database's projects. dsn: of the control role. clusters: by id. documents: the
    document server, None where there is none.

    on_create and on_delete: called with the project, after its database is made and before it is
    removed; they may be called again after a crash.
    """

    def __init__(
        self,
        dsn: str,
        clusters: dict[str, Cluster],
        config: NodeConfig,
        documents: Documents | None = None,
    ) -> None:
        self.documents = documents
        self.dsn = dsn
        self.patience: float | None = None
        self.clusters = clusters
        self.config = config
        self.on_create: list[Hook] = []
        self.on_delete: list[Hook] = []

    def hurried(self, seconds: float) -> Projects:
        """The same for somebody who waits no longer than this for a lock on one of them: Busy, or
        psycopg.errors.LockNotAvailable. What a change still owes the cluster is then left to
        `recover`."""
        made = copy.copy(self)
        made.patience = seconds
        return made

    @asynccontextmanager
    async def control(self) -> AsyncIterator[Connection]:
        """A connection to the control database; 503 when it is away."""
        try:
            connection = await connect(self.dsn)
        except psycopg.OperationalError:
            raise away() from None
        async with connection:
            if self.patience is not None:
                await run(connection, f"set lock_timeout = '{self.patience * 1000:.0f}ms'")
            yield connection

    async def all(self, *, deleted: bool = False) -> list[Record]:
        """All projects that have a host, by name; `deleted`: and those deleted but still kept."""
        statement = records.SELECT_KEPT if deleted else records.SELECT_ACTIVE
        async with self.control() as control:
            return [records.read(row[0]) for row in await fetch(control, statement)]

    async def find(self, slug: str, *, deleted: bool = False) -> Record:
        """One project that has a host; 404 project_not_found otherwise. `deleted`: also one that
        was deleted and is still kept."""
        statement = records.SELECT_KEPT_ONE if deleted else records.SELECT_ONE
        if not SLUG.fullmatch(slug):
            raise unknown(slug)
        async with self.control() as control:
            rows = await fetch(control, statement, (slug,))
        if not rows:
            raise unknown(slug)
        return records.read(rows[0][0])

    def limits(self, record: Record) -> Limits:
        """What the project may use."""
        return limits_of(self.config.tiers, record.tier, record.limits)

    async def create(
        self,
        slug: str,
        flavor: str = "postgres",
        tier: str = "pro",
        actor: str = "node",
        owner: str = LOCAL_OWNER,
    ) -> Record:
        """Make a project and wait until it can be used. 409 when the name is taken, 403 when the
        owner has as many projects as the tier allows. An owner that is not known is made."""
        check_slug(slug)
        owners.check_name(owner)
        if flavor not in get_args(Flavor):
            raise ApiError(400, "invalid_flavor", "The flavor is postgres, mongo or both.")
        if tier not in TIERS:
            raise ApiError(400, "invalid_tier", f"The tier is one of {', '.join(TIERS)}.")
        owners.check_flavor(flavor, tier, self.config.tiers[tier].flavors)
        cluster = next(iter(self.clusters.values()))
        project_id = secrets.new_id()
        async with self.control() as control, locked(control, project_id):
            try:
                await self._insert(
                    control, project_id, slug, flavor, tier, cluster.id, actor, owner
                )
            except psycopg.errors.UniqueViolation:
                raise ApiError(
                    409, "project_exists", f'There is a project "{slug}" already.'
                ) from None
            try:
                await self._complete(control, project_id)
            except Exception as error:
                await self._give_up(project_id, actor, error)
                raise
        return await self.find(slug)

    async def ensure(self, slug: str, flavor: str) -> bool:
        """Make the project unless there is one. True when it was made now."""
        try:
            await self.create(slug, flavor)
        except ApiError as error:
            if error.code != "project_exists":
                raise
            return False
        return True

    async def delete(self, slug: str, actor: str = "node", *, due: bool = False) -> None:
        """Remove a project with all its data, at once and for ever. due: only one that has been
        deleted and whose time is over, which somebody may bring back at this moment. 404
        project_not_found."""
        if not SLUG.fullmatch(slug):
            raise unknown(slug)
        async with self.control() as control:
            async with control.transaction():
                found = await fetch(
                    control,
                    """update projects set state = 'removing' where slug = $1
                    and case when $2 then state = 'deleting' and delete_at <= now()
                      else state in ('active', 'sleeping', 'suspended', 'deleting') end
                    returning id""",
                    (slug, due),
                )
                if not found:
                    raise unknown(slug)
                await audit(control, actor, "project.remove", slug)
            project_id = found[0][0]
            async with locked(control, project_id):
                await self._complete(control, project_id)

    async def recover(self) -> dict[str, str | None]:
        """Finish every creation, removal and change of state that a crash interrupted. Gives what
        stands in the way, by name; None where nothing does. One that another process is working on
        is left to it."""
        outcome: dict[str, str | None] = {}
        async with self.control() as control:
            await run(control, f"set lock_timeout = '{BUSY_SECONDS}s'")
            for project_id, slug in await fetch(control, OWED):
                try:
                    await self.settle(control, project_id)
                except Exception as error:
                    outcome[slug] = _said(error)
            rows = await fetch(control, records.SELECT_UNFINISHED)
            for record in [records.read(row[0]) for row in rows]:
                outcome.setdefault(record.slug, None)
                try:
                    async with locked(control, record.id):
                        await self._complete(control, record.id)
                except Exception as error:
                    outcome[record.slug] = _said(error)
        return outcome

    async def ensure_documents(self) -> None:
        """Finish what had to wait for the document server: creations, deletions, logins."""
        if self.documents is None:
            return
        await self.recover()
        kept = [r.mongo_url for r in await self.all() if r.mongo_url and r.flavor != "postgres"]
        await self.documents.ensure(kept)

    async def add_documents(self, slug: str, actor: str = "node") -> Record:
        """Give a project of tables documents as well. 409 when it has them."""
        record = await self.find(slug)
        if self.documents is None:
            raise no_documents()
        if record.flavor != "postgres":
            raise ApiError(409, "conflict", f'The project "{slug}" has documents already.')
        owners.check_flavor("both", record.tier, self.limits(record).flavors)
        kept = new_address(record.id, secrets.new_password())
        async with self.control() as control, locked(control, record.id):
            # Noted before it is made: a removal then takes it along, whatever happens here.
            rows = await fetch(
                control,
                """update projects set mongo_url = coalesce(mongo_url, $2) where id = $1
                and flavor = 'postgres' and state in ('active', 'sleeping', 'suspended')
                returning mongo_url""",
                (record.id, kept),
            )
            if not rows:
                raise ApiError(409, "conflict", "The project has just been changed.")
            await self.documents.provision(rows[0][0])
            async with control.transaction():
                done = await control.execute(
                    """update projects set flavor = 'both' where id = $1 and flavor = 'postgres'
                    and state in ('active', 'sleeping', 'suspended')""",
                    (record.id,),
                )
                if done.rowcount == 0:
                    raise ApiError(409, "conflict", "The project has just been changed.")
                await audit(control, actor, "project.documents", slug)
        return await self.find(slug)

    async def put_settings(
        self, slug: str, section: str, value: dict[str, Any], actor: str = "node"
    ) -> None:
        """Replace one section of a project's settings. The value is checked by the caller."""
        text = msgspec.json.encode(value).decode()
        async with self.control() as control, control.transaction():
            done = await control.execute(
                """insert into project_settings (project_id, section, value)
                select id, $2, $3::jsonb from projects where slug = $1
                  and state in ('active', 'sleeping', 'suspended')
                on conflict (project_id, section)
                do update set value = excluded.value, changed_at = now()""",
                (slug, section, text),
            )
            if done.rowcount == 0:
                raise unknown(slug)
            await audit(control, actor, "settings.put", slug, {"section": section})

    async def _insert(
        self,
        control: Connection,
        project_id: str,
        slug: str,
        flavor: str,
        tier: str,
        cluster_id: str,
        actor: str,
        owner: str,
    ) -> None:
        key = secrets.new_signing_key()
        url = records.project_url(slug, self.config)
        passwords = [secrets.new_password() for _ in range(5)]
        keys = [secrets.project_key(slug, url, role, key) for role in ("anon", "service_role")]
        values = (project_id, slug, owner, cluster_id, flavor, tier, f"ichi_{project_id}")
        mongo = new_address(project_id, secrets.new_password()) if flavor != "postgres" else None
        async with control.transaction():
            await owners.reserve(control, owner, tier, self.config.tiers[tier].projects, actor)
            await control.execute(
                """insert into projects (id, slug, owner_id, cluster_id, flavor, tier, state,
                  database, owner_password, authenticator_password, system_password,
                  storage_secret, feed_password, anon_key, service_key, mongo_url)
                values ($1, $2, (select id from owners where name = $3), $4, $5, $6, 'creating',
                  $7, $8, $9, $10, $11, $12, $13, $14, $15)""",
                (*values, *passwords, *keys, mongo),
            )
            await control.execute(
                """insert into project_keys (project_id, kid, algorithm, secret, current)
                values ($1, $2, $3, $4, true)""",
                (project_id, key.kid, key.algorithm, key.secret),
            )
            await audit(
                control, actor, "project.create", slug,
                {"flavor": flavor, "tier": tier, "owner": owner},
            )  # fmt: skip

    def cluster(self, record: Record) -> Cluster:
        """Where the project lives; ApiError 503 when this node does not reach it."""
        cluster = self.clusters.get(record.cluster_id)
        if cluster is None:
            raise ApiError(
                503,
                "cluster_unavailable",
                f'The project "{record.slug}" lives on cluster "{record.cluster_id}", which this '
                "node does not reach.",
            )
        return cluster

    async def follow(self, control: Connection, project_id: str) -> None:
        """`settle`, which who is in a hurry leaves to `recover` while somebody else works on the
        project."""
        try:
            await self.settle(control, project_id)
        except psycopg.errors.LockNotAvailable:
            if self.patience is None:
                raise

    async def settle(self, control: Connection, project_id: str) -> None:
        """Do to the cluster what the last change of the project's state or limits asks for."""
        async with locked(control, project_id):
            rows = await fetch(control, records.SELECT_BY_ID, (project_id,))
            duty = "select xmin::text from duties where project_id = $1"
            marks = await fetch(control, duty, (project_id,))
            if not rows or not marks:
                return
            record = records.read(rows[0][0])
            if record.state not in ("creating", "removing"):
                await provision.settle(self.cluster(record), record, self.limits(record))
            # A change that came meanwhile has put down a duty of its own.
            await control.execute(
                "delete from duties where project_id = $1 and xmin::text = $2",
                (project_id, marks[0][0]),
            )

    async def _give_up(self, project_id: str, actor: str, error: Exception) -> None:
        """Take back a creation that failed. Where that fails too, the next start does it."""
        with contextlib.suppress(Exception):
            async with self.control() as control:
                async with control.transaction():
                    rows = await fetch(
                        control,
                        "update projects set state = 'removing' where id = $1 returning slug",
                        (project_id,),
                    )
                    detail = {"error": (str(error).strip() or type(error).__name__)[:500]}
                    for (slug,) in rows:
                        await audit(control, actor, "project.create_failed", slug, detail)
                await self._complete(control, project_id)

    async def _complete(self, control: Connection, project_id: str) -> None:
        """Go on from wherever the project's row stands; the project's lock is held."""
        rows = await fetch(control, records.SELECT_BY_ID, (project_id,))
        if not rows:
            return
        record = records.read(rows[0][0])
        cluster = self.cluster(record)
        project = records.to_project(record, self.config)
        if record.state == "creating":
            await provision.provision(cluster, record, self.limits(record))
            await migrate(project)
            if self.documents is not None:
                await self.documents.provision(record.mongo_url)
            for hook in self.on_create:
                await hook(project)
            await self._made(control, record)
        elif record.state == "removing":
            for hook in self.on_delete:
                await hook(project)
            await files.drop(self.config, project_id)
            if self.documents is not None:
                await self.documents.remove(record.mongo_url)
            await provision.remove(cluster, record)
            await control.execute("delete from projects where id = $1", (project_id,))

    async def _made(self, control: Connection, record: Record) -> None:
        """It is served from now on, unless its owner was suspended meanwhile."""
        async with control.transaction():
            suspended = await owners.suspended(control, record.owner)
            state, reason = ("suspended", "owner") if suspended else ("active", None)
            await control.execute(
                "update projects set state = $2, reason = $3, provisioned = $4 where id = $1",
                (record.id, state, reason, provision.VERSION),
            )
            if suspended:
                await audit(control, "node", "project.suspend", record.slug, {"reason": "owner"})
                await owe(control, record.id)
        if suspended:
            await self.settle(control, record.id)


async def migrate(project: Project) -> None:
    """What an app's own SQL may refer to before anybody has made a request: users, files,
    messages."""
    if project.system_dsn is None:
        return
    schemas = [("server.auth", "auth"), ("server.storage", "storage")]
    if project.feed_dsn is not None:
        schemas.append(("server.realtime", "realtime"))
    await apply_async(project.system_dsn, *schemas)


class Busy(psycopg.errors.LockNotAvailable):
    """Somebody else works on a project, for longer than one waits."""


@asynccontextmanager
async def locked(control: Connection, project_id: str) -> AsyncIterator[None]:
    """A session lock: the server lets go of it when this process dies. Busy."""
    key = f"ichibase project {project_id}"
    try:
        await fetch(control, "select pg_advisory_lock(hashtextextended($1, 0))", (key,))
    except psycopg.errors.LockNotAvailable:
        raise Busy("somebody else is at work on the project") from None
    try:
        yield
    finally:
        with contextlib.suppress(psycopg.OperationalError):  # a lost connection holds no lock
            await fetch(control, "select pg_advisory_unlock(hashtextextended($1, 0))", (key,))


def _said(error: Exception) -> str:
    """What stood in the way, for the log."""
    text = str(error).strip()
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return "somebody else has a lock that it needs"
    known = isinstance(error, psycopg.Error | ApiError)
    return text if known else f"{type(error).__name__}: {text}"


async def owe(control: Connection, project_id: str) -> None:
    """Put down that the cluster has to follow a change."""
    await control.execute(
        """insert into duties (project_id) values ($1)
        on conflict (project_id) do update set since = now()""",
        (project_id,),
    )


def no_documents() -> ApiError:
    return ApiError(
        409, "mongo_not_available",
        "This node has no document server: install SecantusDB or set mongo_url.",
    )  # fmt: skip


def unknown(slug: str) -> ApiError:
    return ApiError(404, "project_not_found", f'There is no project "{slug}".')


def away() -> ApiError:
    return ApiError(
        503,
        "unavailable",
        "The control database does not answer.",
        headers=(("retry-after", "2"),),
    )


def no_room() -> ApiError:
    return ApiError(507, "insufficient_storage", "The disk of the database server is full.")

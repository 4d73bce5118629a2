"""Reads projects out of the control database: the SQL and the decoding, for all who need them.

The workers' directory and the admin server read the same row and build the same `Project` from
it. Statements use $1 placeholders and answer one text column, so that any driver will do.
A change of a project is told on the channel CHANNEL of the control database, as the JSON text
{"topic": "project", "payload": {"slug": ..., "revision": ...}}.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from server.base.context import NodeConfig
from server.base.guarded import OPTIONS
from server.base.limits import of as limits_of
from server.base.project import AcceptedSecret, Flavor, Project, SigningKey, State
from server.mongo.address import of_project

VERSION = 9  # raised when projects made before lack something that provisioning makes

CHANNEL = "ichibase_bus"
TOPIC = "project"

_WORKERS = """json_build_object(
    'id', p.id, 'slug', p.slug, 'state', p.state, 'flavor', p.flavor, 'tier', p.tier,
    'read_only', p.read_only, 'reason', p.reason, 'state_at', p.state_at, 'delete_at', p.delete_at,
    'owner', (select o.name from owners o where o.id = p.owner_id),
    'cluster_id', p.cluster_id, 'created_at', p.created_at,
    'database', p.database, 'owner_password', p.owner_password,
    'authenticator_password', p.authenticator_password, 'system_password', p.system_password,
    'provisioned', p.provisioned, 'upgrade_fault', p.upgrade_fault,
    'storage_secret', p.storage_secret, 'storage_accepted', p.storage_accepted,
    'anon_key', p.anon_key, 'service_key', p.service_key,
    'mongo_url', p.mongo_url, 'revision', p.revision, 'limits', p.limits,
    'host', c.host, 'port', c.port, 'socket_dir', c.socket_dir, 'options', c.options,
    'keys', (select coalesce(json_agg(json_build_object('kid', k.kid, 'algorithm', k.algorithm,
        'secret', k.secret, 'current', k.current) order by k.current desc, k.created_at desc), '[]')
      from project_keys k where k.project_id = p.id),
    'settings', (select coalesce(json_object_agg(s.section, s.value), '{}')
      from project_settings s where s.project_id = p.id)
  )::text"""
_RECORD = _WORKERS.replace("'provisioned'", "'feed_password', p.feed_password, 'provisioned'")
_FROM = "from projects p join clusters c on c.id = p.cluster_id"

# Projects that have a host: requests to all others find none.
_THERE = "p.state in ('active', 'sleeping', 'suspended')"
SELECT_ACTIVE = f"select {_RECORD} {_FROM} where {_THERE} order by p.slug"
SELECT_ONE = f"select {_RECORD} {_FROM} where {_THERE} and p.slug = $1"
# The same for workers: without the login of the change feed, which may read a cluster's whole log.
WORKERS_ACTIVE = f"select {_WORKERS} {_FROM} where {_THERE} order by p.slug"
WORKERS_ONE = f"select {_WORKERS} {_FROM} where {_THERE} and p.slug = $1"
SELECT_KEPT = f"select {_RECORD} {_FROM} where {_THERE} or p.state = 'deleting' order by p.slug"
SELECT_KEPT_ONE = (
    f"select {_RECORD} {_FROM} where ({_THERE} or p.state = 'deleting') and p.slug = $1"
)
SELECT_BY_ID = f"select {_RECORD} {_FROM} where p.id = $1"
SELECT_UNFINISHED = f"""select {_RECORD} {_FROM} where p.state in ('creating', 'removing')
  order by p.created_at"""
# One of those who try wins, and only that one is noted.
WAKE = """with woken as (
    update projects set state = 'active', state_at = now() where slug = $1 and state = 'sleeping'
    returning slug)
  insert into audit (actor, action, project) select 'node', 'project.wake', slug from woken"""


class Record(msgspec.Struct, frozen=True):
    """A project's row with its keys, settings and the address of its cluster."""

    id: str
    slug: str
    state: str
    flavor: Flavor
    tier: str
    cluster_id: str
    created_at: str
    database: str
    owner_password: str
    authenticator_password: str
    system_password: str
    storage_secret: str
    anon_key: str
    service_key: str
    mongo_url: str | None
    revision: int
    host: str
    port: int
    socket_dir: str | None
    options: dict[str, str]
    keys: tuple[SigningKey, ...]
    settings: dict[str, dict[str, Any]]
    limits: dict[str, Any] = {}
    read_only: bool = False
    reason: str | None = None
    state_at: str = ""
    delete_at: str | None = None
    owner: str = ""
    feed_password: str = ""
    provisioned: int = 0
    upgrade_fault: str | None = None
    storage_accepted: tuple[AcceptedSecret, ...] = ()

    def role(self, kind: str) -> str:
        """Login role of the project: kind is owner, authenticator, system or feed, or
        loader while something is restored."""
        return f"{self.database}_{kind}"

    def dsn(self, kind: str, password: str, *, tcp: bool = False) -> str:
        """Connection string of one of the project's logins, by unix socket unless `tcp`."""
        user = f"{quote(self.role(kind))}:{quote(password, safe='')}"
        options = {"options": OPTIONS} if kind in ("system", "feed") else {}
        if self.socket_dir and not tcp:
            query = _query({"host": self.socket_dir, "port": str(self.port), **options})
            return f"postgresql://{user}@/{self.database}{query}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        query = _query({**self.options, **options})
        return f"postgresql://{user}@{host}:{self.port}/{self.database}{query}"


def _query(values: dict[str, str]) -> str:
    """libpq takes a plus for a plus."""
    return f"?{urlencode(values, quote_via=quote)}" if values else ""


_decoder = msgspec.json.Decoder(Record)


def read(text: str | bytes) -> Record:
    """The row that one of the statements above answered."""
    return _decoder.decode(text)


def project_url(slug: str, config: NodeConfig) -> str:
    """Public address of a project: the bare public URL for the default one, else a subdomain."""
    if slug == config.default_project:
        return config.public_url
    parts = urlsplit(config.public_url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{slug}.{config.base_domain}{port}"


def decode(text: str | bytes, config: NodeConfig) -> Project:
    """The `Project` of a row, with addresses as seen from this node."""
    return to_project(read(text), config)


def served_state(record: Record) -> State:
    """The state as those who serve requests see it: a project that lacks what this program needs is
    not active."""
    if record.state == "active" and record.provisioned < VERSION:
        return "outdated" if record.upgrade_fault is None else "broken"
    return record.state  # type: ignore[return-value]


def to_project(record: Record, config: NodeConfig) -> Project:
    """Projects without Postgres REST keep only the system login, for auth and storage."""
    relational = record.flavor != "mongo"
    return Project(
        id=record.id,
        slug=record.slug,
        flavor=record.flavor,
        tier=record.tier,
        url=project_url(record.slug, config),
        keys=record.keys,
        anon_key=record.anon_key,
        service_key=record.service_key,
        storage_secret=record.storage_secret,
        storage_accepted=record.storage_accepted,
        authenticator_dsn=record.dsn("authenticator", record.authenticator_password)
        if relational
        else None,
        owner_dsn=record.dsn("owner", record.owner_password, tcp=True) if relational else None,
        system_dsn=record.dsn("system", record.system_password),
        mongo_url=of_project(record.mongo_url, config.mongo_address)
        if record.flavor != "postgres"
        else None,
        settings=record.settings,
        revision=record.revision,
        limits=limits_of(config.tiers, record.tier, record.limits),
        state=served_state(record),
        read_only=record.read_only,
        feed_dsn=record.dsn("feed", record.feed_password)
        if relational and record.feed_password
        else None,
    )

"""A project as the data plane sees it, and the identity of one caller."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ichicore.errors import ApiError
from server.base.limits import PRO, Limits

Flavor = Literal["postgres", "mongo", "both"]
State = Literal[
    "creating", "active", "sleeping", "suspended", "deleting", "removing", "outdated", "broken"
]
ProjectRole = Literal["anon", "authenticated", "service_role"]


class SigningKey(msgspec.Struct, frozen=True):
    """A key that verifies (and, when `current`, signs) the project's tokens.

    algorithm: HS256, RS256, ES256 or EdDSA. secret: text for HS256; PEM private key otherwise.
    """

    kid: str
    algorithm: str
    secret: str
    current: bool = True


class AcceptedSecret(msgspec.Struct, frozen=True):
    """A secret that signs no more, or not yet. until: epoch seconds."""

    secret: str
    until: float


class Project(msgspec.Struct, frozen=True):
    """One project, immutable; a change of settings makes a new value with a higher revision.

    slug: first DNS label. authenticator_dsn: login that may only switch to the three roles.
    owner_dsn: owner of the project's database, the app developer's login. system_dsn: login that
    owns the schemas auth, storage and realtime. feed_dsn: login with the right of replication, for
    the change feed alone, None in workers. settings: section name to plain JSON object (cors,
    postgres, auth, mongo, realtime, storage, functions). storage_secret signs read and upload
    tokens, storage_accepted are others that have signed some. limits: what the project may use, by
    its tier and its own overrides. state: a service is only asked for active ones; whoever keeps
    connections, sockets or memory for a project gives them up when it is told
    (Directory.on_change) of another state. outdated: active, but made by an older program and not
    yet brought up to date, which waking it does; broken: that failed. read_only: over its disk
    quota; what would grow its databases is refused with 507 quota_exceeded.
    """

    id: str
    slug: str
    flavor: Flavor
    tier: str
    url: str
    keys: tuple[SigningKey, ...]
    anon_key: str
    service_key: str
    storage_secret: str
    authenticator_dsn: str | None
    owner_dsn: str | None
    system_dsn: str | None
    mongo_url: str | None
    settings: dict[str, dict[str, Any]]
    revision: int
    limits: Limits = PRO
    state: State = "active"
    read_only: bool = False
    feed_dsn: str | None = None
    storage_accepted: tuple[AcceptedSecret, ...] = ()


def over_quota() -> ApiError:
    """The refusal of what would grow the databases of a project that is over its disk quota."""
    return ApiError(
        507, "quota_exceeded",
        "The project's databases are larger than its plan allows: reading and deleting go on, "
        "everything else waits until there is room again.",
    )  # fmt: skip


class Identity(msgspec.Struct, frozen=True):
    """Who makes a request.

    role: effective database role. uid: `sub` of the user token or None. claims: payload of the
    token that decided the role. claims_json: the same, as JSON text. key_role: role of the apikey
    header's key, None without one. session_id: of the user token. exp: epoch seconds or None.
    """

    role: str
    uid: str | None = None
    claims: dict[str, Any] = {}
    claims_json: bytes = b"{}"
    key_role: str | None = None
    session_id: str | None = None
    exp: float | None = None

    @property
    def known(self) -> bool:
        """Whether the caller presented any credential."""
        return bool(self.claims)


NOBODY = Identity(role="anon")  # nothing presented; only routes that need no key pass it on

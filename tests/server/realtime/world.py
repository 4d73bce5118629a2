"""Projects that exist only here, and a realtime process over them."""

from __future__ import annotations

from server.base.limits import DEFAULT_TIERS
from server.base.project import Project, SigningKey


def project(secret, rules, *, slug="default", id="p1", kid="k", cors=(), tier="business", **more):
    """A project whose tokens are signed with `secret`. more: fields of Project."""
    values = {
        "id": id, "slug": slug, "flavor": "both", "tier": tier, "url": f"http://{slug}.localhost",
        "keys": (SigningKey(kid, "HS256", secret),), "anon_key": "", "service_key": "",
        "storage_secret": "s", "authenticator_dsn": None, "owner_dsn": None, "system_dsn": None,
        "mongo_url": None, "settings": {"realtime": rules, "cors": {"origins": list(cors)}},
        "revision": 1, "limits": DEFAULT_TIERS[tier],
    }  # fmt: skip
    return Project(**{**values, **more})


class Projects:
    """A Directory."""

    def __init__(self, projects):
        self.projects = {p.slug: p for p in projects}
        self.callbacks = []

    def get(self, slug):
        return self.projects.get(slug)

    def all(self):
        return list(self.projects.values())

    def on_change(self, callback):
        self.callbacks.append(callback)

    def set(self, slug, value):
        if value is None:
            del self.projects[slug]
        else:
            self.projects[slug] = value
        for callback in self.callbacks:
            callback(value, slug)

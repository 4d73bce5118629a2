"""What the gateway keeps per project, compiled once for each revision of its settings."""

from __future__ import annotations

from server.base.cors import CorsPolicy, origins
from server.base.keys import Denied, KeyRing
from server.base.project import Project
from server.gateway.routes import ROUTES


class Site:
    """A project with its keys, its origins and the routes it has, by their first segment."""

    __slots__ = ("cors", "project", "ring", "routes", "slug")

    def __init__(self, project: Project, denied: Denied) -> None:
        self.project = project
        self.slug = project.slug
        self.ring = KeyRing(project, denied)
        self.cors = CorsPolicy(origins(project.settings.get("cors", {})))
        self.routes = {
            f"/{route.name}": route
            for route in ROUTES.values()
            if route.name != "cdn" and route.flavor in (None, project.flavor, *_both(project))
        }


def _both(project: Project) -> tuple[str, ...]:
    return ("postgres", "mongo") if project.flavor == "both" else ()

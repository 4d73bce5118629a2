"""What the gateway keeps per project, compiled once for each revision of its settings."""

from __future__ import annotations

from server.base.cors import CorsPolicy, origins
from server.base.keys import Denied, KeyRing
from server.base.project import Project
from server.gateway.routes import ROUTES
from server.gateway.traffic import Traffic

BURST = 2.0  # seconds' worth of requests that may come at once


class Site:
    """A project with its keys, its origins and the routes it has, by their first segment. plain:
    its state stands in the way of no request. tally: counts its requests and bounds their rate.
    traffic: of its bodies, None where nothing bounds it."""

    __slots__ = ("cors", "plain", "project", "ring", "routes", "slug", "tally", "traffic")

    def __init__(self, project: Project, denied: Denied, traffic: Traffic) -> None:
        self.project = project
        self.slug = project.slug
        self.plain = project.state == "active" and not project.read_only
        self.tally = tally = traffic.tally
        tally.limit(project.limits.requests_per_second, BURST * project.limits.requests_per_second)
        traffic.rate = project.limits.traffic
        self.traffic = traffic if traffic.rate else None
        self.ring = KeyRing(project, denied)
        self.cors = CorsPolicy(origins(project.settings.get("cors", {})))
        self.routes = {
            f"/{route.name}": route
            for route in ROUTES.values()
            if route.name != "cdn" and route.flavor in (None, project.flavor, *_both(project))
        }


def _both(project: Project) -> tuple[str, ...]:
    return ("postgres", "mongo") if project.flavor == "both" else ()
